"""Where agents publish to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

import msgspec
import structlog

from nodestate.broker.control import decode_resync
from nodestate.broker.delivery_tracking import Confirms, OnDone
from nodestate.broker.link import AmqpLink, VirtualLink, open_link, unavailable
from nodestate.broker.topology import Topology
from nodestate.config import Config
from nodestate.errors import BadEventError, BrokerUnavailableError, UnconfirmedError
from nodestate.model.orders import Answer, Order, bad_order, decode_order, encode
from nodestate.model.partitioning import BUCKETS_COUNT
from nodestate.ports import Clock, Resync, SystemClock

AGENT_HEARTBEATS_COUNT: Final = 3
"""The AMQP heartbeat, in signs of life: a publisher that makes no other calls must not lose its connection."""
MAX_ORDERS_COUNT: Final = 1_000
"""Orders that one ``resyncs`` takes in: an agent gives signs of life between two of them, however many come."""


class KombuSink:
    """A ``ports.Sink`` and ``ports.AgentInbox`` over kombu, with publisher confirms that are not waited for.

    away --publish, resyncs--> connected
    connected --an error, close--> away; every unconfirmed publish is told ``on_done(False)``, once

    ``publish`` that raises did not take the event: its ``on_done`` is never called. Virtual transports (``memory://``,
    Redis) confirm at once. With ``control`` the sink has a queue of its own for resync requests; those that are
    broadcast before it connected, or while it is away, are missed: agents report in full when they come back only
    if they lost something, so who misses a node asks again. Orders for the nodes of ``listen_for`` come to another queue
    of its own; they expire, so those that are missed are given up by who gave them.

    It connects at the first call, not before, and makes one try per call: the caller decides when to try again.
    Its connection lives if some call is made every few ``heartbeat_s``.
    """

    def __init__(self, config: Config, control: bool = True, clock: Clock | None = None) -> None:
        self._config = config
        self._control = control
        self._clock = clock or SystemClock()
        self._outlet: _AmqpOutlet | _VirtualOutlet | None = None
        self._asked: list[Resync] = []
        self._nodes: dict[str, None] = {}
        self._bodies: list[bytes] = []
        self.bad_orders = 0

    # -- ports.Sink

    def publish(self, bucket: int, body: bytes, on_done: OnDone) -> None:
        """Send one event; ``on_done(True)`` when the broker confirmed, ``on_done(False)`` when it was lost or refused.

        Blocks only while ``confirm_window`` publishes are unconfirmed, at most ``broker_timeout_s`` without any
        confirm. ``on_done`` is called within this or a later call of the sink, and must not publish.
        """
        outlet = self._outlet or self._connect()
        try:
            if outlet.went_stale():
                self._lose(outlet)
                outlet = self._connect()
            outlet.publish(bucket, body, on_done)
        except outlet.link.errors as error:
            self._lose(outlet)
            raise unavailable(self._config, error) from error

    def flush(self, timeout_s: float) -> None:
        """Wait until everything is confirmed. Raises ``UnconfirmedError``, or ``BrokerUnavailableError`` if the
        connection broke meanwhile; what was lost by then was told.
        """
        outlet = self._outlet
        if outlet is None:
            return
        deadline = self._clock.monotonic() + timeout_s
        with self._losing(outlet):
            while outlet.unconfirmed:
                remaining = deadline - self._clock.monotonic()
                if remaining <= 0 or not outlet.pump(remaining):
                    break
        if outlet.unconfirmed:
            raise UnconfirmedError(outlet.unconfirmed, timeout_s)

    def resyncs(self, timeout_s: float) -> list[Resync]:
        """Resync requests that came since the last call; waits up to ``timeout_s`` for the first."""
        outlet = self._outlet or self._connect()
        deadline = self._clock.monotonic() + timeout_s
        with self._losing(outlet):
            while len(self._bodies) < MAX_ORDERS_COUNT and outlet.pump(
                0 if self._asked or self._bodies else max(0.0, deadline - self._clock.monotonic())
            ):
                pass
        asked, self._asked = self._asked, []
        return asked

    def close(self) -> None:
        """Close the connection; what is not confirmed is told as lost. Using the sink again reconnects."""
        outlet, self._outlet = self._outlet, None
        self._asked, self._bodies = [], []
        if outlet is not None:
            outlet.link.close()
            outlet.lose()

    # -- ports.AgentInbox

    def answer_census(self, queue: str, body: bytes) -> None:
        """Say one node's version to whoever asked; gets lost without a sound where the queue is gone."""
        outlet = self._outlet or self._connect()
        with self._losing(outlet):
            outlet.link.send("", queue, body)

    def listen_for(self, nodes: Sequence[str]) -> None:
        """Take orders for these nodes too, from now on (some milliseconds later at RabbitMQ) and after each reconnect."""
        new = [node for node in nodes if node not in self._nodes]
        self._nodes.update(dict.fromkeys(new))
        outlet = self._outlet
        if new and outlet is not None:
            with self._losing(outlet):
                self._listen(outlet, new)

    def stop_listening_for(self, nodes: Sequence[str]) -> None:
        """Leave orders for these nodes to others."""
        known = [node for node in nodes if node in self._nodes]
        for node in known:
            del self._nodes[node]
        outlet = self._outlet
        if outlet is not None and outlet.box:
            with self._losing(outlet):
                outlet.link.unbind(outlet.box, Topology.of(self._config).orders, known)

    def orders(self) -> list[Order]:
        """Orders that came with ``resyncs``; what is not understood is answered, where it says to whom, and logged."""
        bodies, self._bodies = self._bodies, []
        orders: list[Order] = []
        for body in bodies:
            try:
                order = decode_order(body)
                if order.node in self._nodes:
                    orders.append(order)
            except BadEventError as error:
                self._refuse(body, error)
        return orders

    def answer(self, queue: str, answer: Answer) -> None:
        """Tell who gave an order what became of it; gets lost without a sound where the queue is gone."""
        self.answer_census(queue, encode(answer))

    # -- inside

    def _refuse(self, body: bytes, error: BadEventError) -> None:
        self.bad_orders += 1
        structlog.get_logger("nodestate.broker").warning("order not understood", why=str(error))
        told = bad_order(body, error)
        if told is not None:
            with suppress(BrokerUnavailableError):  # the next call will tell
                self.answer(*told)

    def _listen(self, outlet: _AmqpOutlet | _VirtualOutlet, nodes: Sequence[str]) -> None:
        if not outlet.box:
            outlet.box = outlet.link.listen(self._take_order)
        outlet.link.bind(outlet.box, Topology.of(self._config).orders, nodes)

    def _take_order(self, body: bytes) -> None:
        self._bodies.append(body)

    def _connect(self) -> _AmqpOutlet | _VirtualOutlet:
        heartbeat_s = max(self._config.broker_heartbeat_s, math.ceil(AGENT_HEARTBEATS_COUNT * self._config.heartbeat_s))
        link = open_link(self._config, "agent", heartbeat_s)
        outlet: _AmqpOutlet | _VirtualOutlet
        try:
            if isinstance(link, AmqpLink):
                outlet = _AmqpOutlet(self._config, link, heartbeat_s, self._clock)
            else:
                outlet = _VirtualOutlet(self._config, link, self._clock, listening=self._control)
            if self._control:
                link.listen(self._take_control, Topology.of(self._config).control)
            if self._nodes:
                self._listen(outlet, list(self._nodes))
        except link.errors as error:
            link.drop()
            raise unavailable(self._config, error) from error
        self._outlet = outlet
        return outlet

    def _take_control(self, body: bytes) -> None:
        try:
            self._asked.append(decode_resync(body))
        except msgspec.DecodeError as error:
            structlog.get_logger("nodestate.broker").warning("control message not understood", why=str(error))

    def _lose(self, outlet: _AmqpOutlet | _VirtualOutlet) -> None:
        self._outlet = None
        outlet.link.drop()
        outlet.lose()

    @contextmanager
    def _losing(self, outlet: _AmqpOutlet | _VirtualOutlet) -> Iterator[None]:
        try:
            yield
        except outlet.link.errors as error:
            self._lose(outlet)
            raise unavailable(self._config, error) from error


class _AmqpOutlet:
    """Publishes on a confirming channel, with a bounded number under way."""

    def __init__(self, config: Config, link: AmqpLink, heartbeat_s: float, clock: Clock) -> None:
        self.link = link
        self.box = ""
        self._window = config.confirm_window
        self._timeout_s = config.broker_timeout_s
        self._clock = clock
        self._confirms = Confirms()
        self._channel = link.confirming(self._confirms.settle)
        self._message = link.prepared()
        self._exchange = Topology.of(config).exchange
        self._keys = [str(bucket) for bucket in range(BUCKETS_COUNT)]
        self._beat_s = heartbeat_s / 2
        self._beat_at = clock.monotonic()

    @property
    def unconfirmed(self) -> int:
        return len(self._confirms)

    def went_stale(self) -> bool:
        """Take in what came; True if the connection broke while nothing was under way, which loses nothing.

        Looked for at each publish, not only when the window is full: so what was lost is known at once.
        """
        link = self.link
        idle = not self._confirms
        try:
            while link.has_input(0):
                link.read()
        except link.errors:
            if idle:
                return True
            raise
        return False

    def publish(self, bucket: int, body: bytes, on_done: OnDone) -> None:
        link = self.link
        while len(self._confirms) >= self._window:
            if not link.has_input(self._timeout_s):
                raise TimeoutError(f"{len(self._confirms)} publishes unconfirmed, and none for {self._timeout_s:g} s")
            link.read()
        link.post(self._channel, self._exchange, self._keys[bucket], body, self._message)
        self._confirms.sent(on_done)

    def pump(self, timeout_s: float) -> bool:
        """Take in one frame; False if none came. Keeps the connection's heartbeat."""
        came = self.link.has_input(timeout_s)
        if came:
            self.link.read()
        now = self._clock.monotonic()
        if now >= self._beat_at:
            self.link.beat()
            self._beat_at = now + self._beat_s
        return came

    def lose(self) -> None:
        self._confirms.lose()


class _VirtualOutlet:
    """Publishes on a virtual transport: done when the call returns."""

    unconfirmed = 0

    def __init__(self, config: Config, link: VirtualLink, clock: Clock, *, listening: bool) -> None:
        self.link = link
        self.box = ""
        self._clock = clock
        self._exchange = Topology.of(config).exchange
        self._listening = listening

    def publish(self, bucket: int, body: bytes, on_done: OnDone) -> None:
        self.link.publish(self._exchange, bucket, body)
        on_done(True)

    def pump(self, timeout_s: float) -> bool:
        if self._listening or self.box:
            return self.link.pump(timeout_s)
        self._clock.sleep(timeout_s)
        return False

    def went_stale(self) -> bool:
        return False

    def lose(self) -> None:
        """Nothing is under way."""

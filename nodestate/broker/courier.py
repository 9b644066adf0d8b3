"""A scheduler's way to agents, and what they answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

import structlog

from nodestate.broker.link import AmqpLink, VirtualLink, open_link, unavailable
from nodestate.broker.topology import Topology
from nodestate.config import Config
from nodestate.errors import BadEventError, BrokerUnavailableError
from nodestate.model.orders import Answer, Order, decode_answer, encode, no_agent
from nodestate.ports import Clock, SystemClock

READ_EVERY_COUNT: Final = 100
"""Orders that are sent between two looks at what comes back: a broker that can't get rid of it takes nothing more."""
MAX_ANSWERS_COUNT: Final = 1_000
"""Answers that one call takes in, however many come."""


class KombuCourier:
    """A ``ports.Courier`` over kombu: a connection of its own with a queue for answers, which goes with it.

    away --reply_to, send, answers--> connected
    connected --an error, close--> away; answers under way are lost

    RabbitMQ gives back an order for a node that nobody listens for, and drops one that waits in a queue for longer than
    ``expires_s``. Virtual transports (``memory://``, Redis) never drop any, so there the agent refuses what is overdue;
    the courier looks up who listens, once for each ``send``. An agent that ended without a word still has its queue in
    Redis, and in RabbitMQ until its heartbeats are missed: its orders find silence, and the deadline decides.

    It has no heartbeat, as schedulers may be idle: ``reply_to`` makes a connection that broke meanwhile anew, unseen.
    """

    def __init__(self, config: Config, clock: Clock | None = None) -> None:
        self._config = config
        self._clock = clock or SystemClock()
        self._wire: _AmqpWire | _VirtualWire | None = None
        self._came: list[Answer] = []

    @property
    def reply_to(self) -> str:
        """The queue that answers come back to. Raises ``BrokerUnavailableError``."""
        wire = self._wire
        if wire is not None and wire.went_stale():
            self._lose(wire)
        return self._connected().box

    def send(self, orders: Sequence[Order], expires_s: float) -> None:
        """Send them to their nodes' agents. Raises ``BadEventError`` before the first is sent where one is too large, and
        ``BrokerUnavailableError`` where some may have been.
        """
        bodies = [encode(order) for order in orders]
        wire = self._connected()
        with self._losing(wire):
            wire.send(orders, bodies, expires_s)

    def answers(self, timeout_s: float) -> list[Answer]:
        """Answers that came since the last call; waits up to ``timeout_s`` for the first."""
        deadline = self._clock.monotonic() + timeout_s
        wire = self._connected()
        with self._losing(wire):
            while len(self._came) < MAX_ANSWERS_COUNT and wire.pump(
                0 if self._came else max(0.0, deadline - self._clock.monotonic())
            ):
                pass
        came, self._came = self._came, []
        return came

    def close(self) -> None:
        """Close the connection; answers under way are lost. Using the courier again reconnects."""
        wire, self._wire = self._wire, None
        self._came = []
        if wire is not None:
            wire.link.close()

    # -- inside

    def _connected(self) -> _AmqpWire | _VirtualWire:
        if self._wire is None:
            link = open_link(self._config, "courier")
            try:
                if isinstance(link, AmqpLink):
                    self._wire = _AmqpWire(self._config, link, self._take, self._clock)
                else:
                    self._wire = _VirtualWire(self._config, link, self._take)
            except link.errors as error:
                link.drop()
                raise unavailable(self._config, error) from error
        return self._wire

    def _take(self, answer: Answer) -> None:
        self._came.append(answer)

    def _lose(self, wire: _AmqpWire | _VirtualWire) -> None:
        self._wire = None
        wire.link.drop()

    @contextmanager
    def _losing(self, wire: _AmqpWire | _VirtualWire) -> Iterator[None]:
        try:
            yield
        except wire.link.errors as error:
            self._lose(wire)
            raise unavailable(self._config, error) from error


class _AmqpWire:
    """Publishes without confirms: what is lost on the way is found missing by its deadline, as what is lost behind it."""

    def __init__(self, config: Config, link: AmqpLink, on_answer: Callable[[Answer], None], clock: Clock) -> None:
        self.link = link
        self.box = link.listen(partial(_read_answer, on_answer))
        self._config = config
        self._clock = clock
        self._channel = link.asking(lambda body: on_answer(no_agent(body)))
        self._exchange = Topology.of(config).orders

    def went_stale(self) -> bool:
        """Take in what came; True if the connection broke."""
        try:
            self.link.take_in()
        except self.link.errors:
            return True
        return False

    def send(self, orders: Sequence[Order], bodies: Sequence[bytes], expires_s: float) -> None:
        link = self.link
        message = link.fleeting(expires_s)
        deadline = self._clock.monotonic() + self._config.broker_timeout_s
        for number, (order, body) in enumerate(zip(orders, bodies, strict=True)):
            if number % READ_EVERY_COUNT == 0:
                link.take_in()
                if link.blocked:
                    raise BrokerUnavailableError(self._config.broker_safe, f"it takes no messages: {link.blocked}")
                if self._clock.monotonic() > deadline:
                    raise TimeoutError(f"{number} of {len(orders)} orders sent in {self._config.broker_timeout_s:g} s")
            link.post(self._channel, self._exchange, order.node, body, message)

    def pump(self, timeout_s: float) -> bool:
        """Take in one frame; False if none came."""
        came = self.link.has_input(timeout_s)
        if came:
            self.link.read()
        return came


class _VirtualWire:
    """Looks up itself where orders go: kombu would go through all bindings for each, and says nothing of those that have none."""

    def __init__(self, config: Config, link: VirtualLink, on_answer: Callable[[Answer], None]) -> None:
        self.link = link
        self.box = link.listen(partial(_read_answer, on_answer))
        self._on_answer = on_answer
        self._exchange = Topology.of(config).orders

    def went_stale(self) -> bool:
        return False

    def send(self, orders: Sequence[Order], bodies: Sequence[bytes], expires_s: float) -> None:  # noqa: ARG002 - see KombuCourier
        routes = self.link.routes(self._exchange)
        for order, body in zip(orders, bodies, strict=True):
            queues = routes.get(order.node)
            if not queues:
                self._on_answer(no_agent(body))
                continue
            for queue in queues:
                self.link.send("", queue, body)

    def pump(self, timeout_s: float) -> bool:
        return self.link.pump(timeout_s)


def _read_answer(on_answer: Callable[[Answer], None], body: bytes) -> None:
    try:
        on_answer(decode_answer(body))
    except BadEventError as error:
        structlog.get_logger("nodestate.broker").warning("answer not understood", why=str(error))

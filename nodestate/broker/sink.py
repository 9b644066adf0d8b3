"""An agent's way to the broker."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import structlog

from nodestate.auth import OrderAuth, order_auth
from nodestate.broker.confirm_watch import ConfirmWatch
from nodestate.broker.connector import SessionHolder, open_session
from nodestate.broker.resyncs import decode_resync
from nodestate.broker.sessions import CellSession, OnDone, OrderQueue, OwnQueue, PublisherSession
from nodestate.broker.topology import REBIND_S
from nodestate.broker.users import check_sender
from nodestate.config import Config
from nodestate.errors import BadEventError, BrokerUnavailableError, UnconfirmedError
from nodestate.histogram import COMMIT_BOUNDS_S, Histogram
from nodestate.model.orders import Answer, Order, bad_order, decode_order, encode
from nodestate.model.presence import Presence, decode_presence
from nodestate.ports import Clock, OrderCounts, Resync, SystemClock

AGENT_HEARTBEATS_COUNT: Final = 3
"""The AMQP heartbeat in multiples of ``heartbeat_s``.

An agent that only sends heartbeat events must keep its connection.
"""
MAX_ORDERS_COUNT: Final = 1_000
"""Orders and resync requests that one ``resyncs`` reads at most, so that an agent can send heartbeat events between two
calls.
"""
MAX_ORDERS_BYTES: Final = 8 * 1024 * 1024
"""Size of orders that one ``resyncs`` reads at most, beside the last one."""


class KombuSink:
    """A ``ports.Sink`` and ``ports.AgentInbox`` over kombu, with publisher confirms that are not waited for.

    away --any call but flush, close--> connected
    connected --an error, close, or events refused or none confirmed for seconds (``ConfirmWatch``)--> away;
        ``on_done(False)`` is called once for every unconfirmed event

    A ``publish`` that raises did not take the event: its ``on_done`` is never called. Virtual transports
    (``memory://``, Redis) confirm at once.

    With ``control`` the sink has a queue of its own for resync requests. It misses requests that are broadcast while it
    is away; a consumer that misses a node asks again. Orders for the nodes of ``listen_for`` arrive in another queue of
    its own. Orders expire, so the scheduler that sent one that was missed gives it up.

    The sink connects at the first call. Each call makes one attempt: the caller decides when to try again. The
    connection lives if some call is made every few ``heartbeat_s``.
    """

    def __init__(self, config: Config, control: bool = True, clock: Clock | None = None) -> None:
        self._config = config
        """The cell's settings."""
        self._control = control
        """Whether to read resync requests."""
        self._clock = clock or SystemClock()
        """The clock for timeouts and heartbeats."""
        self._auth = order_auth(config, self._clock) if control else OrderAuth()
        """Checks orders, and signs answers."""
        self._sessions: SessionHolder[PublisherSession] = SessionHolder(config, self._open_connection, self._prepare)
        """The session, while connected."""
        self._watch = ConfirmWatch(self._clock, config.broker_timeout_s, "agent")
        """Says when the broker has refused events, or confirmed none, for too long."""
        self._control_queue: OwnQueue | None = None
        """The session's queue for resync requests."""
        self._order_queue: OrderQueue | None = None
        """The session's queue for orders; opened when the sink first listens for a node."""
        self._rebind_at = 0.0
        """Monotonic time at which these queues are bound again."""
        self._resyncs: list[Resync] = []
        """Resync requests that arrived and are not yet returned."""
        self._nodes: dict[str, None] = {}
        """Nodes whose orders the sink listens for."""
        self._order_bodies: list[tuple[bytes, str]] = []
        """Orders that arrived and are not yet returned, with the node of their routing key; empty if not known."""
        self._order_bytes = 0
        """Size of these orders."""
        self._presences: list[Presence] = []
        """Presences that arrived and are not yet returned."""
        self.confirm_durations = Histogram(COMMIT_BOUNDS_S)
        """Seconds from the publish of an event to its confirm. One event at a time is measured."""
        self._measured_at = math.inf
        """Monotonic time at which the measured event was published; infinite if none is on its way."""
        self.bad_orders = 0
        """Number of orders that could not be decoded, came for another node, or whose signature is missing or wrong."""
        self.bad_resyncs = 0
        """Number of resync requests that could not be decoded."""

    # -- ports.Sink

    @property
    def unconfirmed_count(self) -> int:
        """Number of events that were sent and not yet confirmed. Safe to read from any thread."""
        session = self._sessions.current
        return session.unconfirmed if session is not None else 0

    def publish(self, bucket: int, body: bytes, on_done: OnDone) -> None:
        """Send one event; ``on_done`` is called within this or a later call of the sink, and must not publish.

        It gets True when the broker has confirmed the event, and False when the event was lost or refused, or came back
        because its partition has no queue: only that event is concerned.

        Blocks only while ``confirm_window`` events are unconfirmed, and raises after ``broker_timeout_s`` without a
        confirm. Raises at once while the broker is short of memory or disk; the session is kept then, and events that
        were sent before may still be confirmed.
        """
        session = self._sessions.get()
        try:  # not ``use``: its context manager would cost a good part of a publish
            if session.is_stale() or self._watch.gives_up(session.alarm):
                self._sessions.drop()
                session = self._sessions.get()
            session.publish(bucket, body, on_done if self._measured_at < math.inf else self._measured(on_done))
        except session.errors as error:
            self._measured_at = math.inf
            raise self._sessions.lost(error) from error

    def _measured(self, on_done: OnDone) -> OnDone:
        """Return ``on_done`` for an event that is published now, which also measures the time to its confirm."""
        began = self._measured_at = self._clock.monotonic()

        def done(ok: bool) -> None:
            if ok and self._measured_at == began:
                self.confirm_durations.observe(self._clock.monotonic() - began)
            self._measured_at = math.inf
            on_done(ok)

        return done

    def flush(self, timeout_s: float) -> None:
        """Wait until everything is confirmed.

        Raises ``UnconfirmedError`` after ``timeout_s``, or ``BrokerUnavailableError`` if the connection broke
        meanwhile: ``on_done(False)`` was then called for each lost event.
        """
        if self._sessions.current is None:
            return
        deadline = self._clock.monotonic() + timeout_s
        with self._sessions.use() as session:
            while session.unconfirmed:
                remaining = deadline - self._clock.monotonic()
                if remaining <= 0 or not session.pump(remaining):
                    break
        if session.unconfirmed:
            raise UnconfirmedError(session.unconfirmed, timeout_s, session.alarm)

    def resyncs(self, timeout_s: float) -> list[Resync]:
        """Resync requests that arrived since the last call.

        Waits up to ``timeout_s`` for the first of them, or for an order. Raises ``BrokerUnavailableError`` while the
        broker is short of memory or disk: no answer could be sent. The next call returns what arrived meanwhile.
        """
        deadline = self._clock.monotonic() + timeout_s
        with self._sessions.use() as session:
            self._bind_again()
            while self._has_room() and session.pump(
                0 if self._resyncs or self._order_bodies else max(0.0, deadline - self._clock.monotonic())
            ):
                pass
        if session.alarm:
            raise BrokerUnavailableError(self._config.broker_safe, session.alarm)
        resyncs, self._resyncs = self._resyncs, []
        return resyncs

    def close(self) -> None:
        """Close the connection; unconfirmed events are reported as lost. Using the sink again reconnects."""
        self._resyncs, self._order_bodies, self._order_bytes = [], [], 0
        self._sessions.close()

    @property
    def unsigned_orders(self) -> int:
        """Number of orders that were accepted without a valid signature, in the modes accept and warn."""
        return self._auth.orders.unsigned

    # -- ports.AgentInbox

    def answer_census(self, queue: str, node: str, body: bytes) -> None:
        """Send one node's version to the queue that a ``Resync`` named. It is lost silently if that queue is gone."""
        with self._sessions.use() as session:
            session.answer(queue, node, body)

    def listen_for(self, nodes: Sequence[str]) -> None:
        """Also read orders for these nodes, from now on and after each reconnect.

        At RabbitMQ this takes effect some milliseconds later.
        """
        new = [node for node in nodes if node not in self._nodes]
        self._nodes.update(dict.fromkeys(new))
        if new and self._sessions.current is not None:
            with self._sessions.use() as session:
                self._bind(session, new)

    def stop_listening_for(self, nodes: Sequence[str]) -> None:
        """No longer read orders for these nodes."""
        known = [node for node in nodes if node in self._nodes]
        for node in known:
            del self._nodes[node]
        if self._sessions.current is not None and self._order_queue is not None:
            with self._sessions.use():
                self._order_queue.unbind(known)

    def orders(self) -> list[Order]:
        """Orders that arrived within calls of ``resyncs``.

        An order that cannot be decoded, or whose signature is missing or wrong, is logged, and refused in an answer if
        it says where to send one. An order that came with the routing key of another node is logged only.
        """
        bodies, self._order_bodies, self._order_bytes = self._order_bodies, [], 0
        orders: list[Order] = []
        for body, node in bodies:
            try:
                order = decode_order(body)
                check_sender(order.node, node, "an order")
                if order.node in self._nodes:
                    self._auth.check_order(order, body)
                    orders.append(order)
            except BadEventError as error:
                presence = decode_presence(body)
                if presence is None:
                    self._refuse(body, node, error)
                elif presence.node in self._nodes:
                    self._receive_presence(presence, body, node)
        return orders

    def order_counts(self, node: str) -> OrderCounts:
        """Return how many orders and presences for a node had no valid signature."""
        return self._auth.counts(node)

    def announce(self, presence: Presence) -> None:
        """Send a presence to all agents that listen for its node."""
        with self._sessions.use() as session:
            session.announce(presence.node, self._auth.encode_presence(presence))

    def presences(self) -> list[Presence]:
        """Presences that the last call of ``orders`` found."""
        presences, self._presences = self._presences, []
        return presences

    def answer(self, queue: str, answer: Answer) -> None:
        """Send the outcome of an order to the scheduler that gave it. It is lost silently if that queue is gone."""
        self.answer_census(queue, answer.node, self._auth.encode_answer(answer))

    # -- inside

    def _open_connection(self) -> CellSession:
        return open_session(self._config, "agent", self._heartbeat_s)

    def _prepare(self, connection: CellSession) -> PublisherSession:
        self._watch.opened()
        session = connection.publisher(self._heartbeat_s, self._clock, self._watch)
        self._control_queue = self._order_queue = None
        self._rebind_at = self._clock.monotonic() + REBIND_S
        if self._control:
            self._control_queue = session.control_queue(self._on_control)
        if self._nodes:
            self._bind(session, list(self._nodes))
        return session

    @property
    def _heartbeat_s(self) -> float:
        return max(self._config.broker_heartbeat_s, math.ceil(AGENT_HEARTBEATS_COUNT * self._config.heartbeat_s))

    def _bind(self, session: PublisherSession, nodes: Sequence[str]) -> None:
        if self._order_queue is None:
            self._order_queue = session.order_queue(self._on_order)
        self._order_queue.bind(nodes)

    def _bind_again(self) -> None:
        """Bind the session's queues again if that is due; see ``OwnQueue.bind_again``."""
        now = self._clock.monotonic()
        if now < self._rebind_at:
            return
        self._rebind_at = now + REBIND_S
        for queue in (self._control_queue, self._order_queue):
            if queue is not None:
                queue.bind_again()

    def _has_room(self) -> bool:
        """False if so much was read that it must be returned first."""
        return len(self._order_bodies) + len(self._resyncs) < MAX_ORDERS_COUNT and self._order_bytes < MAX_ORDERS_BYTES

    def _on_order(self, body: bytes, node: str) -> None:
        self._order_bodies.append((body, node))
        self._order_bytes += len(body)

    def _on_control(self, body: bytes) -> None:
        try:
            self._resyncs.append(decode_resync(body))
        except BadEventError as error:
            self.bad_resyncs += 1
            structlog.get_logger("nodestate.broker").warning("cannot decode a resync request", reason=str(error))

    def _receive_presence(self, presence: Presence, body: bytes, node: str) -> None:
        try:
            check_sender(presence.node, node, "a presence")
            self._auth.check_presence(presence, body)
        except BadEventError as error:
            structlog.get_logger("nodestate.broker").warning("a presence is refused", reason=str(error))
        else:
            self._presences.append(presence)

    def _refuse(self, body: bytes, node: str, error: BadEventError) -> None:
        self.bad_orders += 1
        structlog.get_logger("nodestate.broker").warning("an order is refused", reason=str(error))
        refusal = bad_order(body, error)
        # Only for the node of the routing key: the broker ends the session of an agent that answers for others.
        if refusal is not None and (not node or (refusal[1].node == node and node in self._nodes)):
            queue, answer = refusal
            with suppress(BrokerUnavailableError):  # the next call raises it again
                # Not signed: any sender can name the id of another scheduler's order, and the queue of that scheduler.
                self.answer_census(queue, answer.node, encode(answer))

"""An agent's connection to the broker double."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nodestate.auth import OrderAuth
from nodestate.errors import BadEventError, UnconfirmedError
from nodestate.model.orders import Answer, Order, bad_order, decode_order, encode
from nodestate.model.presence import Presence, decode_presence
from nodestate.ports import OrderCounts, Resync
from nodestate.testing.queues import MemoryMessage, MemoryQueue
from nodestate.testing.transit import TransitMessage

if TYPE_CHECKING:  # the broker makes its connections
    from nodestate.testing.broker import MemoryBroker


@dataclass(frozen=True, slots=True)
class _UnconfirmedEvent:
    """An event between ``publish`` and its confirm: its copies, each with its queue, and whom to tell."""

    copies: list[tuple[MemoryQueue, MemoryMessage]]
    on_done: Callable[[bool], None]


class MemorySink:
    """A connection that publishes; a ``ports.Sink`` and a ``ports.AgentInbox``. Made by ``MemoryBroker.sink``.

    connected --close, disconnect, broker.stop--> away --the next call--> connected

    Events are confirmed by ``flush`` and ``resyncs``, not while the broker's ``confirming`` is False.

    Faults: ``disconnect``, and ``MemoryBroker.stop`` and ``confirming``::

        sink = broker.sink()
        broker.confirming = False
        sink.publish(0, b"event", on_done=print)
        sink.disconnect(lose=True)   # the event is gone
        sink.resyncs(timeout_s=0)    # calls on_done(False), once, and reconnects
    """

    def __init__(self, broker: MemoryBroker, auth: OrderAuth | None = None, node: str = "") -> None:
        self._auth = auth or OrderAuth()
        """Checks orders, and signs answers."""
        self._broker = broker
        """The broker that it connects to."""
        self._node = node
        """The node whose user it logs in with; empty: a user of no single node."""
        self._unconfirmed: list[_UnconfirmedEvent] = []
        """Events that were not confirmed yet, oldest first."""
        self._lost: list[Callable[[bool], None]] = []
        """``on_done`` of the events that were unconfirmed when the connection broke; called by the next call."""
        self.resync_requests: list[Resync] = []
        """Resync requests that arrived and are not yet returned."""
        self.order_messages: list[TransitMessage] = []
        """Orders that arrived and are not yet returned."""
        self._presences: list[Presence] = []
        """Presences that arrived and are not yet returned."""
        self.bad_orders = 0
        """Number of orders that could not be decoded, or whose signature is missing or wrong."""
        self._nodes: dict[str, None] = {}
        """Nodes whose orders the sink listens for."""
        if broker.running:
            self._connect()

    # -- ports.Sink

    def publish(self, bucket: int, body: bytes, on_done: Callable[[bool], None]) -> None:
        """Put the event into one queue of each layout. The confirm comes later."""
        self._ensure_connected()
        copies = [
            (queues[bucket % layout], MemoryMessage(body, node=self._node, routed=True))
            for layout, queues in self._broker.layouts.items()
        ]
        for queue, message in copies:
            queue.messages.append(message)
        self._unconfirmed.append(_UnconfirmedEvent(copies, on_done))

    def flush(self, timeout_s: float) -> None:
        """Confirm everything. Raises ``UnconfirmedError`` if the broker is not confirming."""
        self._ensure_connected()
        self._confirm()
        if self._unconfirmed:
            self._broker.pause(timeout_s)
            raise UnconfirmedError(len(self._unconfirmed), timeout_s)

    def close(self) -> None:
        """Close the connection; unconfirmed events are reported as lost. Using the sink again reconnects."""
        self.disconnect(lose=False)
        self._report_lost()

    # -- ports.AgentInbox

    def resyncs(self, timeout_s: float) -> list[Resync]:
        """Resync requests that arrived since the last call. Also confirms events."""
        self._ensure_connected()
        self._confirm()
        if not self.resync_requests and not self.order_messages:
            self._broker.pause(timeout_s)
        resyncs, self.resync_requests = self.resync_requests, []
        return resyncs

    def answer_census(self, queue: str, node: str, body: bytes) -> None:
        """Add one node's version to the broker's ``census``."""
        del node  # the double does not limit who may answer
        self._ensure_connected()
        self._broker.census.setdefault(queue, []).append(body)

    def listen_for(self, nodes: Sequence[str]) -> None:
        """Also take orders for these nodes, from now on and after each reconnect."""
        new = [node for node in nodes if node not in self._nodes]
        self._nodes.update(dict.fromkeys(new))
        if self in self._broker.sinks:
            self._bind(new)

    def stop_listening_for(self, nodes: Sequence[str]) -> None:
        """No longer take orders for these nodes."""
        known = [node for node in nodes if node in self._nodes]
        for node in known:
            del self._nodes[node]
        if self in self._broker.sinks:
            self._unbind(known)

    def orders(self) -> list[Order]:
        """Orders that arrived since the last call and have not expired.

        An order that cannot be decoded is counted, and refused in an answer if it says where to send one.
        """
        self._ensure_connected()
        messages, self.order_messages = self.order_messages, []
        orders: list[Order] = []
        for message in messages:
            if message.expires_at <= self._broker.now():
                continue
            try:
                order = decode_order(message.body)
                if order.node in self._nodes:
                    self._auth.check_order(order, message.body)
                    orders.append(order)
            except BadEventError as error:
                presence = decode_presence(message.body)
                if presence is not None:
                    with suppress(BadEventError):
                        self._auth.check_presence(presence, message.body)
                        self._presences.append(presence)
                    continue
                self.bad_orders += 1
                refusal = bad_order(message.body, error)
                if refusal is not None:
                    queue, answer = refusal
                    self._send_answer(queue, encode(answer))  # not signed, as in ``KombuSink``
        return orders

    def order_counts(self, node: str) -> OrderCounts:
        """Orders and presences for a node without a valid signature."""
        return self._auth.counts(node)

    def announce(self, presence: Presence) -> None:
        """Send a presence to all agents that listen for its node."""
        self._ensure_connected()
        self._broker.transit.send(TransitMessage("presence", presence.node, self._auth.encode_presence(presence)))

    def presences(self) -> list[Presence]:
        """Presences that the last call of ``orders`` found."""
        presences, self._presences = self._presences, []
        return presences

    def answer(self, queue: str, answer: Answer) -> None:
        """Send the outcome of an order to the scheduler that gave it."""
        self._send_answer(queue, self._auth.encode_answer(answer))

    # -- faults

    def disconnect(self, *, lose: bool) -> None:
        """Break the connection.

        The next call reports unconfirmed events as lost; with ``lose`` they are lost indeed.
        """
        if self in self._broker.sinks:
            self._broker.sinks.remove(self)
            self._unbind(self._nodes)
        for event in self._unconfirmed:
            for queue, message in event.copies:
                if lose and message in queue.messages:
                    queue.messages.remove(message)
            self._lost.append(event.on_done)
        self._unconfirmed = []
        self.resync_requests = []
        self.order_messages = []

    # -- inside

    def _connect(self) -> None:
        self._broker.check_running()
        self._broker.sinks.append(self)
        self._bind(self._nodes)

    def _bind(self, nodes: Iterable[str]) -> None:
        for node in nodes:
            self._broker.transit.listeners.setdefault(node, []).append(self)

    def _unbind(self, nodes: Iterable[str]) -> None:
        for node in nodes:
            self._broker.transit.listeners[node].remove(self)

    def _send_answer(self, queue: str, body: bytes) -> None:
        self._ensure_connected()
        self._broker.transit.send(TransitMessage("answer", queue, body))

    def _ensure_connected(self) -> None:
        self._report_lost()
        if self not in self._broker.sinks:
            self._connect()

    def _confirm(self) -> None:
        if self._broker.confirming:
            confirmed, self._unconfirmed = self._unconfirmed, []
            for event in confirmed:
                event.on_done(True)

    def _report_lost(self) -> None:
        lost, self._lost = self._lost, []
        for on_done in lost:
            on_done(False)

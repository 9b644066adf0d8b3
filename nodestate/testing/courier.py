"""A scheduler's connection to the broker double."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nodestate.auth import OrderAuth
from nodestate.errors import BadEventError, BrokerUnavailableError
from nodestate.model.orders import Answer, Order, decode_answer
from nodestate.testing.transit import TransitMessage

if TYPE_CHECKING:  # the broker makes its connections
    from nodestate.testing.broker import MemoryBroker


class MemoryCourier:
    """A connection that brings orders to nodes; a ``ports.Courier``. Made by ``MemoryBroker.courier``.

    away --reply_to, send, answers--> connected --close--> away
    connected --disconnect, broker.stop--> broken --the next call raises; reply_to does not--> away

    Fault: ``disconnect``. To lose or delay single orders and answers, see ``OrderTransit``::

        courier = broker.courier()
        courier.send([order], expires_s=60.0)
        courier.disconnect()
        courier.answers(timeout_s=0)   # raises BrokerUnavailableError; the answers are lost
    """

    def __init__(self, broker: MemoryBroker, auth: OrderAuth | None = None) -> None:
        self.arrived: list[Answer] = []
        """Answers that arrived and are not yet returned."""
        self.bad_answers = 0
        """Number of answers that could not be decoded, or whose signature is missing or wrong."""
        self._refusal = ""
        """Why the last one was refused."""
        self._auth = auth or OrderAuth()
        """Signs orders, and checks answers."""
        self._broker = broker
        """The broker that it connects to."""
        self._queue = ""
        """Name of the queue for answers; empty unless connected."""
        self._broken = False
        """Whether the connection broke and no call has raised since."""

    @property
    def reply_to(self) -> str:
        """The queue that answers come back to. Reconnects if the connection broke, and does not raise for it."""
        self._broken = False
        self._ensure_connected()
        return self._queue

    def send(self, orders: Sequence[Order], expires_s: float) -> None:
        """Send orders to their nodes' agents."""
        bodies = [self._auth.encode_order(order) for order in orders]
        self._ensure_connected()
        expires_at = self._broker.now() + expires_s
        for order, body in zip(orders, bodies, strict=True):
            self._broker.transit.send(TransitMessage("order", order.node, body, expires_at, self))

    def answers(self, timeout_s: float) -> list[Answer]:
        """Answers that arrived since the last call."""
        self._ensure_connected()
        if not self.arrived:
            self._broker.pause(timeout_s)
        arrived, self.arrived = self.arrived, []
        return arrived

    def refused_answers(self) -> tuple[int, str]:
        """See ``ports.Courier``."""
        return self.bad_answers, self._refusal

    def close(self) -> None:
        """Close the connection; answers on their way are lost."""
        self._leave()
        self._broken = False

    def receive(self, body: bytes) -> None:
        """Keep an answer that arrived in the queue, for the next call of ``answers``."""
        try:
            answer = decode_answer(body)
            self._auth.check_answer(answer, body)
        except BadEventError as error:
            self.bad_answers += 1
            self._refusal = str(error)
        else:
            self.arrived.append(answer)

    # -- faults

    def disconnect(self) -> None:
        """Break the connection: the next call raises, and the one after it reconnects, with another ``reply_to``."""
        self._broken = bool(self._queue)
        self._leave()

    # -- inside

    def _leave(self) -> None:
        self._broker.transit.couriers.pop(self._queue, None)
        self._queue = ""
        self.arrived = []

    def _ensure_connected(self) -> None:
        if self._broken:
            self._broken = False
            raise BrokerUnavailableError(self._broker.name, "the connection broke")
        if not self._queue:
            self._broker.check_running()
            self._queue = self._broker.transit.open_queue(self)

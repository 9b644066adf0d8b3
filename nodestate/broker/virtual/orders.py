"""A scheduler's session over a virtual transport."""

from __future__ import annotations

from collections.abc import Sequence

from nodestate.broker.sessions import OnBody, OnNodeBody
from nodestate.broker.topology import Topology
from nodestate.broker.virtual.connection import VirtualConnection
from nodestate.broker.virtual.queues import VirtualOwnQueue
from nodestate.config import Config
from nodestate.model.orders import Order


class VirtualOrderSession:
    """An ``OrderSession`` over a virtual transport: looks up by itself which queues take an order.

    kombu would compare all bindings with each order, and does not report orders that no queue takes. Orders never
    expire in a queue: the agent refuses overdue ones.
    """

    def __init__(
        self, config: Config, connection: VirtualConnection, on_answer: OnNodeBody, on_unroutable: OnBody
    ) -> None:
        self.connection = connection
        """The connection that all goes over."""
        self._on_unroutable = on_unroutable
        """Gets the orders that no queue takes."""
        self._answers = VirtualOwnQueue(connection, on_answer)
        """The queue that answers come back to."""
        self._exchange = Topology.of(config).orders
        """The exchange for orders."""

    @property
    def errors(self) -> tuple[type[BaseException], ...]:
        """See ``TransportSession``."""
        return self.connection.errors

    @property
    def reply_to(self) -> str:
        """See ``OrderSession``."""
        return self._answers.name

    def is_stale(self) -> bool:
        """See ``OrderSession``."""
        return False

    def send(
        self,
        orders: Sequence[Order],
        bodies: Sequence[bytes],
        expires_s: float,  # noqa: ARG002 - orders do not expire here
    ) -> None:
        """See ``OrderSession``. Orders do not expire here, so ``expires_s`` is not used."""
        queues: dict[str, list[str]] = {}
        for node, _, queue in self.connection.bindings(self._exchange):
            queues.setdefault(node, []).append(queue)
        for order, body in zip(orders, bodies, strict=True):
            if order.node not in queues:
                self._on_unroutable(body)
            for queue in queues.get(order.node, ()):
                self.connection.send("", queue, body)

    def pump(self, timeout_s: float) -> bool:
        """See ``OrderSession``."""
        return self.connection.pump(timeout_s)

    def close(self) -> None:
        """See ``TransportSession``."""
        self.connection.close()

    def drop(self) -> None:
        """See ``TransportSession``."""
        self.connection.drop()

"""The ``CellSession`` of the virtual transports."""

from __future__ import annotations

from nodestate.broker.confirm_watch import ConfirmWatch
from nodestate.broker.sessions import OnBody, OnNodeBody, ServerFacts
from nodestate.broker.virtual.connection import VirtualConnection
from nodestate.broker.virtual.consumer import VirtualConsumerSession
from nodestate.broker.virtual.orders import VirtualOrderSession
from nodestate.broker.virtual.publisher import VirtualPublisherSession
from nodestate.broker.virtual.queues import VirtualOwnQueue, VirtualQueues
from nodestate.config import Config
from nodestate.ports import Clock


class VirtualSession:
    """A ``CellSession`` over one connection of a virtual transport."""

    def __init__(self, config: Config, connection: VirtualConnection, url: str) -> None:
        self._config = config
        """The cell's settings."""
        self.connection = connection
        """The connection that all goes over."""
        self.url = url
        """See ``CellSession``."""
        self.queues = VirtualQueues(connection)
        """The cell's queues."""

    @classmethod
    def connect(cls, config: Config, url: str) -> VirtualSession:
        """Connect to one URL.

        Raises ``BrokerUnavailableError``; ``KeyError`` or ``ValueError`` if kombu knows no such URL; ``ImportError`` if
        the transport's client is not installed.
        """
        return cls(config, VirtualConnection(config, url), url)

    @property
    def errors(self) -> tuple[type[BaseException], ...]:
        """See ``TransportSession``."""
        return self.connection.errors

    @property
    def facts(self) -> ServerFacts:
        """See ``CellSession``."""
        return self.connection.facts

    def send(self, exchange: str, key: str, body: bytes) -> None:
        """See ``CellSession``."""
        self.connection.send(exchange, key, body)

    def send_checked(self, exchange: str, key: str, body: bytes) -> None:
        """See ``CellSession``. A virtual transport has published when the call returns."""
        self.connection.send(exchange, key, body)

    def answer_queue(self, on_answer: OnNodeBody) -> VirtualOwnQueue:
        """See ``CellSession``."""
        return VirtualOwnQueue(self.connection, on_answer)

    def pump(self, timeout_s: float) -> bool:
        """See ``CellSession``."""
        return self.connection.pump(timeout_s)

    def consumer(self, number: int, clock: Clock) -> VirtualConsumerSession:
        """See ``CellSession``."""
        return VirtualConsumerSession(self._config, self.connection, number, clock)

    def publisher(
        self,
        heartbeat_s: float,  # noqa: ARG002 - a virtual connection has no heartbeat
        clock: Clock,
        watch: ConfirmWatch,  # noqa: ARG002 - each event is confirmed at once
    ) -> VirtualPublisherSession:
        """See ``CellSession``. A virtual connection has no heartbeat, and each event is confirmed at once."""
        return VirtualPublisherSession(self._config, self.connection, clock)

    def orders(
        self,
        on_answer: OnNodeBody,
        on_unroutable: OnBody,
        clock: Clock,  # noqa: ARG002 - sending has no deadline here
    ) -> VirtualOrderSession:
        """See ``CellSession``. Sending has no deadline here, so it needs no clock."""
        return VirtualOrderSession(self._config, self.connection, on_answer, on_unroutable)

    def close(self) -> None:
        """See ``TransportSession``."""
        self.connection.close()

    def drop(self) -> None:
        """See ``TransportSession``."""
        self.connection.drop()

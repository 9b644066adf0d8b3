"""The ``CellSession`` of RabbitMQ."""

from __future__ import annotations

from typing import Protocol
from urllib.parse import urlsplit

from nodestate.broker.confirm_watch import ConfirmWatch
from nodestate.broker.rabbitmq.connection import RabbitConnection
from nodestate.broker.rabbitmq.consumer import RabbitConsumerSession
from nodestate.broker.rabbitmq.messages import send
from nodestate.broker.rabbitmq.orders import RabbitOrderSession
from nodestate.broker.rabbitmq.own_queues import RabbitAnswerQueue
from nodestate.broker.rabbitmq.publisher import RabbitPublisherSession
from nodestate.broker.rabbitmq.queues import RabbitQueues
from nodestate.broker.sessions import CellSession, OnBody, OnNodeBody, ServerFacts
from nodestate.broker.topology import Topology
from nodestate.config import Config
from nodestate.ports import Clock


class SessionOpener(Protocol):
    """``connector.open_session`` with its settings."""

    def __call__(self, role: str, heartbeat_s: float) -> CellSession:
        """Open another session, to any URL of the broker."""


class RabbitSession:
    """A ``CellSession`` over one AMQP connection."""

    def __init__(self, config: Config, connection: RabbitConnection, open_session: SessionOpener) -> None:
        self._config = config
        """The cell's settings."""
        self.connection = connection
        """The connection that all goes over."""
        self.queues = RabbitQueues(connection)
        """The cell's queues."""
        self._open_session = open_session
        """Opens a consumer's second connection, to any of the broker's URLs."""

    @classmethod
    def connect(
        cls, config: Config, url: str, role: str, heartbeat_s: float, open_session: SessionOpener
    ) -> RabbitSession:
        """Connect to one URL. Raises ``BrokerUnavailableError``, or ``ValueError`` if the URL is malformed."""
        name = f"nodestate {role} {config.cell}"
        return cls(config, RabbitConnection(config, url, urlsplit(url).scheme, name, heartbeat_s), open_session)

    @property
    def url(self) -> str:
        """See ``CellSession``."""
        return self.connection.url

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
        send(self.connection, exchange, key, body)

    def send_checked(self, exchange: str, key: str, body: bytes) -> None:
        """See ``CellSession``. An unconfirmed publish into a dead connection succeeds, so a question follows it."""
        self.connection.drain()
        self.connection.check_not_blocked()  # a blocked broker would not answer the question
        self.send(exchange, key, body)
        self.connection.fail_if_blocked = True  # the broker may say so now, in place of an answer
        try:
            self.queues.counts(Topology.of(self._config).dead)
        finally:
            self.connection.fail_if_blocked = False

    def answer_queue(self, on_answer: OnNodeBody) -> RabbitAnswerQueue:
        """See ``CellSession``."""
        return RabbitAnswerQueue(self.connection, Topology.of(self._config), on_answer)

    def pump(self, timeout_s: float) -> bool:
        """See ``CellSession``."""
        return self.connection.pump(timeout_s)

    def consumer(self, number: int, clock: Clock) -> RabbitConsumerSession:
        """See ``CellSession``."""

        def connect_publisher() -> RabbitConnection:
            session = self._open_session("consumer publisher", self._config.broker_heartbeat_s)
            assert isinstance(session, RabbitSession), "all URLs of one broker have the same kind"
            return session.connection

        return RabbitConsumerSession(self._config, self.connection, connect_publisher, number, clock)

    def publisher(self, heartbeat_s: float, clock: Clock, watch: ConfirmWatch) -> RabbitPublisherSession:
        """See ``CellSession``."""
        return RabbitPublisherSession(self._config, self.connection, heartbeat_s, clock, watch)

    def orders(self, on_answer: OnNodeBody, on_unroutable: OnBody, clock: Clock) -> RabbitOrderSession:
        """See ``CellSession``."""
        return RabbitOrderSession(self._config, self.connection, on_answer, on_unroutable, clock)

    def close(self) -> None:
        """See ``TransportSession``."""
        self.connection.close()

    def drop(self) -> None:
        """See ``TransportSession``."""
        self.connection.drop()

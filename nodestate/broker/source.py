"""A consumer's way to the broker."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from nodestate.broker.connector import SessionHolder, open_session
from nodestate.broker.sessions import CellSession, ConsumerSession
from nodestate.broker.topology import BEGAN_S, MAX_DETAIL_CHARS
from nodestate.config import Config
from nodestate.ports import ACTIVATION, Clock, Delivery, RefusedDelivery, SystemClock


class KombuSource:
    """A ``ports.Source`` over kombu: RabbitMQ, Redis or ``memory://``.

    away --any call but ack, close--> connected, in a new session: subscribes ``partitions_first``, after ``standby_s``
        also ``partitions_standby``, and sends an activation message into the queue of each
    connected --an error, close--> away; the broker gives unacked messages to the next consumer, in order
    connected --a queue was deleted--> away; the next session declares it again, and its first message is
        ``QUEUE_BEGAN``

    An activation message is published to a partition's own queue: the consumer that receives it knows that it is the
    queue's active one. RabbitMQ does not tell a consumer that it became the active one. So until the first message of a
    partition arrives, its queue gets another activation message every ``standby_s``, unless a message already waits
    there.

    Assumptions: RabbitMQ delivers a queue to one consumer at a time (single active consumer). The other transports do
    not: there members must be given distinct partitions, and ``partitions_standby`` is ignored. The connection lives
    only if ``receive`` is called more often than every ``broker_heartbeat_s``, even if with a limit of 0.
    """

    def __init__(
        self,
        config: Config,
        partitions_first: Sequence[int],
        partitions_standby: Sequence[int] = (),
        clock: Clock | None = None,
    ) -> None:
        self._config = config
        """The cell's settings."""
        self._first = tuple(partitions_first)
        """Partitions that are subscribed when a session begins."""
        self._standby = tuple(partition for partition in partitions_standby if partition not in self._first)
        """Partitions that are subscribed ``standby_s`` later."""
        self._clock = clock or SystemClock()
        """The clock of sessions, and of the time in dead letters' headers."""
        self._log = structlog.get_logger("nodestate.broker")
        """The broker's log."""
        self._began: dict[int, float] = {}
        """Partitions whose queue replaces one that was deleted; see ``ConsumerSession.start``."""
        self._session_number = 0
        """Number of the last session, counted from 1."""
        self._sessions: SessionHolder[ConsumerSession] = SessionHolder(config, self._open_connection, self._subscribe)
        """The session, while connected."""

    def receive(self, limit: int, timeout_s: float) -> list[Delivery]:
        """Up to ``limit`` messages; returns when that many came or ``timeout_s`` passed.

        In order within a partition.
        """
        with self._sessions.use() as session:
            return session.receive(limit, timeout_s)

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Ack deliveries. Those of an older session are ignored: the broker delivers them again."""
        current = [delivery for delivery in deliveries if delivery.session == self._session_number]
        if self._sessions.current is None or not current:
            return
        with self._sessions.use() as session:
            session.ack(current)

    def send_marker(self, partition: int, body: bytes = ACTIVATION) -> None:
        """Publish a marker message to a partition's own queue, behind all messages that wait there; not confirmed."""
        with self._sessions.use() as session:
            session.send_marker(partition, body)

    def dead_letter(self, refused: Sequence[RefusedDelivery]) -> int:
        """See ``ports.Source``. Raises ``BrokerUnavailableError`` if the session is over.

        Headers: ``reason``, ``detail``, ``partition`` and ``at`` (seconds since 1970).
        """
        letters: list[tuple[bytes, dict[str, object]]] = [
            (
                one.delivery.body,
                {
                    "reason": one.reason,
                    "detail": one.detail[:MAX_DETAIL_CHARS],
                    "partition": one.delivery.partition,
                    "at": int(self._clock.time()),
                },
            )
            for one in refused
        ]
        with self._sessions.use() as session:
            return session.dead_letter(letters)

    def close(self) -> None:
        """Close the connection; unacked messages are delivered again. The next ``receive`` reconnects."""
        self._sessions.close()

    def _open_connection(self) -> CellSession:
        # No marks: RabbitMQ would read no acks from a connection that has published, while it is short of memory.
        return open_session(self._config, "consumer", self._config.broker_heartbeat_s, layout=True, mark_began=False)

    def _subscribe(self, connection: CellSession) -> ConsumerSession:
        self._session_number += 1
        session = connection.consumer(self._session_number, self._clock)
        self._began |= dict.fromkeys(connection.queues.began, self._clock.monotonic() + BEGAN_S)
        try:
            session.start(self._first, self._standby, self._began)
        except BaseException:
            session.drop()
            raise
        self._log.info(
            "connected", broker=self._config.broker_safe, session=self._session_number, partitions=self._first
        )
        return session

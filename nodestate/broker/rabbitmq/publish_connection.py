"""The second connection of a consumer at RabbitMQ: it publishes, so that the connection of its deliveries need not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final

import amqp
import structlog

from nodestate.broker.confirm_watch import ConfirmWatch
from nodestate.broker.rabbitmq.connection import RabbitConnection
from nodestate.broker.rabbitmq.delivery_tracking import Confirms
from nodestate.broker.rabbitmq.messages import confirming_channel, dead_letter_message, publish, send_marker
from nodestate.broker.rabbitmq.queues import RabbitQueues
from nodestate.broker.sessions import OnDone, unavailable
from nodestate.broker.topology import DEAD_KEY, Topology
from nodestate.broker.urls import url_failed
from nodestate.config import Config
from nodestate.errors import BrokerUnavailableError, DeadLetterError
from nodestate.ports import Clock
from nodestate.ports.backoff import DoublingPause

FIRST_PAUSE_S: Final = 1.0
"""Pause after the first failure to connect or publish; each further failure doubles it."""
MAX_PAUSE_S: Final = 30.0
CONFIRM_S: Final = 1.0
"""Longest wait for the confirms of one call. Deliveries and marker messages wait meanwhile."""

_FAILURES: Final[tuple[type[BaseException], ...]] = (*RabbitConnection.errors, BrokerUnavailableError)


class PublishConnection:
    """Publishes a consumer's marker messages and dead letters, on a connection of its own.

    away --send_marker, dead_letter--> connected --an error--> away, for a pause that doubles
    connected --the broker blocks it--> silent --the broker unblocks it--> connected
    connected --a dead letter is refused, or has no queue--> connected
    connected --messages are refused, or none is confirmed, for seconds--> away, see ``ConfirmWatch``

    A RabbitMQ that is short of memory or disk reads nothing from a connection that has published, and so reads no acks
    from it. If a consumer published on the connection of its deliveries, its first marker message would keep it from
    acking, and so from draining the very queue that fills the broker. So it publishes on this second connection.

    Calls here delay the deliveries by at most ``broker_timeout_s`` per attempt, and the pause limits the attempts.
    """

    def __init__(self, config: Config, connect: Callable[[], RabbitConnection], clock: Clock) -> None:
        self._config = config
        """The cell's settings."""
        self._connect = connect
        """Opens the connection. Raises ``BrokerUnavailableError``."""
        self._topology = Topology.of(config)
        """The names of the cell's exchanges and queues."""
        self._clock = clock
        """The clock for deadlines and pauses."""
        self._log = structlog.get_logger("nodestate.broker")
        """The broker's log."""
        self._connection: RabbitConnection | None = None
        """The connection, None while away."""
        self._channel: Any = None
        """The connection's channel with confirms, for all that is published."""
        self._confirms = Confirms()
        """Messages that are not yet confirmed."""
        self._watch = ConfirmWatch(clock, config.broker_timeout_s, "consumer")
        """Says when the broker has refused messages, or confirmed none, for too long."""
        self._returned = False
        """True if one of the last dead letters came back, because no queue takes it."""
        self._pause = DoublingPause(FIRST_PAUSE_S, MAX_PAUSE_S)
        """Pause after a failure."""
        self._retry_at = clock.monotonic()
        """Monotonic time before which no attempt to connect is made."""

    def send_marker(self, partition: int, body: bytes) -> None:
        """Publish a marker message, or do nothing if the broker is away or blocks this connection.

        A marker message may get lost, so an outage is not an error here: it shows where messages are received. The
        confirm of a marker message shows only whether the broker still takes messages on this connection.
        """
        with suppress(BrokerUnavailableError), self._dropped_on_failure():
            connection = self._connected()
            if not connection.blocked:
                send_marker(self._channel, self._topology.queue(partition), body)
                self._note_sent(_ignore)

    def dead_letter(self, letters: Sequence[tuple[bytes, Mapping[str, object]]]) -> int:
        """Publish dead letters, each with its headers, and wait for the confirms, for ``CONFIRM_S`` at most.

        Returns how many of the first ones are in the queue. Raises ``DeadLetterError`` if the broker took not even the
        first one now, and ``BrokerUnavailableError`` if the connection failed. In both cases deliveries go on; after
        the former, marker messages do too.
        """
        with self._dropped_on_failure():
            connection = self._connected()
            count, refusal = (0, connection.blocked) if connection.blocked else self._publish(connection, letters)
        if not count and letters:
            raise DeadLetterError(self._config.broker_safe, refusal)
        return count

    def beat(self) -> None:
        """Keep the connection alive. Call at least twice within each heartbeat."""
        connection = self._connection
        if connection is not None:
            with suppress(BrokerUnavailableError), self._dropped_on_failure():
                connection.drain()
                connection.beat()

    def close(self) -> None:
        """Close the connection properly, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def drop(self) -> None:
        """Give up the connection, if there is one. The next one begins with the next URL."""
        connection, self._connection = self._connection, None
        if connection is not None:
            url_failed(self._config.broker, connection.url)
            connection.drop()

    def _connected(self) -> RabbitConnection:
        if self._connection is not None:
            self._connection.drain()
            if self._watch.gives_up(self._connection.blocked):
                self.drop()
        if self._connection is None:
            if self._clock.monotonic() < self._retry_at:
                raise BrokerUnavailableError(
                    self._config.broker_safe, "the last attempt to publish failed, and the next one is not due"
                )
            self._connection = self._connect()
            # Opened before anything is published: RabbitMQ blocks a connection only once it has published, and the
            # answer to opening a channel would then not come.
            self._open_channel(self._connection)
            self._connection.drain()
        return self._connection

    def _open_channel(self, connection: RabbitConnection) -> None:
        self._confirms = Confirms()
        self._watch.opened()
        self._channel = confirming_channel(connection, self._on_settled, self._on_returned)

    def _note_sent(self, on_done: OnDone, body: bytes = b"") -> None:
        """Count a message that was published on the channel. ``body`` names it if the broker may return it."""
        self._confirms.sent(on_done, body)
        self._watch.sent()

    def _on_settled(self, tag: int, multiple: bool, ok: bool) -> None:
        self._confirms.settle(tag, multiple, ok)
        self._watch.answered(ok, len(self._confirms))

    def _on_returned(self, body: bytes) -> None:
        self._returned = True
        self._confirms.returned(body)

    def _publish(
        self, connection: RabbitConnection, letters: Sequence[tuple[bytes, Mapping[str, object]]]
    ) -> tuple[int, str]:
        """Publish dead letters, and wait for the confirms.

        Returns how many of the first ones are in the queue, and the reason for which the next one is not.
        """
        answers: dict[int, bool] = {}
        self._returned = False
        fault = ""
        try:
            for number, (body, headers) in enumerate(letters):
                publish(self._channel, self._topology.dead, DEAD_KEY, body, dead_letter_message(headers))
                self._note_sent(partial(answers.__setitem__, number), body)
            deadline = self._clock.monotonic() + CONFIRM_S
            while len(answers) < len(letters) and not fault:
                if connection.blocked or not connection.pump(max(0.0, deadline - self._clock.monotonic())):
                    fault = connection.blocked or f"{self._topology.dead} confirmed nothing within {CONFIRM_S:g} s"
        except amqp.ChannelError as error:  # the exchange was deleted, so the broker closed the channel
            self._open_channel(connection)
            RabbitQueues(connection).declare_shared(self._topology)
            fault = f"{error}; exchange and queue are declared again"
        count = next((number for number in range(len(letters)) if not answers.get(number)), len(letters))
        if not fault and count < len(letters):
            fault = f"queue {self._topology.dead} refused a message; it is full (read and purge it) or has no leader"
            if self._returned:
                RabbitQueues(connection).declare_shared(self._topology)
                fault = f"queue {self._topology.dead} was deleted; it is declared again"
        return count, fault

    @contextmanager
    def _dropped_on_failure(self) -> Iterator[None]:
        """Drop the connection after a failure and start the pause. Raises ``BrokerUnavailableError``."""
        pausing = self._connection is None and self._clock.monotonic() < self._retry_at
        try:
            yield
        except _FAILURES as error:
            self.drop()
            if not pausing:
                pause_s = self._pause.lengthen()
                self._retry_at = self._clock.monotonic() + pause_s
                self._log.warning("a consumer cannot publish; it will try again", reason=str(error), again_in_s=pause_s)
            if isinstance(error, BrokerUnavailableError):
                raise
            raise unavailable(self._config, error) from error
        self._pause.reset()


def _ignore(_ok: bool) -> None:
    """Ignore whether a marker message is in its queue: the next one follows soon."""

"""A consumer's session at RabbitMQ."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import amqp
from amqp import spec

from nodestate.broker.rabbitmq.connection import RabbitConnection
from nodestate.broker.rabbitmq.delivery_tracking import Unacked
from nodestate.broker.rabbitmq.frames import has_exchange, user_of
from nodestate.broker.rabbitmq.publish_connection import PublishConnection
from nodestate.broker.rabbitmq.queues import RabbitQueues
from nodestate.broker.topology import BEGAN_S, MAX_RECEIVED_BYTES, REDECLARE_S, Topology
from nodestate.broker.users import node_of
from nodestate.config import Config
from nodestate.errors import BrokerUnavailableError, DeadLetterError
from nodestate.ports import ACTIVATION, QUEUE_BEGAN, Clock, Delivery

MAX_QUEUES_CHECKED_COUNT: Final = 32
"""Queues whose messages one ``receive`` counts at most, to see whether they need an activation message.

Each count costs a round trip.
"""
BEATS_PER_HEARTBEAT: Final = 4


class _PartitionChannel:
    """One partition's channel, and its deliveries between receipt and ack."""

    __slots__ = ("channel", "unacked")

    def __init__(self) -> None:
        self.channel: Any = None
        """The AMQP channel that consumes the partition's queue."""
        self.unacked = Unacked()
        """Which of the channel's deliveries are acked."""


class RabbitConsumerSession:
    """A ``ConsumerSession`` at RabbitMQ, which pushes deliveries. Each partition has a channel: one ack covers many.

    A partition is silent until its first message. Another consumer may have been the active one of its queue, and may
    be gone by now; RabbitMQ does not tell the next one. So every ``standby_s`` a silent partition whose queue is empty
    gets another activation message.
    """

    def __init__(
        self,
        config: Config,
        connection: RabbitConnection,
        connect_publisher: Callable[[], RabbitConnection],
        number: int,
        clock: Clock,
    ) -> None:
        self.connection = connection
        """The connection of the deliveries and acks. It publishes nothing."""
        self._config = config
        """The cell's settings."""
        self._topology = Topology.of(config)
        """The names of the cell's exchanges and queues."""
        self._number = number
        """The session number that deliveries carry."""
        self._clock = clock
        """The clock for deadlines, standby and heartbeats."""
        self._queues = RabbitQueues(connection)
        """Counts the messages of silent partitions' queues, and declares deleted exchanges and bindings again."""
        self._began: dict[int, float] = {}
        """See ``ConsumerSession.start``."""
        self._publisher = PublishConnection(config, connect_publisher, clock)
        """The connection for marker messages and dead letters."""
        self._channels: dict[int, _PartitionChannel] = {}
        """Subscribed partitions with their channels."""
        self._buffer: deque[Delivery] = deque()
        """Deliveries that arrived and are not yet returned by ``receive``."""
        self._buffered_bytes = 0
        """Size of their bodies."""
        self._standby: tuple[int, ...] = ()
        """Partitions to subscribe at ``_standby_at``."""
        now = clock.monotonic()
        self._standby_at = now + config.standby_s
        """Monotonic time at which the standby partitions are subscribed."""
        self._activate_at = now + config.standby_s
        """Monotonic time of the next look for silent partitions."""
        self._silent: list[int] = []
        """Silent partitions that are not yet checked in this round."""
        self._beat_at = now
        """Monotonic time of the next heartbeat."""
        self._redeclare_at = now + REDECLARE_S
        """Monotonic time at which exchanges and bindings are declared again."""

    @property
    def errors(self) -> tuple[type[BaseException], ...]:
        """See ``TransportSession``."""
        return self.connection.errors

    def start(self, first: Sequence[int], standby: Sequence[int], began: dict[int, float]) -> None:
        """See ``ConsumerSession``."""
        self._began = began
        self._standby = tuple(standby)
        for partition in first:
            self._subscribe(partition)

    def receive(self, limit: int, timeout_s: float) -> list[Delivery]:
        """See ``ConsumerSession``."""
        clock, connection, buffer = self._clock, self.connection, self._buffer
        now = clock.monotonic()
        deadline = now + timeout_s
        self._activate_silent(now)
        if self._standby and now >= self._standby_at:
            standby, self._standby = self._standby, ()
            for partition in standby:
                self._subscribe(partition)
                # The marker message tells the active consumer. If this one becomes active later, nothing new was lost.
                self._began.pop(partition, None)
        while True:
            remaining = deadline - now
            enough = len(buffer) >= limit or self._buffered_bytes >= MAX_RECEIVED_BYTES
            # One frame is read even with enough deliveries in the buffer: a connection on which nothing is read looks
            # dead to its heartbeats.
            if not connection.pump(0 if enough else max(0.0, remaining)):
                break
            now = clock.monotonic()
            if enough or (remaining <= 0 < timeout_s):
                break
        now = clock.monotonic()
        if now >= self._beat_at:
            connection.beat()
            self._publisher.beat()
            self._beat_at = now + self._config.broker_heartbeat_s / BEATS_PER_HEARTBEAT
        if now >= self._redeclare_at:
            active = [number for number, consumed in self._channels.items() if consumed.unacked.received]
            self._queues.redeclare(self._topology, active)
            self._redeclare_at = now + REDECLARE_S
        received = [buffer.popleft() for _ in range(min(limit, len(buffer)))]
        self._buffered_bytes -= sum([len(one.body) for one in received])
        return received

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """See ``ConsumerSession``."""
        tags: dict[int, list[int]] = {}
        for delivery in deliveries:
            assert isinstance(delivery.tag, int)
            tags.setdefault(delivery.partition, []).append(delivery.tag)
        for partition, acked in tags.items():
            consumed = self._channels[partition]
            up_to, singly = consumed.unacked.ack(acked)
            if up_to is not None:
                consumed.channel.basic_ack(up_to, multiple=True)
            for tag in singly:
                consumed.channel.basic_ack(tag, multiple=False)

    def dead_letter(self, letters: Sequence[tuple[bytes, Mapping[str, object]]]) -> int:
        """See ``ConsumerSession``."""
        try:
            return self._publisher.dead_letter(letters)
        except BrokerUnavailableError as error:  # of the second connection: deliveries go on
            raise DeadLetterError(self._config.broker_safe, error.cause) from error

    def send_marker(self, partition: int, body: bytes = ACTIVATION) -> None:
        """See ``ConsumerSession``. Does nothing while the second connection is away or blocked."""
        self._publisher.send_marker(partition, body)

    def close(self) -> None:
        """See ``TransportSession``."""
        self.connection.close()
        self._publisher.close()

    def drop(self) -> None:
        """See ``TransportSession``."""
        self.connection.drop()
        self._publisher.drop()

    def _subscribe(self, partition: int) -> None:
        consumed = self._channels[partition] = _PartitionChannel()
        number, buffer, unacked, began = self._number, self._buffer, consumed.unacked, self._began

        def take(message: Any) -> None:
            delivery = message.delivery_info
            tag = unacked.received = delivery["delivery_tag"]
            if partition in began and began.pop(partition) > self._clock.monotonic() and message.body != QUEUE_BEGAN:
                buffer.append(Delivery(partition, QUEUE_BEGAN, None, 0))
            body = message.body or b""
            self._buffered_bytes += len(body)
            redelivered, node = delivery["redelivered"], node_of(user_of(message))
            routed = has_exchange(message)
            buffer.append(Delivery(partition, body, tag, number, redelivered, message.cut_from, node, routed))

        consumed.channel = self.connection.channel()
        consumed.channel.basic_qos(0, self._config.prefetch, False)
        consumed.channel.basic_consume(
            self._topology.queue(partition), callback=take, on_cancel=lambda tag: self._queue_deleted(partition, tag)
        )
        self.send_marker(partition, QUEUE_BEGAN if partition in began else ACTIVATION)

    def _queue_deleted(self, partition: int, tag: str) -> None:
        """End the session, because the broker deleted the queue: another consumer may be the active one of the next."""
        self._began[partition] = self._clock.monotonic() + BEGAN_S
        raise amqp.ConsumerCancelled(tag, spec.Basic.Cancel)

    def _activate_silent(self, now: float) -> None:
        """Send an activation message to silent partitions whose queue is empty.

        A message that already waits in a queue will show the active consumer as well, and activation messages must not
        pile up in a queue that no consumer reads.
        """
        if now >= self._activate_at:
            self._activate_at = now + self._config.standby_s
            self._silent = [
                partition for partition, consumed in self._channels.items() if consumed.unacked.received == 0
            ]
        for _ in range(min(MAX_QUEUES_CHECKED_COUNT, len(self._silent))):
            partition = self._silent.pop()
            counts = self._queues.counts(self._topology.queue(partition))
            if counts is not None and counts.ready == 0:
                self.send_marker(partition)

"""A consumer's session over a virtual transport."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

import structlog

from nodestate.broker.topology import ACTIVATION_TYPE, DEAD_KEY, MAX_RECEIVED_BYTES, REDECLARE_S, Topology
from nodestate.broker.virtual.connection import VirtualConnection
from nodestate.broker.virtual.queues import VirtualQueues
from nodestate.config import Config
from nodestate.ports import ACTIVATION, QUEUE_BEGAN, Clock, Delivery

POLL_S: Final = 0.005
"""Pause between two looks into queues that were empty."""
RESTORE_EVERY_S: Final = 1.0
"""Seconds between two looks for messages of dead consumers."""


class VirtualConsumerSession:
    """A ``ConsumerSession`` over a virtual transport: fetches from the queues of its partitions in turn.

    These transports give a queue's messages to several consumers at a time. So members must be given distinct
    partitions, and standby partitions are not subscribed.
    """

    def __init__(self, config: Config, connection: VirtualConnection, number: int, clock: Clock) -> None:
        self.connection = connection
        """The connection that all goes over."""
        self._config = config
        """The cell's settings."""
        self._topology = Topology.of(config)
        """The names of the cell's exchanges and queues."""
        self._number = number
        """The session number that deliveries carry."""
        self._clock = clock
        """The clock for deadlines and pauses."""
        self._turns: deque[int] = deque()
        """The partitions; the next one to look into is the first."""
        self._outstanding: dict[int, int] = {}
        """By partition, the number of deliveries that are not acked."""
        self._restore_at = clock.monotonic()
        """Monotonic time of the next look for messages of dead consumers."""
        self._redeclare_at = self._restore_at + REDECLARE_S
        """Monotonic time at which bindings are made again."""

    @property
    def errors(self) -> tuple[type[BaseException], ...]:
        """See ``TransportSession``."""
        return self.connection.errors

    def start(self, first: Sequence[int], standby: Sequence[int], began: dict[int, float]) -> None:
        """See ``ConsumerSession``. Logs that the ``standby`` partitions are not subscribed."""
        if standby:
            structlog.get_logger("nodestate.broker").info(
                "standby partitions are ignored: this transport gives a queue to several consumers at a time",
                broker=self._config.broker_safe,
                partitions=standby,
            )
        for partition in first:
            self._turns.append(partition)
            self._outstanding[partition] = 0
            self.send_marker(partition, ACTIVATION if began.pop(partition, None) is None else QUEUE_BEGAN)

    def receive(self, limit: int, timeout_s: float) -> list[Delivery]:
        """See ``ConsumerSession``."""
        now = self._clock.monotonic()
        deadline = now + timeout_s
        if now >= self._restore_at:
            self.connection.restore_overdue()
            self._restore_at = now + RESTORE_EVERY_S
        if now >= self._redeclare_at:
            VirtualQueues(self.connection).redeclare(self._topology, self._outstanding)
            self._redeclare_at = now + REDECLARE_S
        deliveries: list[Delivery] = []
        size = 0
        while len(deliveries) < limit and size < MAX_RECEIVED_BYTES:
            before = len(deliveries)
            self._fetch_from_each(limit, deliveries)
            if len(deliveries) > before:
                size += sum(len(one.body) for one in deliveries[before:])
                continue
            remaining = deadline - self._clock.monotonic()
            if remaining <= 0:
                break
            self._clock.sleep(min(POLL_S, remaining))
        return deliveries

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """See ``ConsumerSession``."""
        for delivery in deliveries:
            self.connection.ack(delivery.tag)
            self._outstanding[delivery.partition] -= 1

    def dead_letter(self, letters: Sequence[tuple[bytes, Mapping[str, object]]]) -> int:
        """See ``ConsumerSession``."""
        for body, headers in letters:
            self.connection.send(self._topology.dead, DEAD_KEY, body, headers=headers)
        return len(letters)

    def send_marker(self, partition: int, body: bytes = ACTIVATION) -> None:
        """See ``ConsumerSession``."""
        self.connection.send("", self._topology.queue(partition), body, ACTIVATION_TYPE)

    def close(self) -> None:
        """See ``TransportSession``."""
        self.connection.close()

    def drop(self) -> None:
        """See ``TransportSession``."""
        self.connection.drop()

    def _fetch_from_each(self, limit: int, deliveries: list[Delivery]) -> None:
        """Add up to one message of each partition; the next call begins with the partition after the last one."""
        for _ in range(len(self._turns)):
            if len(deliveries) >= limit:
                return
            partition = self._turns[0]
            self._turns.rotate(-1)
            if self._outstanding[partition] >= self._config.prefetch:
                continue
            message = self.connection.fetch(self._topology.queue(partition))
            if message is None:
                continue
            self._outstanding[partition] += 1
            body, tag, redelivered, _, cut_from = message
            deliveries.append(Delivery(partition, body, tag, self._number, redelivered, cut_from))

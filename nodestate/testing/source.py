"""A consumer's connection to the broker double."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from nodestate.errors import BrokerUnavailableError, DeadLetterError
from nodestate.ports import ACTIVATION, Delivery, RefusedDelivery
from nodestate.testing.queues import MemoryDeadLetter, MemoryMessage

if TYPE_CHECKING:  # the broker makes its connections
    from nodestate.testing.broker import MemoryBroker


class MemorySource:
    """A connection that consumes; a ``ports.Source``. Made by ``MemoryBroker.source``.

    away --created, receive, send_marker, dead_letter--> connected, in a new session: sends an activation message into
        each of its queues
    connected --close--> away
    connected --disconnect, broker.stop--> broken --the next call raises--> away
    any --crash--> gone, for good

    A standby may become the active consumer of an empty queue. So while this session has had no message from a queue,
    each ``receive`` that finds the queue empty sends it another activation message.

    Faults: ``crash`` and ``disconnect``::

        first, second = broker.source([0]), broker.source([0])
        deliveries = first.receive(limit=10, timeout_s=0)
        first.disconnect()                       # second is the active consumer now
        second.receive(limit=10, timeout_s=0)    # the same messages, redelivered
        first.ack(deliveries)                    # raises BrokerUnavailableError
    """

    def __init__(
        self, broker: MemoryBroker, partitions: Sequence[int], standby: Sequence[int] = (), layout: int = 0
    ) -> None:
        self.layout = layout or broker.partitions
        """The layout, by its number of partitions."""
        self.partitions = tuple(partitions)
        """Partitions that are consumed from the beginning of each session."""
        self.standby = tuple(partition for partition in standby if partition not in self.partitions)
        """Partitions that are consumed from the second ``receive`` of a session on."""
        self.session = 0
        """Number of the last session, counted from 1."""
        self._broker = broker
        """The broker that it connects to."""
        self._state = "away"
        """A state of the diagram above."""
        self._has_received = False
        """Whether this session called ``receive`` before."""
        self._joined: list[int] = []
        """Partitions that this session consumes."""
        self._silent: set[int] = set()
        """Those of them from which this session has not had a message."""
        self._unacked: dict[int, dict[int, MemoryMessage]] = {}
        """By partition, then by tag: messages that were delivered and not acked."""
        self._last_tag = 0
        """The tag of the last delivery."""
        if broker.running:
            self._connect()

    def receive(self, limit: int, timeout_s: float) -> list[Delivery]:
        """Up to ``limit`` messages, one of each partition in turn."""
        self._ensure_connected()
        if self._has_received:
            self._join(self.standby)
        self._has_received = True
        deliveries: list[Delivery] = []
        streams = {partition: self._deliveries(partition) for partition in self._joined}
        while streams and len(deliveries) < limit:
            for partition, stream in list(streams.items()):
                delivery = next(stream, None) if len(deliveries) < limit else None
                if delivery is None:
                    del streams[partition]
                else:
                    deliveries.append(delivery)
        if not deliveries:
            self._broker.pause(timeout_s)
        return deliveries

    def send_marker(self, partition: int, body: bytes = ACTIVATION) -> None:
        """Put a marker message behind all messages that wait in a partition's queue."""
        self._ensure_connected()
        self._broker.queue(partition, self.layout).messages.append(MemoryMessage(body, durable=False))

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Ack deliveries. Those of an older session are ignored."""
        if self._state == "away":
            return
        self._ensure_connected()
        for delivery in deliveries:
            if delivery.session == self.session:
                assert isinstance(delivery.tag, int)
                self._unacked[delivery.partition].pop(delivery.tag)

    def dead_letter(self, refused: Sequence[RefusedDelivery]) -> int:
        """Add messages to the broker's ``dead_letters``, until its ``dead_letter_limit`` is reached. Does not ack them.

        Returns how many were added. Raises ``DeadLetterError`` if none was.
        """
        self._ensure_connected()
        letters, limit = self._broker.dead_letters, self._broker.dead_letter_limit
        taken = refused if limit is None else refused[: max(0, limit - len(letters))]
        if refused and not taken:
            raise DeadLetterError(self._broker.name, "the dead-letter queue is full")
        letters += [MemoryDeadLetter(one.partition, one.body, reason, detail) for one, reason, detail in taken]
        return len(taken)

    def close(self) -> None:
        """Leave; unacked messages go back to their queues. The next ``receive`` reconnects."""
        self._leave("away")

    # -- faults

    def crash(self) -> None:
        """The process dies: to the broker the same as ``close``. The source must not be used afterwards."""
        self._leave("gone")

    def disconnect(self) -> None:
        """Break the connection without the consumer's knowledge.

        Its next call raises; the one after it reconnects, behind all other consumers of its queues.
        """
        if self._state == "connected":
            self._leave("broken")

    # -- inside

    def _ensure_connected(self) -> None:
        assert self._state != "gone", "a source must not be used after it crashed"
        if self._state == "broken":
            self._state = "away"
            raise BrokerUnavailableError(self._broker.name, "the connection broke")
        if self._state == "away":
            self._connect()

    def _connect(self) -> None:
        self._broker.check_running()
        self.session += 1
        self._state = "connected"
        self._has_received = False
        self._broker.declare(self.layout)
        self._join(self.partitions)

    def _join(self, partitions: Sequence[int]) -> None:
        for partition in partitions:
            if partition not in self._joined:
                self._joined.append(partition)
                self._silent.add(partition)
                self._unacked[partition] = {}
                self._broker.queue(partition, self.layout).consumers.append(self)
                self.send_marker(partition)

    def _leave(self, state: str) -> None:
        if self._state != "gone":
            self._state = state
        for partition in self._joined:
            queue = self._broker.queue(partition, self.layout)
            queue.consumers.remove(self)
            for _, message in sorted(self._unacked.pop(partition).items(), reverse=True):
                message.redelivered = True
                queue.messages.appendleft(message)
        self._joined = []
        self._silent = set()

    def _deliveries(self, partition: int) -> Iterator[Delivery]:
        """Take messages from a queue, up to the prefetch limit; none if another consumer is active."""
        queue = self._broker.queue(partition, self.layout)
        unacked = self._unacked[partition]
        if queue.consumers[0] is not self:
            return
        if not queue.messages and partition in self._silent:
            self.send_marker(partition)
        while queue.messages and len(unacked) < self._broker.prefetch:
            message = queue.messages.popleft()
            self._last_tag += 1
            unacked[self._last_tag] = message
            self._silent.discard(partition)
            yield Delivery(
                partition,
                message.body,
                self._last_tag,
                self.session,
                message.redelivered,
                node=message.node,
                routed=message.routed,
            )

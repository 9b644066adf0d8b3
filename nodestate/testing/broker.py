"""The broker double: queues in this process, delivered in the order of calls, without threads."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence

from nodestate.auth import OrderAuth
from nodestate.errors import BrokerUnavailableError
from nodestate.ports import QUEUE_BEGAN, Clock, Resync, SystemClock
from nodestate.testing.courier import MemoryCourier
from nodestate.testing.queues import MemoryDeadLetter, MemoryMessage, MemoryQueue
from nodestate.testing.sink import MemorySink
from nodestate.testing.source import MemorySource
from nodestate.testing.transit import OrderTransit


class MemoryBroker:
    """Queues in memory, one per partition, with a single active consumer each. It acts only when it is called.

    ``source``, ``sink`` and ``courier`` connect consumers, agents and schedulers; the broker itself is a
    ``ports.ResyncSender`` and a ``ports.Layouts`` without ``open``. It begins with the queues of one layout of
    ``partitions`` partitions; the queues of another layout come with its first source::

        broker = MemoryBroker(2)
        sink, source = broker.sink(), broker.source([0, 1])
        sink.publish(0, b"event", on_done=print)
        [*markers, delivery] = source.receive(limit=10, timeout_s=0)   # markers: the activation messages
        source.ack([*markers, delivery])

    **Order.** A queue's consumers stand in the order in which they came, and the first one is active. When it goes
    (``close``, or one of the faults below), the messages that it did not ack go back to the front of the queue, in
    order, marked as redelivered. A source holds at most ``prefetch`` unacked messages of a partition.

    **Confirms.** A message is in its queue as soon as it is published. Its confirm comes with the sink's next ``flush``
    or ``resyncs``, but not while ``confirming`` is False.

    **Time.** With a ``clock``, a ``receive`` that finds nothing sleeps for its timeout; without one it returns at once.

    **Faults.** ``stop`` and ``start`` break all connections. ``duplicate``, ``swap`` and ``drop`` change a queue, and
    ``lose_queue`` deletes it. ``dead_letter_limit`` fills the dead-letter queue.
    ``confirming = False`` withholds confirms. ``transit`` holds, reorders or loses orders and answers (see
    ``OrderTransit``). Single connections fail by ``MemorySource.crash`` and by ``disconnect`` of any connection.
    """

    name = "memory"
    """The broker's name in error messages."""

    def __init__(self, partitions: int, *, clock: Clock | None = None, prefetch: int = 2000) -> None:
        self.partitions = partitions
        """Number of partitions of the first layout."""
        self.prefetch = prefetch
        """Largest number of unacked messages that a source holds for one partition."""
        self.running = True
        """False between ``stop`` and ``start``."""
        self.confirming = True
        """Whether publishes are confirmed. A test may set it at any time."""
        self.dead_letters: list[MemoryDeadLetter] = []
        """Messages that consumers gave up."""
        self.dead_letter_limit: int | None = None
        """Number of dead letters that the dead-letter queue holds; it refuses more. None for any number."""
        self.census: dict[str, list[bytes]] = {}
        """By the name of a census's queue, the answers that were sent there."""
        self.layouts: dict[int, list[MemoryQueue]] = {}
        """By its number of partitions, the queues of each layout."""
        self.aside: dict[int, list[MemoryQueue]] = {}
        """Likewise, the layouts that were set aside and get no more events."""
        self.sinks: list[MemorySink] = []
        """The sinks that are connected."""
        self.transit = OrderTransit()
        """Carries orders and answers."""
        self._clock = clock
        """The clock that waiting calls sleep on; None if they return at once."""
        self.declare(partitions)

    # -- connections

    def source(self, partitions: Sequence[int], standby: Sequence[int] = (), layout: int = 0) -> MemorySource:
        """A consumer of these partitions of a layout (0: the first layout), behind all earlier consumers.

        From the second ``receive`` of a session on it also consumes the partitions of ``standby``.
        """
        return MemorySource(self, partitions, standby, layout or self.partitions)

    def sink(self, auth: OrderAuth | None = None, *, node: str = "") -> MemorySink:
        """A publisher. It gets the resync requests that are sent from now on.

        Args:
            auth: checks orders; None: none.
            node: the node whose user it logs in with; empty: a user of no single node.
        """
        return MemorySink(self, auth, node)

    def courier(self, auth: OrderAuth | None = None) -> MemoryCourier:
        """A scheduler's way to the nodes of all sinks. ``auth`` signs orders and checks answers; None: neither."""
        return MemoryCourier(self, auth)

    def request_resync(self, resync: Resync) -> None:
        """Broadcast a resync request to all sinks that are connected now."""
        self.check_running()
        for sink in self.sinks:
            sink.resync_requests.append(resync)

    # -- layouts

    def declare(self, layout: int) -> None:
        """Make the queues of a layout, unless they exist. Events go into queues that were set aside again."""
        if layout not in self.layouts:
            self.layouts[layout] = self.aside.pop(layout, []) or [MemoryQueue() for _ in range(layout)]

    def delete(self, layout: int) -> bool:
        """Delete the queues of a layout with their messages. Returns False if one has a consumer; then all stay."""
        if any(queue.consumers for queue in self.layouts.get(layout, ())):
            return False
        self.layouts.pop(layout, None)
        self.aside.pop(layout, None)
        return True

    def found(self) -> list[int]:
        """All layouts that have queues, also layouts that were set aside."""
        self.check_running()
        return sorted({*self.layouts, *self.aside})

    def set_aside(self, layout: int, used: int) -> int:
        """Let no more events into the queues of a layout without consumers, once layout ``used`` has its queues.

        Deletes the queues if all are empty. Returns the number of messages that wait in them; 0, and nothing changes,
        if one has a consumer.
        """
        self.declare(used)
        queues = self.layouts.get(layout, self.aside.get(layout, []))
        if any(queue.consumers for queue in queues):
            return 0
        waiting = sum(len(queue.messages) for queue in queues)
        self.layouts.pop(layout, None)
        self.aside.pop(layout, None)
        if waiting:
            self.aside[layout] = queues
        return waiting

    # -- looking into queues

    def queue(self, partition: int, layout: int = 0) -> MemoryQueue:
        """The queue of a partition of a layout (0: the first layout)."""
        return self.layouts[layout or self.partitions][partition]

    def queued(self, partition: int, layout: int = 0) -> list[bytes]:
        """The bodies that wait in a queue, the next one first.

        Delivered messages that are not acked are not among them.
        """
        return [message.body for message in self.queue(partition, layout).messages]

    def active(self, partition: int, layout: int = 0) -> MemorySource | None:
        """The consumer that gets a partition's messages now; None if it has no consumer."""
        consumers = self.queue(partition, layout).consumers
        return consumers[0] if consumers else None

    # -- faults

    def stop(self, *, lose_unconfirmed: bool = True) -> None:
        """Break every connection, and refuse new ones until ``start``.

        Confirmed events stay, as they would on a broker's disk. Unconfirmed events are lost; with
        ``lose_unconfirmed=False`` they stay as well, though their publisher cannot know. Marker messages, orders and
        answers are lost.
        """
        self.running = False
        self.transit.under_way.clear()
        for courier in list(self.transit.couriers.values()):
            courier.disconnect()
        for queue in itertools.chain.from_iterable(self.layouts.values()):
            for source in list(queue.consumers):
                source.disconnect()
            queue.messages = deque(message for message in queue.messages if message.durable)
        for sink in list(self.sinks):
            sink.disconnect(lose=lose_unconfirmed)

    def start(self) -> None:
        """Accept connections again."""
        self.running = True

    def lose_queue(self, partition: int, layout: int = 0) -> None:
        """Delete a partition's queue with all messages, delivered and unacked ones too.

        Its consumers lose their sessions. The queue that replaces it begins with the message ``QUEUE_BEGAN``.
        """
        for source in list(self.queue(partition, layout).consumers):
            source.disconnect()
        self.layouts[layout or self.partitions][partition] = MemoryQueue(deque([MemoryMessage(QUEUE_BEGAN)]))

    def duplicate(self, partition: int, index: int = 0) -> None:
        """Put a copy of a waiting message right behind it, as a publisher does that missed the confirm."""
        messages = self.queue(partition).messages
        messages.insert(index + 1, MemoryMessage(messages[index].body))

    def swap(self, partition: int, first: int = 0, second: int = 1) -> None:
        """Exchange two waiting messages."""
        messages = self.queue(partition).messages
        messages[first], messages[second] = messages[second], messages[first]

    def drop(self, partition: int, index: int = 0) -> bytes:
        """Lose a waiting message although it was confirmed, which no broker should do. Returns its body."""
        messages = self.queue(partition).messages
        body = messages[index].body
        del messages[index]
        return body

    # -- for connections

    def check_running(self) -> None:
        """Raise ``BrokerUnavailableError`` while the broker is stopped."""
        if not self.running:
            raise BrokerUnavailableError(self.name, "stopped by the test")

    def now(self) -> float:
        """Monotonic seconds, by which orders expire."""
        return (self._clock or SystemClock()).monotonic()

    def pause(self, seconds: float) -> None:
        """Sleep on the broker's clock, if it has one: the wait of a call that found nothing."""
        if self._clock is not None:
            self._clock.sleep(seconds)

"""The broker double: queues in this process, delivered in the order of calls, without threads."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from nodestate.errors import (
    BadEventError,
    BrokerUnavailableError,
    UnconfirmedError,
)
from nodestate.model.orders import Answer, Order, bad_order, decode_answer, decode_order, encode, no_agent
from nodestate.ports import (
    ACTIVATION,
    Clock,
    Delivery,
    Resync,
    SystemClock,
)


@dataclass(frozen=True, slots=True)
class MemoryDeadLetter:
    """A message that was given up, and why."""

    partition: int
    body: bytes
    reason: str
    detail: str


@dataclass(slots=True, eq=False)
class _Message:
    body: bytes
    redelivered: bool = False
    durable: bool = True


@dataclass(slots=True, eq=False)
class MemoryQueue:
    """What waits in one partition, the next first, and who stands in for it."""

    messages: deque[_Message] = field(default_factory=deque)
    consumers: list[MemorySource] = field(default_factory=list)  # the first is active, the others take over in turn


@dataclass(frozen=True, slots=True)
class Letter:
    """An order on its way to the node ``to``, or the answer to one to the queue ``to``."""

    kind: str
    to: str
    body: bytes
    expires_at: float = float("inf")
    sender: MemoryCourier | None = None


class MemoryBroker:
    """Queues in memory, one per partition, with a single active consumer each; acts only when called.
    A ``ports.ResyncSender``. It begins with the queues of one layout; those of others come with their first source.

    A queue's consumers stand in the order of their coming; the first is active. When it goes (``close``,
    ``crash``, ``disconnect``, ``stop``) what it did not ack goes back to the front of the queue, in order,
    marked as redelivered. A message is in its queue as soon as it is published; its confirm comes with the
    sink's next ``flush`` or ``resyncs``, and never while ``confirming`` is False. With a ``clock``,
    a ``receive`` that finds nothing sleeps for its timeout; without, it returns at once.

    Orders and answers arrive as soon as they are sent, or with ``holding`` when the test says so: they wait in
    ``under_way`` for ``deliver`` or ``drop_order``.
    """

    def __init__(self, partitions: int, *, clock: Clock | None = None, prefetch: int = 2000) -> None:
        self.partitions = partitions
        self.prefetch = prefetch
        self.running = True
        self.confirming = True
        self.dead_letters: list[MemoryDeadLetter] = []
        self.census: dict[str, list[bytes]] = {}
        self._clock = clock
        self.layouts: dict[int, list[MemoryQueue]] = {}
        self.aside: dict[int, list[MemoryQueue]] = {}
        self.sinks: list[MemorySink] = []
        self.holding = False
        self.under_way: list[Letter] = []
        self.listeners: dict[str, list[MemorySink]] = {}
        self.couriers: dict[str, MemoryCourier] = {}
        self._boxes_count = 0
        self.declare(partitions)

    def source(self, partitions: Sequence[int], standby: Sequence[int] = (), layout: int = 0) -> MemorySource:
        """A consumer that stands in for these partitions of a layout (0: the first one), behind those that came before, and
        from the second ``receive`` of a session on also for those of ``standby``.
        """
        return MemorySource(self, partitions, standby, layout or self.partitions)

    def sink(self) -> MemorySink:
        """A publisher; gets the resyncs that are requested from now on."""
        return MemorySink(self)

    def courier(self) -> MemoryCourier:
        """A way to the nodes of all sinks."""
        return MemoryCourier(self)

    def request_resync(self, resync: Resync) -> None:
        """Broadcast to all sinks that are connected now."""
        self.check_running()
        for sink in self.sinks:
            sink.pending.append(resync)

    def declare(self, layout: int) -> None:
        """Make the queues of a layout, unless they are there."""
        self.layouts.setdefault(layout, [MemoryQueue() for _ in range(layout)])

    def delete(self, layout: int) -> bool:
        """Delete the queues of a layout, with what waits in them; False where somebody consumes from them."""
        if any(queue.consumers for queue in self.layouts.get(layout, ())):
            return False
        self.layouts.pop(layout, None)
        return True

    def set_aside(self, layout: int, used: int) -> int:
        """Let no more events into the queues of a layout that nobody consumes from, and delete them if they are empty; how many
        messages wait in them.
        """
        self.declare(used)
        if layout not in self.layouts or any(queue.consumers for queue in self.layouts[layout]):
            return 0
        self.aside[layout] = self.layouts.pop(layout)
        return sum(len(queue.messages) for queue in self.aside[layout])

    def queue(self, partition: int, layout: int = 0) -> MemoryQueue:
        """The queue of a partition of a layout (0: the first one)."""
        return self.layouts[layout or self.partitions][partition]

    def queued(self, partition: int, layout: int = 0) -> list[bytes]:
        """The bodies that wait in a queue, the next one first; without those that are delivered and not acked."""
        return [message.body for message in self.queue(partition, layout).messages]

    def active(self, partition: int, layout: int = 0) -> MemorySource | None:
        """The consumer that gets this partition's messages now."""
        consumers = self.queue(partition, layout).consumers
        return consumers[0] if consumers else None

    # -- faults

    def stop(self, *, lose_unconfirmed: bool = True) -> None:
        """Break every connection and refuse new ones until ``start``. What was confirmed stays (it is on disk);
        what was not is lost, or with ``lose_unconfirmed=False`` kept without its publisher knowing. Marker messages, orders and
        answers are lost.
        """
        self.running = False
        self.under_way.clear()
        for courier in list(self.couriers.values()):
            courier.disconnect()
        for queue in itertools.chain.from_iterable(self.layouts.values()):
            for source in list(queue.consumers):
                source.disconnect()
            queue.messages = deque(message for message in queue.messages if message.durable)
        for sink in list(self.sinks):
            sink.disconnect(lose=lose_unconfirmed)

    def start(self) -> None:
        """Take connections again."""
        self.running = True

    def duplicate(self, partition: int, index: int = 0) -> None:
        """Put a copy of a waiting message right behind it, as a publisher does that missed a confirm."""
        messages = self.queue(partition).messages
        messages.insert(index + 1, _Message(messages[index].body))

    def swap(self, partition: int, first: int = 0, second: int = 1) -> None:
        """Exchange two waiting messages."""
        messages = self.queue(partition).messages
        messages[first], messages[second] = messages[second], messages[first]

    def drop(self, partition: int, index: int = 0) -> bytes:
        """Lose a waiting message, though it was confirmed: what no broker should do. Gives its body."""
        messages = self.queue(partition).messages
        body = messages[index].body
        del messages[index]
        return body

    def deliver(self, index: int = 0) -> None:
        """Let an order or an answer arrive that is ``under_way``; any but the first overtakes others."""
        self.arrive(self.under_way.pop(index))

    def drop_order(self, index: int = 0) -> Letter:
        """Lose an order or an answer that is ``under_way``."""
        return self.under_way.pop(index)

    # -- inside

    def post(self, letter: Letter) -> None:
        """Send an order or an answer."""
        if self.holding:
            self.under_way.append(letter)
        else:
            self.arrive(letter)

    def arrive(self, letter: Letter) -> None:
        """Give it to whom it is for."""
        if letter.kind == "answer":
            courier = self.couriers.get(letter.to)
            if courier is not None:
                courier.came.append(decode_answer(letter.body))
            return
        listeners = self.listeners.get(letter.to, ())
        for sink in listeners:
            sink.waiting.append(letter)
        if not listeners and letter.sender is not None:
            letter.sender.came.append(no_agent(letter.body))

    def new_box(self) -> str:
        """The name of a queue that nobody had yet."""
        self._boxes_count += 1
        return f"box {self._boxes_count}"

    def now(self) -> float:
        """Seconds, for what expires."""
        return (self._clock or SystemClock()).monotonic()

    @property
    def name(self) -> str:
        """What errors call this broker."""
        return "memory"

    def check_running(self) -> None:
        """Raise BrokerUnavailableError while stopped."""
        if not self.running:
            raise BrokerUnavailableError(self.name, "stopped by the test")

    def pause(self, seconds: float) -> None:
        """Let the time of a call that found nothing pass."""
        if self._clock is not None:
            self._clock.sleep(seconds)


class MemorySource:
    """A connection that consumes; a ``ports.Source``.

    away --created, receive, send_marker, dead_letter--> connected, in a new session: sends an activation message into each of its queues
    connected --close--> away
    connected --disconnect, broker.stop--> broken --the next call raises--> away
    any --crash--> gone, for good

    As a standby may become the active consumer of a queue in which nothing comes, a queue that is empty gets an activation message
    again where this session has had nothing from it yet.
    """

    def __init__(
        self, broker: MemoryBroker, partitions: Sequence[int], standby: Sequence[int] = (), layout: int = 0
    ) -> None:
        self.layout = layout or broker.partitions
        self.partitions = tuple(partitions)
        self.standby = tuple(partition for partition in standby if partition not in self.partitions)
        self.session = 0
        self._broker = broker
        self._state = "away"
        self._settled = False
        self._joined: list[int] = []
        self._silent: set[int] = set()
        self._unacked: dict[int, dict[int, _Message]] = {}
        self._last_tag = 0
        if broker.running:
            self._connect()

    def receive(self, limit: int, timeout_s: float) -> list[Delivery]:
        """Up to ``limit`` messages, the partitions in turn."""
        self._ensure_connected()
        if self._settled:
            self._join(self.standby)
        self._settled = True
        deliveries: list[Delivery] = []
        waiting = {partition: self._deliveries(partition) for partition in self._joined}
        while waiting and len(deliveries) < limit:
            for partition, stream in list(waiting.items()):
                delivery = next(stream, None) if len(deliveries) < limit else None
                if delivery is None:
                    del waiting[partition]
                else:
                    deliveries.append(delivery)
        if not deliveries:
            self._broker.pause(timeout_s)
        return deliveries

    def send_marker(self, partition: int, body: bytes = ACTIVATION) -> None:
        """Put a message of the consumer's own behind all that waits in a queue."""
        self._ensure_connected()
        self._broker.queue(partition, self.layout).messages.append(_Message(body, durable=False))

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Let the broker forget these; those of an older session are passed over."""
        if self._state == "away":
            return
        self._ensure_connected()
        for delivery in deliveries:
            if delivery.session == self.session:
                assert isinstance(delivery.tag, int)
                self._unacked[delivery.partition].pop(delivery.tag)

    def dead_letter(self, delivery: Delivery, reason: str, detail: str) -> None:
        """Add the message to the broker's ``dead_letters``. Not an ack."""
        self._ensure_connected()
        self._broker.dead_letters.append(MemoryDeadLetter(delivery.partition, delivery.body, reason, detail))

    def close(self) -> None:
        """Leave; what was not acked goes back. The next ``receive`` reconnects."""
        self._leave("away")

    # -- faults

    def crash(self) -> None:
        """The process dies: to the broker the same as ``close``. This object is not to be used again."""
        self._leave("gone")

    def disconnect(self) -> None:
        """The connection breaks, without this consumer knowing: its next call raises, the one after reconnects,
        at the end of each queue's order.
        """
        if self._state == "connected":
            self._leave("broken")

    # -- inside

    def _ensure_connected(self) -> None:
        assert self._state != "gone", "the dead do nothing"
        if self._state == "broken":
            self._state = "away"
            raise BrokerUnavailableError(self._broker.name, "the connection broke")
        if self._state == "away":
            self._connect()

    def _connect(self) -> None:
        self._broker.check_running()
        self.session += 1
        self._state = "connected"
        self._settled = False
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
            yield Delivery(partition, message.body, self._last_tag, self.session, message.redelivered)


class MemorySink:
    """A connection that publishes; a ``ports.Sink`` and a ``ports.AgentInbox``."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._unconfirmed: list[tuple[list[tuple[MemoryQueue, _Message]], Callable[[bool], None]]] = []
        self._lost: list[Callable[[bool], None]] = []
        self.pending: list[Resync] = []
        self.waiting: list[Letter] = []
        self.bad_orders = 0
        self._nodes: dict[str, None] = {}
        if broker.running:
            self._connect()

    def publish(self, bucket: int, body: bytes, on_done: Callable[[bool], None]) -> None:
        """Put the event into its queue in each layout; the confirm comes later."""
        self._ensure_connected()
        copies = [(queues[bucket % layout], _Message(body)) for layout, queues in self._broker.layouts.items()]
        for queue, message in copies:
            queue.messages.append(message)
        self._unconfirmed.append((copies, on_done))

    def flush(self, timeout_s: float) -> None:
        """Confirm everything. Raises ``UnconfirmedError`` while the broker is not confirming."""
        self._ensure_connected()
        self._confirm()
        if self._unconfirmed:
            self._broker.pause(timeout_s)
            raise UnconfirmedError(len(self._unconfirmed), timeout_s)

    def resyncs(self, timeout_s: float) -> list[Resync]:
        """Resync requests that came since the last call."""
        self._ensure_connected()
        self._confirm()
        if not self.pending and not self.waiting:
            self._broker.pause(timeout_s)
        resyncs, self.pending = self.pending, []
        return resyncs

    def answer_census(self, queue: str, body: bytes) -> None:
        """Add one node's version to the broker's ``census``."""
        self._ensure_connected()
        self._broker.census.setdefault(queue, []).append(body)

    def listen_for(self, nodes: Sequence[str]) -> None:
        """Take orders for these nodes too, from now on and after each reconnect."""
        new = [node for node in nodes if node not in self._nodes]
        self._nodes.update(dict.fromkeys(new))
        if self in self._broker.sinks:
            self._bind(new)

    def stop_listening_for(self, nodes: Sequence[str]) -> None:
        """Leave orders for these nodes to others."""
        known = [node for node in nodes if node in self._nodes]
        for node in known:
            del self._nodes[node]
        if self in self._broker.sinks:
            self._unbind(known)

    def orders(self) -> list[Order]:
        """Orders that came since the last call and are not overdue; what is not understood was answered."""
        self._ensure_connected()
        waiting, self.waiting = self.waiting, []
        orders: list[Order] = []
        for letter in waiting:
            if letter.expires_at <= self._broker.now():
                continue
            try:
                order = decode_order(letter.body)
                if order.node in self._nodes:
                    orders.append(order)
            except BadEventError as error:
                self.bad_orders += 1
                told = bad_order(letter.body, error)
                if told is not None:
                    self.answer(*told)
        return orders

    def answer(self, queue: str, answer: Answer) -> None:
        """Tell who gave an order what became of it."""
        self._ensure_connected()
        self._broker.post(Letter("answer", queue, encode(answer)))

    def close(self) -> None:
        """Close the connection; what was not confirmed is told as lost. Using the sink again reconnects."""
        self.disconnect(lose=False)
        self._report_lost()

    # -- inside

    def _connect(self) -> None:
        self._broker.check_running()
        self._broker.sinks.append(self)
        self._bind(self._nodes)

    def _bind(self, nodes: Iterable[str]) -> None:
        for node in nodes:
            self._broker.listeners.setdefault(node, []).append(self)

    def _unbind(self, nodes: Iterable[str]) -> None:
        for node in nodes:
            self._broker.listeners[node].remove(self)

    def _ensure_connected(self) -> None:
        self._report_lost()
        if self not in self._broker.sinks:
            self._connect()

    def _confirm(self) -> None:
        if self._broker.confirming:
            confirmed, self._unconfirmed = self._unconfirmed, []
            for _, on_done in confirmed:
                on_done(True)

    def disconnect(self, *, lose: bool) -> None:
        """The connection breaks: what is not confirmed is told as lost at the next call, and is with ``lose``."""
        if self in self._broker.sinks:
            self._broker.sinks.remove(self)
            self._unbind(self._nodes)
        for copies, on_done in self._unconfirmed:
            for queue, message in copies:
                if lose and message in queue.messages:
                    queue.messages.remove(message)
            self._lost.append(on_done)
        self._unconfirmed = []
        self.pending = []
        self.waiting = []

    def _report_lost(self) -> None:
        lost, self._lost = self._lost, []
        for on_done in lost:
            on_done(False)


class MemoryCourier:
    """A connection that brings orders to nodes; a ``ports.Courier``.

    away --reply_to, send, answers--> connected --close--> away
    connected --disconnect, broker.stop--> broken --the next call raises; reply_to does not--> away
    """

    def __init__(self, broker: MemoryBroker) -> None:
        self.came: list[Answer] = []
        self._broker = broker
        self._box = ""
        self._broken = False

    @property
    def reply_to(self) -> str:
        """The queue that answers come back to."""
        self._broken = False
        self._ensure_connected()
        return self._box

    def send(self, orders: Sequence[Order], expires_s: float) -> None:
        """Send them to their nodes' agents."""
        bodies = [encode(order) for order in orders]
        self._ensure_connected()
        expires_at = self._broker.now() + expires_s
        for order, body in zip(orders, bodies, strict=True):
            self._broker.post(Letter("order", order.node, body, expires_at, self))

    def answers(self, timeout_s: float) -> list[Answer]:
        """Answers that came since the last call."""
        self._ensure_connected()
        if not self.came:
            self._broker.pause(timeout_s)
        came, self.came = self.came, []
        return came

    def close(self) -> None:
        """Close the connection; answers under way are lost."""
        self._leave()
        self._broken = False

    def disconnect(self) -> None:
        """The connection breaks: the next call raises, the one after reconnects, to another queue."""
        self._broken = bool(self._box)
        self._leave()

    # -- inside

    def _leave(self) -> None:
        self._broker.couriers.pop(self._box, None)
        self._box = ""
        self.came = []

    def _ensure_connected(self) -> None:
        if self._broken:
            self._broken = False
            raise BrokerUnavailableError(self._broker.name, "the connection broke")
        if not self._box:
            self._broker.check_running()
            self._box = self._broker.new_box()
            self._broker.couriers[self._box] = self

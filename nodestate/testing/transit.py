"""Orders and answers on their way between the couriers and sinks of the broker double."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nodestate.model.orders import no_agent

if TYPE_CHECKING:  # connections know the transit, and the transit the connections that it delivers to
    from nodestate.testing.courier import MemoryCourier
    from nodestate.testing.sink import MemorySink


@dataclass(frozen=True, slots=True)
class TransitMessage:
    """An order or a presence on its way to the node ``to``, or an answer on its way to the queue ``to``.

    ``kind`` is "order", "presence" or "answer". ``expires_at``: time of the broker's clock at which an order is
    dropped. ``sender``: the courier of an order.
    """

    kind: str
    to: str
    body: bytes
    expires_at: float = float("inf")
    sender: MemoryCourier | None = None


class OrderTransit:
    """Carries orders and answers. Each arrives as soon as it is sent, unless a test holds it.

    While ``holding`` is True, messages wait in ``under_way``. A test then decides what becomes of each: ``deliver``
    lets it arrive, ``lose`` drops it. An index other than 0 picks a later message, which so overtakes the earlier
    ones::

        broker.transit.holding = True
        courier.send(orders, expires_s=60.0)
        broker.transit.deliver(1)   # the second order arrives first
        broker.transit.lose()       # the first one is lost
    """

    def __init__(self) -> None:
        self.holding = False
        """Whether messages wait for the test. A test may set it at any time; messages under way stay there."""
        self.under_way: list[TransitMessage] = []
        """The messages that wait, in the order in which they were sent."""
        self.listeners: dict[str, list[MemorySink]] = {}
        """By node, the sinks that listen for its orders."""
        self.couriers: dict[str, MemoryCourier] = {}
        """By the name of its queue for answers, each courier that is connected."""
        self._queues_count = 0
        """Number of queues for answers that were ever opened."""

    def send(self, message: TransitMessage) -> None:
        """Send an order or an answer."""
        if self.holding:
            self.under_way.append(message)
        else:
            self.arrive(message)

    def arrive(self, message: TransitMessage) -> None:
        """Give a message to the sinks that listen for its node, or to the courier whose queue it names.

        An order that no sink listens for comes back to its courier as a ``no-agent`` answer. An answer to a queue that
        is gone is lost.
        """
        if message.kind == "answer":
            courier = self.couriers.get(message.to)
            if courier is not None:
                courier.receive(message.body)
            return
        listeners = self.listeners.get(message.to, ())
        for sink in listeners:
            sink.order_messages.append(message)
        if not listeners and message.sender is not None:
            message.sender.arrived.append(no_agent(message.body))

    def deliver(self, index: int = 0) -> None:
        """Let a message that is under way arrive."""
        self.arrive(self.under_way.pop(index))

    def lose(self, index: int = 0) -> TransitMessage:
        """Lose a message that is under way. Returns the message."""
        return self.under_way.pop(index)

    def open_queue(self, courier: MemoryCourier) -> str:
        """Open a queue for a courier's answers. Returns its name, which no other queue ever had."""
        self._queues_count += 1
        name = f"box {self._queues_count}"
        self.couriers[name] = courier
        return name

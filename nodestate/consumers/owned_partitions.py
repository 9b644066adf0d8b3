"""The partitions that a consumer owns, and the deliveries of partitions that it still has to take over.

One partition, as this collection holds it::

    (unknown) --its first delivery--> awaiting takeover --admit--> owned
    awaiting takeover, owned --drop_all: the session with the broker ended--> (unknown)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from nodestate.consumers.partition import OwnedPartition
from nodestate.ports import Delivery


@dataclass(slots=True)
class AwaitedPartition:
    """A partition that the broker delivers to this consumer, before the consumer has taken it over."""

    first_delivery_at: float
    """When its first delivery came, in monotonic seconds. Its queue was bound by then."""
    deliveries: list[Delivery] = field(default_factory=list)
    """Everything delivered so far, in order."""


class OwnedPartitions:
    """All partitions in the hands of one consumer. Iterates over the owned ones."""

    def __init__(self) -> None:
        self.by_number: dict[int, OwnedPartition] = {}
        """The owned partitions."""
        self._awaited: dict[int, AwaitedPartition] = {}
        """The partitions to take over."""
        self._retry_at: dict[int, float] = {}
        """When a partition whose takeover or write failed is tried again, in monotonic seconds."""

    def __iter__(self) -> Iterator[OwnedPartition]:
        return iter(list(self.by_number.values()))

    def get(self, number: int) -> OwnedPartition | None:
        """The partition, or None if it is not owned."""
        return self.by_number.get(number)

    def owns(self, partition: OwnedPartition) -> bool:
        """True if this object is still owned. False once its session ended, even if its number is owned again."""
        return self.by_number.get(partition.number) is partition

    # -- deliveries -----------------------------------------------------------------------------

    def add_deliveries(self, deliveries: Sequence[Delivery], now: float) -> None:
        """Append each delivery to its partition's backlog, or keep it until the partition is taken over."""
        for delivery in deliveries:
            owned = self.by_number.get(delivery.partition)
            if owned is not None:
                owned.backlog.append(delivery)
            else:
                self._awaited.setdefault(delivery.partition, AwaitedPartition(now)).deliveries.append(delivery)

    # -- takeover -------------------------------------------------------------------------------

    def due_takeovers(self, now: float) -> list[int]:
        """Numbers of the partitions that await their takeover, without those whose retry is not due."""
        return [number for number in self._awaited if self.is_due(number, now)]

    def first_delivery_at(self, number: int) -> float:
        """When the first delivery of a partition came that awaits its takeover, in monotonic seconds."""
        return self._awaited[number].first_delivery_at

    def admit(self, partition: OwnedPartition) -> None:
        """Move a partition from awaiting to owned, with the deliveries that came for it."""
        self._retry_at.pop(partition.number, None)
        partition.backlog.extend(self._awaited.pop(partition.number).deliveries)
        self.by_number[partition.number] = partition

    def drop_all(self) -> None:
        """Give up every partition: the session with the broker ended, and all that is not acknowledged comes again,
        here or at another consumer. The next deliveries show which partitions are ours; they are taken over from the
        stores again.
        """
        self._awaited.clear()
        self.by_number.clear()
        self._retry_at.clear()

    # -- retries --------------------------------------------------------------------------------

    def postpone(self, number: int, until: float) -> None:
        """Leave the partition alone until this moment, in monotonic seconds."""
        self._retry_at[number] = until

    def is_due(self, number: int, now: float) -> bool:
        """True unless the partition is postponed beyond ``now``."""
        return self._retry_at.get(number, now) <= now

    def clear_retry(self, number: int) -> None:
        """Forget a postponement: the partition was written."""
        self._retry_at.pop(number, None)

"""The partitions that a consumer owns, and the partitions that it still has to take over.

One partition in this collection::

    (unknown) --its first delivery--> awaiting takeover --admit--> owned
    awaiting takeover --drop_all: the session with the broker ended--> (unknown)
    owned --drop_all--> (unknown); its nodes are kept as a former partition
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from nodestate.consumers.partition import OwnedPartition
from nodestate.model import NodeRecord
from nodestate.ports import Delivery


@dataclass(slots=True)
class FormerPartition:
    """The nodes of a partition as this consumer last stored them. ``Handover`` says what happens to them."""

    records: dict[str, NodeRecord]
    """By name, the records that some design had stored."""
    heard_at: dict[str, float]
    """By name, the time of the node's last sign of life, in monotonic seconds; minus infinity if it is not known."""
    handovers: int = 0
    """How often nodes were handed over to the new owner."""
    due_at: float = -math.inf
    """When to compare the nodes with the stores again, in monotonic seconds."""


@dataclass(slots=True)
class AwaitedPartition:
    """A partition that the broker delivers to this consumer, and that the consumer has not yet taken over."""

    first_delivery_at: float
    """When the partition's first delivery in this session came, in monotonic seconds. Its queue was bound before that
    time; between two sessions it may have been deleted and declared again.
    """
    deliveries: list[Delivery] = field(default_factory=list)
    """All messages delivered so far, in order."""


class OwnedPartitions:
    """All partitions of one consumer, owned or awaited. Iterating gives the owned partitions."""

    def __init__(self) -> None:
        self.by_number: dict[int, OwnedPartition] = {}
        """The owned partitions, by number."""
        self.former: dict[int, FormerPartition] = {}
        """The partitions that this consumer owned and did not take over again, by number."""
        self._waiting_since: dict[int, float] = {}
        """By number of a partition that was never taken over: when its first delivery came, in any session."""
        self._awaited: dict[int, AwaitedPartition] = {}
        """The partitions to take over, by number."""
        self._retry_at: dict[int, float] = {}
        """By number of a partition whose takeover or write failed: when to try again, in monotonic seconds."""

    def __iter__(self) -> Iterator[OwnedPartition]:
        return iter(list(self.by_number.values()))

    def get(self, number: int) -> OwnedPartition | None:
        """Return the owned partition of this number; None if it is not owned."""
        return self.by_number.get(number)

    def owns(self, partition: OwnedPartition) -> bool:
        """True if this object is an owned partition now.

        False for an object of an earlier session, even if the same partition is owned again as another object.
        """
        return self.by_number.get(partition.number) is partition

    # -- deliveries -----------------------------------------------------------------------------

    def add_deliveries(self, deliveries: Sequence[Delivery], now: float) -> None:
        """Append each delivery to the backlog of its partition, or keep it until the partition is taken over.

        Args:
            deliveries: messages, in the order in which they came.
            now: monotonic seconds.
        """
        for delivery in deliveries:
            owned = self.by_number.get(delivery.partition)
            if owned is not None:
                owned.backlog.append(delivery)
            else:
                self._waiting_since.setdefault(delivery.partition, now)
                self._awaited.setdefault(delivery.partition, AwaitedPartition(now)).deliveries.append(delivery)

    # -- takeover -------------------------------------------------------------------------------

    def due_takeovers(self, now: float) -> list[int]:
        """Return the numbers of the partitions to take over now, without postponed partitions.

        ``now`` is in monotonic seconds.
        """
        return [number for number in self._awaited if self.is_due(number, now)]

    def is_awaited(self, number: int) -> bool:
        """True if the broker delivers the partition to this consumer, and is not yet taken over."""
        return number in self._awaited

    def first_delivery_at(self, number: int) -> float:
        """Return when the first delivery of an awaited partition came in this session, in monotonic seconds."""
        return self._awaited[number].first_delivery_at

    def waiting_since(self, number: int) -> float:
        """Return when this consumer first waited for the takeover of a partition, in this session or in one before."""
        return self._waiting_since[number]

    def admit(self, partition: OwnedPartition) -> None:
        """Make an awaited partition an owned one, and append the deliveries that came for it to its backlog."""
        self._retry_at.pop(partition.number, None)
        self.former.pop(partition.number, None)
        self._waiting_since.pop(partition.number, None)
        partition.backlog.extend(self._awaited.pop(partition.number).deliveries)
        self.by_number[partition.number] = partition

    def drop_all(self) -> None:
        """Drop every partition, because the session with the broker ended.

        The broker delivers all unacknowledged messages again, to this or another consumer. This consumer takes over the
        partitions of the next deliveries, starting from the stores and from its own former nodes.
        """
        for partition in self:
            records = partition.stored_records()
            self.former[partition.number] = FormerPartition(
                {record.name: record for record in records},
                {record.name: heard_at for record, heard_at in zip(records, partition.heard_at, strict=False)},
            )
        self._awaited.clear()
        self.by_number.clear()
        self._retry_at.clear()

    # -- retries --------------------------------------------------------------------------------

    def postpone(self, number: int, until: float) -> None:
        """Do not take over or write the partition before ``until``, in monotonic seconds."""
        self._retry_at[number] = until

    def is_due(self, number: int, now: float) -> bool:
        """True unless the partition is postponed beyond ``now``, in monotonic seconds."""
        return self._retry_at.get(number, now) <= now

    def clear_retry(self, number: int) -> None:
        """Remove the partition's postponement, because a write succeeded."""
        self._retry_at.pop(number, None)

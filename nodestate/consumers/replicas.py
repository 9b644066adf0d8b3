"""Replicas: the two designs with the same content on two servers, of which one may fail without delaying the other.

One replica of one partition, as its owner sees it::

    in sync --its server fails, and the other replica stored the same work--> left behind
    left behind --join: begun from memory, as a new design is--> in sync

The head of each replica says how many are in sync (``Head.copies``). An owner that takes over trusts

- both replicas, if it could read both and both say 2: each event that was acknowledged is in one of them;
- a replica that says 1: it has every event that was acknowledged. The other one is begun again.

If only one replica could be read and it says 2, the other one may have gone on alone. Then the owner doubts its
replica: it asks all agents, and the partition is incomplete until they had time to answer. The same is true if it says
1 and its last owner was not caught up recently, or did not know all nodes: another owner may have read only the other
replica since, and gone on with that one. Before such a replica is begun again, the nodes that only it has at their
newest versions are stored in the other one.

The replica that could not be read may say 1 and be recent, and the next owner may read only that one, and trust it. So
an owner that doubts its replica stores events, but acknowledges none and does not call the partition complete for
``fresh_s`` after its takeover, or until it has begun the other replica again. After that time the other replica is no
longer recent, because its owner was caught up before the takeover at the latest. If the doubting owner ends earlier,
the broker delivers the events again. Hence at most one replica at a time says 1, is complete and recent, and that one
has every event that was acknowledged.

A replica whose head says 1 is never left behind, because its head could later not tell that it lacks events. It can be
left behind as soon as its head says 2.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from nodestate.config import Config
from nodestate.consumers.handover_messages import MAX_MESSAGE_BYTES, handover_messages
from nodestate.consumers.partition import OwnedPartition
from nodestate.consumers.partition_storage import PartitionStorage
from nodestate.designs import DESIGNS
from nodestate.errors import EpochLostError, NodestateError, StoreError
from nodestate.model import NodeRecord
from nodestate.model.record import is_sound
from nodestate.ports import Delivery
from nodestate.store.liveness import fresh_s
from nodestate.store.partition_writer import TakeoverResult


class Replicas:
    """Decides which replicas of owned partitions are left behind, and which stored state is to be trusted."""

    def __init__(self, config: Config, storage: PartitionStorage, log: Any) -> None:
        self._config = config
        """Gives the greatest age that the head of a living owner can appear to have."""
        self._storage = storage
        """Makes writers."""
        self._log = log
        """The consumer's logger."""

    def leave_behind(
        self, partition: OwnedPartition, design: str, error: NodestateError, stored: Collection[str]
    ) -> bool:
        """Go on without a replica that failed, if the other one has all that the owner will acknowledge.

        Args:
            partition: the owned partition.
            design: the design that failed.
            error: its error.
            stored: the designs that stored the same work, or that were renewed at the same time.

        Returns:
            False if the replica cannot be left behind; then nothing has changed.
        """
        partner = DESIGNS[design].partner
        if (
            not isinstance(error, StoreError | EpochLostError)
            or partner not in stored
            or partner not in partition.writers.keys() - partition.joining - partition.lost
            or design in partition.joining
            or design in partition.alone
        ):
            return False
        self._log.warning(
            "a replica of a partition is left behind; the partition goes on with the other one",
            partition=partition.number,
            design=design,
            reason=str(error),
        )
        self._leave(partition, design)
        if partition.pending is not None:
            partition.pending.unconfirmed_designs.discard(design)
        return True

    def take_without(self, partition: OwnedPartition, found: Mapping[str, object]) -> bool:
        """Leave behind the replicas that a takeover could not read, if it read the other ones.

        Args:
            partition: the partition that is taken over.
            found: by design, the stored state, None if there is none, or an error.

        Returns:
            True if each design that failed was left behind.
        """
        failed = [design for design, one in found.items() if isinstance(one, NodestateError)]
        for design in failed:
            partner = DESIGNS[design].partner
            if not isinstance(found[design], StoreError) or not isinstance(found.get(partner), TakeoverResult):
                return False
        for design in failed:
            self._leave(partition, design)
        return True

    def _leave(self, partition: OwnedPartition, design: str) -> None:
        # As in ``DesignChanges.adopt``: another owner may have taken this replica over since.
        owned_since = partition.taken_at - fresh_s(self._config)
        partition.writers |= self._storage.writers(partition.number, [design], owned_since)
        partition.joining.add(design)
        partition.lost.discard(design)
        partition.wants_repair.discard(design)
        partition.alone.add(DESIGNS[design].partner)


def note_copies(partition: OwnedPartition, design: str) -> None:
    """Note the number of copies that the stored head of a design names. Call this after each success of its writer.

    After a renewal or commit whose earlier try was stored, the stored head has the number of that try.
    """
    if partition.writers[design].copies > 1:
        partition.alone.discard(design)
    else:
        partition.alone.add(design)


def take_back(partition: OwnedPartition, taken: TakeoverResult, now: float) -> bool:
    """Take the newer nodes of a replica that could not be read at the takeover.

    Puts messages at the front of the backlog that say it. The partition is not called complete before they are folded.
    Then all is known that was acknowledged, so nodes that are silent are not doubted, unless the queue was lost as
    well.

    Args:
        partition: the owned partition.
        taken: the state of that replica.
        now: monotonic seconds.

    Returns:
        True if the replica had newer nodes. They are lost if it is begun again before they are stored elsewhere.
    """
    newer: list[NodeRecord] = []
    for record in taken.records:
        slot = partition.slots.get(record.name)
        known = partition.records[slot] if slot is not None else None
        if is_sound(record) and (known is None or (record.version, record.wanted) > (known.version, known.wanted)):
            newer.append(record)
    messages = list(handover_messages(newer, MAX_MESSAGE_BYTES))
    partition.backlog.extendleft(Delivery(partition.number, body, None, 0) for body in reversed(messages))
    if newer and not partition.complete:
        partition.complete_after = max(partition.complete_after, now)
    if not partition.queue_began and taken.complete and all(map(is_sound, taken.records)):
        partition.unheard.intersection_update(record.name for record in newer)
    return len(messages) > 0


def trusted(taken: Mapping[str, TakeoverResult], unread: Collection[str], config: Config) -> dict[str, TakeoverResult]:
    """Return the states that surely have all that was acknowledged, of the states that a takeover read.

    A state is trusted if it needed no other replica, or if both replicas were read and neither went on alone. If the
    other replica could not be read, the owner that needed none must have known all nodes, and have been caught up
    recently: after it, another owner may have gone on with the other replica alone.

    Args:
        taken: by design, the states that were read.
        unread: the designs that could not be read.
        config: gives the greatest age that the head of a living owner can appear to have.
    """
    found: dict[str, TakeoverResult] = {}
    for design, one in taken.items():
        partner = DESIGNS[design].partner if design in DESIGNS else ""
        other = taken.get(partner)
        recent = one.complete and one.behind_ms is not None and one.behind_ms <= fresh_s(config) * 1000
        is_alone = one.copies == 1 and (recent or partner not in unread)
        if not partner or is_alone or (other is not None and other.copies > 1):
            found[design] = one
    return found

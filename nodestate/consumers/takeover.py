"""Takeover: become the owner of a partition in every design, and start from the newest state that any store has.

One partition that the broker began to deliver::

    awaiting takeover --take in every design (CAS of the term)--> states found
    states found --there is no seed layout, or a state is usable--> merged: the newest version of each node is kept
    states found --no state is usable, and the seed layout is complete--> seeded with the nodes of that layout
    states found --no state is usable, and the seed layout is incomplete--> postponed; after ``_seed_wait_s``: merged
    merged, seeded --designs that differ from the result begin a new epoch--> owned
    any --a store failed--> postponed by ``RETRY_S``

The nodes that this consumer knew when it last owned the partition are merged as well. If the stores lost some of them,
the partition is incomplete until all agents could have reported.

If a consumer crashes between the commits of two designs, one design lacks a batch. The broker delivers the batch again,
but folding its events into the state of the other design drops them as duplicates, so they would never be written in
the first design. Therefore both designs start from the newest state of each node, and a design that lacks any of it is
written as a new epoch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from nodestate.config import Config
from nodestate.consumers.handover import names_of
from nodestate.consumers.owned_partitions import OwnedPartitions
from nodestate.consumers.partition import OwnedPartition
from nodestate.consumers.partition_storage import DesignOfPartition, PartitionStorage
from nodestate.consumers.replicas import Replicas, trusted
from nodestate.consumers.seed_layout import SeedLayout
from nodestate.consumers.statistics import ConsumerStats
from nodestate.consumers.store_failures import StoreFailures
from nodestate.designs import DESIGNS
from nodestate.errors import NodestateError
from nodestate.model import NodeRecord
from nodestate.model.record import is_sound, unknown_node
from nodestate.ports import Clock, Store
from nodestate.store.damage import DAMAGE
from nodestate.store.head import NEVER_HEARD
from nodestate.store.liveness import fresh_s
from nodestate.store.partition_writer import TakeoverResult
from nodestate.store.round_trips import Steps, run

SEED: Final = "seed"
"""Key under which the nodes of the seed layout stand beside the stored states of designs."""
SEED_RETRY_S: Final = 0.2
"""Pause before the seed layout is read again for a partition whose nodes it could not yet give."""
SEED_WAIT_RENEWALS_COUNT: Final = 30
"""Number of renewal intervals for which a partition waits for its seed layout, unless ``settle_s`` is longer."""


class Takeover:
    """Makes the consumer the owner of the partitions that the broker delivers to it."""

    def __init__(
        self,
        config: Config,
        owned: OwnedPartitions,
        storage: PartitionStorage,
        replicas: Replicas,
        failures: StoreFailures,
        stats: ConsumerStats,
        clock: Clock,
        log: Any,
    ) -> None:
        self.seed_layout: SeedLayout | None = None
        """Another layout. Its nodes replace stored state that cannot be used. None if there is no other layout."""
        self.serves_readers = False
        """True if readers use this layout. Its stored state is then usable even if the owner was far behind."""
        self._config = config
        """Gives the layout and the intervals."""
        self._owned = owned
        """Names the partitions to take over, and holds the partitions that were taken over."""
        self._storage = storage
        """Gives the stores and writers of the partitions."""
        self._replicas = replicas
        """Leaves replicas behind whose servers do not answer."""
        self._failures = failures
        """Postpones partitions whose stores failed."""
        self._stats = stats
        """Counts takeovers."""
        self._clock = clock
        """Monotonic time."""
        self._log = log
        """The consumer's logger."""

    def take_due(self, designs: tuple[str, ...]) -> bool:
        """Take over every partition that is due, in these designs, and then delete its other designs.

        Returns True if at least one partition was taken over. A partition whose store failed is postponed.
        """
        now = self._clock.monotonic()
        due = self._owned.due_takeovers(now)
        if not due:
            return False
        new = {number: OwnedPartition(number, self._storage.writers(number, designs), now) for number in due}
        stored = self._take_stored(new)
        self._seed_partitions(stored, now)
        begin: dict[DesignOfPartition, tuple[Store, Steps[None]]] = {}
        for number, taken in stored.items():
            partition = new[number]
            for name in self._merge(partition, taken, now):
                begin[number, name] = (
                    self._storage.store_of(number, name),
                    self._storage.begin_epoch(partition, name, now),
                )
        begun = run(begin)
        any_taken = False
        unused: list[DesignOfPartition] = []
        for number, partition in new.items():
            failed = [error for (p, _), error in begun.items() if p == number and isinstance(error, NodestateError)]
            if failed:
                self._failures.postpone(number, failed[0])
            elif self._owned.is_due(number, now):
                self._owned.admit(partition)
                unwritten = DESIGNS.keys() - partition.writers.keys()
                unused += [(number, name) for name in unwritten if self._storage.has(name)]
                any_taken = True
                self._stats.takeovers += 1
                self._log.info(
                    "partition taken over", partition=number, nodes=len(partition.records), complete=partition.complete
                )
        self._storage.delete(unused)
        return any_taken

    def _take_stored(self, new: Mapping[int, OwnedPartition]) -> dict[int, dict[str, TakeoverResult]]:
        """Become the owner of the partitions in all their designs.

        Returns the stored state by partition and by design. A design without stored state is missing from the inner
        mapping. A partition whose store failed is postponed, and is missing from the outer mapping.
        """
        results = run(
            {
                (number, name): (self._storage.store_of(number, name), writer.take_over())
                for number, partition in new.items()
                for name, writer in partition.writers.items()
            }
        )
        stored: dict[int, dict[str, TakeoverResult]] = {}
        for number, partition in new.items():
            found = {name: results[number, name] for name in partition.writers}
            failed = [result for result in found.values() if isinstance(result, NodestateError)]
            if failed and not self._replicas.take_without(partition, found):
                self._failures.postpone(number, failed[0])
            else:
                stored[number] = {
                    name: _without_damage(number, name, one)
                    for name, one in found.items()
                    if isinstance(one, TakeoverResult)
                }
        self._add_retired_replicas(new, stored)
        return stored

    def _add_retired_replicas(
        self, new: Mapping[int, OwnedPartition], stored: dict[int, dict[str, TakeoverResult]]
    ) -> None:
        """Add the state of replicas that are no longer written, if the other one says that two were in sync.

        An operator may retire a replica while no consumer runs, and the last owner may have gone on with that one
        alone. If it cannot be read, the owner doubts the one that it has.

        Args:
            new: the partitions that are taken over.
            stored: their stored state by design, to which the replicas are added.
        """
        retired = {
            (number, partner): writer
            for number, taken in stored.items()
            for name, one in taken.items()
            if one.copies > 1
            and (partner := DESIGNS[name].partner)
            and partner not in new[number].writers
            and self._storage.has(partner)
            for writer in self._storage.writers(number, [partner]).values()
        }
        results = run({one: (self._storage.store_of(*one), writer.take_over()) for one, writer in retired.items()})
        for (number, name), result in results.items():
            if isinstance(result, TakeoverResult):
                stored[number][name] = _without_damage(number, name, result)

    def _seed_partitions(self, stored: dict[int, dict[str, TakeoverResult]], now: float) -> None:
        """Replace unusable stored state by the nodes of the seed layout, if there is one.

        A partition whose nodes the seed layout cannot yet give is postponed and removed from ``stored``. If the
        partition has waited for ``_seed_wait_s`` already, its stored state is kept in ``stored``. Such state may
        lack events, so it is incomplete, whatever its last owner said.

        Args:
            stored: stored state by partition and by design.
            now: monotonic seconds.
        """
        if self.seed_layout is None:
            return
        bound_at = {
            number: self._owned.first_delivery_at(number)
            for number, taken in stored.items()
            if not self._is_usable(number, taken)
        }
        seeds = self.seed_layout.partitions(self._config.partitions, bound_at) if bound_at else {}
        for number in bound_at:
            if number in seeds:
                stored[number] = {SEED: seeds[number]}
            elif now < self._owned.waiting_since(number) + self._seed_wait_s:
                del stored[number]
                self._owned.postpone(number, now + SEED_RETRY_S)
            else:
                stored[number] = {name: one._replace(complete=False) for name, one in stored[number].items()}

    @property
    def _seed_wait_s(self) -> float:
        """Seconds after its first delivery in any session for which a partition waits for the seed layout."""
        return max(self._config.settle_s, SEED_WAIT_RENEWALS_COUNT * self._config.renew_s)

    def _is_usable(self, number: int, taken: Mapping[str, TakeoverResult]) -> bool:
        """True if a partition can start from its stored state, or from memory, although a seed layout exists.

        State whose owner was caught up recently is usable. Older state is not: it may be left over from a layout whose
        queues were deleted, and then lacks events. If readers use this layout, its queues exist, so any state is
        usable, and so are the nodes that this consumer knew when it last owned the partition.

        A takeover adds the head's age to ``behind_ms``. So old state does not look recent because another consumer has
        just taken it over.
        """
        known_ms = [one.behind_ms for one in taken.values() if one.behind_ms is not None]
        return min(known_ms, default=math.inf) <= fresh_s(self._config) * 1000 or (
            self.serves_readers and (len(taken) > 0 or number in self._owned.former)
        )

    def _merge(self, partition: OwnedPartition, taken: dict[str, TakeoverResult], asked_at: float) -> list[str]:
        """Fill the partition with the newest record of each node, from all designs or from the seed layout.

        Args:
            partition: the partition to fill.
            taken: stored state by design, or the nodes of the seed layout under the key ``seed``.
            asked_at: a time before the state was read, in monotonic seconds. Ages in ``taken`` are used as ages at this
                time, so no node seems to have given a sign of life later than it did.

        Returns:
            The designs that must begin a new epoch: those without stored state, those whose records differ from the
            merged records, and those whose epoch cannot continue.
        """
        now = self._clock.monotonic()
        known_to_be_whole = trusted(taken, partition.joining, self._config)
        is_doubted = bool(taken) and not known_to_be_whole
        stored, taken = taken, known_to_be_whole or taken
        newest: dict[str, NodeRecord] = {}
        heard_at: dict[str, float] = {}
        # A replica that is not trusted may have events that an owner acknowledged right before its end.
        for one in sorted(stored.values(), key=lambda one: -len(one.records)):
            _keep_newest(newest, one.records)
            for record, age_ms in zip(one.records, np.frombuffer(one.ages_ms, "<u4").tolist(), strict=False):
                if age_ms != NEVER_HEARD:
                    heard_at[record.name] = max(asked_at - age_ms / 1000, heard_at.get(record.name, -math.inf))
        restored = self._restore_former(partition, newest, heard_at)
        partition.fill(list(newest.values()), heard_at)
        if taken:
            # The stores lost nodes, and with them the proof that no other owner wrote meanwhile.
            partition.complete = any(one.complete for one in taken.values()) and not restored and not is_doubted
            # Designs that lost a node are left aside: the last events that the previous owner had taken may be events
            # of the lost node.
            behind_ms = [one.behind_ms for one in taken.values() if one.behind_ms is not None and one.epoch_continues]
            partition.caught_up_at = asked_at - min(behind_ms) / 1000 if behind_ms else partition.caught_up_at
        has_replicas = any(DESIGNS[name].partner in partition.writers for name in partition.writers)
        if is_doubted or (taken and not partition.complete and has_replicas):
            # The owner before may have doubted its replica, and ended before it could mark the silent nodes.
            partition.unheard = {record.name for record in partition.records if not record.gone}
        if is_doubted:
            partition.doubted = set(partition.joining)
            partition.acknowledges_from = now + fresh_s(self._config)
            self._log.warning(
                "only one replica of a partition could be read, and the other one may have more: all its agents are "
                "asked for reports, and the partition is incomplete until they had time to answer",
                partition=partition.number,
                nodes=len(partition.records),
            )
        for name, one in taken.items():
            if one.copies == 1 and name in partition.writers and DESIGNS[name].partner in partition.writers:
                partition.alone.add(name)
        partition.begins_with_queue = SEED in taken
        partition.begins_empty = not partition.records
        partition.complete_after = max(now + self._config.settle_s, partition.acknowledges_from)
        partition.needs_full_resync = not partition.complete
        same = {name for name, one in taken.items() if one.epoch_continues and one.records == partition.records}
        return [name for name in partition.writers if name not in same | partition.joining]

    def _restore_former(
        self, partition: OwnedPartition, newest: dict[str, NodeRecord], heard_at: dict[str, float]
    ) -> list[NodeRecord]:
        """Add the nodes that this consumer knew when it last owned the partition to the stored ones.

        Args:
            partition: the partition that is taken over.
            newest: by name, the newest stored records. Newer former records replace them.
            heard_at: by name, times of the last signs of life, in monotonic seconds. Later times replace them.

        Returns:
            The records that the stores had lost. The log names their nodes.
        """
        former = self._owned.former.get(partition.number)
        if former is None:
            return []
        restored = _keep_newest(newest, former.records.values())
        for name, at in former.heard_at.items():
            heard_at[name] = max(at, heard_at.get(name, -math.inf))
        if restored:
            self._log.warning(
                "the store lost nodes of a partition; it begins again with what this consumer knew of them",
                partition=partition.number,
                nodes=len(restored),
                names=names_of(restored),
            )
        return restored


def _without_damage(number: int, design: str, taken: TakeoverResult) -> TakeoverResult:
    """Replace the records whose encoded state is damaged by unknown nodes, as if the store had lost them."""
    damaged = {record.name for record in taken.records if record.rest and not is_sound(record)}
    if not damaged:
        return taken
    for name in sorted(damaged):
        DAMAGE.report(f"node {name} in partition {number} of {design}", "its encoded state is damaged")
    records = [unknown_node(record.name) if record.name in damaged else record for record in taken.records]
    return taken._replace(records=records, complete=False, epoch_continues=False)


def _keep_newest(newest: dict[str, NodeRecord], records: Iterable[NodeRecord]) -> list[NodeRecord]:
    """Put each record into ``newest``, by name, unless a newer one is there. Returns the records that were put."""
    put: list[NodeRecord] = []
    for record in records:
        known = newest.get(record.name)
        if known is None or (record.version, record.wanted) > (known.version, known.wanted):
            newest[record.name] = record
            put.append(record)
    return put

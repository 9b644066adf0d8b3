"""Taking partitions over: become the owner in every design, and start from the newest state that any store has.

One partition that the broker began to deliver::

    awaiting takeover --take in every design (CAS of the term)--> states found
    states found --one can be built upon--> merged by the newest version of each node
    states found --none can, and another layout has the nodes--> seeded from that layout
    states found --none can, and the other layout is incomplete--> postponed, at most for ``_seed_wait_s``; then empty
    merged, seeded, empty --designs that differ begin a new epoch--> owned
    any --a store failed--> postponed by ``RETRY_S``

A crash between the commits of two designs leaves one design behind. Its events come again, but folding them into the
newer design's state would drop them as duplicates. So both designs start from the newest state of each node, and the
one that had less is written as a new epoch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from nodestate.config import Config
from nodestate.consumers.owned_partitions import OwnedPartitions
from nodestate.consumers.partition import OwnedPartition
from nodestate.consumers.partition_storage import DesignOfPartition, PartitionStorage
from nodestate.consumers.seed_layout import SeedLayout
from nodestate.consumers.statistics import ConsumerStats
from nodestate.consumers.store_failures import StoreFailures
from nodestate.designs import DESIGNS
from nodestate.errors import NodestateError
from nodestate.ports import Clock, Store
from nodestate.store.liveness import fresh_s
from nodestate.store.partition_writer import TakeoverResult
from nodestate.store.round_trips import Steps, run

SEED_RETRY_S: Final = 0.2
"""Pause before the seed layout is read again for a partition that it was not ready to give."""
SEED_WAIT_RENEWALS_COUNT: Final = 30
"""Renewal intervals for which a partition waits for its seed layout; it waits for ``settle_s`` if that is longer."""


class Takeover:
    """Makes the consumer the owner of the partitions that the broker delivers to it."""

    def __init__(
        self,
        config: Config,
        owned: OwnedPartitions,
        storage: PartitionStorage,
        failures: StoreFailures,
        stats: ConsumerStats,
        clock: Clock,
        log: Any,
    ) -> None:
        self.seed_layout: SeedLayout | None = None
        """The layout whose nodes a partition without usable stored state begins with; None if there is no other."""
        self.serves_readers = False
        """True if readers use this layout. Then stored state counts however long its owner was behind."""
        self._config = config
        """The layout and the intervals."""
        self._owned = owned
        """Gives the partitions to take over, and receives them."""
        self._storage = storage
        """The stores to take them over in."""
        self._failures = failures
        """Postpones partitions whose stores failed."""
        self._stats = stats
        """Counts takeovers."""
        self._clock = clock
        """Monotonic time."""
        self._log = log
        """The consumer's logger."""

    def take_due(self, designs: tuple[str, ...]) -> bool:
        """Take over every partition that is due, in these designs. Returns True if at least one is owned now."""
        now = self._clock.monotonic()
        due = self._owned.due_takeovers(now)
        if not due:
            return False
        new = {number: OwnedPartition(number, self._storage.writers(number, designs), now) for number in due}
        stored = self._take_stored(new)
        self._seed_partitions(stored, now)
        begin: dict[DesignOfPartition, tuple[Store, Steps[None]]] = {}
        unused: list[DesignOfPartition] = []
        for number, taken in stored.items():
            partition = new[number]
            for name in self._merge(partition, taken, now):
                begin[number, name] = (
                    self._storage.store_of(number, name),
                    self._storage.begin_epoch(partition, name, now),
                )
            unwritten = DESIGNS.keys() - partition.writers.keys()
            unused += [(number, name) for name in unwritten if self._storage.has(name)]
        self._storage.delete(unused)
        begun = run(begin)
        any_taken = False
        for number, partition in new.items():
            failed = [error for (p, _), error in begun.items() if p == number and isinstance(error, NodestateError)]
            if failed:
                self._failures.postpone(number, failed[0])
            elif self._owned.is_due(number, now):
                self._owned.admit(partition)
                any_taken = True
                self._stats.takeovers += 1
                self._log.info(
                    "partition taken over", partition=number, nodes=len(partition.records), complete=partition.complete
                )
        return any_taken

    def _take_stored(self, new: Mapping[int, OwnedPartition]) -> dict[int, dict[str, TakeoverResult]]:
        """Take the partitions in all their designs. Returns the stored state by partition and design, without the
        partitions of which a store failed. These are postponed.
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
            if failed:
                self._failures.postpone(number, failed[0])
            else:
                stored[number] = {name: one for name, one in found.items() if isinstance(one, TakeoverResult)}
        return stored

    def _seed_partitions(self, stored: dict[int, dict[str, TakeoverResult]], now: float) -> None:
        """Replace unusable stored state by the nodes of the seed layout. Removes the partitions
        that still have to wait for the seed layout, and postpones them.
        """
        if self.seed_layout is None:
            return
        wanted = {
            number: self._owned.first_delivery_at(number)
            for number, taken in stored.items()
            if not self._is_usable(taken)
        }
        seeds = self.seed_layout.partitions(self._config.partitions, wanted) if wanted else {}
        for number, first_delivery_at in wanted.items():
            if number in seeds:
                stored[number] = {"seed": seeds[number]}
            elif now < first_delivery_at + self._seed_wait_s:
                del stored[number]
                self._owned.postpone(number, now + SEED_RETRY_S)

    @property
    def _seed_wait_s(self) -> float:
        return max(self._config.settle_s, SEED_WAIT_RENEWALS_COUNT * self._config.renew_s)

    def _is_usable(self, taken: Mapping[str, TakeoverResult]) -> bool:
        """True if the stored state can be built upon although a seed layout exists.

        Stored state whose owner was not recently caught up is ignored, unless readers use this layout: it may be left
        over from a layout whose queues were deleted. A takeover adds the head's age to ``behind_ms``, so an owner that
        was here for a moment only does not make an old state look recent.
        """
        known_ms = [one.behind_ms for one in taken.values() if one.behind_ms is not None]
        return min(known_ms, default=math.inf) <= fresh_s(self._config) * 1000 or (
            self.serves_readers and len(taken) > 0
        )

    def _merge(self, partition: OwnedPartition, taken: dict[str, TakeoverResult], asked_at: float) -> list[str]:
        """Fill the partition with the newest record of each node, from all designs or from the seed layout. Ages in
        ``taken`` were true at ``asked_at`` (monotonic seconds) or later.

        Returns the designs that need a new epoch: all that had nothing, lacked nodes, or had other records.
        """
        now = self._clock.monotonic()
        if taken:
            first = max(taken.values(), key=lambda one: len(one.records))
            newest = {record.name: record for record in first.records}
            for other in taken.values():
                for record in other.records:
                    known = newest.get(record.name)
                    if known is None or (record.version, record.wanted) > (known.version, known.wanted):
                        newest[record.name] = record
            partition.fill(list(newest.values()), first.ages_ms, asked_at)
            partition.complete = any(one.complete for one in taken.values())
            # Only of a design that lost no node: the node that another design lost may be the one that the previous
            # owner had caught up with.
            behind_ms = [one.behind_ms for one in taken.values() if one.behind_ms is not None and one.epoch_continues]
            partition.caught_up_at = asked_at - min(behind_ms) / 1000 if behind_ms else partition.caught_up_at
        partition.complete_after = now + self._config.settle_s
        partition.needs_full_resync = not partition.complete
        same = {name for name, one in taken.items() if one.epoch_continues and one.records == partition.records}
        return [name for name in partition.writers if name not in same]

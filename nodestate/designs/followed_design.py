"""A design in a layout as a reader follows it: one follower for each partition, which may be that of a replica.

One partition, if the cell writes two replicas::

    reads one replica --its server does not answer, its head is lost, or it is too old--> looks at both
    looks at both --the other one was confirmed later, and no node is older there--> reads the other one
    looks at both --the first one recovers--> reads one replica

A reader stays with the replica that it reads, so it asks for one head of each partition and pays for one table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from nodestate.config import Config
from nodestate.designs import DESIGNS
from nodestate.designs.stored_design import StoredDesign
from nodestate.errors import ConfigError, NodestateError
from nodestate.model import NEVER
from nodestate.ports import Clock, Store
from nodestate.store import keys
from nodestate.store.round_trips import Steps, Stores, run
from nodestate.view.follower import Follower, PartitionState

RENEWALS_COUNT: Final = 2
"""A partition whose owner did not confirm it for longer than these renewals, and ``TICK_S``, is too old."""
TICK_S: Final = 1.0
"""Seconds by which a partition may look older than it is, because memcached's clock ticks once a second."""


class FollowedDesign:
    """The followers of all partitions of one design in one layout."""

    def __init__(self, stored: StoredDesign, config: Config, stores: Stores, clock: Clock) -> None:
        self.stored = stored
        """The design and the layout that are followed."""
        self.errors: dict[int, NodestateError] = {}
        """By partition, the error of its last refresh. A partition whose last refresh worked is missing."""
        self._cell = config.cell
        """The cell's name, for keys."""
        self._too_old_s = RENEWALS_COUNT * config.renew_s + TICK_S
        """Age in seconds from which a partition is looked for in its other replica."""
        self._clock = clock
        """Monotonic time, for ages."""
        followed = [self._follower(p, stored.design, stores) for p in range(stored.partitions)]
        self.stores = [store for store, _ in followed]
        """By partition, the store from which the partition is read."""
        self.followers = [follower for _, follower in followed]
        """By partition, its follower."""
        self._others: dict[int, tuple[Store, Follower]] = {}
        """By partition, the replica that is not read: its store and its follower. Empty until one is needed."""
        self._moved: set[int] = set()
        """The partitions that are read from the replica that ``stored`` does not name."""

    def work(self, *, with_life: bool) -> dict[int, tuple[Store, Steps[PartitionState]]]:
        """Return the steps of a refresh of every partition, each with the partition's store.

        If ``with_life``, the refresh also fetches the nodes' signs of life.
        """
        return {
            p: (store, follower.refresh(with_life))
            for p, (store, follower) in enumerate(zip(self.stores, self.followers, strict=True))
        }

    def note_errors(self, results: Mapping[int, PartitionState | NodestateError]) -> None:
        """Record which partitions' refresh failed, from the results of the steps of ``work``."""
        self.errors = {p: result for p, result in results.items() if isinstance(result, NodestateError)}

    def look_at_replicas(self, stores: Stores, *, with_life: bool, both_written: bool) -> None:
        """Refresh the other replica of each partition that failed or is too old; read it from now on if it is newer.

        Call this after ``note_errors``.

        Args:
            stores: the stores of the cell.
            with_life: fetch the nodes' signs of life, too.
            both_written: True if the cell writes both replicas. If not, only partitions that are read from the replica
                that ``stored`` does not name are looked for: an operator may have retired it.
        """
        if not both_written and not self._moved:
            return
        oldest = self._clock.monotonic() - self._too_old_s
        doubtful = [
            p
            for p, follower in enumerate(self.followers)
            if (both_written or p in self._moved)
            and (p in self.errors or follower.state.lost or follower.state.confirmed_at < oldest)
        ]
        if not doubtful:
            return
        for p in doubtful:
            if p not in self._others:
                self._others[p] = self._follower(p, DESIGNS[self.stored.design].partner, stores)
        try:
            results = run({p: (self._others[p][0], self._others[p][1].refresh(with_life)) for p in doubtful})
        except ConfigError:  # a server cannot be used with these settings
            return
        for p, result in results.items():
            if isinstance(result, PartitionState) and _is_newer(result, self.followers[p].state):
                read = self.stores[p], self.followers[p]
                self.stores[p], self.followers[p] = self._others[p]
                self._others[p] = read
                self._moved ^= {p}
                self.errors.pop(p, None)

    @property
    def states(self) -> tuple[PartitionState, ...]:
        """The state of each partition. A partition whose last refresh failed is marked as lost."""
        if not self.errors:
            return tuple([follower.state for follower in self.followers])
        return tuple(
            f.state._replace(lost=str(self.errors[p])) if p in self.errors else f.state
            for p, f in enumerate(self.followers)
        )

    def _prefix(self, partition: int, design: str) -> str:
        return keys.prefix(self._cell, self.stored.partitions, partition, DESIGNS[design].letter)

    def _follower(self, partition: int, design: str, stores: Stores) -> tuple[Store, Follower]:
        """Return the store of a partition in a design, and a new follower of it."""
        store, prefix = stores.of(partition, DESIGNS[design].store_role), self._prefix(partition, design)
        return store, Follower(partition, prefix, DESIGNS[design].reader(prefix), store, self._clock)


def _is_newer(new: PartitionState, old: PartitionState) -> bool:
    """True if a replica was confirmed later than the one that is read, and has no node at an older version.

    A tombstone may be missing: a view shows neither of the two.
    """
    if new.table is None or new.lost or new.confirmed_at <= old.confirmed_at:
        return False
    if old.table is None:
        return True
    have = {record.name: record.version for record in new.table.records()}
    return all(
        have.get(record.name, NEVER) >= record.version or (record.gone and record.name not in have)
        for record in old.table.records()
    )

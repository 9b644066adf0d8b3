"""The storage of a consumer's partitions: the servers and writers of each design, new epochs, and deletion."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from nodestate.config import Config
from nodestate.consumers.partition import OwnedPartition
from nodestate.consumers.statistics import ConsumerStats
from nodestate.designs import DESIGNS
from nodestate.errors import NodestateError
from nodestate.ports import Clock, Store, StoreRole
from nodestate.store import keys
from nodestate.store.epoch_removal import remove_epoch
from nodestate.store.ownership import PartitionTarget
from nodestate.store.partition_writer import PartitionWriter
from nodestate.store.round_trips import Steps, Stores, run
from nodestate.view.follower import Follower

DesignOfPartition = tuple[int, str]
"""A partition's number and a design's name. Work on the stores is kept in mappings with this key."""


class PartitionStorage:
    """Gives one owner the stores and writers of a layout's partitions, and begins and deletes epochs."""

    def __init__(
        self,
        config: Config,
        stores: Stores,
        owner: str,
        clock: Clock,
        rng: random.Random,
        stats: ConsumerStats,
        log: Any,
    ) -> None:
        self.owner = owner
        """The owner name that this consumer writes into heads. Each start of a consumer has another name."""
        self._config = config
        """Gives the cell, the layout (``partitions``) and ``lease_s``."""
        self._stores = stores
        """The servers of the cell."""
        self._clock = clock
        """Monotonic time, for the ages that heads carry."""
        self._rng = rng
        """Gives the ids of new epochs."""
        self._stats = stats
        """Counts new epochs."""
        self._log = log
        """The consumer's logger."""

    def has(self, design: str) -> bool:
        """True if the settings name a store for this design."""
        return self._stores.has(DESIGNS[design].store_role)

    def store_of(self, number: int, design: str) -> Store:
        """Return the server on which a design stores a partition."""
        return self._stores.of(number, DESIGNS[design].store_role)

    def writers(
        self, number: int, designs: Iterable[str], owned_since: float | None = None
    ) -> dict[str, PartitionWriter]:
        """Make a new writer of the partition for each design. ``owned_since``: see ``PartitionTarget``."""
        return {design: DESIGNS[design].writer(self._target(number, design, owned_since)) for design in designs}

    def begin_epoch(self, partition: OwnedPartition, design: str, now: float) -> Steps[None]:
        """Count and log a new epoch. Returns the steps that write all nodes of the partition as that epoch."""
        epoch = self._rng.getrandbits(63)
        self._stats.epochs_begun += 1
        self._log.info(
            "new epoch", partition=partition.number, design=design, epoch=f"{epoch:x}", nodes=len(partition.records)
        )
        status = replace(partition.status(now, design), ages_ms=partition.ages_ms(now))
        return partition.writers[design].begin_epoch(epoch, partition, status)

    def follower(self, number: int, design: str) -> Follower:
        """Make a reader of the partition in a design, for a partition that this consumer does not own."""
        target = self._target(number, design)
        return Follower(number, target.prefix, DESIGNS[design].reader(target.prefix), target.store, self._clock)

    def delete(self, unused: Iterable[DesignOfPartition]) -> None:
        """Delete the stored state of designs that this consumer no longer writes.

        A failure is logged and not tried again. The head of such a design expires because no owner renews it, and
        readers then see that the design is lost.
        """
        work: Mapping[DesignOfPartition, tuple[Store, Steps[None]]] = {
            (number, design): (
                self.store_of(number, design),
                remove_epoch(self._target(number, design), rows=DESIGNS[design].store_role is StoreRole.SQL),
            )
            for number, design in unused
        }
        for (number, design), error in run(work).items():
            if isinstance(error, NodestateError):
                self._log.warning(
                    "could not delete the stored state of a partition",
                    partition=number,
                    design=design,
                    reason=str(error),
                )

    def _target(self, number: int, design: str, owned_since: float | None = None) -> PartitionTarget:
        prefix = keys.prefix(self._config.cell, self._config.partitions, number, DESIGNS[design].letter)
        store, lease_s = self.store_of(number, design), int(self._config.lease_s)
        return PartitionTarget(prefix, number, self.owner, lease_s, store, self._clock, owned_since)

"""Storage of a consumer's partitions: the servers of each design, its writers, new epochs, and removal."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any

from nodestate.config import Config
from nodestate.consumers.partition import OwnedPartition
from nodestate.consumers.statistics import ConsumerStats
from nodestate.designs import DESIGNS
from nodestate.errors import NodestateError
from nodestate.ports import Clock, Store, StoreRole
from nodestate.store import keys
from nodestate.store.ownership import PartitionTarget, remove_epoch
from nodestate.store.partition_writer import PartitionWriter
from nodestate.store.round_trips import Steps, Stores, run

DesignOfPartition = tuple[int, str]
"""A partition's number and the name of a design: the key of every piece of work on the stores."""


class PartitionStorage:
    """The stores of one layout, as one owner writes them."""

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
        """The name that heads carry while this consumer owns them: unique to this consumer and start."""
        self._config = config
        """Names the cell, the layout (``partitions``) and ``lease_s``."""
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
        """The server of a partition of a design."""
        return self._stores.of(number, DESIGNS[design].store_role)

    def writers(
        self, number: int, designs: Iterable[str], owned_since: float | None = None
    ) -> dict[str, PartitionWriter]:
        """A new writer for each design of a partition. ``owned_since``: see ``PartitionTarget``."""
        return {design: DESIGNS[design].writer(self._target(number, design, owned_since)) for design in designs}

    def begin_epoch(self, partition: OwnedPartition, design: str, now: float) -> Steps[None]:
        """Write all nodes of the partition as a new epoch of the design."""
        epoch = self._rng.getrandbits(63)
        self._stats.epochs_begun += 1
        self._log.info(
            "new epoch", partition=partition.number, design=design, epoch=f"{epoch:x}", nodes=len(partition.records)
        )
        return partition.writers[design].begin_epoch(epoch, partition, partition.status(now))

    def delete(self, unused: Iterable[DesignOfPartition]) -> None:
        """Delete the stored state of designs that this consumer no longer writes. If that fails, their heads expire
        because no owner renews them, and readers see that.
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

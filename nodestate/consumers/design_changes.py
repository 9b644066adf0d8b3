"""Changes of the designs that a consumer writes, while it owns partitions.

One design of one partition::

    (not written) --adopt--> joining --join: taken, and written as a new epoch unless equal--> written
    written --adopt without it--> leaving --another design is written--> deleted
    leaving --adopt with it--> written            joining --adopt without it--> deleted

A design that leaves is written until another one is: events are acknowledged only for a design that has them.
"""

from __future__ import annotations

from collections.abc import Sequence

from nodestate.config import Config
from nodestate.consumers.owned_partitions import OwnedPartitions
from nodestate.consumers.partition import OwnedPartition
from nodestate.consumers.partition_storage import DesignOfPartition, PartitionStorage
from nodestate.store.liveness import fresh_s
from nodestate.store.round_trips import Steps


class DesignChanges:
    """Brings the owned partitions to the designs that the consumer shall write."""

    def __init__(self, config: Config, owned: OwnedPartitions, storage: PartitionStorage) -> None:
        self.designs = config.designs
        """The designs to write from now on; new partitions begin with them."""
        self._config = config
        """Gives the age of a head whose owner lives."""
        self._owned = owned
        """The partitions to change."""
        self._storage = storage
        """Makes writers, and deletes designs that are no longer written."""

    def adopt(self, designs: Sequence[str]) -> None:
        """Write these designs from now on. A new design is begun partition by partition, from the nodes in memory. A
        design that is no longer wanted is deleted as soon as another one is written.
        """
        added, removed = set(designs) - set(self.designs), set(self.designs) - set(designs)
        self.designs = tuple(designs)
        for partition in self._owned:
            partition.leaving = (partition.leaving | removed & partition.writers.keys()) - added
            new = added - partition.writers.keys()
            # If this machine was frozen, its monotonic clock may have stopped as well, and the time since ``taken_at``
            # looks too short. A living owner's head is at most ``fresh_s`` old, so a head younger than that was written
            # since.
            owned_since = partition.taken_at - fresh_s(self._config)
            partition.writers |= self._storage.writers(partition.number, new, owned_since)
            partition.joining |= new
        self.drop_leaving()

    def drop_leaving(self) -> None:
        """Stop writing the designs that leave, in each partition that has another design already, and delete their
        stored state.
        """
        unused: list[DesignOfPartition] = []
        for partition in self._owned:
            staying = partition.writers.keys() - partition.leaving - partition.joining
            for name in partition.leaving if staying else partition.leaving & partition.joining:
                partition.drop_design(name)
                unused.append((partition.number, name))
            partition.leaving &= partition.writers.keys()
        self._storage.delete(unused)

    def join(self, partition: OwnedPartition, name: str, now: float) -> Steps[None]:
        """Become the owner of a design that was not written so far, and write it as a new epoch unless it has the same
        records. Raises ``FencedError`` if another owner wrote it after we took the partition: we were frozen meanwhile.
        """
        taken = yield from partition.writers[name].take_over()
        if taken is None or not taken.epoch_continues or taken.records != partition.records:
            yield from self._storage.begin_epoch(partition, name, now)

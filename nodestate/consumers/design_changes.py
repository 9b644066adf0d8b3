"""Changes of the designs that a consumer writes while it owns partitions.

One design of one partition::

    (not written) --adopt--> joining --join: taken over, and written as a new epoch unless it is equal--> written
    joining --join: it has newer nodes than the owner (``replicas``)--> joining: they are stored elsewhere first
    written --adopt without it--> retiring --another design is written--> deleted
    retiring --adopt with it--> written            joining --adopt without it--> deleted

A retiring design is written until another design is written. Otherwise events could be acknowledged that no design has
stored.
"""

from __future__ import annotations

from collections.abc import Sequence

from nodestate.config import Config
from nodestate.consumers.owned_partitions import OwnedPartitions
from nodestate.consumers.partition import OwnedPartition
from nodestate.consumers.partition_storage import DesignOfPartition, PartitionStorage
from nodestate.consumers.replicas import take_back
from nodestate.designs import DESIGNS
from nodestate.store.liveness import fresh_s
from nodestate.store.round_trips import Steps


class DesignChanges:
    """Changes the designs in which the owned partitions are written."""

    def __init__(self, config: Config, owned: OwnedPartitions, storage: PartitionStorage) -> None:
        self.designs = config.designs
        """The designs to write. A partition that is taken over later is written in these designs from the start."""
        self._config = config
        """Gives the greatest age that the head of a living owner can appear to have."""
        self._owned = owned
        """The partitions to change."""
        self._storage = storage
        """Makes writers, and deletes designs that are no longer written."""

    def adopt(self, designs: Sequence[str]) -> None:
        """Write these designs from now on, and no others.

        A design that was not written before is begun from the nodes in memory, in one partition after another. A design
        that was written before and is not in ``designs`` is deleted as soon as another design is written.
        """
        added, removed = set(designs) - set(self.designs), set(self.designs) - set(designs)
        self.designs = tuple(designs)
        for partition in self._owned:
            partition.retiring = (partition.retiring | removed & partition.writers.keys()) - added
            new = added - partition.writers.keys()
            # Another owner may have taken the partition while this machine was frozen. The monotonic clock may have
            # stopped as well, so the time since ``taken_at`` may look too short to notice that owner's head. The head
            # of a living owner looks at most ``fresh_s`` old: with this margin every such head counts as written since.
            owned_since = partition.taken_at - fresh_s(self._config)
            partition.writers |= self._storage.writers(partition.number, new, owned_since)
            partition.joining |= new
            partition.alone |= {DESIGNS[name].partner for name in new} & partition.writers.keys()
        self.drop_retiring()

    def drop_retiring(self) -> None:
        """Stop writing the retiring designs in each partition that is written in another design, and delete them.

        In the other partitions only the retiring designs that were not yet begun are dropped.
        """
        unused: list[DesignOfPartition] = []
        for partition in self._owned:
            staying = partition.writers.keys() - partition.retiring - partition.joining
            for name in partition.retiring if staying else partition.retiring & partition.joining:
                partition.drop_design(name)
                unused.append((partition.number, name))
            partition.retiring &= partition.writers.keys()
        self._storage.delete(unused)

    def join(self, partition: OwnedPartition, name: str, now: float) -> Steps[None]:
        """Take over a new design of an owned partition, and write it as a new epoch unless it has the same records.

        A replica that could not be read at the takeover stays in ``doubted`` if it has newer nodes than the owner. They
        are in the backlog then. Call this again once they are stored in another design: the new epoch replaces the only
        copy of them.

        Raises:
            FencedError: if another owner wrote this design after this consumer took the partition over. That happens if
                this consumer was frozen meanwhile.
        """
        taken = yield from partition.writers[name].take_over()
        if taken is not None and name in partition.doubted - partition.taken_back and take_back(partition, taken, now):
            partition.taken_back.add(name)
            return
        if taken is None or not taken.epoch_continues or taken.records != partition.records:
            yield from self._storage.begin_epoch(partition, name, now)
        partition.doubted.discard(name)
        partition.taken_back.discard(name)

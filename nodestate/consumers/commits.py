"""Commits: fold the backlog of each partition, write the batch in every design, and then acknowledge its messages.

One batch of one partition::

    (none) --fold--> pending in every design --a design confirmed it--> pending in the others
    pending --a store failed--> pending: the same batch is written again after a pause; other partitions go on
    pending in no design --> the messages are acknowledged, the refused ones only after they are dead letters

New epochs, new designs and repairs are written in the same way. They come before new events: under a steady stream of
events there would be no time for them afterwards.
"""

from __future__ import annotations

from typing import Final

from nodestate.config import Config
from nodestate.consumers.broker_session import BrokerSession
from nodestate.consumers.design_changes import DesignChanges
from nodestate.consumers.owned_partitions import OwnedPartitions
from nodestate.consumers.partition import OwnedPartition, Pending
from nodestate.consumers.partition_storage import DesignOfPartition, PartitionStorage
from nodestate.consumers.statistics import ConsumerStats
from nodestate.consumers.store_failures import StoreFailures
from nodestate.consumers.transition_log import TransitionLog
from nodestate.errors import FencedError, NodestateError, StoreError
from nodestate.model import MAX_NODE_NAME_CHARS
from nodestate.ports import Clock, Store
from nodestate.store.round_trips import Steps, run
from nodestate.store.wire import ENVELOPE_BYTES

JOIN_RETRY_S: Final = 1.0
"""Pause before a new design is begun again after a failure."""
ITEM_HEADER_BYTES: Final = 512
"""Most bytes of a stored item besides a record's parts or an event: format, stamp, lengths, the node's name."""
assert ITEM_HEADER_BYTES > ENVELOPE_BYTES + MAX_NODE_NAME_CHARS + 200


class Commits:
    """Writes the pending work of all owned partitions, in as few round trips as one partition needs."""

    def __init__(
        self,
        config: Config,
        owned: OwnedPartitions,
        storage: PartitionStorage,
        session: BrokerSession,
        changes: DesignChanges,
        failures: StoreFailures,
        stats: ConsumerStats,
        transitions: TransitionLog,
        clock: Clock,
    ) -> None:
        self._config = config
        """Names the number of partitions, against which events are checked."""
        self._owned = owned
        """The partitions to write."""
        self._storage = storage
        """The stores to write to."""
        self._session = session
        """Acknowledges written messages."""
        self._changes = changes
        """Learns when a new design was begun."""
        self._failures = failures
        """Reacts to stores that fail."""
        self._stats = stats
        """Counts commits and folded events."""
        self._transitions = transitions
        """Logs failures that persist."""
        self._clock = clock
        """Monotonic time, for retries; wall-clock time, against which events are checked."""
        self._joins_at = clock.monotonic()
        """When a new design may be begun again after a failure, in monotonic seconds."""
        self._join_started = False
        """True once this step has begun a new design. One partition per step: writing a large partition takes long."""

    def write_due(self) -> None:
        """Write the pending work of each partition that is not postponed, and finish what all its designs confirmed."""
        now = self._clock.monotonic()
        self._join_started = False
        work: dict[DesignOfPartition, tuple[Store, Steps[None]]] = {}
        for partition in self._owned:
            if not self._owned.is_due(partition.number, now):
                continue
            try:
                pending = self._pending_work(partition)
            except StoreError as error:
                self._failures.postpone(partition.number, error)
                continue
            for name in sorted(pending.unconfirmed_designs) if pending else ():
                store = self._storage.store_of(partition.number, name)
                work[partition.number, name] = (store, self._write(partition, name, now))
        for (number, name), result in run(work).items():
            self._settle(number, name, result)
        for partition in self._owned:
            pending = partition.pending
            if self._owned.owns(partition) and pending is not None and not pending.unconfirmed_designs:
                self._finish(partition)

    def _pending_work(self, partition: OwnedPartition) -> Pending | None:
        """The work of a partition that is under way, or else new work: lost epochs first, then new designs, repairs and
        the backlog. Returns None if there is nothing to do.
        """
        if partition.pending is not None:
            return partition.pending
        if partition.lost:
            partition.pending = partition.maintenance(partition.lost)
        elif partition.joining and not self._join_started and self._joins_at <= self._clock.monotonic():
            self._join_started = True
            partition.pending = partition.maintenance(partition.joining)
        elif partition.wants_repair:
            partition.pending = partition.maintenance(partition.wants_repair, frozenset(partition.wants_repair))
            partition.wants_repair = set()
        elif partition.backlog and (designs := partition.writers.keys() - partition.joining):
            room_bytes = min(self._storage.store_of(partition.number, name).max_value_bytes for name in designs)
            partition.pending = partition.take_batch(
                self._clock.time(),
                self._config.partitions,
                room_bytes - ITEM_HEADER_BYTES,
                self._storage.owner,
                self._stats.counts,
            )
        return partition.pending

    def _write(self, partition: OwnedPartition, name: str, now: float) -> Steps[None]:
        """The steps that write the pending work in one design."""
        assert partition.pending is not None
        if name in partition.lost:
            return self._storage.begin_epoch(partition, name, now)
        if name in partition.joining:
            return self._changes.join(partition, name, now)
        status = partition.status(now)
        if name in partition.pending.repair:
            return partition.writers[name].repair(partition, status)
        return partition.writers[name].commit(partition.pending.batch, partition, status)

    def _settle(self, number: int, name: str, result: NodestateError | None) -> None:
        """Note what became of one design's write; None is success."""
        partition = self._owned.get(number)
        if partition is None or partition.pending is None:
            return
        if result is None:
            partition.lost.discard(name)
            if name in partition.joining:
                partition.joining.discard(name)
                self._changes.drop_leaving()
            partition.pending.unconfirmed_designs.discard(name)
            self._stats.commits += 1
            self._owned.clear_retry(number)
            self._transitions.recovered(f"partition {number}")
        elif name in partition.joining and not isinstance(result, FencedError):
            # A new design must not delay the designs that are written already. This work holds no events, so it can be
            # dropped and started again later.
            partition.pending = None
            self._joins_at = self._clock.monotonic() + JOIN_RETRY_S
            self._transitions.failing(f"begin of {name}", str(result))
        else:
            self._failures.respond(partition, name, result)

    def _finish(self, partition: OwnedPartition) -> None:
        """Every design has the batch: acknowledge its messages, and queue the refused ones for the dead letters."""
        pending, partition.pending = partition.pending, None
        assert pending is not None
        partition.caught_up_at = max(partition.caught_up_at, pending.caught_up_at)
        partition.refused.extend(pending.bad)
        bad = {id(delivery) for delivery, _ in pending.bad}
        self._session.acknowledge([delivery for delivery in pending.deliveries if id(delivery) not in bad])

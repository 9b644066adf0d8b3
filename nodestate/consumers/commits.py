"""Commits: fold the backlog of each partition, write the batch in every design, and then acknowledge its messages.

One batch of one partition::

    (none) --fold--> pending in every design --one design stored it--> pending in the other designs
    pending --a store failed--> pending: the same batch is written again after a pause; other partitions go on
    pending in no design --> its messages are acknowledged; a refused message only after it is a dead letter
pending in no design, and the owner doubts its replica --> its messages are acknowledged later (``replicas``)

New epochs, new designs and repairs are written in the same way. They are written before new events. Under a steady
stream of events there would be no time for them afterwards.
"""

from __future__ import annotations

from typing import Any, Final

from nodestate.auth import EventAuth
from nodestate.config import Config
from nodestate.consumers.broker_session import BrokerSession
from nodestate.consumers.design_changes import DesignChanges
from nodestate.consumers.owned_partitions import OwnedPartitions
from nodestate.consumers.partition import OwnedPartition
from nodestate.consumers.partition_storage import DesignOfPartition, PartitionStorage
from nodestate.consumers.pending_work import Pending
from nodestate.consumers.replicas import note_copies
from nodestate.consumers.statistics import ConsumerStats
from nodestate.consumers.store_failures import StoreFailures
from nodestate.consumers.transition_log import TransitionLog
from nodestate.consumers.watermarks import Watermarks
from nodestate.errors import FencedError, NodestateError, StoreError
from nodestate.model import MAX_NODE_NAME_CHARS
from nodestate.ports import Clock, Store
from nodestate.store.round_trips import Steps, run
from nodestate.store.wire import ENVELOPE_BYTES

JOIN_RETRY_S: Final = 1.0
"""Pause after a new design could not be begun, before the next try."""
ITEM_HEADER_BYTES: Final = 512
"""Most bytes that a stored item adds to an event or to the parts of a record: format, stamp, lengths, node name."""
assert ITEM_HEADER_BYTES > ENVELOPE_BYTES + MAX_NODE_NAME_CHARS + 200


class Commits:
    """Writes the pending work of all owned partitions. The partitions share round trips."""

    def __init__(
        self,
        config: Config,
        owned: OwnedPartitions,
        storage: PartitionStorage,
        session: BrokerSession,
        watermarks: Watermarks,
        auth: EventAuth,
        changes: DesignChanges,
        failures: StoreFailures,
        stats: ConsumerStats,
        transitions: TransitionLog,
        clock: Clock,
        log: Any,
    ) -> None:
        self._config = config
        """Gives the layout's number of partitions, to check that each event is in the right partition."""
        self._owned = owned
        """The partitions to write."""
        self._storage = storage
        """The stores to write to."""
        self._session = session
        """Acknowledges written messages."""
        self._watermarks = watermarks
        """Recognizes this consumer's own watermark messages."""
        self._auth = auth
        """Checks the signatures of messages."""
        self._changes = changes
        """Begins new designs, and drops retiring ones once a new design is written."""
        self._failures = failures
        """Reacts to stores that fail."""
        self._stats = stats
        """Counts commits and folded events."""
        self._transitions = transitions
        """Logs failures that persist."""
        self._clock = clock
        """Monotonic time for retries. Wall-clock time, because an event whose time is too far from it is refused."""
        self._log = log
        """The consumer's logger."""
        self._joins_at: dict[str, float] = {}
        """By name of a server on which a new design could not be begun: when to try again, in monotonic seconds. One
        server that is away must not keep the partitions on other servers from beginning theirs.
        """
        self._join_started = False
        """True once this step has begun new designs in one partition. The other partitions wait for later steps,
        because writing a large partition takes long.
        """

    def write_due(self) -> None:
        """Write the pending work of each partition that is not postponed.

        If every design of a partition has stored its work, the work is finished, and its messages are acknowledged
        unless the owner doubts its replica.
        """
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
        # Successes first: a replica is left behind only if the other one stored the work.
        results = sorted(run(work).items(), key=lambda one: isinstance(one[1], NodestateError))
        for (number, name), result in results:
            self._record_result(number, name, result)
        for partition in self._owned:
            pending = partition.pending
            if not self._owned.owns(partition):
                continue  # the session ended
            if pending is not None and not pending.unconfirmed_designs:
                self._finish(partition)
            if partition.processed and not partition.withholds(now):
                processed, partition.processed = partition.processed, []
                self._session.acknowledge(processed)

    def _pending_work(self, partition: OwnedPartition) -> Pending | None:
        """Return the pending work of a partition, or choose new work if none is pending.

        New work is, in this order: a new epoch for designs whose epoch the store lost, the first epoch of new designs,
        repairs, and a batch from the backlog. Returns None if there is nothing to do. Raises ``StoreError`` if a store
        cannot tell how large an item may be.
        """
        if partition.pending is not None:
            return partition.pending
        if partition.lost:
            partition.pending = partition.maintenance(partition.lost)
        elif not self._join_started and (joinable := self._joinable(partition)):
            self._join_started = True
            partition.pending = partition.maintenance(joinable)
        elif partition.wants_repair:
            partition.pending = partition.maintenance(partition.wants_repair, frozenset(partition.wants_repair))
            partition.wants_repair = set()
        elif partition.backlog and (designs := partition.writers.keys() - partition.joining):
            room_bytes = min(self._storage.store_of(partition.number, name).max_value_bytes for name in designs)
            partition.pending = partition.take_batch(
                self._clock.time(),
                self._config.partitions,
                room_bytes - ITEM_HEADER_BYTES,
                self._watermarks,
                self._stats.counts,
                self._auth,
            )
            self._stats.durations.batch_messages.observe(len(partition.pending.deliveries))
            if partition.pending.lost_queue:
                self._log.warning(
                    "the queue of a partition was deleted: events that agents published may be lost, so all its agents "
                    "are asked for reports, and the partition is incomplete until they had time to answer",
                    partition=partition.number,
                    nodes=len(partition.records),
                )
        return partition.pending

    def _joinable(self, partition: OwnedPartition) -> set[str]:
        """The new designs of a partition that may be begun now.

        None while nodes that were taken back from one of them are at the front of the backlog.
        """
        if partition.backlog and not partition.backlog[0].session:
            return set()
        now, number = self._clock.monotonic(), partition.number
        return {
            name
            for name in partition.joining
            if self._joins_at.get(self._storage.store_of(number, name).name, now) <= now
        }

    def _write(self, partition: OwnedPartition, name: str, now: float) -> Steps[None]:
        """Return the steps that write the partition's pending work in one design."""
        assert partition.pending is not None
        if name in partition.lost:
            return self._storage.begin_epoch(partition, name, now)
        if name in partition.joining:
            return self._changes.join(partition, name, now)
        status = partition.status(now, name)
        if name in partition.pending.repair:
            return partition.writers[name].repair(partition, status)
        return self._timed(name, partition.writers[name].commit(partition.pending.batch, partition, status))

    def _timed(self, name: str, steps: Steps[None]) -> Steps[None]:
        """Take the steps of a commit in one design, and observe how long they took if they succeed."""
        began = self._clock.monotonic()
        yield from steps
        self._stats.durations.commit_s(name).observe(self._clock.monotonic() - began)

    def _record_result(self, number: int, name: str, result: NodestateError | None) -> None:
        """Record the result of a write of one partition in one design.

        After a success, the pending work no longer waits for this design. If a new design could not be begun, the work
        is dropped and chosen again later. ``StoreFailures`` responds to all other errors.

        Args:
            number: the partition's number.
            name: the design's name.
            result: the error; None if the write succeeded.
        """
        partition = self._owned.get(number)
        if partition is None or partition.pending is None:
            return
        if result is None and name in partition.taken_back:  # not begun yet, see ``DesignChanges.join``
            partition.pending.unconfirmed_designs.discard(name)
        elif result is None:
            partition.lost.discard(name)
            note_copies(partition, name)
            if name in partition.joining:
                partition.joining.discard(name)
                self._changes.drop_retiring()
            partition.pending.unconfirmed_designs.discard(name)
            self._stats.commits += 1
            self._owned.clear_retry(number)
            self._transitions.recovered(f"partition {number}")
        elif name in partition.joining and not isinstance(result, FencedError):
            # A new design must not delay the designs that are written already. This work has no events, so it can be
            # dropped and chosen again later.
            partition.pending = None
            self._joins_at[self._storage.store_of(number, name).name] = self._clock.monotonic() + JOIN_RETRY_S
            self._transitions.failing(f"begin of {name}", str(result))
        else:
            self._failures.respond(
                partition, name, result, partition.writers.keys() - partition.pending.unconfirmed_designs
            )

    def _finish(self, partition: OwnedPartition) -> None:
        """Finish pending work that every design has stored.

        Its messages are to be acknowledged, except the refused messages, which wait for ``DeadLetters``.
        """
        pending, partition.pending = partition.pending, None
        assert pending is not None
        partition.caught_up_at = max(partition.caught_up_at, pending.caught_up_at)
        partition.refused.extend(pending.bad)
        # ``QUEUE_BEGAN`` is acknowledged when the partition is complete again, so that the next owner gets it, too.
        kept = {id(delivery) for delivery, _ in pending.bad} | {id(delivery) for delivery in partition.doubting}
        partition.processed += [delivery for delivery in pending.deliveries if id(delivery) not in kept]

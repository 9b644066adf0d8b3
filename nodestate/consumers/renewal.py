"""Renewal: once per ``renew_s`` the owner writes the head of each of its partitions again, even if no events come.

A renewal tells readers that the owner is alive, and how far behind it is. The owner learns from its result whether
another owner took the partition, whether the store lost the epoch, and whether a reader asked for a repair.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nodestate.config import Config
from nodestate.consumers.broker_session import BrokerSession
from nodestate.consumers.handover import NAMED_COUNT
from nodestate.consumers.owned_partitions import OwnedPartitions
from nodestate.consumers.partition import OwnedPartition
from nodestate.consumers.partition_storage import DesignOfPartition, PartitionStorage
from nodestate.consumers.replicas import note_copies
from nodestate.consumers.statistics import ConsumerStats
from nodestate.consumers.store_failures import StoreFailures
from nodestate.errors import NodestateError
from nodestate.ports import Clock, Store
from nodestate.store.round_trips import Steps, run


class Renewal:
    """Renews the heads of all owned partitions, and sends their watermark messages."""

    def __init__(
        self,
        config: Config,
        owned: OwnedPartitions,
        storage: PartitionStorage,
        session: BrokerSession,
        failures: StoreFailures,
        stats: ConsumerStats,
        clock: Clock,
        log: Any,
    ) -> None:
        self._config = config
        """Gives ``renew_s``."""
        self._owned = owned
        """The partitions to renew."""
        self._storage = storage
        """Gives the stores of the partitions."""
        self._session = session
        """Sends watermark messages."""
        self._failures = failures
        """Reacts to stores that fail."""
        self._stats = stats
        """Counts repairs that readers asked for."""
        self._clock = clock
        """Monotonic time."""
        self._log = log
        """The consumer's logger."""
        self.due_at = clock.monotonic()
        """When the next renewal is due, in monotonic seconds."""

    def renew_due(self) -> None:
        """If a renewal is due, send a watermark message to each partition, and renew the heads.

        A design that has not yet stored the partition's pending work is skipped, because writing that work writes the
        head as well. The other designs are renewed: while the store of one design fails, losses of the others are
        noticed and repaired.
        """
        now = self._clock.monotonic()
        if now < self.due_at:
            return
        self.due_at = now + self._config.renew_s
        if not self._session.send_watermarks(now):
            return
        work: dict[DesignOfPartition, tuple[Store, Steps[bool]]] = {}
        for partition in self._owned:
            unconfirmed = partition.pending.unconfirmed_designs if partition.pending is not None else set()
            self._complete_if_known(partition, now)
            ages_ms = partition.ages_ms(now)
            for name, writer in partition.writers.items():
                if name not in unconfirmed | partition.joining:
                    status = replace(partition.status(now, name), ages_ms=ages_ms)
                    work[partition.number, name] = (
                        self._storage.store_of(partition.number, name),
                        writer.renew(status),
                    )
        results = run(work)
        for (number, name), result in results.items():
            renewed = self._owned.get(number)
            if renewed is None:
                continue
            if isinstance(result, NodestateError):
                stored = {design for (n, design), one in results.items() if n == number and isinstance(one, bool)}
                self._failures.respond(renewed, name, result, stored)
                continue
            note_copies(renewed, name)
            if result:
                self._stats.repairs += 1
                renewed.request_repair(name)

    def _complete_if_known(self, partition: OwnedPartition, now: float) -> None:
        """Call a partition complete if its agents were asked, and had time to answer.

        If its queue was lost, the nodes that gave no sign of life since then are marked as incomplete first, and the
        partition is complete once that is stored.
        """
        if partition.complete or partition.needs_full_resync or partition.caught_up_at < partition.complete_after:
            return
        if silent := partition.doubt_unheard():
            partition.complete_after = now
            self._log.warning(
                "nodes gave no sign of life since the queue of their partition was lost: they may have left, or have a "
                "newer state",
                partition=partition.number,
                nodes=len(silent),
                names=sorted(silent)[:NAMED_COUNT],
            )
        else:
            partition.complete = True
            began, partition.doubting = partition.doubting, []
            self._session.acknowledge(began)
            self._log.info("partition complete", partition=partition.number, nodes=len(partition.records))

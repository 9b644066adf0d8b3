"""Reactions of a consumer to a store that fails a takeover, a write or a renewal of a partition.

the store does not answer, is full, …  --> the partition is postponed
the store lost the epoch               --> a new epoch is written from memory; the partition is incomplete until a
                                           watermark message comes back
one of two replicas failed             --> the partition goes on with the other one (``Replicas``)
another owner took the partition       --> the session with the broker ends, and all partitions are dropped

A postponed partition never delays the other partitions.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from nodestate.consumers.broker_session import BrokerSession
from nodestate.consumers.owned_partitions import OwnedPartitions
from nodestate.consumers.partition import OwnedPartition
from nodestate.consumers.replicas import Replicas
from nodestate.consumers.statistics import ConsumerStats
from nodestate.consumers.transition_log import TransitionLog
from nodestate.errors import EpochLostError, FencedError, NodestateError
from nodestate.ports import Clock

RETRY_S: Final = 0.2
"""Pause before a partition is tried again after its store failed."""


class StoreFailures:
    """Reacts to failures of the stores, one partition at a time."""

    def __init__(
        self,
        session: BrokerSession,
        owned: OwnedPartitions,
        replicas: Replicas,
        stats: ConsumerStats,
        transitions: TransitionLog,
        clock: Clock,
        log: Any,
    ) -> None:
        self._session = session
        """The session with the broker, which is ended if another owner has taken a partition."""
        self._owned = owned
        """Records which partitions are postponed."""
        self._replicas = replicas
        """Leaves replicas behind."""
        self._stats = stats
        """Counts failures."""
        self._transitions = transitions
        """Logs failures that persist."""
        self._clock = clock
        """Monotonic time."""
        self._log = log
        """The consumer's logger."""

    def postpone(self, number: int, error: NodestateError) -> None:
        """Count and log the error, and do not try the partition again for ``RETRY_S`` seconds."""
        self._stats.count_store_error(error)
        self._transitions.failing(f"partition {number}", str(error))
        self._owned.postpone(number, self._clock.monotonic() + RETRY_S)

    def respond(self, partition: OwnedPartition, design: str, error: NodestateError, stored: Collection[str]) -> None:
        """React to an error of an owned partition in one design, as the table at the top of this module says.

        ``stored``: see ``Replicas.leave_behind``.
        """
        if isinstance(error, FencedError):
            # Messages that this session still holds in buffers must go back to the queues of their new owners.
            self._stats.fenced += 1
            self._log.warning("fenced", partition=partition.number, reason=str(error))
            self._session.give_up()
        elif self._replicas.leave_behind(partition, design, error, stored):
            self._stats.count_store_error(error)
        elif isinstance(error, EpochLostError):
            self._log.warning("epoch lost", partition=partition.number, design=design, reason=str(error))
            partition.mark_lost(design, self._clock.monotonic())
        else:
            self.postpone(partition.number, error)

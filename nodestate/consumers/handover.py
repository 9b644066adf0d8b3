"""Handover: a consumer gives the nodes of a partition that it lost to its new owner, if the stores lack them.

The stores are copies that may be lost. If the broker and a store fail together, no consumer dies, but every consumer
loses its partitions, and takes partitions over from a store that is empty. Agents that are alive report again; a node
whose agent is dead would vanish from all views. So the folded nodes of a partition outlive its ownership::

    owned --the session with the broker ends--> former
    former --this consumer takes the partition over again--> owned: merged with the stored state (``Takeover``)
    former --another consumer took it over, and the stores have all of its nodes--> forgotten
    former --another consumer took it over, and the stores lack nodes--> handed over, until the stores have them

A handover goes through the queue of the partition and contains events, so the new owner folds it as it folds all other
events, and a view of the journal stays the fold of its events (I2). It is no sign of life of its nodes. The new owner,
which began without stored state, calls the partition complete only after ``settle_s``; a former owner that is connected
to broker and stores needs two renewal intervals.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from nodestate.auth import MessageAuth
from nodestate.config import Config
from nodestate.consumers.broker_session import BrokerSession
from nodestate.consumers.handover_messages import MAX_MESSAGE_BYTES, handover_messages, signed_handover
from nodestate.consumers.owned_partitions import FormerPartition, OwnedPartitions
from nodestate.consumers.partition_storage import DesignOfPartition, PartitionStorage
from nodestate.errors import CorruptItemError
from nodestate.model import NEVER, NodeRecord
from nodestate.ports import Clock, Store
from nodestate.store.head import read_head
from nodestate.store.round_trips import Steps, run

MAX_HANDOVERS_COUNT: Final = 8
"""Handovers of one partition before the consumer gives up, and names the nodes in its log. The pause before each is
twice as long as the pause before the last one. An owner of an earlier version ignores all of them.
"""
NAMED_COUNT: Final = 20
"""Most nodes that one entry of the log names."""


def names_of(records: Iterable[NodeRecord]) -> list[str]:
    """Return the first ``NAMED_COUNT`` names of some nodes, sorted, for the log."""
    return sorted(record.name for record in records)[:NAMED_COUNT]


class Handover:
    """Gives the nodes of former partitions to the partitions' new owners, as far as the stores lack them."""

    def __init__(
        self,
        config: Config,
        owned: OwnedPartitions,
        storage: PartitionStorage,
        session: BrokerSession,
        auth: MessageAuth,
        clock: Clock,
        log: Any,
    ) -> None:
        self._config = config
        """Gives ``renew_s``."""
        self._owned = owned
        """Holds the former partitions."""
        self._storage = storage
        """Reads the partitions in the stores, and gives this owner's name."""
        self._session = session
        """Sends handovers."""
        self._auth = auth
        """Signs handovers."""
        self._clock = clock
        """Monotonic time."""
        self._log = log
        """The consumer's logger."""

    def send_due(self, designs: tuple[str, ...]) -> None:
        """Compare each former partition that is due with the stores: forget it, or hand over the nodes that they lack.

        Args:
            designs: the designs that this consumer writes. A partition is forgotten as soon as one of them has all its
                nodes, because the new owner writes all designs from the same memory.
        """
        if not self._owned.former:
            return
        now = self._clock.monotonic()
        due = {n: former for n, former in self._owned.former.items() if former.due_at <= now}
        work: dict[DesignOfPartition, tuple[Store, Steps[list[NodeRecord] | None]]] = {
            (number, name): (self._storage.store_of(number, name), self._lacking(number, name, former))
            for number, former in due.items()
            for name in designs
            if not self._owned.is_awaited(number)
        }
        found = run(work)
        for number, former in due.items():
            former.due_at = now + self._config.renew_s
            lacking = [one for (n, _), one in found.items() if n == number and isinstance(one, list)]
            if not lacking:
                continue  # no other owner yet, or no store answers
            nodes = min(lacking, key=len)
            if not nodes:
                del self._owned.former[number]
            elif former.handovers == MAX_HANDOVERS_COUNT:
                del self._owned.former[number]
                self._log.error(
                    "the new owner did not take nodes that the store lost: ask their agents with `nodestate resync`",
                    partition=number,
                    nodes=len(nodes),
                    names=names_of(nodes),
                )
            elif not self._hand_over(number, former, nodes, now):
                return

    def _lacking(self, number: int, design: str, former: FormerPartition) -> Steps[list[NodeRecord] | None]:
        """Return the former nodes that a design does not have at their version.

        Returns None if no other consumer took the partition over yet, or if its state cannot be read now.
        """
        reading = self._storage.follower(number, design)
        try:
            found = yield from read_head(reading.prefix, None)
        except CorruptItemError:
            return None
        if found is None or found[0].owner == self._storage.owner:
            return None
        state = yield from reading.refresh(with_life=False)
        if state.table is None or state.lost:
            return None
        try:
            stored = {record.name: (record.version, record.wanted) for record in state.table.records()}
        except CorruptItemError:
            return None
        lacking: list[NodeRecord] = []
        for name, record in former.records.items():
            version, wanted = stored.get(name, (NEVER, NEVER))
            if version < record.version or wanted < record.wanted:
                lacking.append(record)
        return lacking

    def _hand_over(self, number: int, former: FormerPartition, nodes: list[NodeRecord], now: float) -> bool:
        """Send some nodes to the new owner of a partition. Returns False if the session with the broker ended."""
        former.handovers += 1
        former.due_at = now + self._config.renew_s * 2.0**former.handovers
        self._log.warning(
            "the store lost nodes of a partition; handed over to its new owner",
            partition=number,
            nodes=len(nodes),
            names=names_of(nodes),
        )
        messages = handover_messages(nodes, MAX_MESSAGE_BYTES)
        return self._session.hand_over(number, (signed_handover(one, number, self._auth) for one in messages))

"""The claim records as one scheduler read or wrote them last."""

from __future__ import annotations

from typing import NamedTuple

from nodestate.scheduling.claims.claim_servers import ClaimServers, time_or_zero
from nodestate.scheduling.claims.record import UNSURE_S, ClaimRecord, is_unsure


class CachedRecord(NamedTuple):
    """A record as it was read or written last, with the ``cas`` id that the next write compares."""

    record: ClaimRecord
    cas: int


class RecordCache:
    """The last known record of each node. A node is missing from ``known`` while its record is unknown: it was never
    read, its server did not answer, or the item was missing or corrupt.
    """

    def __init__(self) -> None:
        self.known: dict[str, CachedRecord] = {}
        """The records by node. To be read only."""
        self._born: dict[str, float] = {}
        """The creation time of the last record read for each node, also after the record was forgotten."""
        self._recently_created: dict[str, float] = {}
        """The creation time of each record that was unsure when it was read."""

    def put(self, node: str, record: ClaimRecord, cas: int, now: float) -> bool:
        """Cache a record that was read or created. Returns whether the node had an earlier record, which was lost."""
        self.known[node] = CachedRecord(record, cas)
        if is_unsure(record, now):
            self._recently_created[node] = record.born
        was_lost = self._born.get(node, record.born) != record.born
        self._born[node] = record.born
        return was_lost

    def update(self, node: str, record: ClaimRecord, cas: int) -> None:
        """Cache a record that was just written."""
        self.known[node] = CachedRecord(record, cas)

    def forget(self, node: str) -> bool:
        """Make a node's record unknown. Returns whether it was known."""
        return self.known.pop(node, None) is not None

    def unsure_nodes(self, servers: ClaimServers) -> list[str]:
        """The nodes whose record was created less than ``UNSURE_S`` ago, so that claims may be missing from it."""
        if self._recently_created:
            now = {id(server): time_or_zero(server) for server in servers}
            self._recently_created = {
                node: born
                for node, born in self._recently_created.items()
                if born + UNSURE_S > now[id(servers.of(node))]
            }
        return list(self._recently_created)

    def nodes_claimed_by_others(self, name: str) -> list[str]:
        """The nodes on which schedulers other than ``name`` have claims, as far as the cache knows."""
        return [
            node
            for node, known in self.known.items()
            if known.record.claims and any(claim.holder != name for claim in known.record.claims)
        ]

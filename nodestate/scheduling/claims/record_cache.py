"""A cache of the claim records, as one scheduler last read or wrote them."""

from __future__ import annotations

from typing import NamedTuple

from nodestate.model import Version
from nodestate.ports import Item
from nodestate.scheduling.claims.claim_servers import ClaimServers, time_or_zero
from nodestate.scheduling.claims.record import CLAIMS, UNSURE_S, ClaimRecord, LastWrite, is_unsure


class CachedRecord(NamedTuple):
    """A record as the scheduler last read or wrote it."""

    record: ClaimRecord
    """The record."""
    cas: int
    """The ``cas`` id of its item in memcached, which the next compare-and-swap expects."""


class RecordCache:
    """The last known record of each node.

    A record is unknown if it was never read, if its server did not answer the last write, or if its item was missing
    or damaged.
    """

    def __init__(self) -> None:
        self.known: dict[str, CachedRecord] = {}
        """The known records by node; a node whose record is unknown is missing. Other modules only read it."""
        self.distrusted: dict[str, Version] = {}
        """By node, a ``seen`` that no view shows, although it should. A record with it counts as missing."""
        self.last_writes: dict[str, LastWrite] = {}
        """The last write of each node's record that was read or made, also if the record is unknown now."""
        self._recently_created: dict[str, float] = {}
        """The creation times, by node, of the records that were unsure when they were read."""

    def decode(self, node: str, key: str, item: Item | None, now: float) -> ClaimRecord | None:
        """Decode a node's item that was just read. Returns None if it is missing, damaged, distrusted, or earlier than
        the last known write of the record.

        Args:
            node: The node.
            key: The item's key.
            item: The item; None if it is missing.
            now: Seconds of the server's clock; 0 if the server does not answer.
        """
        return CLAIMS.find_sound(key, item, now, self.distrusted.get(node), self.last_writes.get(node))

    def put(self, node: str, record: ClaimRecord, cas: int, now: float) -> bool:
        """Cache a record that was just read or created.

        Args:
            node: The node.
            record: Its record.
            cas: The ``cas`` id of the record's item.
            now: Seconds of the clock of the node's server.

        Returns True if the node had an earlier record, which was lost: its creation time differs.
        """
        self.known[node] = CachedRecord(record, cas)
        if is_unsure(record, now):
            self._recently_created[node] = record.born
        before = self.last_writes.get(node)
        self.last_writes[node] = LastWrite(record.born, record.written_ms)
        return before is not None and before.born != record.born

    def update(self, node: str, record: ClaimRecord, cas: int) -> None:
        """Cache a record that was just written."""
        self.known[node] = CachedRecord(record, cas)
        self.last_writes[node] = LastWrite(record.born, record.written_ms)

    def distrust(self, node: str) -> None:
        """Let the node's record count as missing, because no view shows its ``seen``."""
        self.distrusted[node] = self.known[node].record.seen

    def forget(self, node: str) -> bool:
        """Remove a node's record from the cache. Returns False if the record was unknown already."""
        return self.known.pop(node, None) is not None

    def unsure_nodes(self, servers: ClaimServers) -> list[str]:
        """Return the nodes whose records were created less than ``UNSURE_S`` ago, so that claims may be missing."""
        if self._recently_created:
            now = {id(server): time_or_zero(server) for server in servers}
            self._recently_created = {
                node: born
                for node, born in self._recently_created.items()
                if born + UNSURE_S > now[id(servers.of(node))]
            }
        return list(self._recently_created)

    def nodes_claimed_by_others(self, name: str) -> list[str]:
        """Return the nodes whose cached records have claims of schedulers other than ``name``."""
        return [
            node
            for node, known in self.known.items()
            if known.record.claims and any(claim.holder != name for claim in known.record.claims)
        ]

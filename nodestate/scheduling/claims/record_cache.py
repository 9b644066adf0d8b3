"""A cache of the claim records, as one scheduler last read or wrote them."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import NamedTuple

from nodestate.model import Version
from nodestate.ports import Key
from nodestate.scheduling.claims.claim_servers import ClaimServers
from nodestate.scheduling.claims.record import UNSURE_S, ClaimRecord, LastWrite, is_unsure


class CachedRecord(NamedTuple):
    """A record as the scheduler last read or wrote it."""

    record: ClaimRecord
    """The content of all copies that were read."""
    cas: tuple[int | None, ...]
    """The ``cas`` id of each copy's item in memcached, which the next compare-and-swap expects.

    None: the server of the copy did not answer.
    """
    settled: bool = True
    """Whether all copies are known and have the same claims and removals. A write that is late then comes too late."""
    full_server: str = ""
    """The name of the server that had no room for a copy; empty if none."""

    @property
    def is_whole(self) -> bool:
        """Whether all copies are known."""
        return None not in self.cas


class RecordCache:
    """The last known record of each node.

    A record is unknown if it was never read, if no server answered the last write, or if its item was missing or
    damaged.
    """

    def __init__(self) -> None:
        self.known: dict[str, CachedRecord] = {}
        """The known records by node; a node whose record is unknown is missing. Other modules only read it."""
        self.distrusted: dict[str, Version] = {}
        """By node, a ``seen`` that no view shows, although it should. A record with it counts as missing."""
        self.last_writes: dict[Key, LastWrite] = {}
        """By key, the last write of each copy that was read or made, also if the record is unknown now."""
        self._born: dict[str, float] = {}
        """The creation time of each node's last known record, also if the record is unknown now."""
        self._recently_created: dict[str, float] = {}
        """The creation times, by node, of the records that were unsure when they were read."""
        self._partly_known: set[str] = set()
        """The nodes of which the server of one copy did not answer, so that claims may be missing from the other."""
        self.full_servers: dict[str, str] = {}
        """By node, of these nodes, the name of the server that answered, and had no room for its copy."""
        self._unsure: frozenset[str] | None = None
        """The last result of ``unsure_nodes``; None if it is out of date."""

    def put(self, node: str, cached: CachedRecord, now: float) -> bool:
        """Cache a record that was just read or created.

        Args:
            node: The node.
            cached: Its record.
            now: Seconds of the clock of the node's home.

        Returns True if the node had an earlier record, which was lost: its creation time differs.
        """
        before, born = self._born.get(node), cached.record.born
        self.update(node, cached)
        if is_unsure(cached.record, now):
            self._recently_created[node] = born
        return before is not None and before != born

    def update(self, node: str, cached: CachedRecord) -> None:
        """Cache a record that was just written."""
        self.known[node] = cached
        self._born[node] = cached.record.born
        if cached.is_whole:
            if node in self._partly_known:
                self._partly_known.discard(node)
                self.full_servers.pop(node, None)
                self._unsure = None
            return
        if node not in self._partly_known:
            self._partly_known.add(node)
            self._unsure = None
        if cached.full_server:
            self.full_servers[node] = cached.full_server
        else:
            self.full_servers.pop(node, None)

    def distrust(self, node: str) -> None:
        """Let the node's record count as missing, because no view shows its ``seen``."""
        self.distrusted[node] = self.known[node].record.seen

    def forget(self, node: str) -> bool:
        """Remove a node's record from the cache. Returns False if the record was unknown already."""
        return self.known.pop(node, None) is not None

    @property
    def partly_known(self) -> AbstractSet[str]:
        """The nodes of which the server of one copy did not answer the last read or write."""
        return self._partly_known

    def unsure_nodes(self, servers: ClaimServers) -> AbstractSet[str]:
        """Return the nodes whose records may lack claims: they were created less than ``UNSURE_S`` ago, or the server
        of one copy does not answer.

        The result is the same object as before if no record changed in this, as with many nodes each set takes time.
        """
        if self._recently_created:
            now = {home: servers.time_at_or_zero(home) for home in range(len(servers))}
            self._recently_created = {
                node: born for node, born in self._recently_created.items() if born + UNSURE_S > now[servers.home(node)]
            }
        if self._recently_created:
            self._unsure = None
            return self._partly_known.union(self._recently_created)
        if self._unsure is None:
            self._unsure = frozenset(self._partly_known)
        return self._unsure

    def nodes_claimed_by_others(self, name: str) -> list[str]:
        """Return the nodes whose cached records have claims of schedulers other than ``name``."""
        return [
            node
            for node, known in self.known.items()
            if known.record.claims and any(claim.holder != name for claim in known.record.claims)
        ]

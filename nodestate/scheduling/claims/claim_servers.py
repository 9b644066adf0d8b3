"""The servers that store the claim records, and their clocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from nodestate.errors import NodestateError
from nodestate.model import partitioning
from nodestate.ports import ClaimStore


class ClaimServers:
    """The memcached servers that store the claim records.

    A static map assigns each node to one server, which stores the node's record. So if a server is down, only the
    records of its own nodes are unknown.

    Args:
        servers: One connection to each server, in the same order for all schedulers of the cell.
    """

    def __init__(self, servers: Sequence[ClaimStore]) -> None:
        assert servers, "claims need a server"
        self._servers = servers
        """One connection to each server; a hash of a node's name is the index of its server."""

    def __iter__(self) -> Iterator[ClaimStore]:
        return iter(self._servers)

    def of(self, node: str) -> ClaimStore:
        """Return the server that stores a node's record."""
        return self._servers[partitioning.partition_of(node, len(self._servers))]

    def time(self, node: str) -> float:
        """Return the present time of the clock that the deadlines of a node's claims refer to.

        Raises ``StoreUnavailableError`` if the node's server does not answer.
        """
        return self.of(node).server_time()

    def require_all(self) -> None:
        """Check that every server answers. Raises ``StoreUnavailableError`` if one does not: its claims are unknown."""
        for server in self._servers:
            server.server_time()

    def grouped(self, nodes: Iterable[str]) -> list[tuple[ClaimStore, list[str]]]:
        """Group these nodes by the server that stores their records. The result has no servers without a node."""
        found: dict[int, tuple[ClaimStore, list[str]]] = {}
        for node in nodes:
            server = self.of(node)
            found.setdefault(id(server), (server, []))[1].append(node)
        return list(found.values())


def time_or_zero(server: ClaimStore) -> float:
    """Return a server's time, or 0 if the server does not answer: at time 0 no deadline has passed."""
    try:
        return server.server_time()
    except NodestateError:
        return 0.0

"""The servers that claim records live on, and their clocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from nodestate.errors import NodestateError
from nodestate.model import partitioning
from nodestate.ports import ClaimStore


class ClaimServers:
    """The memcached servers of the claim records. A node's record lives on one of them by a static map, as a partition
    does, so that a server that is down makes its own records unknown and no others.
    """

    def __init__(self, servers: Sequence[ClaimStore]) -> None:
        assert servers, "claims need a server"
        self._servers = servers
        """One connection to each server, in the order that maps nodes to them."""

    def __iter__(self) -> Iterator[ClaimStore]:
        return iter(self._servers)

    def of(self, node: str) -> ClaimStore:
        """The server on which a node's record lives."""
        return self._servers[partitioning.partition_of(node, len(self._servers))]

    def time(self, node: str) -> float:
        """The time by which the deadlines of a node's claims are judged. Raises ``StoreUnavailableError``."""
        return self.of(node).server_time()

    def require_all(self) -> None:
        """Raise ``StoreUnavailableError`` if a server does not answer: the claims on it are then unknown."""
        for server in self._servers:
            server.server_time()

    def grouped(self, nodes: Iterable[str]) -> list[tuple[ClaimStore, list[str]]]:
        """Each server that holds records of some of these nodes, with those nodes."""
        found: dict[int, tuple[ClaimStore, list[str]]] = {}
        for node in nodes:
            server = self.of(node)
            found.setdefault(id(server), (server, []))[1].append(node)
        return list(found.values())


def time_or_zero(server: ClaimStore) -> float:
    """A server's time, or 0 if the server does not answer: at time 0 no deadline has passed."""
    try:
        return server.server_time()
    except NodestateError:
        return 0.0

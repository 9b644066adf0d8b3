"""An environment for designs in memcached: servers of its own with enough memory for all states."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from bench.baseline import BaselineClient, BaselineMemcached
from bench.design_names import design_label
from bench.environments import PATIENCE_S
from bench.memcached_stats import memcached_sizes, memcached_stats
from bench.workload import require
from harness.servers import MemcachedServer
from nodestate.designs import DESIGNS
from nodestate.store.memcached import MemcachedStore, ServerStats

MEMORY_FACTOR: Final = 10
"""Memory in multiples of the bytes of all states: the copies of both designs, the copies of the baseline, and slabs."""
SPARE_MEMORY_MB: Final = 128


def memcached_for(state_bytes: int) -> MemcachedServer:
    """Return a memcached that need not evict states of ``state_bytes`` in all.

    A server that evicts would be measured doing other work than the designs claim.
    """
    return MemcachedServer(memory_mb=SPARE_MEMORY_MB + MEMORY_FACTOR * state_bytes // 1_000_000)


class MemcachedEnvironment:
    """One memcached or several, with one design or several. Implements ``Environment``; counts are of all servers."""

    imports: tuple[str, ...] = ("nodestate.store.memcached",)

    def __init__(self, designs: Sequence[str], server: MemcachedServer, *others: MemcachedServer) -> None:
        self.designs = tuple(designs)
        self.label = design_label(designs)
        self.slug = "-".join(DESIGNS[design].letter for design in designs)
        self.address = server.address
        """The address of the first server."""
        self.addresses = (server.address, *(other.address for other in others))
        """The addresses of all servers, in the order of the setting ``store``."""
        self.settings: Mapping[str, str] = {"store": ",".join((server.url, *self.addresses[1:]))}
        self.baseline: Callable[[], BaselineClient] = partial(BaselineMemcached, server.address)
        self.versions: Mapping[str, str] = {"memcached": _stats_of(server.address).version}
        self.server = server
        """The first server, for faults that ``Environment`` does not name."""
        self._servers = (server, *others)

    def require_nothing_lost(self, nodes: int) -> str:  # noqa: ARG002 - memcached does not know what a node is
        """Require that memcached evicted no item and refused no write for want of memory."""
        for stats in map(_stats_of, self.addresses):
            require(stats.evictions == 0, f"memcached evicted {stats.evictions} items: it needs more memory")
            require(stats.out_of_memory == 0, f"memcached refused {stats.out_of_memory} writes: it needs more memory")
        return "memcached evicted and refused nothing"

    def bytes_sent(self) -> int | None:
        """See ``Environment``."""
        return sum(memcached_stats(address)["bytes_written"] for address in self.addresses)

    def bytes_received(self) -> int | None:
        """See ``Environment``."""
        return sum(memcached_stats(address)["bytes_read"] for address in self.addresses)

    def log_bytes(self) -> int | None:
        """Return None: memcached has no log."""
        return None

    def bytes_held(self) -> Mapping[str, int]:
        """Return the bytes of items with their headers, of the chunks that hold items, and of the pages of chunks."""
        sizes = [memcached_sizes(address) for address in self.addresses]
        return {
            "stored": sum(size.items for size in sizes),
            "stored, chunks of slabs": sum(size.chunks for size in sizes),
            "stored, pages of slabs": sum(size.pages for size in sizes),
        }

    def restart(self) -> None:
        """Kill the servers and start them again; all keys are gone."""
        for server in self._servers:
            server.kill()
            server.start()


def _stats_of(address: str) -> ServerStats:
    store = MemcachedStore(address, timeout_s=PATIENCE_S)
    try:
        return store.stats()
    finally:
        store.close()

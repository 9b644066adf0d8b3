"""An environment for designs in memcached: a server of its own with enough memory for all states."""

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
    """A memcached with one design or several. Implements ``Environment``."""

    imports: tuple[str, ...] = ("nodestate.store.memcached",)

    def __init__(self, designs: Sequence[str], server: MemcachedServer) -> None:
        self.designs = tuple(designs)
        self.label = design_label(designs)
        self.slug = "-".join(DESIGNS[design].letter for design in designs)
        self.address = server.address
        self.settings: Mapping[str, str] = {"store": server.url}
        self.baseline: Callable[[], BaselineClient] = partial(BaselineMemcached, server.address)
        self.versions: Mapping[str, str] = {"memcached": self._stats().version}
        self.server = server
        """The server, for faults that ``Environment`` does not name."""

    def require_nothing_lost(self, nodes: int) -> str:  # noqa: ARG002 - memcached does not know what a node is
        """Require that memcached evicted no item and refused no write for want of memory."""
        stats = self._stats()
        require(stats.evictions == 0, f"memcached evicted {stats.evictions} items: it needs more memory")
        require(stats.out_of_memory == 0, f"memcached refused {stats.out_of_memory} writes: it needs more memory")
        return "memcached evicted and refused nothing"

    def bytes_sent(self) -> int | None:
        """See ``Environment``."""
        return memcached_stats(self.address)["bytes_written"]

    def bytes_received(self) -> int | None:
        """See ``Environment``."""
        return memcached_stats(self.address)["bytes_read"]

    def log_bytes(self) -> int | None:
        """Return None: memcached has no log."""
        return None

    def bytes_held(self) -> Mapping[str, int]:
        """Return the bytes of items with their headers, of the chunks that hold items, and of the pages of chunks."""
        sizes = memcached_sizes(self.address)
        return {"stored": sizes.items, "stored, chunks of slabs": sizes.chunks, "stored, pages of slabs": sizes.pages}

    def restart(self) -> None:
        """Kill the server and start it again; all keys are gone."""
        self.server.kill()
        self.server.start()

    def _stats(self) -> ServerStats:
        store = MemcachedStore(self.address, timeout_s=PATIENCE_S)
        try:
            return store.stats()
        finally:
            store.close()

"""Checks of one memcached server, and of the database."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from nodestate.cli.doctor.findings import FAIL, OK, WARN, Finding, span_text
from nodestate.config import Config
from nodestate.designs.connections import open_database
from nodestate.model import MAX_STATE_BYTES
from nodestate.ports import Put, Store, Write, WriteStatus
from nodestate.store import keys
from nodestate.store.memcached import MemcachedStore, ServerStats

FULL_RATIO: Final = 0.9
"""Share of its memory above which a server is about to evict items, or to refuse writes."""
YOUNG_S: Final = 60
"""A server that runs for fewer seconds than this is reported as restarted."""
PROBE_TTL_S: Final = 60
"""Time to live of the test write, should the command end before it deletes it."""
FULL_TEXTS: Final = ("it can be read but not written: it has no memory left", "raise -m, or start it without -M")
OLDEST_MEMCACHED: Final = (1, 6)
"""The first version of memcached that has the meta commands, which nodestate needs."""


def examine_store(config: Config, address: str) -> list[Finding]:
    """Examine one server by the figures that it reports."""
    about = f"store {address}"
    store = MemcachedStore(address, timeout_s=config.store_timeout_s)
    try:
        stats = store.stats()
        written = write_probe(store, config.cell)
    finally:
        store.close()
    used = f"{stats.used_bytes / 2**20:,.1f} of {stats.limit_bytes / 2**20:,.0f} MB used by {stats.items:,} items"
    says = (
        f"memcached {stats.version}, up {span_text(stats.uptime_s)}, {used}, "
        f"item limit {stats.item_max_bytes / 1024:,.0f} KB, {stats.evictions:,} evictions"
    )
    warnings = [Finding(level, about, *texts) for level, *texts in _store_warnings(stats)]
    return [Finding(OK, about, says), *warnings, *([Finding(FAIL, about, *FULL_TEXTS)] if not written else [])]


def examine_database(config: Config) -> list[Finding]:
    """Examine whether the database can be read and written with the login of the settings."""
    database = open_database(config)
    try:
        write_probe(database, config.cell)
    finally:
        database.close()
    return [Finding(OK, f"store {database.name}", "accepts writes")]


def write_probe(store: Store, cell: str) -> bool:
    """Write an item and delete it. Returns False if the store is full; raises ``StoreError`` if it refuses."""
    [written] = store.write([Write(Put.ADD, keys.probe(cell), b"", ttl_s=PROBE_TTL_S)])
    store.write([Write(Put.DELETE, keys.probe(cell))])
    return written.status is not WriteStatus.FULL


def _store_warnings(stats: ServerStats) -> Iterator[tuple[str, str, str]]:
    if tuple(int(part) for part in stats.version.split(".")[:2] if part.isdigit()) < OLDEST_MEMCACHED:
        yield FAIL, f"version {stats.version} has no meta commands", "use memcached 1.6 or newer"
    if stats.uptime_s < YOUNG_S:
        yield (
            WARN,
            f"it started {span_text(stats.uptime_s)} ago, with nothing in it",
            "agents were asked to report again; if the restart was not planned, look for its cause in memcached's log",
        )
    if stats.evictions:
        says = (
            f"{stats.evictions:,} items were evicted: consumers write lost items again, but views are older until then"
        )
        yield (
            WARN,
            says,
            "raise memcached's -m, also if much memory is unused: one slab class can be full while others are not",
        )
    full = stats.used_bytes / stats.limit_bytes
    if stats.no_evict and full > FULL_RATIO:
        yield (
            FAIL,
            f"{full:.0%} full, and with -M it refuses writes when it is full",
            "raise -m, or start it without -M",
        )
    elif stats.no_evict:
        yield WARN, "with -M it refuses writes when it is full, instead of evicting", "check that -m is ample"
    elif full > FULL_RATIO:
        yield WARN, f"{full:.0%} full: it will evict items", "raise -m"
    if stats.out_of_memory:
        yield WARN, f"{stats.out_of_memory:,} writes were refused for lack of memory since its start", "raise -m"
    if stats.item_max_bytes < MAX_STATE_BYTES:
        says = f"an item holds {stats.item_max_bytes:,} bytes, but the state of a node may have {MAX_STATE_BYTES:,}"
        yield WARN, says, "raise memcached's -I to 1m or more, or keep states small"
    if stats.rejected_connections:
        says = (
            f"{stats.rejected_connections:,} connections were refused ({stats.connections} of {stats.max_connections})"
        )
        yield WARN, says, "raise memcached's -c"

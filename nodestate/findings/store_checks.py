"""Checks of one memcached server, and of the database."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from nodestate.config import Config
from nodestate.designs.connections import open_database
from nodestate.findings.finding import Finding, found, well
from nodestate.model import MAX_STATE_BYTES
from nodestate.ports import Put, Store, Write, WriteStatus
from nodestate.store import keys
from nodestate.store.damage import DAMAGE
from nodestate.store.memcached import ServerStats, open_server
from nodestate.text import count_text, span_text

FULL_RATIO: Final = 0.9
"""Share of its memory above which a server is about to evict items, or to refuse writes."""
YOUNG_S: Final = 60
"""A server that started fewer seconds ago than this gets a finding about its start."""
SKEW_S: Final = 2.0
"""Difference between two clocks that is ignored, in seconds."""
PROBE_TTL_S: Final = 60
"""Time to live of the test item in seconds, in case the command ends before it deletes the item."""
FULL_TEXTS: Final = ("it can be read but not written: it has no memory left", "raise -m, or start it without -M")
REFILL: Final = "consumers fill it from their memory within seconds, or ask the agents if they started after it"
OLDEST_MEMCACHED: Final = (1, 6)
"""The first version of memcached that has the meta commands, which nodestate needs."""


def examine_store(config: Config, url: str, address: str, changed_at: float = 0.0) -> list[Finding]:
    """Examine one server by the figures that it reports.

    Args:
        config: Settings of the cell.
        url: The setting ``store`` or ``store_b``.
        address: One of its servers.
        changed_at: When the control record was last changed, in seconds since 1970; 0 if no record is stored.
    """
    about = f"store {address}"
    store = open_server(config, url, address)
    try:
        stats = store.stats()
        written = write_probe(store, config.cell)
    finally:
        store.close()
    items = count_text(stats.items, "item")
    used = f"{stats.used_bytes / 2**20:,.1f} of {stats.limit_bytes / 2**20:,.0f} MB used by {items}"
    says = (
        f"memcached {stats.version}, up {span_text(stats.uptime_s)}, {used}, "
        f"item limit {stats.item_max_bytes / 1024:,.0f} KB, {stats.evictions:,} evictions"
    )
    started = [start_finding(about, stats.uptime_s, changed_at, time.time())] if stats.uptime_s < YOUNG_S else []
    warnings = [found(code, about, *texts) for code, *texts in _store_warnings(stats)]
    return [
        well(about, says),
        *started,
        *warnings,
        *([found("store-not-writable", about, *FULL_TEXTS)] if not written else []),
    ]


def start_finding(about: str, uptime_s: float, changed_at: float, now: float) -> Finding:
    """Return the finding about a server that started less than ``YOUNG_S`` ago, and so had no items.

    A new cell begins like this. If the control record is older than the server, the cell existed before, so the server
    has lost its items.

    Args:
        about: The server, for people.
        uptime_s: Seconds since the start of the server.
        changed_at: When the control record was last changed, in seconds since 1970; 0 if no record is stored.
        now: This machine's time, in seconds since 1970.
    """
    says = f"it started {span_text(uptime_s)} ago with nothing in it"
    if not changed_at or changed_at > now - uptime_s - SKEW_S:
        return well(about, f"{says}, as in a new cell; if the cell is older, {REFILL}")
    return found(
        "store-restarted",
        about,
        f"{says}, and the cell is older: its control record was last changed {span_text(now - changed_at)} ago",
        f"{REFILL}; if the restart was not planned, look for its cause in memcached's log",
    )


def examine_database(config: Config) -> list[Finding]:
    """Examine whether the database can be read and written with the login of the settings."""
    database = open_database(config)
    try:
        write_probe(database, config.cell)
    finally:
        database.close()
    return [well(f"store {database.name}", "accepts writes")]


def examine_damage(cell: str) -> Iterator[Finding]:
    """Name the damaged values that this process has read. The control record has findings of its own."""
    reasons = {key: reason for key, reason in DAMAGE.reasons.items() if key != keys.control(cell)}
    if reasons:
        key, reason = next(iter(reasons.items()))
        count = count_text(len(reasons), "stored value is", "stored values are")
        advice = (
            "consumers write them again within seconds: run this command again. If values are damaged again and again, "
            "a faulty or hostile program writes into the store: limit who can reach it"
        )
        says = f"{count} damaged, and counted as missing, for example {key}: {reason}"
        yield found("stored-values-damaged", "stored values", says, advice)


def write_probe(store: Store, cell: str) -> bool:
    """Write an item and delete it. Returns False if the store is full; raises ``StoreError`` if it refuses."""
    [written] = store.write([Write(Put.ADD, keys.probe(cell), b"", ttl_s=PROBE_TTL_S)])
    store.write([Write(Put.DELETE, keys.probe(cell))])
    return written.status is not WriteStatus.FULL


def _store_warnings(stats: ServerStats) -> Iterator[tuple[str, str, str]]:
    if tuple(int(part) for part in stats.version.split(".")[:2] if part.isdigit()) < OLDEST_MEMCACHED:
        yield "store-too-old", f"version {stats.version} has no meta commands", "use memcached 1.6 or newer"
    if stats.evictions:
        says = (
            f"{count_text(stats.evictions, 'item was', 'items were')} evicted: consumers write lost items again, but "
            "views are older until then"
        )
        yield (
            "store-evictions",
            says,
            "raise memcached's -m, also if much memory is unused: one slab class can be full while others are not",
        )
    full = stats.used_bytes / stats.limit_bytes
    if stats.no_evict and full > FULL_RATIO:
        yield (
            "store-full-refuses",
            f"{full:.0%} full, and with -M it refuses writes when it is full",
            "raise -m, or start it without -M",
        )
    elif stats.no_evict:
        yield (
            "store-no-evict",
            "with -M it refuses writes when it is full, instead of evicting",
            "check that -m is ample",
        )
    elif full > FULL_RATIO:
        yield "store-full", f"{full:.0%} full: it will evict items", "raise -m"
    if stats.out_of_memory:
        writes = count_text(stats.out_of_memory, "write was", "writes were")
        yield "store-out-of-memory", f"{writes} refused for lack of memory since its start", "raise -m"
    if stats.item_max_bytes < MAX_STATE_BYTES:
        says = f"an item holds {stats.item_max_bytes:,} bytes, but the state of a node may have {MAX_STATE_BYTES:,}"
        yield "store-item-limit", says, "raise memcached's -I to 1m or more, or keep states small"
    if stats.rejected_connections:
        says = (
            f"{count_text(stats.rejected_connections, 'connection was', 'connections were')} refused "
            f"({stats.connections} of {stats.max_connections} are in use)"
        )
        yield "store-connections-refused", says, "raise memcached's -c"

"""memcached in this process: the store behind ``memory://``, and the double for tests.

``nodestate.testing`` exports it.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from nodestate.errors import (
    ItemTooLargeError,
    StoreUnavailableError,
)
from nodestate.ports import (
    MAX_TTL_S,
    Clock,
    Item,
    Key,
    Put,
    SystemClock,
    Write,
    WriteResult,
    WriteStatus,
    item_keys,
)
from nodestate.store.server_clock import ServerClock, less_time_left

ITEM_OVERHEAD_BYTES: Final = 63
"""Size of an item's header, as in memcached."""


@dataclass(slots=True)
class StoredItem:
    """An item as the server holds it."""

    value: bytes
    cas: int
    """Compare-and-swap id."""
    expires_at: int | None
    """The whole second at which it expires; None if it never does."""


class MemoryServer:
    """A memcached server in this process, which several ``MemoryStore`` connections share.

    CAS ids count up over all keys. After a ``restart`` they start at a much larger number, so ids from before match no
    item. An item written with a time to live of n lives for n - 1 to n seconds, because memcached's clock ticks in
    whole seconds.

    Fault: with ``clock_stands_at`` the server's clock stands still, as of a server that was frozen and whose timer has
    not yet run: it tells times to live that are too long. The timer runs when a new connection is accepted.

    Args:
        name: name for messages.
        max_value_bytes: largest value of an item.
        clock: the clock that items expire by.
        max_bytes: size of the memory; the least recently used items are evicted. None: no limit.
        no_evict: do not evict; writes find the server full (memcached's ``-M``).
    """

    ticks = True
    """The clock that items expire by is set by a timer, which may be late; False for a database."""

    def __init__(
        self,
        name: str = "memory",
        *,
        max_value_bytes: int = 1_000_000,
        clock: Clock | None = None,
        max_bytes: int | None = None,
        no_evict: bool = False,
    ) -> None:
        # Name for messages.
        self.name = name
        # Largest value of an item.
        self.max_value_bytes = max_value_bytes
        # False while the server does not answer.
        self.running = True
        # The time at which the clock stopped that items expire by; None while it runs. A test may set it at any time.
        self.clock_stands_at: float | None = None
        # The clock that items expire by.
        self.clock = clock or SystemClock()
        # Size of the memory; None: no limit.
        self._max_bytes = max_bytes
        # True if a full server refuses writes instead of evicting items.
        self._no_evict = no_evict
        self._entries: OrderedDict[str, StoredItem] = OrderedDict()  # by key, least recently used first
        self._used_bytes = 0  # size of all items
        self._last_cas = 0  # CAS id of the last write
        self._life = 0  # number of restarts
        # Held during each call, because connections of several threads share the server.
        self._lock = threading.Lock()

    def fetch(self, keys: Sequence[Key], *, values_only: bool = False) -> dict[Key, Item]:
        """See ``ports.Store``."""
        with self._lock:
            self._check_running()
            items: dict[Key, Item] = {}
            for key in item_keys(keys):
                entry = self._live(key)
                if entry is not None:
                    self._entries.move_to_end(key)
                    ttl_s = None if entry.expires_at is None else entry.expires_at - self._tick()
                    items[key] = Item(entry.value, 0, None) if values_only else Item(entry.value, entry.cas, ttl_s)
            return items

    def write(self, writes: Sequence[Write]) -> list[WriteResult]:
        """See ``ports.Store``. Other connections see all of the writes or none. ``as_of`` is a time of this server."""
        with self._lock:
            self._check_running()
            for write in writes:
                if len(write.value) > self.max_value_bytes:
                    raise ItemTooLargeError(self.name, write.key, len(write.value), self.max_value_bytes)
            return [self._write(write) for write in writes]

    def time(self) -> float:
        """Seconds by the clock that items expire by."""
        with self._lock:
            self._check_running()
            return self.clock.monotonic()

    def tick(self) -> int:
        """The clock that items expire by, in whole seconds, as the server tells it."""
        with self._lock:
            self._check_running()
            return self._tick()

    # -- faults

    def stop(self) -> None:
        """Stop answering until ``start``; the contents stay, as with a broken network or a frozen process."""
        self.running = False

    def start(self) -> None:
        """Answer again."""
        self.running = True

    def restart(self) -> None:
        """Lose all items, and start again."""
        with self._lock:
            self._clear()
            self._life += 1
            self._last_cas = self._life << 64
            self.running = True

    def flush(self) -> None:
        """Lose all items. CAS ids continue to count."""
        with self._lock:
            self._clear()

    def evict(self, key: str) -> bool:
        """Lose one item. Returns False if it does not exist."""
        with self._lock:
            return self._remove(key)

    def keys(self) -> list[str]:
        """The keys of all items, sorted."""
        with self._lock:
            return sorted(key for key in list(self._entries) if self._live(key) is not None)

    # -- inside, under the lock

    def _check_running(self) -> None:
        if not self.running:
            raise StoreUnavailableError(self.name, "stopped by the test")

    def _tick(self) -> int:
        return int(self.clock.monotonic() if self.clock_stands_at is None else self.clock_stands_at)

    def _live(self, key: str) -> StoredItem | None:
        entry = self._entries.get(key)
        if entry is not None and entry.expires_at is not None and entry.expires_at <= self._tick():
            self._remove(key)
            return None
        return entry

    def _remove(self, key: str) -> bool:
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        self._used_bytes -= item_size(key, entry.value)
        return True

    def _clear(self) -> None:
        self._entries.clear()
        self._used_bytes = 0

    def _write(self, write: Write) -> WriteResult:
        put, key, value, cas, ttl_s, rows, query, as_of = write
        assert not rows, "only a database has rows"
        assert query is None, "only a database has rows"
        if put is Put.DELETE:
            self._live(key)
            return WriteResult(WriteStatus.STORED if self._remove(key) else WriteStatus.MISSING)
        # Like memcached, which looks for memory before it compares, and answers only the first failure.
        if not self._make_room(item_size(key, value)):
            return WriteResult(WriteStatus.FULL)
        entry = self._live(key)
        if put is Put.ADD and entry is not None:
            self._entries.move_to_end(key)
            return WriteResult(WriteStatus.CONFLICT)
        if put is Put.CAS and entry is None:
            return WriteResult(WriteStatus.MISSING)
        if put is Put.CAS and entry is not None and entry.cas != cas:
            return WriteResult(WriteStatus.CONFLICT)
        self._remove(key)
        self._last_cas += 1
        counts_from = self._tick() if as_of is None else int(as_of)
        self._entries[key] = StoredItem(value, self._last_cas, counts_from + min(ttl_s, MAX_TTL_S) if ttl_s else None)
        self._used_bytes += item_size(key, value)
        return WriteResult(WriteStatus.STORED, self._last_cas)

    def _make_room(self, size: int) -> bool:
        if self._max_bytes is None:
            return True
        for key in list(self._entries):
            if self._used_bytes + size <= self._max_bytes:
                break
            if self._live(key) is not None and not self._no_evict:
                self._remove(key)
        return self._used_bytes + size <= self._max_bytes


def item_size(key: str, value: bytes) -> int:
    """Bytes that memcached needs for an item, with its header."""
    return len(key) + len(value) + ITEM_OVERHEAD_BYTES


class MemoryStore:
    """A connection to a ``MemoryServer``, by default a new one; a ``ports.ClaimStore``.

    Args:
        server: the server that this connection belongs to.
        clock: the clock of the process that connects; None for the server's clock.
    """

    def __init__(self, server: MemoryServer | None = None, clock: Clock | None = None) -> None:
        # The server that this connection belongs to.
        self.server = server or MemoryServer()
        # The clock of the process; None if it is the server's.
        self._clock = clock
        # The server's clock, as in ``MemcachedStore``.
        self._server_clock = ServerClock()

    @property
    def name(self) -> str:
        """The server's name."""
        return self.server.name

    @property
    def max_value_bytes(self) -> int:
        """The largest value that the server accepts."""
        return self.server.max_value_bytes

    def fetch(self, keys: Sequence[Key], *, values_only: bool = False) -> dict[Key, Item]:
        """See ``ports.Store``."""
        if not self.server.ticks:
            return self.server.fetch(keys, values_only=values_only)
        if not self._server_clock.is_known:
            self.server.clock_stands_at = None  # the thread that accepts a connection runs the timer, too
        clock = self._clock or self.server.clock
        sent_at, said = clock.monotonic(), self.server.tick()
        items = self.server.fetch(keys, values_only=values_only)
        lag_s = self._server_clock.observe(sent_at, clock.monotonic(), said)
        return less_time_left(items, lag_s) if lag_s else items

    def write(self, writes: Sequence[Write]) -> list[WriteResult]:
        """See ``ports.Store``."""
        if self._clock is not None and any(write.as_of is not None for write in writes):
            ahead_s = self.server.time() - self._clock.monotonic()
            writes = [w._replace(as_of=w.as_of + ahead_s) if w.as_of is not None else w for w in writes]
        return self.server.write(writes)

    def server_time(self) -> float:
        """Seconds by the server's clock."""
        return self.server.time()

    def server_time_at(self, moment: float) -> float | None:
        """See ``ports.Store``."""
        return self._server_clock.at(moment) if self._server_clock.is_known else None

    def close(self) -> None:
        """There is no connection to close."""


@functools.cache
def process_server() -> MemoryServer:
    """The server of this process that ``memory://`` means."""
    return MemoryServer()

"""The Store on a memcached server: pipelined commands over the socket that pymemcache connects.

How memcached 1.6 behaves, found by experiment (``tests/contract/``), and what this adapter does about it:

- ``ms`` removes the old value if the server has no memory for the new one, also in add mode and also if the CAS id is
  wrong. So a fenced owner could delete a head. The classic ``add`` and ``cas`` keep the old value, so the adapter uses
  these, and never ``set``.
- The classic commands do not return the new CAS id. Each is followed by ``mg key c f u``, which may already see a later
  writer's item. So every write has a random tag as the item's client flags, and the returned id is used only if the tag
  is the writer's own. ``u`` prevents that memcached counts this read as a use of the item.
- A relative time to live counts from the arrival. A request may be on its way for long (a frozen process, a stalled
  network), and readers derive the age of an item from the time that is left. So the adapter sends absolute times of the
  server's clock, which count from the moment that the writer names.
- The server's clock ticks once a second, by a timer. A server that was frozen answers open connections before its clock
  ticks, and then tells times to live that are too long by the whole freeze (8 of 12 servers). So a fetch asks for the
  clock in the same round trip, unless the clock was right 0.1 s ago (``ServerClock``). A new connection is accepted by
  the thread that runs the timer, so the clock that it tells has ticked (12 of 12).
- Replies arrive in the order of the requests, one per ``mg``, so they need not repeat the keys.
- A server that cannot send stops receiving. So the adapter sends requests only as far as the socket accepts them and
  reads replies meanwhile: no call can dead-lock, whatever its length.

A connection is reused only after a call has read all its replies; after any other end of a call it is closed.
"""

from __future__ import annotations

import math
import secrets
import select
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from pymemcache import MemcacheError, MemcacheUnknownCommandError
from pymemcache.client.base import Client
from pymemcache.exceptions import MemcacheUnexpectedCloseError

from nodestate.config import Config, servers_of
from nodestate.errors import ConfigError, ItemTooLargeError, StoreUnavailableError
from nodestate.ports import ClaimStore, Item, Key, Write, WriteResult, item_keys
from nodestate.ports.forks import sever_in_children
from nodestate.ports.tls import TlsFiles
from nodestate.store.keys import MAX_KEY_BYTES
from nodestate.store.memcached_protocol import (
    CAS_BITS,
    check_keys,
    encode_writes,
    exchange,
    exchange_tls,
    parse_clock,
    parse_items,
    parse_outcomes,
    poller,
    read_lines,
)
from nodestate.store.memcached_target import UNAUTHENTICATED, MemcachedTarget
from nodestate.store.memory import MemoryStore, process_server
from nodestate.store.server_clock import MARGIN_S, VERIFIED_S, ServerClock, less_time_left
from nodestate.text import error_text

ITEM_HEADER_BYTES: Final = 48 + 8
"""memcached's struct of an item and the CAS id, on a 64-bit machine."""
ITEM_ENDINGS_BYTES: Final = 1 + 2
"""NUL after the key, CR LF after the value."""
ITEM_FLAGS_BYTES: Final = 4
ITEM_OVERHEAD_BYTES: Final = ITEM_HEADER_BYTES + ITEM_ENDINGS_BYTES + ITEM_FLAGS_BYTES
TICK_PAUSE_S: Final = 0.05
"""Pause after which a server that was frozen has set its clock."""


@dataclass(frozen=True, slots=True)
class ServerStats:
    """Statistics of a server, for people. Counters are since its start, sizes are in bytes."""

    version: str
    uptime_s: int
    item_max_bytes: int
    limit_bytes: int
    used_bytes: int
    items: int
    evictions: int
    no_evict: bool
    out_of_memory: int
    too_large: int
    connections: int
    max_connections: int
    rejected_connections: int


class MemcachedStore:
    """One memcached server behind ``ports.Store``; see there for the contract.

    It connects at the first call, and again at the first call after an error. At each connect it asks for the item
    limit and for the start time and process id of the server, which become part of all CAS ids: memcached counts its
    ids from 1 again after a restart, so an id from before a restart must not match.

    Args:
        address: host:port, or the path of a unix socket.
        timeout_s: bounds a connect, and each wait for the server to send or accept more.
        tls: files for a connection with TLS; None for a connection without.
        login: user and password for a server with an authentication file (``-Y``).
    """

    def __init__(
        self, address: str, *, timeout_s: float, tls: TlsFiles | None = None, login: tuple[str, str] | None = None
    ) -> None:
        # Where and how to connect.
        self._target = MemcachedTarget(address, tls, login)
        # host:port, or the path of a unix socket.
        self._name = address
        # Sends requests and yields pieces of the reply.
        self._exchange: Callable[[Any, Iterator[bytes], float], Iterator[bytes]] = exchange_tls if tls else exchange
        # Longest time for a connect, and for each wait for the server, in seconds.
        self._timeout_s = timeout_s
        # The connection; None if it is closed.
        self._client: Client | None = None
        # The server's item limit, with header and key.
        self._item_max_bytes = 0
        # False if the server runs with -C.
        self._cas_enabled = False
        # The server's clock, by which times to live are sent and read. Kept through reconnects, unless it restarts.
        self._clock = ServerClock()
        # Upper bits of all CAS ids: which start of the server they belong to.
        self._life = 0
        sever_in_children(self)

    @property
    def name(self) -> str:
        """host:port, or the path of a unix socket, for messages."""
        return self._name

    @property
    def max_value_bytes(self) -> int:
        """The largest value that fits an item, whatever the length of its key."""
        with self._whole_replies():
            return self._item_max_bytes - ITEM_OVERHEAD_BYTES - MAX_KEY_BYTES

    def fetch(self, keys: Sequence[Key], *, values_only: bool = False) -> dict[Key, Item]:
        """See ``ports.Store``."""
        if not keys:
            return {}
        names = item_keys(keys)
        check_keys(names)
        flags = " v\r\n" if values_only else " v c t\r\n"
        request = ("mg " + f"{flags}mg ".join(names) + flags).encode()
        with self._whole_replies() as client:
            sent_at = time.monotonic()
            asks_clock = not values_only and self._clock.must_be_asked(sent_at)
            requests = iter((b"stats\r\n" + request if asks_clock else request,))
            pieces = self._exchange(client.sock, requests, self._timeout_s)
            if asks_clock:  # told before the times to live, so these are of the same tick or of a later one
                said, pieces = parse_clock(pieces)
                items = parse_items(names, pieces, self._life)
                lag_s = self._clock.observe(sent_at, time.monotonic(), said)
                if self._clock.needs_connection:
                    self.close()  # all replies are read
            else:
                items = parse_items(names, pieces, self._life)
                lag_s = self._clock.lag_s(sent_at, time.monotonic())
            return less_time_left(items, lag_s) if lag_s else items

    def write(self, writes: Sequence[Write]) -> list[WriteResult]:
        """See ``ports.Store``."""
        if not writes:
            return []
        check_keys([write.key for write in writes])
        with self._whole_replies() as client:
            self._check_sizes(writes)
            tag = secrets.randbits(31) + 1
            blocks = encode_writes(writes, tag, self._server_time, self._life)
            lines = read_lines(writes, self._exchange(client.sock, blocks, self._timeout_s))
            return parse_outcomes(writes, lines, tag, self._life)

    def server_time(self) -> float:
        """See ``ports.ClaimStore``. The server is not asked, except at a first connect."""
        if self._client is not None and self._clock.is_known:
            return self._clock.at(time.monotonic())
        with self._whole_replies():
            return self._clock.at(time.monotonic())

    def server_time_at(self, moment: float) -> float | None:
        """See ``ports.Store``."""
        return self._clock.at(moment) if self._clock.is_known else None

    def stats(self) -> ServerStats:
        """Fetch the server's statistics."""
        with self._whole_replies() as client:
            stats, settings = _ask(client), _ask(client, "settings")
            return ServerStats(
                version=stats["version"],
                uptime_s=int(stats["uptime"]),
                item_max_bytes=int(settings["item_size_max"]),
                limit_bytes=int(stats["limit_maxbytes"]),
                used_bytes=int(stats["bytes"]),
                items=int(stats["curr_items"]),
                evictions=int(stats["evictions"]),
                no_evict=settings["evictions"] == "off",
                out_of_memory=int(stats["store_no_memory"]),
                too_large=int(stats["store_too_large"]),
                connections=int(stats["curr_connections"]),
                max_connections=int(settings["maxconns"]),
                rejected_connections=int(stats.get("rejected_connections", stats.get("listen_disabled_num", 0))),
            )

    def flush_all(self) -> None:
        """Delete all items of the server, also those of other cells and programs. For tests and tools."""
        with self._whole_replies() as client:
            client.flush_all(noreply=False)

    def close(self) -> None:
        """Close the connection. The next call reconnects."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def descriptors(self) -> list[int]:
        """See ``ports.forks.SocketOwner``."""
        return [self._client.sock.fileno()] if self._client is not None else []

    # -- inside

    @contextmanager
    def _whole_replies(self) -> Iterator[Client]:
        """A connection without unread replies. It is closed unless the call reads all of its replies.

        Translates the errors of the connection to ``StoreUnavailableError``.
        """
        try:
            if self._client is not None and poller(self._client.sock, select.POLLIN).poll(0):
                self.close()  # the server closed it while it was idle, so no request is lost
            if self._client is None:
                connected = _connect(self._target, self._timeout_s)
                self._client, settings = connected.client, connected.settings
                life = _life_of(connected.stats)
                if life != self._life:
                    self._life, self._clock = life, ServerClock()
                said = int(connected.stats["time"])
                self._clock.observe(connected.asked_at, connected.told_at, said, has_ticked=True)
                self._item_max_bytes = int(settings["item_size_max"])
                self._cas_enabled = settings["cas_enabled"] == "yes"
            self._check_cas()
            yield self._client
        except ItemTooLargeError:
            raise  # nothing was sent
        except (OSError, MemcacheError, KeyError, ValueError) as error:
            self.close()
            if isinstance(error, ssl.SSLError):
                raise StoreUnavailableError(self._name, self._target.cause_of(error)) from error
            cause = f"no reply within {self._timeout_s:g} s" if isinstance(error, TimeoutError) else error_text(error)
            raise StoreUnavailableError(self._name, cause) from error
        except BaseException:
            self.close()
            raise

    def _server_time(self, moment: float | None) -> int:
        """A lower bound of the server's clock at a moment of this process, by default now, in whole seconds."""
        return math.floor(self._clock.for_writers_at(time.monotonic() if moment is None else moment) - MARGIN_S)

    def _check_cas(self) -> None:
        if not self._cas_enabled:
            raise ConfigError(f"store {self._name} has compare-and-swap switched off: start memcached without -C")

    def _check_sizes(self, writes: Sequence[Write]) -> None:
        room = self._item_max_bytes - ITEM_OVERHEAD_BYTES
        for write in writes:
            if len(write.value) + len(write.key) > room:
                raise ItemTooLargeError(self._name, write.key, len(write.value), room - len(write.key))


def open_stores(config: Config, url: str = "") -> Sequence[ClaimStore]:
    """Connect to each server of ``url``, by default of the setting ``store``.

    memory:// means the server of this process. Partition p is stored on the server at ``p % len(stores)``.
    """
    url = url or config.store
    servers = servers_of(url)
    if not servers:
        return [MemoryStore(process_server())]
    return [open_server(config, url, server) for server in servers]


def open_server(config: Config, url: str, server: str) -> MemcachedStore:
    """Return a store for one of the servers of ``url``, with the TLS files and the login of the settings."""
    return MemcachedStore(
        server,
        timeout_s=config.store_timeout_s,
        tls=config.store_tls if url.startswith("memcacheds:") else None,
        login=(config.store_user, config.store_password) if config.store_user else None,
    )


class _Connected(NamedTuple):
    """A new connection, with the first answers of the server."""

    client: Client
    settings: dict[str, str]
    stats: dict[str, str]
    asked_at: float
    """When the statistics were asked for, in monotonic seconds."""
    told_at: float
    """When they were told, in monotonic seconds."""


def _connect(target: MemcachedTarget, timeout_s: float) -> _Connected:
    """Connect to a server, and ask for its settings and statistics."""
    failure: Exception | None = None
    began_at = time.monotonic()
    for connect in target.connectors():
        client = Client(target.name, default_noreply=False)
        try:
            client.sock = connect(timeout_s)
            settings = _ask(client, "settings")
            if time.monotonic() > began_at + VERIFIED_S:  # it may have been frozen: let its clock tick
                time.sleep(TICK_PAUSE_S)
            asked_at = time.monotonic()
            return _Connected(client, settings, _ask(client), asked_at, time.monotonic())
        except (OSError, MemcacheError) as error:
            client.close()
            if isinstance(error, ssl.SSLError):  # the server is found; another address must not hide the cause
                raise ConnectionError(target.cause_of(error)) from error
            failure = _explained(error, target, timeout_s)
        except BaseException:
            client.close()
            raise
    assert failure is not None, "getaddrinfo returns an address or raises"
    raise failure


def _explained(error: Exception, target: MemcachedTarget, timeout_s: float) -> Exception:
    """Say so if a server without a free connection is the probable cause of an error of a new connection.

    Such a memcached answers "ERROR Too many open connections" and closes, or (with ``-o no_maxconns_fast``) accepts no
    connection until another one ends.
    """
    if isinstance(error, TimeoutError):
        cause = f"no reply within {timeout_s:g} s to a new connection: it is unreachable or frozen, or has no"
    elif isinstance(error, MemcacheUnknownCommandError | MemcacheUnexpectedCloseError | ConnectionResetError):
        cause = "it closed a new connection: it has no"
    elif UNAUTHENTICATED in str(error):
        return ConnectionError("it asks for a login: give store_user and store_password, as in the file of its -Y")
    else:
        return error
    otherwise = ", or accepts no client without a certificate (give store_cert and store_key)"
    if not target.tls:
        otherwise = ", or expects TLS (give memcacheds://)"
    return ConnectionError(f"{cause} connection left (raise memcached's -c, or end clients that hold many){otherwise}")


def _ask(client: Client, *topic: str) -> dict[str, str]:
    answer: dict[bytes, Any] = client.stats(*topic)
    return {name.decode(): value.decode() if isinstance(value, bytes) else str(value) for name, value in answer.items()}


def _life_of(stats: dict[str, str]) -> int:
    """The upper bits of the CAS ids of a server's run: its process id and start time, above memcached's own 64 bits."""
    return (int(stats["time"]) - int(stats["uptime"]) << 32 | int(stats["pid"])) << CAS_BITS

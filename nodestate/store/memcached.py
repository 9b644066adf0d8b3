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
  server's clock, which count from the sending. It asks the server for its clock once per connection.
- Replies arrive in the order of the requests, one per ``mg``, so they need not repeat the keys.
- A server that cannot send stops receiving. So the adapter sends requests only as far as the socket accepts them and
  reads replies meanwhile: no call can dead-lock, whatever its length.

A connection is reused only after a call has read all its replies; after any other end of a call it is closed.
"""

from __future__ import annotations

import math
import re
import secrets
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from pymemcache import MemcacheError
from pymemcache.client.base import Client, KeepaliveOpts

from nodestate.config import Config, servers_of
from nodestate.errors import ConfigError, ItemTooLargeError, StoreUnavailableError
from nodestate.ports import MAX_TTL_S, ClaimStore, Item, Key, Put, Write, WriteResult, WriteStatus, item_keys
from nodestate.ports.forks import sever_in_children
from nodestate.store.keys import MAX_KEY_BYTES
from nodestate.store.memory import MemoryStore, process_server

ITEM_HEADER_BYTES: Final = 48 + 8
"""memcached's struct of an item and the CAS id, on a 64-bit machine."""
ITEM_ENDINGS_BYTES: Final = 1 + 2
"""NUL after the key, CR LF after the value."""
ITEM_FLAGS_BYTES: Final = 4
ITEM_OVERHEAD_BYTES: Final = ITEM_HEADER_BYTES + ITEM_ENDINGS_BYTES + ITEM_FLAGS_BYTES
RECV_BYTES: Final = 256 * 1024
BLOCK_BYTES: Final = 256 * 1024
KEEPALIVE: Final = KeepaliveOpts(idle=5, intvl=2, cnt=3)


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
        address: host:port.
        timeout_s: bounds a connect, and each wait for the server to send or accept more.
    """

    def __init__(self, address: str, *, timeout_s: float) -> None:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ConfigError(f"store {address!r} is no address of a memcached server; give host:port")
        # host:port.
        self._name = address
        self._host, self._port = host.strip("[]"), int(port)
        # Longest time for a connect, and for each wait for the server, in seconds.
        self._timeout_s = timeout_s
        # The connection; None if it is closed.
        self._client: Client | None = None
        # The server's item limit, with header and key.
        self._item_max_bytes = 0
        # False if the server runs with -C.
        self._cas_enabled = False
        # The server's clock minus this process' monotonic clock, in seconds; None until it was asked.
        self._server_ahead_s: float | None = None
        # Upper bits of all CAS ids: which start of the server they belong to.
        self._life = 0
        sever_in_children(self)

    @property
    def name(self) -> str:
        """host:port, for messages."""
        return self._name

    @property
    def max_value_bytes(self) -> int:
        """The largest value that fits an item, whatever the length of its key."""
        with self._whole_replies():
            return self._item_max_bytes - ITEM_OVERHEAD_BYTES - MAX_KEY_BYTES

    def fetch(self, keys: Sequence[Key]) -> dict[Key, Item]:
        """See ``ports.Store``."""
        if not keys:
            return {}
        names = item_keys(keys)
        _check_keys(names)
        request = ("mg " + " v c t\r\nmg ".join(names) + " v c t\r\n").encode()
        with self._whole_replies() as client:
            return _items(names, _exchange(client.sock, iter((request,)), self._timeout_s), self._life)

    def write(self, writes: Sequence[Write]) -> list[WriteResult]:
        """See ``ports.Store``."""
        if not writes:
            return []
        _check_keys([write.key for write in writes])
        with self._whole_replies() as client:
            self._check_sizes(writes)
            if any(write.ttl_s for write in writes):
                self._ahead_s(client)
            tag = secrets.randbits(31) + 1
            blocks = _blocks(writes, tag, self._server_time, self._life)
            return _outcomes(writes, _lines(writes, _exchange(client.sock, blocks, self._timeout_s)), tag, self._life)

    def server_time(self) -> float:
        """See ``ports.ClaimStore``. The server is asked for its clock once per connection."""
        if self._client is not None and self._server_ahead_s is not None:
            return time.monotonic() + self._server_ahead_s
        with self._whole_replies() as client:
            return time.monotonic() + self._ahead_s(client)

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
                rejected_connections=int(stats["rejected_connections"]),
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
            if self._client is not None and _poller(self._client.sock, select.POLLIN).poll(0):
                self.close()  # the server closed it while it was idle, so no request is lost
            if self._client is None:
                self._client, settings, stats = _connect(self._host, self._port, self._timeout_s)
                self._server_ahead_s = None
                self._life = _life_of(stats)
                self._item_max_bytes = int(settings["item_size_max"])
                self._cas_enabled = settings["cas_enabled"] == "yes"
            self._check_cas()
            yield self._client
        except ItemTooLargeError:
            raise  # nothing was sent
        except (OSError, MemcacheError, KeyError, ValueError) as error:
            self.close()
            cause = f"no reply within {self._timeout_s:g} s" if isinstance(error, TimeoutError) else str(error)
            raise StoreUnavailableError(self._name, cause or type(error).__name__) from error
        except BaseException:
            self.close()
            raise

    def _ahead_s(self, client: Client) -> float:
        if self._server_ahead_s is None:
            self._server_ahead_s = int(_ask(client)["time"]) - time.monotonic()
        return self._server_ahead_s

    def _server_time(self, moment: float | None) -> int:
        """A lower bound of the server's clock at a moment of this process, by default now, in whole seconds."""
        assert self._server_ahead_s is not None, "the clock is asked before the first write with a time to live"
        return math.floor((time.monotonic() if moment is None else moment) + self._server_ahead_s)

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
    servers = servers_of(url or config.store)
    if not servers:
        return [MemoryStore(process_server())]
    return [MemcachedStore(server, timeout_s=config.store_timeout_s) for server in servers]


def _connect(host: str, port: int, timeout_s: float) -> tuple[Client, dict[str, str], dict[str, str]]:
    """A connected client, with the settings and the statistics of its server."""
    failure: Exception | None = None
    # Try all addresses: pymemcache tries the first only, and 'localhost' has two.
    for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        client = Client(
            (address[0], port),
            connect_timeout=timeout_s,
            timeout=timeout_s,
            no_delay=True,
            socket_keepalive=KEEPALIVE,
            default_noreply=False,
        )
        try:
            return client, _ask(client, "settings"), _ask(client)
        except (OSError, MemcacheError) as error:
            client.close()
            failure = error
        except BaseException:
            client.close()
            raise
    assert failure is not None, "getaddrinfo returns an address or raises"
    raise failure


def _ask(client: Client, *topic: str) -> dict[str, str]:
    answer: dict[bytes, Any] = client.stats(*topic)
    return {name.decode(): value.decode() if isinstance(value, bytes) else str(value) for name, value in answer.items()}


def _life_of(stats: dict[str, str]) -> int:
    """The upper bits of the CAS ids of a server's run: its process id and start time, above memcached's own 64 bits."""
    return (int(stats["time"]) - int(stats["uptime"]) << 32 | int(stats["pid"])) << _CAS_BITS


# -- the protocol ---------------------------------------------------------------------------------

_CAS_BITS: Final = 64


def _check_keys(keys: Sequence[str]) -> None:
    """Assert that the protocol cannot misread a key; that would be a mistake in ``keys.py``."""
    joined = " ".join(keys)
    assert joined.isascii(), "keys are ASCII"
    assert joined.isprintable(), "keys are printable"
    assert joined.count(" ") == len(keys) - 1, "keys are without spaces"
    assert min(map(len, keys)) > 0, "keys are not empty"
    assert max(map(len, keys)) <= MAX_KEY_BYTES, "keys fit memcached"


def _poller(sock: socket.socket, events: int) -> select.poll:
    poller = select.poll()
    poller.register(sock, events)
    return poller


def _exchange(sock: socket.socket, requests: Iterator[bytes], timeout_s: float) -> Iterator[bytes]:
    """Send the requests, and yield pieces of the reply as they arrive, until the caller stops asking."""
    unsent = memoryview(next(requests))
    unsent = unsent[sock.send(unsent) :]  # most calls are short and are sent at once
    poller = None
    while True:
        while not unsent and (block := next(requests, None)) is not None:
            unsent = memoryview(block)
        if unsent:
            poller = poller or _poller(sock, select.POLLIN | select.POLLOUT)
            ready = poller.poll(timeout_s * 1000)
            if not ready:
                raise TimeoutError
            if ready[0][1] & select.POLLOUT:  # send first: replies that wait arrive in fewer and larger pieces
                unsent = unsent[sock.send(unsent) :]
                continue
        piece = sock.recv(RECV_BYTES)
        if not piece:
            raise ConnectionResetError("the server closed the connection")
        yield piece


_VALUE: Final = re.compile(rb"VA (\d+) c(\d+) t(-?\d+)\r\n")
_MISS: Final = b"EN\r\n"


def _items(keys: Sequence[str], pieces: Iterator[bytes], life: int = 0) -> dict[Key, Item]:
    """Parse one reply per key: size, CAS id and time to live before the value, or a miss."""
    items: dict[Key, Item] = {}
    reply, at = b"", 0
    head_of = _VALUE.match
    for key in keys:
        while (head := head_of(reply, at)) is None and not reply.startswith(_MISS, at):
            if reply.find(b"\n", at) >= 0:
                raise ValueError(f"unexpected reply {reply[at : at + 80]!r} to mg")
            reply, at = reply[at:] + next(pieces), 0
        if head is None:
            at += len(_MISS)
            continue
        size, cas, ttl = head.groups()
        start = head.end()
        end = start + int(size)
        if len(reply) < end + 2:
            parts, missing = [reply[start:]], end + 2 - len(reply)
            while missing > 0:
                parts.append(next(pieces))
                missing -= len(parts[-1])
            reply, start, end = b"".join(parts), 0, end - start
        items[key] = Item(reply[start:end], life | int(cas), None if ttl == b"-1" else int(ttl))
        at = end + 2
    if at != len(reply):
        raise ValueError("more replies than requests")
    return items


def _blocks(
    writes: Sequence[Write], tag: int, server_time: Callable[[float | None], int], life: int
) -> Iterator[bytes]:
    """Encode the requests of some writes, in blocks of about ``BLOCK_BYTES``.

    A CAS id of another run of the server is sent as 0, which matches no item.
    """
    parts: list[bytes] = []
    size = 0
    for put, key, value, cas, ttl_s, rows, _, as_of in writes:
        assert not rows, "only a database has rows"
        assert put is not Put.DELETE_ROWS, "only a database has rows"
        if put is Put.DELETE:
            parts.append(f"md {key}\r\n".encode())
        else:
            own = cas ^ life if cas ^ life < 1 << _CAS_BITS else 0
            verb, unique = ("cas", f" {own}") if put is Put.CAS else ("add", "")
            until = server_time(as_of) + min(ttl_s, MAX_TTL_S) if ttl_s else 0
            parts.append(f"{verb} {key} {tag} {until} {len(value)}{unique}\r\n".encode())
            parts.append(value)
            parts.append(f"\r\nmg {key} c f u\r\n".encode())
        size += len(value) + 100
        if size >= BLOCK_BYTES:
            yield b"".join(parts)
            parts, size = [], 0
    if parts:
        yield b"".join(parts)


def _lines(writes: Sequence[Write], pieces: Iterator[bytes]) -> list[bytes]:
    """Read the reply lines of some writes: one for a delete, two for each other write."""
    wanted = sum(1 if write.put is Put.DELETE else 2 for write in writes)
    parts: list[bytes] = []
    while wanted > 0:
        parts.append(next(pieces))
        wanted -= parts[-1].count(b"\n")
    lines = b"".join(parts).split(b"\r\n")
    if wanted < 0 or lines.pop() != b"":
        raise ValueError(f"more replies than requests, the last {lines[-1][:80]!r}")
    return lines


_STATUS_OF_PUT: Final = {
    b"STORED": WriteStatus.STORED,
    b"NOT_STORED": WriteStatus.CONFLICT,
    b"EXISTS": WriteStatus.CONFLICT,
    b"NOT_FOUND": WriteStatus.MISSING,
    b"SERVER_ERROR out of memory storing object": WriteStatus.FULL,
    b"SERVER_ERROR Out of memory during read": WriteStatus.FULL,  # for a value of several chunks
}
_STATUS_OF_DELETE: Final = {b"HD": WriteStatus.STORED, b"NF": WriteStatus.MISSING}
_WRITTEN: Final = {status: WriteResult(status) for status in WriteStatus}


def _outcomes(writes: Sequence[Write], lines: Sequence[bytes], tag: int, life: int = 0) -> list[WriteResult]:
    outcomes: list[WriteResult] = []
    replies = iter(lines)
    ours = b" f%d" % tag
    for write in writes:
        reply = next(replies)
        status = (_STATUS_OF_DELETE if write.put is Put.DELETE else _STATUS_OF_PUT).get(reply)
        if status is None:
            raise ValueError(f"unexpected reply {reply[:80]!r} to {write.put.value}")
        if write.put is Put.DELETE:
            outcomes.append(_WRITTEN[status])
            continue
        seen = next(replies)  # HD c<cas> f<tag>
        if status is WriteStatus.STORED and seen.endswith(ours):
            outcomes.append(WriteResult(status, life | int(seen[4 : -len(ours)])))
        else:  # stored, but lost or replaced since; without an id, the caller's next CAS fails and shows it
            outcomes.append(_WRITTEN[status])
    return outcomes

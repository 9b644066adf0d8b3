"""The protocol of memcached: requests as bytes, and replies as items and outcomes.

``store/memcached.py`` describes how the server behaves, and why these commands are used.
"""

from __future__ import annotations

import re
import select
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Final

from nodestate.ports import MAX_TTL_S, Item, Key, Put, Write, WriteResult, WriteStatus
from nodestate.store.keys import MAX_KEY_BYTES

RECV_BYTES: Final = 256 * 1024
TLS_RECORD_BYTES: Final = 8 * 1024
BLOCK_BYTES: Final = 256 * 1024
CAS_BITS: Final = 64
_KEY_CHARACTERS: Final = bytes(range(33, 127))


def check_keys(keys: Sequence[str]) -> None:
    """Assert that the protocol cannot misread a key; that would be a mistake in ``keys.py``."""
    others = " ".join(keys).encode().translate(None, _KEY_CHARACTERS)
    assert others == b" " * (len(keys) - 1), f"keys are of printable ASCII characters without spaces, not {others!r}"
    assert "" not in keys, "keys are not empty"
    assert max(map(len, keys)) <= MAX_KEY_BYTES, "keys fit memcached"


def poller(sock: socket.socket, events: int) -> select.poll:
    """A poll object for these events of a socket."""
    made = select.poll()
    made.register(sock, events)
    return made


def exchange(sock: socket.socket, requests: Iterator[bytes], timeout_s: float) -> Iterator[bytes]:
    """Send the requests, and yield pieces of the reply as they arrive, until the caller stops asking."""
    unsent = memoryview(next(requests))
    unsent = unsent[sock.send(unsent) :]  # most calls are short and are sent at once
    waiting = None
    while True:
        while not unsent and (block := next(requests, None)) is not None:
            unsent = memoryview(block)
        if unsent:
            waiting = waiting or poller(sock, select.POLLIN | select.POLLOUT)
            ready = waiting.poll(timeout_s * 1000)
            if not ready:
                raise TimeoutError
            if ready[0][1] & select.POLLOUT:  # send first: replies that wait arrive in fewer and larger pieces
                unsent = unsent[sock.send(unsent) :]
                continue
        piece = sock.recv(RECV_BYTES)
        if not piece:
            raise ConnectionResetError("the server closed the connection")
        yield piece


def exchange_tls(sock: ssl.SSLSocket, requests: Iterator[bytes], timeout_s: float) -> Iterator[bytes]:
    """Do as ``exchange`` does, on a connection with TLS.

    A socket that can be read may hold no whole record, and a socket that can be written may have no room for one. A
    call that waited for either could wait for a server that waits for this side to read. So no call waits here.

    memcached 1.6.18 waits for its socket while the rest of a record is in its TLS library: after a value that ended
    within the record, and if the record did not fit into its buffer of 16 KiB. It takes the rest when another record
    arrives. So records are smaller than its buffer, and the last record of a request has a whole command and nothing
    else.
    """
    waiting = select.poll()
    unsent = last = memoryview(b"")
    sock.settimeout(0)
    try:
        while True:
            wanted = select.POLLIN
            if not unsent:
                unsent, last = last, unsent
            while not unsent and (block := next(requests, None)) is not None:
                cut = block.rfind(b"\n", 0, -1) + 1
                unsent, last = memoryview(block)[:cut], memoryview(block)[cut:]
                if not cut:
                    unsent, last = last, unsent
            try:
                if unsent:
                    unsent = unsent[sock.send(unsent[:TLS_RECORD_BYTES]) :]
                    continue
            except ssl.SSLWantWriteError:
                wanted |= select.POLLOUT
            except ssl.SSLWantReadError:
                pass
            try:
                piece = sock.recv(RECV_BYTES)
            except ssl.SSLWantReadError:
                waiting.register(sock, wanted)
                if not waiting.poll(timeout_s * 1000):
                    raise TimeoutError from None
                continue
            if not piece:
                raise ConnectionResetError("the server closed the connection")
            yield piece
    finally:
        sock.settimeout(timeout_s)


_VALUE: Final = re.compile(rb"VA (\d+)(?: c(\d+) t(-?\d+))?\r\n")
_MISS: Final = b"EN\r\n"


def parse_items(keys: Sequence[str], pieces: Iterator[bytes], life: int = 0) -> dict[Key, Item]:
    """Parse one reply per key: a miss, or the size before the value, with CAS id and time to live if asked for."""
    items: dict[Key, Item] = {}
    reply, at = b"", 0
    received = 0  # length of ``reply``
    head_of = _VALUE.match
    for key in keys:  # each refresh of a reader spends much of its processor time in this loop
        head = head_of(reply, at)
        while head is None and not reply.startswith(_MISS, at):
            if reply.find(b"\n", at) >= 0:
                raise ValueError(f"unexpected reply {reply[at : at + 80]!r} to mg")
            reply, at = reply[at:] + next(pieces), 0
            received = len(reply)
            head = head_of(reply, at)
        if head is None:
            at += len(_MISS)
            continue
        size, cas, ttl = head.groups()
        start = head.end()
        end = start + int(size)
        at = end + 2
        if at > received:
            parts, missing = [reply[start:]], at - received
            while missing > 0:
                parts.append(next(pieces))
                missing -= len(parts[-1])
            reply, start, end, at = b"".join(parts), 0, end - start, at - start
            received = len(reply)
        if cas is None:
            items[key] = Item(reply[start:end], 0, None)
        else:
            items[key] = Item(reply[start:end], life | int(cas), None if ttl == b"-1" else int(ttl))
    if at != received:
        raise ValueError("more replies than requests")
    return items


_TIME: Final = re.compile(rb"\r\nSTAT time (\d+)\r\n")
_END_OF_STATS: Final = b"\r\nEND\r\n"


def parse_clock(pieces: Iterator[bytes]) -> tuple[int, Iterator[bytes]]:
    """Parse the reply to ``stats``. Returns the server's clock, and the pieces that follow."""
    reply = next(pieces)
    while (end := reply.find(_END_OF_STATS)) < 0:
        reply += next(pieces)
    told = _TIME.search(reply, 0, end + 2)
    if told is None:
        raise ValueError(f"unexpected reply {reply[:80]!r} to stats")
    return int(told[1]), chain((reply[end + len(_END_OF_STATS) :],), pieces)


def encode_writes(
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
            own = cas ^ life if cas ^ life < 1 << CAS_BITS else 0
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


def read_lines(writes: Sequence[Write], pieces: Iterator[bytes]) -> list[bytes]:
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


def parse_outcomes(writes: Sequence[Write], lines: Sequence[bytes], tag: int, life: int = 0) -> list[WriteResult]:
    """The results of some writes, from their reply lines. ``tag`` marks the items that these writes stored."""
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

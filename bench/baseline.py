"""Baseline for readers: the least that reading the same bytes from memcached can cost.

``BaselineSocket`` requests prepared keys and cuts the reply into values, without decoding them.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Final, Protocol, Self

RECV_BYTES: Final = 256 * 1024
TIMEOUT_S: Final = 30
BLOCK_BYTES: Final = 160 * 1024
"""Size of a block; 10,000 states of 1 KB fill 64 of them."""

_ASK_END: Final = b"mn\r\n"
_END: Final = b"MN\r\n"

Question = tuple[bytes, ...]
"""The requests that a baseline client sends one after the other. They are prepared before the clock starts."""


class BaselineClient(Protocol):
    """A connection to the server of a design that does no more than a client must do."""

    def copy(self, bodies: Iterable[bytes]) -> None:
        """Store a copy of each state under its number, beside the data of nodestate."""

    def copy_pieces(self, bodies: Iterable[bytes]) -> int:
        """After ``copy``, store the same bytes in as few pieces as suit the server; return the number of pieces."""

    def states(self, numbers: Sequence[int]) -> Question:
        """Return the request for copies with these rising numbers."""

    def pieces(self, count: int) -> Question:
        """Return the request for all copies as pieces."""

    def heads(self, keys: Sequence[str]) -> Question:
        """Return the request for the values that nodestate stored under these keys."""

    def read(self, question: Question) -> list[bytes]:
        """Send a request and return the values of the reply."""

    def close(self) -> None:
        """Close the connection."""


class BaselineSocket:
    """A connection to one memcached that does no more than a client must do. A context manager."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", TIMEOUT_S, 0))

    def read(self, request: bytes) -> list[bytes]:
        """Send a prepared request and return the values in its order; missing keys are left out.

        The request is sent in parts while the reply is read, because a server that cannot send stops reading.
        """
        recv = self._socket.recv
        parts: list[bytes] = []
        unsent = memoryview(request)
        while not (parts and parts[-1].endswith(_END)):
            if unsent:
                with suppress(BlockingIOError):
                    unsent = unsent[self._socket.send(unsent, socket.MSG_DONTWAIT) :]
            piece = recv(RECV_BYTES)
            if not piece:
                raise ConnectionResetError("memcached closed the connection")
            if len(piece) < len(_END) and parts:
                piece = parts.pop() + piece
            parts.append(piece)
        return _values(b"".join(parts))

    def write(self, items: Iterable[tuple[str, bytes]]) -> None:
        """Store values, and replace older values of the same keys."""
        for key, value in items:  # q: memcached answers refused writes only
            self._socket.sendall(b"ms %s %d q\r\n%s\r\n" % (key.encode(), len(value), value))
        self._socket.sendall(_ASK_END)
        reply = self._socket.recv(RECV_BYTES)
        if reply != _END:
            raise ValueError(f"memcached refused a value: {reply[:80]!r}")

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class BaselineMemcached:
    """``BaselineSocket`` as a ``BaselineClient``. A copy is a key, and a piece is a block of ``BLOCK_BYTES``."""

    def __init__(self, address: str) -> None:
        self._socket = BaselineSocket(address)

    def copy(self, bodies: Iterable[bytes]) -> None:
        """See ``BaselineClient``."""
        self._socket.write((f"copy:{number}", body) for number, body in enumerate(bodies))

    def copy_pieces(self, bodies: Iterable[bytes]) -> int:
        """See ``BaselineClient``."""
        blocks = list(in_blocks(bodies))
        self._socket.write((f"block:{number}", block) for number, block in enumerate(blocks))
        return len(blocks)

    def states(self, numbers: Sequence[int]) -> Question:
        """See ``BaselineClient``."""
        return (prepared(f"copy:{number}" for number in numbers),)

    def pieces(self, count: int) -> Question:
        """See ``BaselineClient``."""
        return (prepared(f"block:{number}" for number in range(count)),)

    def heads(self, keys: Sequence[str]) -> Question:
        """See ``BaselineClient``."""
        return (prepared(keys),)

    def read(self, question: Question) -> list[bytes]:
        """See ``BaselineClient``."""
        [request] = question
        return self._socket.read(request)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def prepared(keys: Iterable[str]) -> bytes:
    """Return a request for these keys, as ``BaselineSocket.read`` takes it."""
    return b"".join(b"mg %s v\r\n" % key.encode() for key in keys) + _ASK_END


def _values(reply: bytes) -> list[bytes]:
    """Cut a reply into values: ``VA <bytes>`` precedes a value, ``EN`` is a miss, ``MN`` ends the reply."""
    values: list[bytes] = []
    at = 0
    while True:
        end = reply.find(b"\r\n", at)
        if end < 0:
            raise ValueError(f"memcached sent an incomplete reply: {reply[at : at + 80]!r}")
        verb = reply[at : at + 2]
        if verb == b"VA":
            at = end + 2 + int(reply[at + 3 : end])
            values.append(reply[end + 2 : at])
            at += 2
        elif verb == b"EN":
            at = end + 2
        elif verb == b"MN":
            return values
        else:
            raise ValueError(f"memcached sent an unexpected reply: {reply[at:end][:80]!r}")


def in_blocks(values: Iterable[bytes]) -> Iterator[bytes]:
    """Join values to blocks of at least ``BLOCK_BYTES``."""
    parts: list[bytes] = []
    size = 0
    for value in values:
        parts.append(value)
        size += len(value)
        if size >= BLOCK_BYTES:
            yield b"".join(parts)
            parts, size = [], 0
    if parts:
        yield b"".join(parts)

"""The least that reading can cost: what the figures of readers are held against. Here from memcached.

``BaselineSocket`` asks for prepared keys and cuts the reply into values. It does not look at what it got.
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
"""10,000 states of 1 KB make 64 blocks of this."""

_ASK_END: Final = b"mn\r\n"
_END: Final = b"MN\r\n"

Question = tuple[bytes, ...]
"""What a bare client sends, one after the other: prepared, so that it need not be put together on the clock."""


class BaselineClient(Protocol):
    """A connection to where a design lives, with the least that a client must do."""

    def copy(self, bodies: Iterable[bytes]) -> None:
        """Store a copy of each state, by its number, beside what nodestate stores."""

    def copy_pieces(self, bodies: Iterable[bytes]) -> int:
        """After ``copy``: the same bytes in as few pieces as the store likes. Returns the number of these."""

    def states(self, numbers: Sequence[int]) -> Question:
        """Asks for copies by number, in this order, where it is a rising one."""

    def pieces(self, count: int) -> Question:
        """Asks for all copies, as pieces."""

    def heads(self, keys: Sequence[str]) -> Question:
        """Asks for what nodestate stored under these keys."""

    def read(self, question: Question) -> list[bytes]:
        """The values that came."""

    def close(self) -> None:
        """Close the connection."""


class BaselineSocket:
    """A connection to one memcached, with the least that a client must do. A context manager."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", TIMEOUT_S, 0))

    def read(self, request: bytes) -> list[bytes]:
        """The values of a prepared request, in order; those that are missing are left out.

        Sends as far as the socket takes it and reads meanwhile, as a server that can't send stops to receive.
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
        """Store values, whatever was there."""
        for key, value in items:  # quiet: memcached answers only what it refuses
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
    """``BaselineSocket`` as a ``BaselineClient``: a copy is a key, a piece a block of ``BLOCK_BYTES``."""

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
    """A request for these keys, as ``BaselineSocket.read`` takes it."""
    return b"".join(b"mg %s v\r\n" % key.encode() for key in keys) + _ASK_END


def _values(reply: bytes) -> list[bytes]:
    """Cut ``VA <bytes>``, value and ``EN`` (a miss), up to ``MN``, into values."""
    values: list[bytes] = []
    at = 0
    while True:
        end = reply.find(b"\r\n", at)
        if end < 0:
            raise ValueError(f"a reply broke off: {reply[at : at + 80]!r}")
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
            raise ValueError(f"unexpected reply {reply[at:end][:80]!r}")


def in_blocks(values: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes, in few large pieces."""
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

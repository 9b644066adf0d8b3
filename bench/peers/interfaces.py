"""What a peer is to the scenario: a server, a writer, and readers that hold what they read."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

import xxhash

STAMP: Final = struct.Struct(">QQ")
"""Incarnation and generation, before the body, where a store has one value for each key."""


class Row(NamedTuple):
    """A node as every peer stores it. ``body`` is the state as msgpack."""

    name: str
    incarnation: int
    generation: int
    body: bytes


class Reader(Protocol):
    """One scheduler's connection, with all that it has read."""

    def cold(self) -> None:
        """Read all nodes; the first call."""

    def refresh(self) -> None:
        """Read what changed since the last read, if anything did."""

    def names(self) -> Iterable[str]:
        """The nodes that are held."""

    def node(self, name: str) -> Row:
        """A node as it was read last; raises KeyError."""

    def close(self) -> None:
        """Give the connection back."""


Opener = Callable[[], Reader]
"""Connects a reader. It can be pickled, for readers in a new process."""


class Server(Protocol):
    """A server that runs."""

    @property
    def url(self) -> str:
        """As its client takes it."""

    @property
    def address(self) -> str:
        """``host:port``."""


class Peer(Protocol):
    """A store as its writer sees it. Its constructor takes the server that runs, and makes what has to be there."""

    @property
    def clients(self) -> Mapping[str, str]:
        """The versions of what it is reached through, by name."""

    @property
    def openers(self) -> Mapping[str, Opener]:
        """Each way to read it, by the label that it is shown with."""

    def write(self, rows: Sequence[Row]) -> None:
        """Store these nodes, each once; returns when the store has said that it took them."""

    def close(self) -> None:
        """Give the connection back."""


def packed(row: Row) -> bytes:
    """Version and body as one value."""
    return STAMP.pack(row.incarnation, row.generation) + row.body


def unpacked(name: str, value: bytes) -> Row:
    """The inverse of ``packed``."""
    incarnation, generation = STAMP.unpack_from(value)
    return Row(name, incarnation, generation, value[STAMP.size :])


def digest(rows: Iterable[Row]) -> int:
    """A number that two fleets share if they are the same, in any order."""
    return sum(map(_row_digest, rows)) % 2**64


def _row_digest(row: Row) -> int:
    return xxhash.xxh3_64_intdigest(f"{row.name} {row.incarnation}.{row.generation} ".encode() + row.body)

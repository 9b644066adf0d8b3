"""A peer as the scenario uses it: a server, a writer, and readers that hold the nodes that they have read."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

import xxhash

STAMP: Final = struct.Struct(">QQ")
"""Incarnation and generation, which precede the body in stores with one value for each key."""


class Row(NamedTuple):
    """A node as every peer stores it. ``body`` is its state as msgpack."""

    name: str
    incarnation: int
    generation: int
    body: bytes


class Reader(Protocol):
    """The connection of one scheduler, with all nodes that it has read."""

    def cold(self) -> None:
        """Read all nodes. This is the first call."""

    def refresh(self) -> None:
        """Read the nodes that have changed since the last read."""

    def names(self) -> Iterable[str]:
        """Return the names of all nodes read."""

    def node(self, name: str) -> Row:
        """Return a node as it was read last. Raises KeyError if there is no such node."""

    def close(self) -> None:
        """Close the connection."""


Opener = Callable[[], Reader]
"""Connects a reader. It can be pickled, so that a new process can use it."""


class Server(Protocol):
    """A running server."""

    @property
    def url(self) -> str:
        """The address in the form that the client takes."""

    @property
    def address(self) -> str:
        """``host:port``."""


class Peer(Protocol):
    """A store as its writer uses it. Its constructor takes the running server and creates tables or streams."""

    @property
    def clients(self) -> Mapping[str, str]:
        """The versions of its client libraries, by name."""

    @property
    def openers(self) -> Mapping[str, Opener]:
        """Each way to read the store, by its label in figures."""

    def write(self, rows: Sequence[Row]) -> None:
        """Store these nodes, each once; return when the store has confirmed them."""

    def close(self) -> None:
        """Close the connection."""


def packed(row: Row) -> bytes:
    """Return version and body as one value."""
    return STAMP.pack(row.incarnation, row.generation) + row.body


def unpacked(name: str, value: bytes) -> Row:
    """Return the row of a packed value."""
    incarnation, generation = STAMP.unpack_from(value)
    return Row(name, incarnation, generation, value[STAMP.size :])


def digest(rows: Iterable[Row]) -> int:
    """Return a number that is equal for equal sets of rows, in any order."""
    return sum(map(_row_digest, rows)) % 2**64


def _row_digest(row: Row) -> int:
    return xxhash.xxh3_64_intdigest(f"{row.name} {row.incarnation}.{row.generation} ".encode() + row.body)

"""What the snapshot design stores: an item per node, an index, and its section of the head.

A stamp (term, offset) names the commit that wrote a node's item. The index names the stamp of every node as of
one offset; the ring in the head names those of the commits since, so that a reader that follows along learns
what changed from the head alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np

from nodestate import keys
from nodestate.model import NodeRecord
from nodestate.wire import Codec

RING_SLOTS: Final = 1024
"""Changes that the ring of a head holds at most: about 3 KB, read at each refresh (docs/adr/0003)."""


class Stamp(NamedTuple):
    """Which commit wrote an item; ordered, since a later owner has a higher term."""

    term: int
    offset: int


class StoredNode(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is stored at a node's key."""

    epoch: int
    term: int
    offset: int
    slot: int
    record: NodeRecord


class Turn(msgspec.Struct, frozen=True, array_like=True):
    """One commit in the ring: ``slots`` as little-endian uint32; ``appeared`` names the new ones, in slot order."""

    term: int
    offset: int
    slots: bytes
    appeared: tuple[str, ...] = ()


class Index(msgspec.Struct, frozen=True, array_like=True):
    """Names an index: all commits before ``offset``, in ``parts`` items."""

    term: int
    offset: int
    parts: int


class IndexPart(msgspec.Struct, frozen=True, array_like=True):
    """Names and stamps of nodes, in slot order: terms as little-endian uint32, offsets as uint64."""

    names: list[str]
    terms: bytes
    offsets: bytes


class Section(msgspec.Struct, frozen=True, array_like=True):
    """The snapshot's part of a head. ``ring`` holds every commit from ``ring_from`` on."""

    ring_from: int
    ring: tuple[Turn, ...]
    index: Index
    previous: Index | None = None


SECTION: Final = msgspec.msgpack.Decoder(Section)
NODE: Final = Codec(StoredNode)
INDEX_PART: Final = Codec(IndexPart)
PART_NODES: Final = 2_000
"""Nodes in one part of an index: at 200 characters a name still under half of memcached's item limit."""


def pack_slots(slots: Sequence[int]) -> bytes:
    """Slots as they stand in a turn."""
    return np.array(slots, "<u4").tobytes()


def unpack_slots(packed: bytes) -> list[int]:
    """The slots of a turn."""
    slots: list[int] = np.frombuffer(packed, "<u4").tolist()
    return slots


def pack_index(names: Sequence[str], stamps: Sequence[Stamp]) -> list[bytes]:
    """An index as the values of its parts."""
    parts = []
    for at in range(0, len(names), PART_NODES):
        some = stamps[at : at + PART_NODES]
        terms = np.array([stamp.term for stamp in some], "<u4").tobytes()
        offsets = np.array([stamp.offset for stamp in some], "<u8").tobytes()
        parts.append(INDEX_PART.pack(IndexPart(list(names[at : at + PART_NODES]), terms, offsets)))
    return parts


def unpack_index_part(raw: bytes) -> tuple[list[str], list[Stamp]]:
    """Names and stamps of one part. Raises ``CorruptItemError``."""
    part = INDEX_PART.unpack(raw)
    terms, offsets = np.frombuffer(part.terms, "<u4").tolist(), np.frombuffer(part.offsets, "<u8").tolist()
    return part.names, list(map(Stamp, terms, offsets))


def index_keys(prefix: str, epoch: int, index: Index) -> list[str]:
    """The keys of an index's parts."""
    return [keys.index(prefix, epoch, index.term, index.offset, part) for part in range(index.parts)]

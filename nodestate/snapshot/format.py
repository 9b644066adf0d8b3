"""What the snapshot design stores: an item per node, an index, and its section of the head.

A stamp (term and offset in one integer) names the commit that wrote a node's item. The index names the stamp of every node as of
one offset; the ring in the head names those of the commits since, so that a reader that follows along learns
what changed from the head alone.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import islice
from typing import Final, NewType

import msgspec
import numpy as np

from nodestate.model import Heading, NodeRecord
from nodestate.store import keys
from nodestate.store.head import TermStart, term_of
from nodestate.store.wire import Codec

RING_SLOTS: Final = 1024
"""Changes that the ring of a head holds at most: 4 KB, read at each refresh (docs/adr/0003)."""
MAX_APPEARED_COUNT: Final = 64
"""New nodes whose names a head carries at most."""
RING_COMMITS: Final = 2048
"""Commits that it holds at most."""
assert RING_SLOTS < 2**16, "the count of one commit fits its uint16"


Stamp = NewType("Stamp", int)
"""Which commit wrote an item: term << 40 | offset. Ordered, since a later owner has a higher term. One integer and no
pair, because a reader holds one per node, and the collector would look at every pair (docs/adr/0010)."""
OFFSET_BITS: Final = 40
"""30 years at a thousand commits a second, and 16 million owners after one another, in one epoch of one partition."""


def stamp_of(term: int, offset: int) -> Stamp:
    """The stamp of a commit."""
    assert offset >> OFFSET_BITS == term >> (64 - OFFSET_BITS) == 0, f"({term}, {offset}) does not fit a stamp"
    return Stamp(term << OFFSET_BITS | offset)


class StoredNode(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is stored at a node's key."""

    epoch: int
    stamp: Stamp
    slot: int
    record: NodeRecord


class StoredHeading(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The same without what only those need who look into the node."""

    epoch: int
    stamp: Stamp
    slot: int
    record: Heading


class Appeared(msgspec.Struct, frozen=True, array_like=True):
    """A node that is new with the commit ``offset``; its slot follows the last one."""

    offset: int
    name: str


class Index(msgspec.Struct, frozen=True, array_like=True):
    """Names an index: all commits before ``offset``, in ``parts`` items."""

    term: int
    offset: int
    parts: int


class IndexPart(msgspec.Struct, frozen=True, array_like=True):
    """Names and stamps of nodes, in slot order; the stamps as little-endian uint64."""

    names: list[str]
    stamps: bytes


class SnapshotSection(msgspec.Struct, frozen=True, array_like=True):
    """The snapshot's part of a head.

    The ring names, for every commit from ``ring_from`` on, the slots that it wrote: ``counts`` how many (by commit,
    little-endian uint16), ``slots`` which (all commits' one after the other, little-endian uint32). Flat, since
    it is read at every refresh (docs/adr/0003).
    """

    ring_from: int
    counts: bytes
    slots: bytes
    appeared: tuple[Appeared, ...]
    terms: tuple[TermStart, ...]
    index: Index
    previous: Index | None = None


SNAPSHOT_SECTION: Final = msgspec.msgpack.Decoder(SnapshotSection)
NODE: Final = Codec(StoredNode)
NODE_HEADING: Final = Codec(StoredHeading)
INDEX_PART: Final = Codec(IndexPart)
PART_NODES: Final = 2_000
"""Nodes in one part of an index: at 200 characters a name still under half of memcached's item limit."""


def ring_after(section: SnapshotSection, offset: int) -> dict[int, Stamp]:
    """By slot, the newest stamp that the commits from ``offset`` on gave it."""
    # Plain struct: a reader that follows along asks for one or two commits, for which numpy takes three times as long.
    first = max(offset, section.ring_from)
    tail = section.counts[2 * (first - section.ring_from) :]
    counts = struct.unpack(f"<{len(tail) // 2}H", tail)
    total = sum(counts)
    slots = iter(struct.unpack(f"<{total}I", section.slots[len(section.slots) - 4 * total :]))
    newest: dict[int, Stamp] = {}
    for commit, count in enumerate(counts, first):
        newest.update(dict.fromkeys(islice(slots, count), stamp_of(term_of(section.terms, commit), commit)))
    return newest


def ring_with(section: SnapshotSection, slots: Sequence[int]) -> tuple[int, bytes, bytes]:
    """``ring_from``, ``counts`` and ``slots`` after one more commit, without the oldest where the ring is full."""
    counts = np.append(np.frombuffer(section.counts, "<u2"), np.array([min(len(slots), RING_SLOTS + 1)], "<u2"))
    kept = np.cumsum(counts[::-1], dtype=np.int64) <= RING_SLOTS
    dropped = len(counts) - min(int(kept.sum()), RING_COMMITS)
    begin = 4 * int(counts[:dropped].sum())
    if dropped == len(counts):
        return section.ring_from + dropped, b"", b""
    packed = section.slots[begin:] + np.array(slots, "<u4").tobytes()
    return section.ring_from + dropped, counts[dropped:].tobytes(), packed


def pack_index(names: Sequence[str], stamps: Sequence[Stamp]) -> list[bytes]:
    """An index as the values of its parts."""
    parts = []
    for at in range(0, len(names), PART_NODES):
        some = np.array(stamps[at : at + PART_NODES], "<u8").tobytes()
        parts.append(INDEX_PART.pack(IndexPart(list(names[at : at + PART_NODES]), some)))
    return parts


def unpack_index_part(raw: bytes) -> tuple[list[str], list[Stamp]]:
    """Names and stamps of one part. Raises ``CorruptItemError``."""
    part = INDEX_PART.unpack(raw)
    return part.names, np.frombuffer(part.stamps, "<u8").tolist()


def unpack_node(value: bytes) -> NodeRecord:
    """The record of a node's item. Raises ``CorruptItemError``."""
    return NODE.unpack(value).record


def index_keys(prefix: str, epoch: int, index: Index) -> list[str]:
    """The keys of an index's parts."""
    return [keys.index(prefix, epoch, index.term, index.offset, part) for part in range(index.parts)]

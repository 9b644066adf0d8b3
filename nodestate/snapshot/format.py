"""Stored formats of the snapshot design: an item per node, an index, and the design's section of the head.

A stamp (term and offset in one integer) names the commit that wrote a node's item. The index has the stamp of every
node as of one offset. The ring in the head has the slots that the commits since then wrote, so a reader that keeps up
learns from the head alone which nodes changed.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import islice
from typing import Annotated, Final, NewType

import msgspec
import numpy as np
from msgspec import Meta

from nodestate.model import NodeRecord
from nodestate.model.fields import StoredName
from nodestate.store import keys
from nodestate.store.head import (
    MAX_OFFSET,
    MAX_TERM,
    Epoch,
    Head,
    Offset,
    SectionCodec,
    Term,
    TermStart,
    are_terms_of,
    term_of,
)
from nodestate.store.wire import Codec, are_names

RING_SLOTS: Final = 1024
"""Largest number of slots in the ring of a head: 4 KB, read at each refresh (docs/adr/0003)."""
MAX_APPEARED_COUNT: Final = 64
"""Largest number of names of new nodes in a head."""
RING_COMMITS: Final = 2048
"""Largest number of commits in the ring of a head."""
FEW_COMMITS_COUNT: Final = 256
"""A ring of at most this number of commits is added up without numpy."""
MAX_INDEX_PARTS_COUNT: Final = 4_096
"""A section that claims more parts of an index is damaged: they would name 8 million nodes of one partition."""
assert RING_SLOTS < 2**16, "the count of one commit fits its uint16"


Stamp = NewType("Stamp", int)
"""The commit that wrote an item: term << 40 | offset. Stamps are ordered, because a later owner has a higher term.

It is one integer and not a pair, because a reader holds one per node, and Python's garbage collector would visit every
pair (docs/adr/0010).
"""
OFFSET_BITS: Final = 40
"""Enough, in one epoch of one partition, for 30 years of a thousand commits a second, and for 16 million owners."""


assert MAX_OFFSET < 2**OFFSET_BITS, "each offset fits a stamp"
assert MAX_TERM < 2 ** (64 - OFFSET_BITS), "each term fits a stamp"


def stamp_of(term: int, offset: int) -> Stamp:
    """The stamp of a commit."""
    assert offset >> OFFSET_BITS == term >> (64 - OFFSET_BITS) == 0, f"({term}, {offset}) does not fit a stamp"
    return Stamp(term << OFFSET_BITS | offset)


class StoredNode(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The record at a node's key."""

    epoch: Epoch
    stamp: Stamp
    slot: int
    record: NodeRecord


class Appeared(msgspec.Struct, frozen=True, array_like=True):
    """A node that the commit ``offset`` added; its slot follows the last one."""

    offset: Offset
    name: StoredName


class Index(msgspec.Struct, frozen=True, array_like=True):
    """Names an index, which has all commits before ``offset``, in ``parts`` items."""

    term: Term
    offset: Offset
    parts: Annotated[int, Meta(ge=0, le=MAX_INDEX_PARTS_COUNT)]


class IndexPart(msgspec.Struct, frozen=True, array_like=True):
    """Names and stamps of nodes, in slot order; the stamps as little-endian uint64."""

    names: list[StoredName]
    stamps: bytes


class SnapshotSection(msgspec.Struct, frozen=True, array_like=True):
    """The snapshot's part of a head.

    The ring has the slots that each commit from ``ring_from`` on wrote. It is flat bytes, because it is read at every
    refresh (docs/adr/0003).
    """

    ring_from: Offset
    """The first commit in the ring."""
    counts: bytes
    """By commit, the number of slots that it wrote, as little-endian uint16."""
    slots: bytes
    """The slots of all commits, one commit after the other, as little-endian uint32."""
    appeared: tuple[Appeared, ...]
    """The nodes that the commits of the ring added."""
    terms: tuple[TermStart, ...]
    """The terms that wrote the commits of the ring."""
    index: Index
    """The last index."""
    previous: Index | None = None
    """The index before, kept for readers that are loading it at the moment."""


def _are_consistent(appeared: tuple[Appeared, ...], end: int) -> bool:
    """True if the commits before ``end`` may have added these nodes, in this order."""
    if not appeared:
        return True
    names, offsets = [one.name for one in appeared], [one.offset for one in appeared]
    are_different = len(set(names)) == len(names) <= MAX_APPEARED_COUNT
    return are_different and are_names(names) and offsets[-1] < end and offsets == sorted(offsets)


def _is_consistent(section: SnapshotSection, head: Head) -> bool:
    """True if the index and the ring's commits from it on lead to the head."""
    counts, slots_bytes = section.counts, len(section.slots)
    commits = head.next - section.ring_from
    if len(counts) != 2 * commits or commits > RING_COMMITS:
        return False
    # As in ``ring_after``: numpy is slower for a few commits.
    sizes = struct.unpack(f"<{commits}H", counts) if commits <= FEW_COMMITS_COUNT else np.frombuffer(counts, "<u2")
    return (
        slots_bytes <= 4 * RING_SLOTS
        and slots_bytes == 4 * int(sum(sizes) if isinstance(sizes, tuple) else sizes.sum())
        and section.ring_from <= section.index.offset <= head.next
        and _are_consistent(section.appeared, head.next)
        and are_terms_of(section.terms, section.ring_from, head)
    )


def _require_index(part: IndexPart) -> None:
    if len(part.stamps) != 8 * len(part.names):
        raise ValueError(f"{len(part.stamps)} bytes of stamps for {len(part.names)} names")
    if not are_names(part.names):
        raise ValueError("a name that no node can have")


SNAPSHOT_SECTION: Final = SectionCodec(SnapshotSection, _is_consistent)
NODE: Final = Codec(StoredNode)
"""Readers also check that a record has the columns of its classes, see ``SnapshotReader``."""
INDEX_PART: Final = Codec(IndexPart, _require_index)
PART_NODES: Final = 2_000
"""Nodes in one part of an index. With names of 200 characters that is less than half of memcached's item limit."""


def ring_after(section: SnapshotSection, offset: int) -> dict[int, Stamp]:
    """By slot, the stamp of the last commit from ``offset`` on that wrote it."""
    # struct and not numpy: a reader that keeps up asks for one or two commits, for which numpy takes three times as
    # long.
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
    """``ring_from``, ``counts`` and ``slots`` after one more commit.

    If the ring is full, its oldest commits are dropped.
    """
    counts = np.append(np.frombuffer(section.counts, "<u2"), np.array([min(len(slots), RING_SLOTS + 1)], "<u2"))
    kept = np.cumsum(counts[::-1], dtype=np.int64) <= RING_SLOTS
    dropped = len(counts) - min(int(kept.sum()), RING_COMMITS)
    begin = 4 * int(counts[:dropped].sum())
    if dropped == len(counts):
        return section.ring_from + dropped, b"", b""
    packed = section.slots[begin:] + np.array(slots, "<u4").tobytes()
    return section.ring_from + dropped, counts[dropped:].tobytes(), packed


def pack_index(names: Sequence[str], stamps: Sequence[Stamp]) -> list[bytes]:
    """Encode an index as the values of its parts."""
    parts = []
    for at in range(0, len(names), PART_NODES):
        some = np.array(stamps[at : at + PART_NODES], "<u8").tobytes()
        parts.append(INDEX_PART.pack(IndexPart(list(names[at : at + PART_NODES]), some)))
    return parts


def unpack_index_part(raw: bytes) -> tuple[list[str], list[Stamp]]:
    """Decode one part of an index to names and stamps. Raises ``CorruptItemError``."""
    part = INDEX_PART.unpack(raw)
    return part.names, np.frombuffer(part.stamps, "<u8").tolist()


def unpack_node(value: bytes) -> NodeRecord:
    """The record of a node's item. Raises ``CorruptItemError``."""
    return NODE.unpack(value).record


def index_keys(prefix: str, epoch: int, index: Index) -> list[str]:
    """The keys of an index's parts."""
    return [keys.index(prefix, epoch, index.term, index.offset, part) for part in range(index.parts)]

"""Figures of docs/adr/0003: the form of a head's ring of changed slots."""

from __future__ import annotations

import random
from typing import Final

import msgspec
import numpy as np

from bench.adr_figures.measurement import (
    EPOCH,
    SEED,
    Result,
    median_us,
    pack_message,
    table,
)
from bench.workload import require
from nodestate.snapshot.format import (
    RING_COMMITS,
    RING_SLOTS,
    SNAPSHOT_SECTION,
    Index,
    SnapshotSection,
    Stamp,
    pack_index,
    ring_after,
    stamp_of,
    unpack_index_part,
)
from nodestate.store.head import HEAD, Head, TermStart


class Turn(msgspec.Struct, frozen=True, array_like=True):
    """One commit of the ring in the rejected form: a struct of its own."""

    term: int
    offset: int
    slots: bytes
    appeared: tuple[str, ...] = ()


class ListSection(msgspec.Struct, frozen=True, array_like=True):
    """A snapshot's section in the rejected form: with a list of commits."""

    ring_from: int
    ring: tuple[Turn, ...]
    index: Index
    previous: Index | None = None


_LIST_SECTION: Final = msgspec.msgpack.Decoder(ListSection)
_COMMITS: Final = (0, 10, 50, 170, 512, 1_024)


def _list_after(section: ListSection, offset: int) -> dict[int, Stamp]:
    newest: dict[int, Stamp] = {}
    for turn in section.ring:
        if turn.offset >= offset:
            stamp = stamp_of(turn.term, turn.offset)
            for slot in np.frombuffer(turn.slots, "<u4").tolist():
                newest[slot] = stamp
    return newest


def ring() -> Result:
    """Measure docs/adr/0003: the time to decode a head, by the form of its ring, and to decode a whole index."""
    rng = random.Random(SEED)
    rows = [_ring_row(commits, rng) for commits in _COMMITS]
    indexes = []
    for nodes in (625, 6_250):
        names = [f"compute-{number:07d}" for number in range(nodes)]
        parts = pack_index(names, [stamp_of(1, rng.randrange(10_000)) for _ in names])
        indexes.append(
            {
                "nodes in the partition": nodes,
                "index, KB": sum(map(len, parts)) / 1e3,
                "decode, µs": median_us(lambda parts=parts: [unpack_index_part(part) for part in parts]),  # type: ignore[misc]  # a lambda's default has no type
            }
        )
    return {
        "ring": table("A head's ring: decode it, and name what the newest commit changed (µs)", rows),
        "index": table("The whole index, as each refresh would read it without a ring", indexes),
    }


def _ring_row(commits: int, rng: random.Random) -> Result:
    each = max(1, min(6, RING_SLOTS // max(1, commits)))
    slots = [[rng.randrange(625) for _ in range(each)] for _ in range(commits)]
    packed = [np.array(some, "<u4").tobytes() for some in slots]
    first = 100_000
    index = Index(1, first, 1)
    flat = SnapshotSection(
        first, np.full(commits, each, "<u2").tobytes(), b"".join(packed), (), (TermStart(3, first),), index, index
    )
    turns = tuple(Turn(3, first + n, raw) for n, raw in enumerate(packed))
    listed = ListSection(first, turns, index, index)
    flat_raw, listed_raw = (
        _head_bytes(pack_message(flat), first + commits),
        _head_bytes(pack_message(listed), first + commits),
    )
    at = first + max(0, commits - 1)

    def read_flat(offset: int = at) -> dict[int, Stamp]:
        return ring_after(SNAPSHOT_SECTION.of(HEAD.unpack(flat_raw)), offset)

    def read_listed(offset: int = at) -> dict[int, Stamp]:
        return _list_after(_LIST_SECTION.decode(HEAD.unpack(listed_raw).section), offset)

    require(read_flat() == read_listed() and read_flat(first) == read_listed(first), "the two forms differ")
    require(commits <= RING_COMMITS, "more commits than a ring holds")
    return {
        "commits in the ring": commits,
        "slots each": each if commits else 0,
        "flat (ours), bytes": len(flat_raw),
        "flat: decode": median_us(lambda: SNAPSHOT_SECTION.of(HEAD.unpack(flat_raw))),
        "flat: newest commit": median_us(read_flat),
        "flat: all": median_us(lambda: read_flat(first)),
        "list, bytes": len(listed_raw),
        "list: decode": median_us(lambda: _LIST_SECTION.decode(HEAD.unpack(listed_raw).section)),
        "list: newest commit": median_us(read_listed),
        "list: all": median_us(lambda: read_listed(first)),
    }


def _head_bytes(section: bytes, offset: int) -> bytes:
    return HEAD.pack(Head(EPOCH, 3, "member/0123456789ab", 7, offset, 12, True, 86_400, msgspec.Raw(section)))

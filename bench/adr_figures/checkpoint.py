"""Figures of docs/adr/0004: when the journal writes a checkpoint."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from bench.adr_figures.measurement import (
    EPOCH,
    NODES,
    SEED,
    Result,
    median_ms,
    pack_message,
    table,
)
from bench.workload import SeededFleet, require
from nodestate.journal.format import MIN_TAIL_BYTES, SEGMENT, TAIL_SHARE, Checkpoint, JournalSection, checkpoint_keys
from nodestate.journal.reader import JournalReader
from nodestate.model import NodeRecord, fold, parse_event
from nodestate.ports import Put, Write
from nodestate.store import keys
from nodestate.store.head import Head, TermStart
from nodestate.store.round_trips import run_one
from nodestate.store.wire import PART_BYTES, pack_records
from nodestate.testing import MemoryServer, MemoryStore

PARTITION_NODES: Final = NODES // 16
COMMIT_EVENTS: Final = 32
COMMITS_COUNT: Final = 1_000


def checkpoint() -> Result:
    """Measure docs/adr/0004: bytes written and the time of a first read, by the rule for writing a checkpoint."""
    fleet = SeededFleet(SEED, PARTITION_NODES)
    rng = random.Random(SEED)
    records: list[NodeRecord] = []
    for number in range(PARTITION_NODES):
        record = fold(None, parse_event(fleet.report(number))).record
        assert record is not None
        records.append(record)
    folded, segments, size = list(records), [], []
    for _ in range(COMMITS_COUNT):
        events = []
        for number in rng.choices(range(PARTITION_NODES), k=COMMIT_EVENTS):
            raw = fleet.change(number)
            changed = fold(folded[number], parse_event(raw)).record
            assert changed is not None
            folded[number] = changed
            events.append(raw)
        segments.append(SEGMENT.pack(events))
        size.append(len(segments[-1]))
    rules: list[tuple[str, Callable[[int], int]]] = [
        ("64 KiB", lambda _: 64 * 1024),
        (f"1/{TAIL_SHARE} of the checkpoint (ours)", lambda last: max(MIN_TAIL_BYTES, last // TAIL_SHARE)),
        ("1/4 of the checkpoint", lambda last: max(MIN_TAIL_BYTES, last // 4)),
        ("the checkpoint", lambda last: max(MIN_TAIL_BYTES, last)),
        ("4 checkpoints", lambda last: max(MIN_TAIL_BYTES, 4 * last)),
        ("never", lambda _: 2**62),
    ]
    last = sum(map(len, pack_records(records, PART_BYTES)))
    checkpoint_bytes = last
    rows = []
    for name, limit in rules:
        tail, written, longest = 0, 0, 0
        for one in size:
            tail += one
            longest = max(longest, tail)
            if tail > limit(last):
                written, tail = written + 1, 0
        bytes_written = sum(size) + written * checkpoint_bytes
        commits = _commits_of(longest, size)
        rows.append(
            {
                "checkpoint when the tail exceeds": name,
                "checkpoints": written,
                "bytes written per byte of events": bytes_written / sum(size),
                "longest tail, KB": longest / 1e3,
                "cold load, tail empty, ms": _load_ms(records, segments[:0]),
                "cold load, tail longest, ms": _load_ms(records, segments[:commits]),
                "stored at most, checkpoints": (2 * checkpoint_bytes + 2 * longest) / checkpoint_bytes,
            }
        )
    title = (
        f"One of 16 partitions of 10,000 nodes: {PARTITION_NODES} nodes, checkpoint {checkpoint_bytes / 1e3:,.0f} KB; "
        f"{COMMITS_COUNT:,} commits of {COMMIT_EVENTS} changes, {sum(size) / 1e6:.1f} MB"
    )
    require(_load(records, segments) == folded, "the fold of checkpoint and tail is not what was sent")
    return {"rules": table(title, rows), "checkpoint_bytes": checkpoint_bytes, "event_bytes": sum(size)}


def _commits_of(tail_bytes: int, size: Sequence[int]) -> int:
    """Return the number of commits whose segments add up to a tail of this many bytes."""
    total = 0
    for count, one in enumerate(size):
        if total >= tail_bytes:
            return count
        total += one
    return len(size)


def _journal(records: Sequence[NodeRecord], segments: Sequence[bytes]) -> tuple[MemoryStore, str, Head]:
    """Build a journal of one checkpoint and a tail in a store in memory, so that only the reader's work is timed."""
    store = MemoryStore(MemoryServer(max_value_bytes=2**30))
    prefix = keys.prefix("bench", 1, 0, keys.JOURNAL)
    blocks = pack_records(records, PART_BYTES)
    newest = Checkpoint(1, 1, len(blocks), sum(map(len, blocks)))
    writes = [
        Write(Put.ADD, key, block) for key, block in zip(checkpoint_keys(prefix, EPOCH, newest), blocks, strict=True)
    ]
    writes += [Write(Put.ADD, keys.segment(prefix, EPOCH, 1, n), raw) for n, raw in enumerate(segments, start=1)]
    store.write(writes)
    section = JournalSection(1, sum(map(len, segments)), (TermStart(1, 1),), newest)
    head = Head(EPOCH, 1, "bench", 0, len(segments) + 1, 0, True, 100, msgspec.Raw(pack_message(section)))
    return store, prefix, head


def _load(records: Sequence[NodeRecord], segments: Sequence[bytes]) -> list[NodeRecord]:
    store, prefix, head = _journal(records, segments)
    loaded = run_one(store, JournalReader(prefix).load(head, None, {}))
    assert loaded.table is not None
    return list(loaded.table.records())


def _load_ms(records: Sequence[NodeRecord], segments: Sequence[bytes]) -> float:
    store, prefix, head = _journal(records, segments)
    return median_ms(lambda: run_one(store, JournalReader(prefix).load(head, None, {})), 3)

"""The key space: which keys exist, and that all are different."""

from __future__ import annotations

import zlib

from hypothesis import given
from hypothesis import strategies as st

from nodestate.broker import Topology
from nodestate.model import MAX_NODE_NAME_CHARS, partitioning
from nodestate.store import keys

PREFIXES = [
    keys.prefix(cell, layout, p, d)
    for cell in ("a", "a-1")
    for layout in (11, 111)
    for p in (0, 1, 10)
    for d in (keys.JOURNAL, keys.SNAPSHOT)
]


def test_key_space_is_the_documented_one() -> None:
    """Readers in other languages use these keys; a changed key is a changed format."""
    journal, snapshot = keys.prefix("cell1", 8, 3, keys.JOURNAL), keys.prefix("cell1", 8, 3, keys.SNAPSHOT)
    assert [
        keys.epoch(journal),
        keys.head(journal, 0xAB),
        keys.life(journal, 0xAB),
        keys.repair(journal),
        keys.segment(journal, 0xAB, 2, 30),
        keys.checkpoint(journal, 0xAB, 2, 30, 4),
        keys.node(snapshot, "compute-1"),
        keys.index(snapshot, 0xAB, 2, 30, 4),
    ] == [
        "ns:cell1:8.3:j:epoch",
        "ns:cell1:8.3:j:head:ab",
        "ns:cell1:8.3:j:life:ab",
        "ns:cell1:8.3:j:repair",
        "ns:cell1:8.3:j:log:ab:2:30",
        "ns:cell1:8.3:j:ckpt:ab:2:30:4",
        "ns:cell1:8.3:s:node:compute-1",
        "ns:cell1:8.3:s:index:ab:2:30:4",
    ]


def test_different_things_have_different_keys() -> None:
    """Separators keep numbers apart, and no name of a node can look like another key."""
    names = ["1", "1:1", "epoch", "head:1", ":", "..", "log:1:1:1"]
    every = [f(prefix) for prefix in PREFIXES for f in (keys.epoch, keys.repair)]
    every += [f(prefix, epoch) for prefix in PREFIXES for f in (keys.head, keys.life) for epoch in (1, 17, 2**63 - 1)]
    numbers = [(e, t, o) for e in (1, 17) for t in (1, 11) for o in (1, 11, 111)]
    every += [keys.segment(prefix, *n) for prefix in PREFIXES for n in numbers]
    every += [
        f(prefix, *n, part)
        for prefix in PREFIXES
        for f in (keys.checkpoint, keys.index)
        for n in numbers
        for part in (0, 1)
    ]
    every += [keys.node(prefix, name) for prefix in PREFIXES for name in names]
    assert len(set(every)) == len(every)


def test_memcached_accepts_the_longest_key() -> None:
    """An item with a longer key would be lost without a trace."""
    prefix = keys.prefix(
        "c" * keys.MAX_CELL_CHARS, partitioning.BUCKETS_COUNT, partitioning.BUCKETS_COUNT - 1, keys.SNAPSHOT + keys.B
    )
    longest = 2**63 - 1
    for key in (
        keys.node(prefix, "n" * MAX_NODE_NAME_CHARS),
        keys.checkpoint(prefix, longest, longest, longest, 10**6),
    ):
        assert len(key) <= keys.MAX_KEY_BYTES


@given(st.text(alphabet="abcXYZ019._:-", min_size=1, max_size=200), st.integers(1, partitioning.BUCKETS_COUNT))
def test_bucket_of_a_node_can_be_computed_in_any_language(name: str, partitions: int) -> None:
    """CRC-32 is in every standard library; Python's own hash differs from process to process.

    The bucket determines the partition in every layout.
    """
    assert partitioning.bucket_of(name) == zlib.crc32(name.encode()) % 240
    assert partitioning.partition_of(name, partitions) == partitioning.bucket_of(name) % partitions


@given(st.integers(1, partitioning.BUCKETS_COUNT))
def test_layout_distributes_every_bucket_once_and_evenly(partitions: int) -> None:
    """No event is in two partitions of a layout, or in none, and no partition has two buckets more than another."""
    topology = Topology("c", partitions, "classic")
    shares = [topology.buckets(partition) for partition in range(partitions)]
    assert sorted(bucket for share in shares for bucket in share) == list(range(partitioning.BUCKETS_COUNT))
    assert all(bucket % partitions == partition for partition, share in enumerate(shares) for bucket in share)
    assert max(map(len, shares)) - min(map(len, shares)) == (1 if partitioning.BUCKETS_COUNT % partitions else 0)


def test_partitions_of_known_names_never_change() -> None:
    """A change would send half of a node's events to another queue than the rest."""
    assert [partitioning.partition_of(f"compute-{n:04}", 16) for n in range(8)] == [2, 4, 14, 8, 11, 13, 7, 1]

"""Stored bytes and records: the round trip, and bytes that rotted."""

from __future__ import annotations

from contextlib import suppress

import msgpack
import msgspec
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from nodestate.errors import CorruptItemError
from nodestate.model import NodeRecord
from nodestate.snapshot.format import NODE, Stamp, StoredNode
from nodestate.store.head import HEAD
from nodestate.store.wire import ENVELOPE_BYTES, Codec, pack_records, seal, unpack_block, unpack_record

counters = st.integers(0, 2**53)
records = st.builds(
    NodeRecord,
    name=st.text(min_size=1, max_size=20),
    incarnation=counters,
    generation=counters,
    wanted_incarnation=counters,
    wanted_generation=counters,
    reported_at=st.floats(allow_nan=False),
    gone=st.booleans(),
    status=st.sampled_from(["up", "down"]),
    classes=st.sampled_from(["", "VCPU", "DISK_GB VCPU"]),
    columns=st.binary(max_size=32),
    usage=st.binary(max_size=30),
    metrics=st.binary(max_size=30),
    rest=st.binary(max_size=300),
)
RECORD = NodeRecord("n", 1, 2, 1, 2, 0.5, False, "up", "VCPU", bytes(16), b"", b"", b"\x80")


@given(records, counters, counters, counters)
def test_a_record_survives_its_bytes(record: NodeRecord, epoch: int, stamp: int, slot: int) -> None:
    """What is read is what was written, whatever it holds."""
    stored = StoredNode(epoch, Stamp(stamp), slot, record)
    assert NODE.unpack(NODE.pack(stored)) == stored


@given(st.lists(records, max_size=30), st.integers(50, 2_000))
def test_blocks_hold_all_records_in_order_and_their_size(many: list[NodeRecord], part_bytes: int) -> None:
    """A block over the item limit could never be written; only a single record may be larger than was asked."""
    blocks = pack_records(many, part_bytes)
    assert [unpack_record(row) for block in blocks for _, row in unpack_block(block)] == many
    for block in blocks:
        assert len(block) <= part_bytes or len(unpack_block(block)) == 1


def test_the_format_is_what_the_reference_says() -> None:
    """Magic, format version, xxh3-64 of the payload in big endian, payload: a reader in another language builds on it."""
    raw = NODE.pack(StoredNode(1, Stamp(2), 3, RECORD))
    payload = raw[ENVELOPE_BYTES:]
    assert raw[:ENVELOPE_BYTES] == b"N\x02" + xxhash.xxh3_64(payload).intdigest().to_bytes(8, "big")
    assert msgpack.unpackb(payload) == [
        1,
        2,
        3,
        ["n", 1, 2, 1, 2, 0.5, False, "up", "VCPU", bytes(16), b"", b"", b"\x80"],
    ]
    assert NODE.unpack(
        seal(msgpack.packb([1, 2, 3, ["n", 1, 2, 1, 2, 0.5, False, "up", "VCPU", bytes(16), b"", b"", b"\x80"]]))
    )


def test_each_flipped_bit_is_found() -> None:
    """Memory without ECC, a buggy proxy: a changed amount must not be scheduled on."""
    raw = NODE.pack(StoredNode(1, Stamp(2), 3, RECORD))
    for bit in range(8 * len(raw)):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptItemError):
            NODE.unpack(bytes(flipped))


def test_bytes_cut_short_anywhere_are_corrupt() -> None:
    """A torn write is a miss."""
    raw = NODE.pack(StoredNode(1, Stamp(2), 3, RECORD))
    for end in range(len(raw)):
        with pytest.raises(CorruptItemError):
            NODE.unpack(raw[:end])


@given(st.binary(max_size=80))
def test_random_bytes_are_corrupt(raw: bytes) -> None:
    """Whatever else lives in that memcached."""
    for unpack in (NODE.unpack, HEAD.unpack, unpack_block):
        with pytest.raises(CorruptItemError):
            unpack(raw)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=3) | st.binary(max_size=3),
        lambda inner: st.lists(inner, max_size=10) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
        max_leaves=12,
    )
)
def test_a_good_checksum_on_any_content_ends_in_a_record_or_in_corrupt(content: object) -> None:
    """Another program may seal by the same rule; types are checked all the same, and nothing else is raised."""
    raw = seal(msgpack.packb(content))
    for unpack in (NODE.unpack, HEAD.unpack, Codec(list[bytes]).unpack, unpack_block):
        with suppress(CorruptItemError):
            unpack(raw)


def test_a_nest_that_is_too_deep_is_corrupt() -> None:
    """Not a RecursionError in a scheduler."""
    with pytest.raises(CorruptItemError):
        Codec(msgspec.Raw).unpack(seal(b"\x91" * 100_000))
    with pytest.raises(CorruptItemError):
        NODE.unpack(seal(b"\x91" * 100_000 + b"\x90"))

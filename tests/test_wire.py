"""Encoding of stored values: round trips, and damaged bytes."""

from __future__ import annotations

from contextlib import suppress

import msgpack
import msgspec
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from nodestate.errors import CorruptItemError
from nodestate.model import NODE_NAME_PATTERN, NodeRecord
from nodestate.snapshot.format import NODE, Stamp, StoredNode
from nodestate.store.head import HEAD
from nodestate.store.wire import ENVELOPE_BYTES, Codec, pack_records, seal, unpack_block, unpack_record

counters = st.integers(0, 2**53)
classes = st.sampled_from(["", "VCPU", "DISK_GB VCPU"])
records = st.builds(
    lambda classes, **fields: NodeRecord(classes=classes, columns=bytes(16 * len(classes.split())), **fields),
    name=st.from_regex(rf"\A{NODE_NAME_PATTERN}\Z"),
    incarnation=counters,
    generation=counters,
    wanted_incarnation=counters,
    wanted_generation=counters,
    reported_at=st.floats(0, 1e11),
    gone=st.booleans(),
    status=st.sampled_from(["up", "down"]),
    classes=classes,
    usage=st.binary(max_size=30),
    metrics=st.binary(max_size=30),
    rest=st.binary(max_size=300),
)
RECORD = NodeRecord("n", 1, 2, 1, 2, 0.5, False, "up", "VCPU", bytes(16), b"", b"", b"\x80")


@given(records, counters, counters, counters)
def test_record_survives_encoding_and_decoding(record: NodeRecord, epoch: int, stamp: int, slot: int) -> None:
    """A reader gets exactly the record that was written, whatever it holds."""
    stored = StoredNode(epoch, Stamp(stamp), slot, record)
    assert NODE.unpack(NODE.pack(stored)) == stored


@given(st.lists(records, max_size=30), st.integers(50, 2_000))
def test_blocks_hold_all_records_in_order_within_the_size_limit(many: list[NodeRecord], part_bytes: int) -> None:
    """A block over the item limit could never be written.

    Only a block of a single record may be larger than intended.
    """
    blocks = pack_records(many, part_bytes)
    assert [unpack_record(row) for block in blocks for _, _, row in unpack_block(block)] == many
    for block in blocks:
        assert len(block) <= part_bytes or len(unpack_block(block)) == 1


def test_stored_format_is_the_documented_one() -> None:
    """Magic, format version, xxh3-64 of the payload in big endian, payload: readers in other languages rely on it."""
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


def test_every_flipped_bit_is_detected() -> None:
    """Memory without ECC or a faulty proxy may change an amount, and no scheduler must use it."""
    raw = NODE.pack(StoredNode(1, Stamp(2), 3, RECORD))
    for bit in range(8 * len(raw)):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptItemError):
            NODE.unpack(bytes(flipped))


def test_truncated_bytes_are_corrupt() -> None:
    """An incomplete write counts as a missing item."""
    raw = NODE.pack(StoredNode(1, Stamp(2), 3, RECORD))
    for end in range(len(raw)):
        with pytest.raises(CorruptItemError):
            NODE.unpack(raw[:end])


@given(st.binary(max_size=80))
def test_random_bytes_are_corrupt(raw: bytes) -> None:
    """Other programs may use the same memcached."""
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
def test_any_content_with_a_good_checksum_is_decoded_or_corrupt(content: object) -> None:
    """Another program may use the same envelope. Types are checked all the same, and no other exception is raised."""
    raw = seal(msgpack.packb(content))
    for unpack in (NODE.unpack, HEAD.unpack, Codec(list[bytes]).unpack, unpack_block):
        with suppress(CorruptItemError):
            unpack(raw)


def test_too_deeply_nested_content_is_corrupt() -> None:
    """It must not raise a RecursionError in a scheduler."""
    with pytest.raises(CorruptItemError):
        Codec(msgspec.Raw).unpack(seal(b"\x91" * 100_000))
    with pytest.raises(CorruptItemError):
        NODE.unpack(seal(b"\x91" * 100_000 + b"\x90"))

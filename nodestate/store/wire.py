"""Stored bytes <-> records: a format byte, a checksum, msgpack.

Every value in memcached is ``b"N" + format version + xxh3-64 of the payload (big endian) + payload``, the
payload a msgpack array of the record's fields. Decoding is typed, so hostile or torn bytes end in
``CorruptItemError`` and never in a half-right record (docs/reference/wire.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Generic, TypeVar

import msgspec
import xxhash

from nodestate.errors import CorruptItemError
from nodestate.model import Heading, NodeRecord

T = TypeVar("T")

STORED_VERSION: Final = 2
"""Of what stands in memcached; that of events is ``model.FORMAT_VERSION``."""
_MAGIC: Final = b"N" + bytes([STORED_VERSION])
ENVELOPE_BYTES: Final = len(_MAGIC) + 8
PART_BYTES: Final = 60 * 1024
"""Aim for the size of one item of a checkpoint: large enough that reading costs no more than its bytes, small enough that
memcached's slab classes of large items, of a few chunks each, are left alone: with parts of 512 KiB a server evicted
checkpoints at half of its memory (docs/adr/0004)."""

_encoder = msgspec.msgpack.Encoder()


class Codec(Generic[T]):
    """Packs and unpacks one type of record."""

    def __init__(self, record_type: type[T]) -> None:
        self._decode = msgspec.msgpack.Decoder(record_type).decode
        self._name = getattr(record_type, "__name__", str(record_type))

    def pack(self, record: T) -> bytes:
        """The bytes to store."""
        return seal(_encoder.encode(record))

    def unpack(self, raw: bytes) -> T:
        """The record of stored bytes. Raises ``CorruptItemError``."""
        payload = memoryview(raw)[ENVELOPE_BYTES:]
        if raw[:2] != _MAGIC or raw[2:ENVELOPE_BYTES] != xxhash.xxh3_64_digest(payload):
            raise CorruptItemError(
                f"not a {self._name} of format {STORED_VERSION}, or its checksum fails: {raw[:24]!r}"
            )
        try:
            return self._decode(payload)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise CorruptItemError(f"not a {self._name}: {error}") from None


def seal(payload: bytes) -> bytes:
    """Put format and checksum before a payload."""
    return b"".join((_MAGIC, xxhash.xxh3_64_digest(payload), payload))


_raw_records = Codec(list[msgspec.Raw])
_decode_record = msgspec.msgpack.Decoder(NodeRecord).decode
_decode_heading = msgspec.msgpack.Decoder(Heading).decode


pack_record: Final = _encoder.encode
"""One record, as ``unpack_record`` takes it."""


def pack_records(records: Iterable[NodeRecord], part_bytes: int) -> list[bytes]:
    """Records as blocks of about ``part_bytes`` each, in order: few large items are read far faster than many small.

    No block is larger than ``part_bytes`` unless one single record is.
    """
    return [_seal_array(part) for part in _parts(records, part_bytes - ENVELOPE_BYTES - 5)]


def unpack_block(raw: bytes) -> list[tuple[Heading, bytes]]:
    """The records of one block, each as its heading and the bytes that ``unpack_record`` takes. Raises ``CorruptItemError``."""
    try:
        return [(_decode_heading(record), bytes(record)) for record in _raw_records.unpack(raw)]
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise CorruptItemError(f"not a node record: {error}") from None


def unpack_heading(encoded: bytes) -> Heading:
    """What such a record begins with. Raises ``CorruptItemError``."""
    try:
        return _decode_heading(encoded)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise CorruptItemError(f"not a node record: {error}") from None


def unpack_record(encoded: bytes) -> NodeRecord:
    """One record out of a block, whose checksum was good. Raises ``CorruptItemError``."""
    try:
        return _decode_record(encoded)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise CorruptItemError(f"not a node record: {error}") from None


class FoundRows(msgspec.Struct, frozen=True, array_like=True):
    """A database's answer to a question for rows: slots and records, and the newest commit that one of them is of (-1:
    there are none). It goes from a store to its caller and is stored nowhere.
    """

    newest: int
    rows: list[tuple[int, bytes]]


pack_found_rows: Final = _encoder.encode
unpack_found_rows: Final = msgspec.msgpack.Decoder(FoundRows).decode


def _parts(records: Iterable[NodeRecord], part_bytes: int) -> Iterator[list[bytes]]:
    part: list[bytes] = []
    size = 0
    for record in records:
        encoded = _encoder.encode(record)
        if part and size + len(encoded) > part_bytes:
            yield part
            part, size = [], 0
        part.append(encoded)
        size += len(encoded)
    if part:
        yield part


def _seal_array(encoded: list[bytes]) -> bytes:
    """A msgpack array of elements that are encoded already (array 32 header: 0xdd and the count)."""
    return seal(b"".join((b"\xdd" + len(encoded).to_bytes(4, "big"), *encoded)))

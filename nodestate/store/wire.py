"""Encoding of stored values: a format version, a checksum, and msgpack.

Every value in memcached is ``b"N" + format version + xxh3-64 of the payload (big endian) + payload``, which may stand
behind a signature (``signed_values``). The payload is a msgpack array of the record's fields. Decoding checks types and
ranges, and the relations between fields, so damaged or hostile bytes raise ``CorruptItemError`` and never produce a
record that a process could fail on (docs/reference/wire.md). ``find`` decodes a value that counts as missing if it is
damaged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar, cast

import msgspec
import xxhash

from nodestate.errors import CorruptItemError
from nodestate.model import NODE_NAME_PATTERN, NodeRecord
from nodestate.model.record import column_bytes, require_consistent_columns
from nodestate.ports import Item, Key
from nodestate.store.damage import DAMAGE
from nodestate.text import printable

T = TypeVar("T")

STORED_VERSION: Final = 2
"""Version of the format of stored values. The version of events is ``model.FORMAT_VERSION``."""
_MAGIC: Final = b"N" + bytes([STORED_VERSION])
ENVELOPE_BYTES: Final = len(_MAGIC) + 8
PART_BYTES: Final = 60 * 1024
"""Intended size of one item of a checkpoint.

Larger items would not be read faster per byte. Much larger items would use memcached's slab classes of large items,
which hold few chunks: with parts of 512 KiB, a server evicted checkpoints at half of its memory (docs/adr/0004).
"""

UNSIGNED: Final = "unsigned"
"""The reason of a value that is refused because it has no signature."""
BAD_SIGNATURE: Final = "bad-signature"
"""The reason of a value that is refused because its signature is not valid."""


def refused_value(reason: str) -> bytes:
    """Return the content that stands for a refused value: no codec accepts it. ``reason`` is one of the above."""
    return b"N\0" + reason.encode()


_REFUSALS: Final = {
    refused_value(UNSIGNED): f"{UNSIGNED}: the value has no signature, and auth_store refuses it",
    refused_value(BAD_SIGNATURE): f"{BAD_SIGNATURE}: another program wrote or moved the value, or its key is revoked",
}
DECODE_ERRORS: Final = (msgspec.DecodeError, RecursionError, ValueError)
"""Errors that damaged bytes cause. A ``UnicodeDecodeError`` is a ``ValueError``."""
_NO_NAME_CHARACTERS: Final = {at: None for at in range(128) if re.fullmatch(NODE_NAME_PATTERN, chr(at))}
"""Deletes the characters that a name may have. A regular expression would take ten times as long."""
_encoder = msgspec.msgpack.Encoder()


def record_name(record_type: type) -> str:
    """The name of a type of stored records, in words: ``liveness record`` for ``LivenessRecord``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", record_type.__name__).lower()


class Codec(Generic[T]):
    """Encodes and decodes records of one type.

    Args:
        record_type: the type, whose annotations give the ranges of its fields.
        check: raises ``ValueError`` if the fields of a decoded record contradict each other.
        optional: the last fields, which are left out as far as they have their defaults. They were added to the format
            later.
    """

    def __init__(
        self, record_type: type[T], check: Callable[[T], object] | None = None, optional: Sequence[str] = ()
    ) -> None:
        # Decodes a payload to a record.
        self._decode = msgspec.msgpack.Decoder(record_type).decode
        # Checks the relations between the fields; None if there are none.
        self._check = check
        # The optional fields, last first, and their defaults.
        self._optional = [(name, _default_of(record_type, name)) for name in reversed(optional)]
        # Name of the type in words, for messages.
        self._name = record_name(record_type)

    def pack(self, record: T) -> bytes:
        """Encode a record as a stored value."""
        left_out = 0
        for name, default in self._optional:
            if getattr(record, name) != default:
                break
            left_out += 1
        if not left_out:
            return seal(_encoder.encode(record))
        return seal(_encoder.encode(msgspec.structs.astuple(cast("msgspec.Struct", record))[:-left_out]))

    def unpack(self, raw: bytes) -> T:
        """Decode a stored value. Raises ``CorruptItemError``."""
        payload = memoryview(raw)[ENVELOPE_BYTES:]
        if raw[:ENVELOPE_BYTES] != _MAGIC + xxhash.xxh3_64_digest(payload):
            raise CorruptItemError(
                _REFUSALS.get(raw)
                or f"no {self._name} in format {STORED_VERSION}, or its checksum is wrong: {raw[:24]!r}"
            )
        try:
            record = self._decode(payload)
            if self._check is not None:
                self._check(record)
        except DECODE_ERRORS as error:
            raise CorruptItemError(f"no valid {self._name}: {printable(str(error))}") from None
        return record

    def find(self, key: str, item: Item | None) -> T | None:
        """Decode the value of an item. Returns None if there is no item or it is damaged, which is reported."""
        if item is None:
            return None
        try:
            return self.unpack(item.value)
        except CorruptItemError as error:
            DAMAGE.report(key, str(error))
            return None

    def find_each(self, keys: Sequence[str], items: Mapping[Key, Item]) -> Iterator[T | None]:
        """Decode the items of these keys one after the other, as ``find`` does for one of them.

        Each refresh of a reader spends much of its processor time here. If the caller keeps no record, the memory of
        one is used for the next, which is faster than a list of records.
        """
        assert self._check is None, "this would have to be called for each record"
        decode, digest, magic = self._decode, xxhash.xxh3_64_digest, _MAGIC
        for key in keys:
            item = items.get(key)
            if item is not None:
                raw = item.value
                payload = memoryview(raw)[ENVELOPE_BYTES:]
                try:
                    if raw.startswith(magic + digest(payload)):
                        yield decode(payload)
                        continue
                except DECODE_ERRORS:
                    pass
            yield self.find(key, item)  # reports the damage


def _default_of(record_type: type, name: str) -> Any:
    [field] = [field for field in msgspec.structs.fields(record_type) if field.name == name]
    return field.default_factory() if field.default is msgspec.NODEFAULT else field.default


def are_names(names: Sequence[str]) -> bool:
    """True if all of these, which are not too long, can be names of nodes: their characters fit into keys."""
    return all(names) and not "".join(names).translate(_NO_NAME_CHARACTERS)


def seal(payload: bytes) -> bytes:
    """Prepend format version and checksum to a payload."""
    return b"".join((_MAGIC, xxhash.xxh3_64_digest(payload), payload))


_raw_records = Codec(list[msgspec.Raw])
_decode_record = msgspec.msgpack.Decoder(NodeRecord).decode


pack_record: Final = _encoder.encode
"""Encode one record, for ``unpack_record``."""


def pack_records(records: Iterable[NodeRecord], part_bytes: int) -> list[bytes]:
    """Encode records as blocks of about ``part_bytes`` each, in order.

    Few large items are read far faster than many small ones. No block is larger than ``part_bytes`` unless it holds a
    single record.
    """
    return [_seal_array(part) for part in _parts(records, part_bytes - ENVELOPE_BYTES - 5)]


def unpack_block(raw: bytes) -> list[tuple[str, bool, bytes]]:
    """Decode one block to the name of each record, whether it is incomplete, and its bytes.

    ``unpack_record`` decodes the bytes, without an error. Raises ``CorruptItemError``.
    """
    found: list[tuple[str, bool, bytes]] = []
    try:
        for encoded in _raw_records.unpack(raw):
            # No record is kept: the memory of one is used for the next, which takes half of the time.
            record = _decode_record(encoded)
            if len(record.columns) != column_bytes[record.classes]:
                require_consistent_columns(record)
            found.append((record.name, record.incomplete, bytes(encoded)))
    except DECODE_ERRORS as error:
        raise CorruptItemError(f"not a node record: {printable(str(error))}") from None
    if not are_names([name for name, _, _ in found]):
        raise CorruptItemError("not a node record: a name that no node can have")
    return found


def unpack_record(encoded: bytes | msgspec.Raw) -> NodeRecord:
    """Decode one record of a block, whose checksum was checked before. Raises ``CorruptItemError``."""
    try:
        record = _decode_record(encoded)
        require_consistent_columns(record)
    except DECODE_ERRORS as error:
        raise CorruptItemError(f"not a node record: {printable(str(error))}") from None
    return record


class FoundRows(msgspec.Struct, frozen=True, array_like=True):
    """A database's answer to a ``RowQuery``. It is passed from a store to its caller and never stored."""

    newest: int
    """The latest commit that wrote one of the rows; -1 if there are none."""
    rows: list[tuple[int, bytes]]
    """Slots and encoded records."""


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
    """A stored value whose payload is an array of elements that are encoded already (array 32: 0xdd and the count)."""
    return seal(b"".join((b"\xdd" + len(encoded).to_bytes(4, "big"), *encoded)))

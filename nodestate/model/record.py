"""The record of a node: its version, the scheduler's columns and an encoded state, as stored and as held in memory."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec

from nodestate.errors import CorruptItemError
from nodestate.model.fields import CLASS_PATTERN, NodeStatus, Seconds, StoredCounter, StoredName
from nodestate.model.limits import MAX_CLASSES_COUNT
from nodestate.model.state import Inventory
from nodestate.model.version import Version

_USAGE_KEY: Final = b"\xa5usage"
_METRICS_KEY: Final = b"\xa7metrics"
FIXED_MAP, MAP_16, MAP_32 = 0x80, 0xDE, 0xDF
"""The first bytes of msgpack maps: with the count in the same byte, in the next two bytes, or in the next four."""
MAX_FIXED_ENTRIES_COUNT: Final = 15
"""Most entries of a map whose count is in its first byte."""
BODY_KEYS_BYTES: Final = len(_USAGE_KEY) + len(_METRICS_KEY) + 4
"""Most bytes that a record's ``body`` has beyond those of ``rest``, ``usage`` and ``metrics``."""
MAX_LAYOUTS_COUNT: Final = 1_024
"""Number of different ``classes`` whose layout is kept."""
BYTES_PER_CLASS: Final = 16
"""Bytes of a record's columns for one resource class: two int64."""
_CLASS: Final = re.compile(CLASS_PATTERN).fullmatch
_decode_map = msgspec.msgpack.Decoder(dict[str, Any]).decode


class Heading(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The first fields of a ``NodeRecord``: the node and its versions, at a third of the cost of the whole record."""

    name: StoredName
    incarnation: StoredCounter
    generation: StoredCounter
    wanted_incarnation: StoredCounter
    """Incarnation of the newest version that is known to exist."""
    wanted_generation: StoredCounter
    """Generation of the newest version that is known to exist."""

    @property
    def version(self) -> Version:
        """The version of the state that the record holds."""
        return Version(self.incarnation, self.generation)

    @property
    def wanted(self) -> Version:
        """The newest version that is known to exist."""
        return Version(self.wanted_incarnation, self.wanted_generation)

    @property
    def incomplete(self) -> bool:
        """True while a newer version is known to exist than the one that the record holds."""
        wanted = self.wanted_incarnation
        return wanted > self.incarnation or (wanted == self.incarnation and self.wanted_generation > self.generation)


class NodeRecord(Heading, frozen=True, array_like=True, gc=False):
    """One node as it is stored and held: a small header with the scheduler's columns, and the encoded state.

    Encoded as a msgpack array in the order of the fields (docs/reference/wire.md). If ``wanted`` is newer than
    ``version``, events are missing. The state's fields ``usage`` and ``metrics`` change most often, so they are kept
    apart from all others.
    """

    reported_at: Seconds
    """When the agent sent the event, by the agent's clock, in seconds since 1970."""
    gone: bool
    """True for a tombstone."""
    status: NodeStatus
    classes: str
    """The resource classes, sorted, joined by spaces."""
    columns: bytes
    """The capacities of the classes, then their usages, as little-endian int64."""
    usage: bytes
    """The state's ``usage`` as a msgpack map; empty if the state has none."""
    metrics: bytes
    """The state's ``metrics`` as a msgpack map; empty if the state has none."""
    rest: bytes
    """The state's other fields as a msgpack map; empty if no state is known or the node is gone."""

    @property
    def live(self) -> bool:
        """True if the node has a state to schedule on: its state is known, and it is not gone."""
        return not self.gone and len(self.rest) > 0

    @property
    def body(self) -> bytes:
        """The whole state as a msgpack map; empty if there is none."""
        if not self.rest:
            return b""
        parts = [self.rest]
        if self.usage:
            parts += (_USAGE_KEY, self.usage)
        if self.metrics:
            parts += (_METRICS_KEY, self.metrics)
        if len(parts) > 1:
            parts[0] = _with_more_entries(self.rest, len(parts) // 2)
        return b"".join(parts)

    def state(self) -> dict[str, Any]:
        """Decode the state; each call returns a new dict.

        Raises ``CorruptItemError`` if the stored state is damaged.
        """
        try:
            return _decode_map(self.body) if self.rest else {}
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            raise CorruptItemError(f"the stored state of node {self.name} is damaged: {str(error)!a}") from None


def _with_more_entries(encoded: bytes, more: int) -> bytes:
    """Return an encoded map whose header counts ``more`` entries in addition, which the caller appends."""
    first = encoded[0]
    if first < FIXED_MAP + MAX_FIXED_ENTRIES_COUNT - more + 1:  # nearly all states: the first byte holds the count
        return bytes([first + more]) + encoded[1:]
    header_bytes = {MAP_16: 3, MAP_32: 5}.get(first, 1)
    count = more + (int.from_bytes(encoded[1:header_bytes]) if header_bytes > 1 else first - FIXED_MAP)
    header = struct.pack(">BH", MAP_16, count) if count < 2**16 else struct.pack(">BI", MAP_32, count)
    return header + encoded[header_bytes:]


class ClassLayout(NamedTuple):
    """The layout of a record's columns, by its resource classes. Most nodes of a fleet share one."""

    names: tuple[str, ...]
    """The resource classes, in the order of the columns."""
    known: frozenset[str]
    """The same classes as a set."""
    pack_half: Callable[..., bytes]
    """Packs one amount for each class: all capacities, or all usages."""


@lru_cache(maxsize=1_024)
def layout_of(classes: str) -> ClassLayout:
    """The layout of the columns of a record with these ``classes``."""
    names = tuple(classes.split(" ")) if classes else ()
    return ClassLayout(names, frozenset(names), struct.Struct(f"<{len(names)}q").pack)


class _ColumnBytes(dict[str, int]):
    """By the ``classes`` of records, the size of their columns; -1 if they are no resource classes."""

    def __missing__(self, classes: str) -> int:
        if len(self) >= MAX_LAYOUTS_COUNT:
            self.clear()
        names = classes.split(" ") if classes else []  # from the inventory, and from the usage
        are_valid = len(names) <= 2 * MAX_CLASSES_COUNT and all(map(_CLASS, names)) and names == sorted(set(names))
        size = self[classes] = BYTES_PER_CLASS * len(names) if are_valid else -1
        return size


column_bytes: Final = _ColumnBytes()
"""By the ``classes`` of records, the size of their columns; -1 if they are no resource classes."""


def require_consistent_columns(record: NodeRecord) -> None:
    """Raise ``ValueError`` unless a decoded record has one capacity and one usage for each of its classes."""
    if len(record.columns) != column_bytes[record.classes]:
        raise ValueError(f"{len(record.columns)} bytes of columns for the classes {record.classes!a:.80}")


@lru_cache(maxsize=1_024)
def _interned(classes: str) -> str:
    """The same text as one object, shared by all nodes that have these classes."""
    return classes


def columns_of(inventory: Mapping[str, Inventory], usage: dict[str, int]) -> tuple[str, bytes]:
    """The fields ``classes`` and ``columns`` of the record of a state."""
    names = sorted(inventory.keys() | usage.keys())
    amounts = [inventory[name].capacity if name in inventory else 0 for name in names]
    amounts += [usage.get(name, 0) for name in names]
    return _interned(" ".join(names)), struct.pack(f"<{len(amounts)}q", *amounts)


def unknown_node(name: str) -> NodeRecord:
    """The record of a node of which only the name is known: incomplete, without a state."""
    return NodeRecord(name, 0, 0, 0, 1, 0.0, False, "down", "", b"", b"", b"", b"")


def is_sound(record: NodeRecord) -> bool:
    """False if the record's encoded state is damaged, so that no change can be applied to it."""
    try:
        state = record.state()
    except CorruptItemError:
        return False
    return all(isinstance(state.get(field, {}), dict) for field in ("inventory", "usage", "allocations", "namespaces"))

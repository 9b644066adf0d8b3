"""The record of a node: its version, the scheduler's columns and an encoded state, as stored and as held in memory."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec

from nodestate.model.fields import NodeStatus
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
_decode_map = msgspec.msgpack.Decoder(dict[str, Any]).decode


class Heading(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The first fields of a ``NodeRecord``: the node and its versions, at a third of the cost of the whole record."""

    name: str
    incarnation: int
    generation: int
    wanted_incarnation: int
    """Incarnation of the newest version that is known to exist."""
    wanted_generation: int
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
        if self.wanted_incarnation != self.incarnation:
            return self.wanted_incarnation > self.incarnation
        return self.wanted_generation > self.generation


class NodeRecord(Heading, frozen=True, array_like=True, gc=False):
    """One node as it is stored and held: a small header with the scheduler's columns, and the encoded state.

    Encoded as a msgpack array in the order of the fields (docs/reference/wire.md). If ``wanted`` is newer than
    ``version``, events are missing. The state's fields ``usage`` and ``metrics`` change most often, so they are kept
    apart from all others.
    """

    reported_at: float
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
        parts = [self.rest]
        if self.usage:
            parts += (_USAGE_KEY, self.usage)
        if self.metrics:
            parts += (_METRICS_KEY, self.metrics)
        if len(parts) > 1:
            parts[0] = _with_more_entries(self.rest, len(parts) // 2)
        return b"".join(parts)

    def state(self) -> dict[str, Any]:
        """Decode the state; each call returns a new dict."""
        return _decode_map(self.body) if self.rest else {}


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

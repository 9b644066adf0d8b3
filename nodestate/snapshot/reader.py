"""Reading one partition's snapshot: fetch just the nodes whose stamp moved.

A view at offset n has every node at or after the stamp that n names (invariant I3). An item counts if its
stamp is exactly the one named, or newer and by an owner no older than the head's: so what a fenced owner
still writes never passes for the node's state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from nodestate import keys
from nodestate.errors import CorruptItemError
from nodestate.head import Head
from nodestate.lockstep import Step, Steps
from nodestate.model import NodeRecord
from nodestate.ports import Item
from nodestate.reading import Loaded
from nodestate.snapshot.format import (
    NODE,
    SECTION,
    Section,
    Stamp,
    StoredNode,
    index_keys,
    ring_after,
    stamp_of,
    unpack_index_part,
)
from nodestate.table import Table

UNKNOWN = Stamp(0)


class _Named(NamedTuple):
    """What a head asks for: by slot the stamp, and the names of slots beyond the table."""

    stamps: dict[int, Stamp]
    appeared: list[str]


class SnapshotReader:
    """Follows the snapshot of one partition. Holds the stamp of each node as read, what could not be read, and
    which of the last load were newer than the head named. ``cas_ids`` (a writer's) are filled in by slot.
    """

    def __init__(self, prefix: str, cas_ids: dict[int, int] | None = None) -> None:
        self._prefix = prefix
        self._cas_ids = cas_ids
        self.stamps: list[Stamp] = []
        self.unread: dict[int, Stamp] = {}
        self.ahead: set[int] = set()

    def load(self, head: Head, table: Table | None) -> Steps[Loaded]:
        """Bring ``table`` to the head's offset or later."""
        section = SECTION.decode(head.section)
        if table is None:
            self.stamps, self.unread = [], {}
        named = self._from_ring(section, table) if table is not None else None
        if named is None:
            reply = yield Step(fetch=index_keys(self._prefix, head.epoch, section.index))
            try:
                named = self._from_index(head.epoch, section, reply.items, table)
            except (KeyError, CorruptItemError) as error:
                missing = str(error.args[0]) if isinstance(error, KeyError) else "index: " + str(error)
                return Loaded(table, missing)
        base = table if table is not None else Table.of(head.epoch, 0, [])
        names = [base.at(slot).name if slot < base.size else named.appeared[slot - base.size] for slot in named.stamps]
        wanted = [keys.node(self._prefix, name) for name in names]
        reply = yield Step(fetch=wanted)
        return self._accept(head, base, named, names, list(map(reply.items.get, wanted)))

    def _from_ring(self, section: Section, table: Table) -> _Named | None:
        """What changed since ``table``, or None where the ring does not reach back so far."""
        if table.offset < section.ring_from:
            return None
        return self._along(section, table.offset, _Named(dict(self.unread), []))

    def _from_index(self, epoch: int, section: Section, items: Mapping[str, Item], table: Table | None) -> _Named:
        names: list[str] = []
        stamps: list[Stamp] = []
        for key in index_keys(self._prefix, epoch, section.index):
            some_names, some_stamps = unpack_index_part(items[key].value)
            names += some_names
            stamps += some_stamps
        held = self.stamps
        changed = {slot: stamp for slot, stamp in enumerate(stamps) if slot >= len(held) or held[slot] < stamp}
        size = table.size if table is not None else 0
        named = _Named({**self.unread, **changed}, names[size:])
        # The ring may name slots that are in the index already: those of commits before the index are passed over.
        return self._along(section, section.index.offset, named)

    def _along(self, section: Section, offset: int, named: _Named) -> _Named:
        held = self.stamps
        named.appeared.extend(one.name for one in section.appeared if one.offset >= offset)
        for slot, stamp in ring_after(section, offset).items():
            if slot >= len(held) or held[slot] < stamp:
                named.stamps[slot] = stamp
        return named

    def _accept(self, head: Head, base: Table, named: _Named, names: list[str], items: list[Item | None]) -> Loaded:
        updates: dict[int, NodeRecord] = {}
        unread: dict[int, Stamp] = {}
        incomplete: list[str] = []
        stamps, cas_ids = self.stamps, self._cas_ids
        self.ahead = set()
        stamps.extend([UNKNOWN] * (base.size + len(named.appeared) - len(stamps)))
        for (slot, stamp), name, item in zip(named.stamps.items(), names, items, strict=True):
            record = None
            if item is not None and (stored := _readable(item)) is not None and _counts(stored, slot, stamp, head):
                record = stored.record
            if item is not None and record is not None and record.name == name:
                updates[slot] = record
                stamps[slot] = stored.stamp
                if stored.stamp != stamp:
                    self.ahead.add(slot)
                if cas_ids is not None:
                    cas_ids[slot] = item.cas
            else:
                unread[slot] = stamp
                if slot >= base.size:
                    updates[slot] = unknown_node(name)
                else:
                    incomplete.append(name)
                missing = name
        self.unread = unread
        table = base.advanced(head.next, updates, incomplete)
        return Loaded(table, unread=keys.node(self._prefix, missing) if unread else "")


def unknown_node(name: str) -> NodeRecord:
    """A node that is known to exist, and nothing else: incomplete, without a state."""
    return NodeRecord(name, 0, 0, 0, 1, 0.0, False, "down", "", b"", b"")


def _readable(item: Item) -> StoredNode | None:
    try:
        return NODE.unpack(item.value)
    except CorruptItemError:
        return None


def _counts(stored: StoredNode, slot: int, stamp: Stamp, head: Head) -> bool:
    if stored.epoch != head.epoch or stored.slot != slot:
        return False
    return stored.stamp == stamp or stored.stamp >= max(stamp, stamp_of(head.term, 0))

"""Reading one partition's snapshot: fetch just the nodes whose stamp moved.

A view at offset n has every node at or after the stamp that n names (invariant I3). An item counts if its
stamp is exactly the one named, or newer and by an owner no older than the head's: so what a fenced owner
still writes never passes for the node's state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from nodestate.errors import CorruptItemError
from nodestate.model import NodeRecord
from nodestate.ports import Item, Key
from nodestate.snapshot.format import (
    NODE_HEADING,
    SNAPSHOT_SECTION,
    SnapshotSection,
    Stamp,
    StoredHeading,
    index_keys,
    ring_after,
    stamp_of,
    unpack_index_part,
    unpack_node,
)
from nodestate.store import keys
from nodestate.store.head import Head, read_head
from nodestate.store.round_trips import Step, Steps
from nodestate.view.chunked_list import Row
from nodestate.view.follower import Loaded
from nodestate.view.table import Table

UNKNOWN = Stamp(0)
_heading_of = NODE_HEADING.unpack
MAX_FETCH_COUNT: Final = 512
"""Nodes asked for at a time. What they came as can go when they are decoded, so a first load takes little more memory than
it leaves behind, and works in what the processor's cache holds (docs/adr/0010)."""


class _Named(NamedTuple):
    """What a head asks for: by slot the stamp, and the names of slots beyond the table."""

    stamps: dict[int, Stamp]
    appeared: list[str]


class _Read(NamedTuple):
    """What the items of a load gave, by slot. ``ahead``: the stamps of those newer than the head named; ``unread``: those
    that are lost or do not count, with their names; ``incomplete``: nodes that are so by their items.
    """

    rows: dict[int, Row]
    ahead: dict[int, Stamp]
    cas_ids: dict[int, int] | None
    unread: dict[int, str]
    incomplete: list[str]


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

    def next_keys(self, head: Head, table: Table) -> Sequence[str]:  # noqa: ARG002 - what others go by
        """See ``DesignReader``. Which nodes changed, only the head tells."""
        return ()

    def load(self, head: Head, table: Table | None, items: Mapping[Key, Item]) -> Steps[Loaded]:  # noqa: ARG002 - none came
        """Bring ``table`` to the head's offset or later."""
        section = SNAPSHOT_SECTION.decode(head.section)
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
        base = table if table is not None else Table.of(head.epoch, 0, unpack_node)
        read = _Read({}, {}, {} if self._cas_ids is not None else None, {}, [])
        slots = list(named.stamps)
        begin = keys.node(self._prefix, "")
        size, known, appeared = base.size, base.names, named.appeared
        for at in range(0, len(slots), MAX_FETCH_COUNT):
            some = slots[at : at + MAX_FETCH_COUNT]
            names = [known[slot] if slot < size else appeared[slot - size] for slot in some]
            wanted = [begin + name for name in names]
            reply = yield Step(fetch=wanted)
            for slot, name, item in zip(some, names, map(reply.items.get, wanted), strict=True):
                _accept(head, slot, name, named.stamps[slot], item, read)
        # Written for a commit that the head does not name yet. That they come to count is certain only if their owner was
        # not overtaken before they were written: its heir may never have seen them, and go back behind them.
        if read.ahead and self._cas_ids is None and not (yield from self._still_owned(head)):
            for slot in read.ahead:
                del read.rows[slot]
                read.unread[slot] = known[slot] if slot < size else appeared[slot - size]
            read.ahead.clear()
        return self._brought(head, base, named, read)

    def _still_owned(self, head: Head) -> Steps[bool]:
        try:
            now = yield from read_head(self._prefix, head.epoch)
        except CorruptItemError:
            return False
        return now is not None and (now[0].epoch, now[0].term) == (head.epoch, head.term)

    def _from_ring(self, section: SnapshotSection, table: Table) -> _Named | None:
        """What changed since ``table``, or None where the ring does not reach back so far."""
        if table.offset < section.ring_from:
            return None
        return self._along(section, table.offset, _Named(dict(self.unread), []))

    def _from_index(
        self, epoch: int, section: SnapshotSection, items: Mapping[Key, Item], table: Table | None
    ) -> _Named:
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

    def _along(self, section: SnapshotSection, offset: int, named: _Named) -> _Named:
        held = self.stamps
        named.appeared.extend(one.name for one in section.appeared if one.offset >= offset)
        for slot, stamp in ring_after(section, offset).items():
            if slot >= len(held) or held[slot] < stamp:
                named.stamps[slot] = stamp
        return named

    def _brought(self, head: Head, base: Table, named: _Named, read: _Read) -> Loaded:
        """The table with what was read. Only here, after the last fetch, is anything of it noted."""
        stamps = self.stamps
        stamps.extend([UNKNOWN] * (base.size + len(named.appeared) - len(stamps)))
        for slot in read.rows:
            stamps[slot] = named.stamps[slot]
        for slot, stamp in read.ahead.items():
            stamps[slot] = stamp
        if self._cas_ids is not None and read.cas_ids is not None:
            self._cas_ids.update(read.cas_ids)
        self.ahead = set(read.ahead)
        self.unread = {slot: named.stamps[slot] for slot in read.unread}
        for slot, name in read.unread.items():
            read.incomplete.append(name)
            if slot >= base.size:
                read.rows[slot] = unknown_node(name)
        table = base.advanced(head.next, read.rows, named.appeared, read.incomplete)
        return Loaded(table, unread=next((keys.node(self._prefix, name) for name in read.unread.values()), ""))


def unknown_node(name: str) -> NodeRecord:
    """A node that is known to exist, and nothing else: incomplete, without a state."""
    return NodeRecord(name, 0, 0, 0, 1, 0.0, False, "down", "", b"", b"", b"", b"")


def _accept(head: Head, slot: int, name: str, stamp: Stamp, item: Item | None, read: _Read) -> None:
    try:
        stored = _heading_of(item.value) if item is not None else None
    except CorruptItemError:
        stored = None
    if item is None or stored is None or not _counts(stored, slot, name, stamp, head):
        read.unread[slot] = name
        return
    read.rows[slot] = item.value
    if stored.record.incomplete:
        read.incomplete.append(name)
    if stored.stamp != stamp:
        read.ahead[slot] = stored.stamp
    if read.cas_ids is not None:
        read.cas_ids[slot] = item.cas


def _counts(stored: StoredHeading, slot: int, name: str, stamp: Stamp, head: Head) -> bool:
    if stored.epoch != head.epoch or stored.slot != slot or stored.record.name != name:
        return False
    return stored.stamp == stamp or stored.stamp >= max(stamp, stamp_of(head.term, 0))

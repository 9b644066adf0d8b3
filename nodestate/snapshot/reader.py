"""Reader of one partition's snapshot: fetches only the nodes whose stamp changed.

A view at offset n has every node at or after the stamp that the head at n gives it (invariant I3). The reader accepts
an item if its stamp is exactly that one, or if it is newer and of the head's term or a later one. So items that a
fenced owner still writes are never accepted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from nodestate.errors import CorruptItemError
from nodestate.model.record import column_bytes, unknown_node
from nodestate.ports import Item, Key
from nodestate.snapshot.format import (
    NODE,
    SNAPSHOT_SECTION,
    Index,
    SnapshotSection,
    Stamp,
    index_keys,
    ring_after,
    stamp_of,
    unpack_index_part,
    unpack_node,
)
from nodestate.store import keys
from nodestate.store.damage import DAMAGE
from nodestate.store.head import Head, read_head
from nodestate.store.round_trips import Step, Steps
from nodestate.view.chunked_list import Row
from nodestate.view.follower import Loaded
from nodestate.view.table import Table

UNKNOWN = Stamp(0)
MAX_FETCH_COUNT: Final = 512
"""Most nodes that one fetch asks for. Replies can be freed between two fetches. So a first load needs little more
memory than its result, and works within the processor's cache (docs/adr/0010).
"""


class _NodesToFetch(NamedTuple):
    """The nodes whose items a load must fetch."""

    stamps: dict[int, Stamp]
    """By slot, the stamp that the head, its ring or its index gives the node."""
    appeared: list[str]
    """Names of the nodes in the slots after the last one of the table."""


class _FetchedItems(NamedTuple):
    """The items that a load has fetched so far."""

    rows: dict[int, Row]
    """By slot, the accepted items."""
    ahead: dict[int, Stamp]
    """By slot, the stamps of accepted items that are newer than the head's."""
    cas_ids: dict[int, int] | None
    """By slot, the CAS ids of accepted items; None for a reader that does not write."""
    unread: dict[int, str]
    """By slot, the names of nodes whose items are lost or not accepted."""
    incomplete: list[str]
    """Names of nodes whose items say that they are incomplete."""


class SnapshotReader:
    """Follows the snapshot of one partition.

    Args:
        prefix: the partition and design.
        cas_ids: a writer's dict, which loads fill with the CAS id of each slot's item; None for readers.
    """

    def __init__(self, prefix: str, cas_ids: dict[int, int] | None = None) -> None:
        # The partition and design.
        self._prefix = prefix
        # A writer's dict of CAS ids by slot; None for readers.
        self._cas_ids = cas_ids
        # By slot, the stamp of the item that was read.
        self.stamps: list[Stamp] = []
        # By slot, the stamp that the head gives a node whose item could not be read.
        self.unread: dict[int, Stamp] = {}
        # The slots of the last load whose items were newer than the head.
        self.ahead: set[int] = set()
        # The index that was read last.
        self._index: Index | None = None

    def next_keys(self, head: Head, table: Table) -> Sequence[str]:  # noqa: ARG002 - other designs use them
        """See ``DesignReader``. There are no keys, because only the head tells which nodes changed."""
        return ()

    def load(self, head: Head, table: Table | None, items: Mapping[Key, Item]) -> Steps[Loaded]:  # noqa: ARG002 - empty
        """See ``DesignReader``."""
        section = SNAPSHOT_SECTION.of(head)
        if table is None:
            self.stamps, self.unread = [], {}
        to_fetch = self._from_ring(section, table) if table is not None else None
        index = self._index
        if to_fetch is None:
            index = section.index
            reply = yield Step(fetch=index_keys(self._prefix, head.epoch, section.index), values_only=True)
            try:
                to_fetch = self._from_index(head.epoch, section, reply.items, table)
            except KeyError as error:
                return Loaded(table, str(error.args[0]))
        base = table if table is not None else Table.of(head.epoch, 0, unpack_node)
        _require_slots(to_fetch, base.size)
        fetched = _FetchedItems({}, {}, {} if self._cas_ids is not None else None, {}, [])
        slots = list(to_fetch.stamps)
        begin = keys.node(self._prefix, "")
        size, known, appeared = base.size, base.names, to_fetch.appeared
        for at in range(0, len(slots), MAX_FETCH_COUNT):
            some = slots[at : at + MAX_FETCH_COUNT]
            if appeared:
                names = [known[slot] if slot < size else appeared[slot - size] for slot in some]
            else:
                names = list(map(known.__getitem__, some))
            wanted = [begin + name for name in names]
            reply = yield Step(fetch=wanted, values_only=self._cas_ids is None)
            _accept(head, some, names, to_fetch.stamps, wanted, reply.items, fetched)
        # Items with a newer stamp than the head's belong to a commit that the head does not name so far. They are valid
        # only if their owner still owned the partition when it wrote them: the next owner may have taken over without
        # seeing them, and continue from older states.
        # An item of a commit after the one that the owner may be writing was written by another program: it would hide
        # all later states of the node.
        if fetched.ahead:
            now = head if self._cas_ids is not None else (yield from self._head_now(head))
            last = stamp_of(now.term, now.next) if now is not None else UNKNOWN
            for slot in [slot for slot, stamp in fetched.ahead.items() if stamp > last]:
                del fetched.rows[slot], fetched.ahead[slot]
                fetched.unread[slot] = known[slot] if slot < size else appeared[slot - size]
        self._index = index
        return self._apply(head, base, to_fetch, fetched)

    def _head_now(self, head: Head) -> Steps[Head | None]:
        """Fetch the present head. Returns None if it is lost or damaged, or if another owner has taken over."""
        try:
            found = yield from read_head(self._prefix, head.epoch)
        except CorruptItemError:
            return None
        return found[0] if found is not None and (found[0].epoch, found[0].term) == (head.epoch, head.term) else None

    def _from_ring(self, section: SnapshotSection, table: Table) -> _NodesToFetch | None:
        """Return the nodes that changed since ``table``, as the ring names them; None if the index must be read.

        The index must be read in two cases. Either the ring does not reach back to the table's offset. Or there are
        unread nodes and a new index: the index before may have been damaged, with stamps that no item will ever have.
        """
        if table.offset < section.ring_from or (self.unread and section.index != self._index):
            return None
        return self._with_ring(section, table.offset, _NodesToFetch(dict(self.unread), []))

    def _from_index(
        self, epoch: int, section: SnapshotSection, items: Mapping[Key, Item], table: Table | None
    ) -> _NodesToFetch:
        """Return the nodes of which the index or the ring has a newer stamp than this reader, and the unread nodes.

        Raises ``KeyError`` with the key of a part of the index that is missing or damaged.
        """
        names: list[str] = []
        stamps: list[Stamp] = []
        for key in index_keys(self._prefix, epoch, section.index):
            try:
                some_names, some_stamps = unpack_index_part(items[key].value)
            except CorruptItemError as error:
                DAMAGE.report(key, str(error))
                raise KeyError(key) from None
            names += some_names
            stamps += some_stamps
        held = self.stamps
        changed = {
            slot: stamp
            for slot, stamp in enumerate(stamps)
            if slot >= len(held) or held[slot] < stamp or slot in self.unread
        }
        size = table.size if table is not None else 0
        if table is not None and names[:size] != table.names[:size]:
            raise CorruptItemError("an index that gives slots to other nodes than before")
        to_fetch = _NodesToFetch(changed, names[size:])
        # The index has all commits before its offset, so only the ring's later commits are added.
        return self._with_ring(section, section.index.offset, to_fetch)

    def _with_ring(self, section: SnapshotSection, offset: int, to_fetch: _NodesToFetch) -> _NodesToFetch:
        """Add to ``to_fetch`` the nodes that were written by commits from ``offset`` on, as the ring names them.

        A node is skipped if this reader has its item with the stamp that the ring gives it, or with a newer one. The
        result is ``to_fetch`` itself.
        """
        held, size, stamps = self.stamps, len(self.stamps), to_fetch.stamps
        if section.appeared:
            to_fetch.appeared.extend(one.name for one in section.appeared if one.offset >= offset)
        for slot, stamp in ring_after(section, offset).items():
            if slot >= size or held[slot] < stamp:
                stamps[slot] = stamp
        return to_fetch

    def _apply(self, head: Head, base: Table, to_fetch: _NodesToFetch, fetched: _FetchedItems) -> Loaded:
        """Finish a load: update the stamps, the unread nodes and the CAS ids of this reader, and build its result.

        Called after the last fetch of the load, so a load that fails changes nothing.

        Args:
            head: the head that is loaded.
            base: the table before the load.
            to_fetch: the nodes that were fetched.
            fetched: their items.

        Returns:
            The result of ``load``, with the table at the offset of the head.
        """
        stamps, new_stamps = self.stamps, to_fetch.stamps
        stamps.extend([UNKNOWN] * (base.size + len(to_fetch.appeared) - len(stamps)))
        for slot in fetched.rows:
            stamps[slot] = new_stamps[slot]
        for slot, stamp in fetched.ahead.items():
            stamps[slot] = stamp
        if self._cas_ids is not None and fetched.cas_ids is not None:
            self._cas_ids.update(fetched.cas_ids)
        self.ahead = set(fetched.ahead)
        self.unread = {slot: new_stamps[slot] for slot in fetched.unread}
        for slot, name in fetched.unread.items():
            fetched.incomplete.append(name)
            if slot >= base.size:
                fetched.rows[slot] = unknown_node(name)
        table = base.advanced(head.next, fetched.rows, to_fetch.appeared, fetched.incomplete)
        return Loaded(table, unread=next((keys.node(self._prefix, name) for name in fetched.unread.values()), ""))


def _require_slots(to_fetch: _NodesToFetch, size: int) -> None:
    """Raise ``CorruptItemError`` unless the new slots follow ``size``, one for each new name."""
    appeared = len(to_fetch.appeared)
    if not appeared and max(to_fetch.stamps, default=-1) < size:
        return
    new = [slot for slot in to_fetch.stamps if slot >= size]
    if len(new) != appeared or max(new) >= size + appeared:
        raise CorruptItemError("a ring whose new slots do not match its new nodes")


def _accept(
    head: Head,
    slots: Sequence[int],
    names: Sequence[str],
    stamps: Mapping[int, Stamp],
    wanted: Sequence[str],
    items: Mapping[Key, Item],
    fetched: _FetchedItems,
) -> None:
    """Note the items of some nodes in ``fetched``, as accepted or unread.

    One call for all of them, because each refresh of a reader spends most of its processor time here.

    Args:
        head: the head that names the nodes.
        slots: the slot of each node.
        names: the name of each node.
        stamps: by slot, the stamp that the head gives the node.
        wanted: the key of each node's item.
        items: the items that were found.
        fetched: takes the accepted items, and the names of the others.
    """
    epoch, rows, cas_ids, sizes = head.epoch, fetched.rows, fetched.cas_ids, column_bytes
    first_of_term = stamp_of(head.term, 0)
    for slot, name, key, stored in zip(slots, names, wanted, NODE.find_each(wanted, items), strict=True):
        if stored is None:
            fetched.unread[slot] = name
            continue
        record, stamp = stored.record, stored.stamp
        if (stored.epoch, stored.slot, record.name) != (epoch, slot, name):
            fetched.unread[slot] = name
            continue
        if len(record.columns) != sizes[record.classes]:
            DAMAGE.report(key, "a record without the columns of its classes")
            fetched.unread[slot] = name
            continue
        if stamp != stamps[slot]:
            if stamp < stamps[slot] or stamp < first_of_term:
                fetched.unread[slot] = name
                continue
            fetched.ahead[slot] = stamp
        rows[slot] = items[key].value
        if record.incomplete:
            fetched.incomplete.append(name)
        if cas_ids is not None:
            cas_ids[slot] = items[key].cas

"""Writer of one partition's snapshot: the items of the nodes that changed, then the head with its ring."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import msgspec

from nodestate.errors import FencedError, StoreUnavailableError
from nodestate.ports import Put, Write, WriteStatus
from nodestate.snapshot.format import (
    MAX_APPEARED_COUNT,
    NODE,
    OFFSET_BITS,
    SNAPSHOT_SECTION,
    Appeared,
    Index,
    SnapshotSection,
    Stamp,
    StoredNode,
    index_keys,
    pack_index,
    ring_with,
    stamp_of,
)
from nodestate.snapshot.reader import SnapshotReader
from nodestate.store import keys
from nodestate.store.contents import add_contents
from nodestate.store.head import Head, TermStart, terms_from
from nodestate.store.owner_status import OwnerStatus
from nodestate.store.ownership import MAX_TRIES_COUNT, Ownership, PartitionTarget, require_stored
from nodestate.store.partition_writer import Batch, HeldNodes, TakeoverResult
from nodestate.store.round_trips import Step, Steps
from nodestate.view.follower import load_or_miss


class SnapshotWriter:
    """Writes the snapshot of one partition."""

    def __init__(self, target: PartitionTarget) -> None:
        # The partition that it writes.
        self._target = target
        # Set by ``take_over`` and ``begin_epoch``.
        self._ownership: Ownership | None = None
        # The snapshot's part of the stored head.
        self._section: SnapshotSection | None = None
        # By slot, the stamp of the stored item.
        self._stamps: list[Stamp] = []
        # By slot, the CAS id of the stored item; 0: the item does not exist.
        self._cas_ids: dict[int, int] = {}
        # Slots whose items must be written again with the next commit.
        self._unwritten: set[int] = set()
        # CAS conflicts of items so far.
        self.conflicts = 0
        # The last head that is known to have been stored in the epoch that is replaced; None if there is none.
        self._lost: Head | None = None

    @property
    def ownership(self) -> Ownership:
        """The present ownership. Valid after ``take_over`` or ``begin_epoch``."""
        assert self._ownership is not None, "call take_over or begin_epoch first"
        return self._ownership

    @property
    def section(self) -> SnapshotSection:
        """The snapshot's part of the stored head."""
        assert self._section is not None, "call take_over or begin_epoch first"
        return self._section

    @property
    def copies(self) -> int:
        """See ``PartitionWriter``."""
        return self.ownership.head.copies

    def take_over(self) -> Steps[TakeoverResult | None]:
        """See ``PartitionWriter``. Nodes whose items are lost are returned as unknown nodes."""
        taken = yield from Ownership.take_over(self._target, sections=SNAPSHOT_SECTION)
        if taken is None:
            return None
        ownership, found = taken
        cas_ids: dict[int, int] = {}
        reader = SnapshotReader(self._target.prefix, cas_ids)
        loaded = yield from load_or_miss(reader, self._target.prefix, found, None, {})
        if loaded.missing or loaded.table is None:
            return None
        records = list(loaded.table.records())
        section = SNAPSHOT_SECTION.of(found)
        terms = (*section.terms, TermStart(ownership.head.term, found.next))
        self._ownership, self._section = ownership, msgspec.structs.replace(section, terms=terms)
        self._stamps, self._cas_ids = reader.stamps, cas_ids
        # An item is ahead of the head if its writer died between writing the item and the head. Readers do not accept
        # it under the new term, so the first commit writes it again.
        self._unwritten = reader.ahead
        whole = not reader.unread
        return TakeoverResult(
            records,
            found.vouched and whole,
            ownership.inherited_ages_ms,
            ownership.inherited_behind_ms,
            whole,
            found.copies,
        )

    def begin_epoch(self, epoch: int, nodes: HeldNodes, status: OwnerStatus) -> Steps[None]:
        """See ``PartitionWriter``. Commit 0 of the new epoch is all nodes."""
        self._lost = self._ownership.head if self._ownership is not None else self._lost
        yield from Ownership.replaced_epoch_cas(self._target, self._lost, SNAPSHOT_SECTION)
        size = len(nodes.records)
        self._ownership, self._unwritten = None, set()
        self._stamps, self._cas_ids = [stamp_of(1, 0)] * size, {}
        yield from self._put_nodes(range(size), stamp_of(1, 0), epoch, nodes)
        index, writes = self._index(epoch, 1, 1, nodes)
        yield from add_contents(self._target, writes, None)
        section = SnapshotSection(1, b"", b"", (), (TermStart(1, 1),), index)
        self._ownership = yield from Ownership.begin_epoch(
            self._target, epoch, section, status, lost=self._lost, sections=SNAPSHOT_SECTION
        )
        self._ownership.first_content = keys.node(self._target.prefix, nodes.records[0].name) if size else ""
        self._section = section

    def commit(self, batch: Batch, nodes: HeldNodes, status: OwnerStatus) -> Steps[None]:
        """See ``PartitionWriter``."""
        yield from self._commit(batch, nodes, status, index_now=False)

    def renew(self, status: OwnerStatus) -> Steps[bool]:
        """See ``PartitionWriter``."""
        asked = yield from self.ownership.renew(status)
        return asked or bool(self._unwritten)

    def repair(self, nodes: HeldNodes, status: OwnerStatus) -> Steps[None]:
        """See ``PartitionWriter``.

        Compares every item, writes lost, different and outdated ones again, then writes a new index. The ring is empty
        afterwards.
        """
        head = self.ownership.head
        names = [keys.node(self._target.prefix, record.name) for record in nodes.records]
        reply = yield Step(fetch=names)
        for slot, name in enumerate(names):
            item = reply.items.get(name)
            if item is None or item.outdated or item.value != self._stored(slot, self._stamps[slot], head.epoch, nodes):
                self._unwritten.add(slot)
                self._cas_ids[slot] = item.cas if item else 0
        kept = (name for slot, name in enumerate(names) if slot not in self._unwritten)
        self.ownership.first_content = next(kept, names[0] if names else "")
        yield from self._commit(Batch((), (), len(nodes.records)), nodes, status, index_now=True)
        yield from self.ownership.rewrite_epoch_key()

    def _commit(self, batch: Batch, nodes: HeldNodes, status: OwnerStatus, *, index_now: bool) -> Steps[None]:
        ownership, section, head = self.ownership, self.section, self.ownership.head
        stamp = stamp_of(head.term, head.next)
        changed = sorted({*batch.changed, *self._unwritten})
        grown = len(nodes.records) - len(self._stamps)
        self._stamps += [stamp] * grown
        self._unwritten.update(changed)
        yield from self._put_nodes(changed, stamp, head.epoch, nodes)
        for slot in changed:
            self._stamps[slot] = stamp
        ring_from, counts, slots = ring_with(section, changed)
        appeared = [one for one in section.appeared if one.offset >= ring_from]
        appeared += [Appeared(head.next, nodes.records[slot].name) for slot in changed if slot >= batch.size_before]
        # Names are long, so for a fleet that boots the index is cheaper. A repair drops the ring: it may be damaged.
        if index_now or len(appeared) > MAX_APPEARED_COUNT:
            ring_from, counts, slots, appeared = head.next + 1, b"", b"", []
        index, previous, trimmed = section.index, section.previous, []
        if index.offset < ring_from:
            previous = section.index
            trimmed = index_keys(self._target.prefix, head.epoch, section.previous) if section.previous else []
            index, writes = self._index(head.epoch, head.term, head.next + 1, nodes)
            yield from add_contents(self._target, writes, ownership)
        terms = terms_from(section.terms, ring_from)
        after = SnapshotSection(ring_from, counts, slots, tuple(appeared), terms, index, previous)
        ours = yield from ownership.advance(after, status)
        self._section = after if ours else SNAPSHOT_SECTION.of(ownership.head)
        self._unwritten.clear()
        if trimmed:
            # Errors are ignored: the commit is done, so the caller must not try it again.
            with suppress(StoreUnavailableError):
                yield Step(write=[Write(Put.DELETE, key) for key in trimmed])

    def _stored(self, slot: int, stamp: Stamp, epoch: int, nodes: HeldNodes) -> bytes:
        return NODE.pack(StoredNode(epoch, stamp, slot, nodes.records[slot]))

    def _put_nodes(self, slots: Iterable[int], stamp: Stamp, epoch: int, nodes: HeldNodes) -> Steps[None]:
        """Write items by CAS: a rejected write keeps the old item, and another owner's item is noticed."""
        todo = list(slots)
        for _ in range(MAX_TRIES_COUNT):
            if not todo:
                return
            writes = []
            for slot in todo:
                key, value = (
                    keys.node(self._target.prefix, nodes.records[slot].name),
                    self._stored(slot, stamp, epoch, nodes),
                )
                cas = self._cas_ids.get(slot, 0)
                writes.append(Write(Put.CAS, key, value, cas) if cas else Write(Put.ADD, key, value))
            reply = yield Step(write=writes)
            require_stored(self._target, writes, list(reply.written))
            failed = []
            for slot, done in zip(todo, reply.written, strict=True):
                self._cas_ids[slot] = done.cas
                if done.status is not WriteStatus.STORED:
                    failed.append(slot)
            todo = failed
            if todo:
                self.conflicts += len(todo)
                if self._ownership is not None:
                    yield from self._ownership.require_still_owned()
                names = [keys.node(self._target.prefix, nodes.records[slot].name) for slot in todo]
                reply = yield Step(fetch=names)
                for slot, name in zip(todo, names, strict=True):
                    item = reply.items.get(name)
                    self._cas_ids[slot] = item.cas if item else 0
        raise FencedError(self._target.partition, stamp >> OFFSET_BITS, "another process writes the items of its nodes")

    def _index(self, epoch: int, term: int, offset: int, nodes: HeldNodes) -> tuple[Index, list[Write]]:
        blocks = pack_index([record.name for record in nodes.records], self._stamps)
        index = Index(term, offset, len(blocks))
        names = index_keys(self._target.prefix, epoch, index)
        return index, [Write(Put.ADD, key, block) for key, block in zip(names, blocks, strict=True)]

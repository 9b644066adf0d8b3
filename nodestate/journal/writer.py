"""Writer of one partition's journal: a segment per commit, and a checkpoint when the tail gets too long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Final

from nodestate.errors import StoreUnavailableError
from nodestate.journal.format import (
    JOURNAL_SECTION,
    SEGMENT,
    Checkpoint,
    JournalSection,
    checkpoint_keys,
)
from nodestate.journal.reader import JournalReader
from nodestate.ports import Put, Write
from nodestate.store import keys
from nodestate.store.contents import add_contents
from nodestate.store.head import Head, TermStart, term_of, terms_from
from nodestate.store.owner_status import OwnerStatus
from nodestate.store.ownership import Ownership, PartitionTarget
from nodestate.store.partition_writer import Batch, HeldNodes, TakeoverResult
from nodestate.store.round_trips import Step, Steps
from nodestate.store.wire import PART_BYTES, pack_records
from nodestate.view.follower import load_or_miss

MAX_TRIM_COUNT: Final = 1_000
"""Keys that one call deletes."""


class JournalWriter:
    """Writes the journal of one partition."""

    def __init__(self, target: PartitionTarget) -> None:
        # The partition that it writes.
        self._target = target
        # Set by ``take_over`` and ``begin_epoch``.
        self._ownership: Ownership | None = None
        # The journal's part of the stored head.
        self._section: JournalSection | None = None
        # The last head that is known to have been stored in the epoch that is replaced; None if there is none.
        self._lost: Head | None = None

    @property
    def ownership(self) -> Ownership:
        """The present ownership. Valid after ``take_over`` or ``begin_epoch``."""
        assert self._ownership is not None, "call take_over or begin_epoch first"
        return self._ownership

    @property
    def section(self) -> JournalSection:
        """The journal's part of the stored head."""
        assert self._section is not None, "call take_over or begin_epoch first"
        return self._section

    @property
    def copies(self) -> int:
        """See ``PartitionWriter``."""
        return self.ownership.head.copies

    def take_over(self) -> Steps[TakeoverResult | None]:
        """See ``PartitionWriter``. Returns None if segments are missing that no checkpoint covers."""
        taken = yield from Ownership.take_over(self._target, sections=JOURNAL_SECTION)
        if taken is None:
            return None
        ownership, found = taken
        loaded = yield from load_or_miss(JournalReader(self._target.prefix), self._target.prefix, found, None, {})
        if loaded.missing or loaded.table is None:
            return None
        section = JOURNAL_SECTION.of(found)
        self._ownership = ownership
        self._section = JournalSection(
            section.first,
            section.tail_bytes,
            (*section.terms, TermStart(ownership.head.term, found.next)),
            section.checkpoint,
            section.previous,
        )
        return TakeoverResult(
            list(loaded.table.records()),
            found.vouched,
            ownership.inherited_ages_ms,
            ownership.inherited_behind_ms,
            copies=found.copies,
        )

    def begin_epoch(self, epoch: int, nodes: HeldNodes, status: OwnerStatus) -> Steps[None]:
        """See ``PartitionWriter``. Commit 0 of the new epoch is a checkpoint of all nodes."""
        self._lost = self._ownership.head if self._ownership is not None else self._lost
        yield from Ownership.replaced_epoch_cas(self._target, self._lost, JOURNAL_SECTION)
        checkpoint, writes = self._checkpoint(epoch, 1, 1, nodes)
        yield from add_contents(self._target, writes, None)
        section = JournalSection(1, 0, (TermStart(1, 1),), checkpoint)
        self._ownership = yield from Ownership.begin_epoch(
            self._target, epoch, section, status, lost=self._lost, sections=JOURNAL_SECTION
        )
        self._ownership.first_content = next(checkpoint_keys(self._target.prefix, epoch, checkpoint), "")
        self._section = section

    def commit(self, batch: Batch, nodes: HeldNodes, status: OwnerStatus) -> Steps[None]:
        """See ``PartitionWriter``."""
        yield from self._commit(batch, nodes, status, checkpoint_now=False)

    def renew(self, status: OwnerStatus) -> Steps[bool]:
        """See ``PartitionWriter``."""
        return (yield from self.ownership.renew(status))

    def repair(self, nodes: HeldNodes, status: OwnerStatus) -> Steps[None]:
        """See ``PartitionWriter``. Writes a commit without events, and a checkpoint.

        The checkpoint covers all missing segments before it.
        """
        yield from self._commit(Batch((), (), len(nodes.records)), nodes, status, checkpoint_now=True)
        head = self.ownership.head
        self.ownership.first_content = keys.segment(self._target.prefix, head.epoch, head.term, head.next - 1)
        yield from self.ownership.rewrite_epoch_key()

    def _commit(self, batch: Batch, nodes: HeldNodes, status: OwnerStatus, *, checkpoint_now: bool) -> Steps[None]:
        ownership, section, head = self.ownership, self.section, self.ownership.head
        segment = SEGMENT.pack(list(batch.events))
        writes = [Write(Put.ADD, keys.segment(self._target.prefix, head.epoch, head.term, head.next), segment)]
        tail_bytes = section.tail_bytes + len(segment)
        after = JournalSection(section.first, tail_bytes, section.terms, section.checkpoint, section.previous)
        trimmed: Iterator[str] = iter(())
        if checkpoint_now or tail_bytes > section.tail_limit_bytes:
            checkpoint, parts = self._checkpoint(head.epoch, head.term, head.next + 1, nodes)
            writes += parts
            first = section.checkpoint.offset
            after = JournalSection(first, 0, terms_from(section.terms, first), checkpoint, section.checkpoint)
            trimmed = self._trimmed(section, first)
        yield from add_contents(self._target, writes, ownership)
        ours = yield from ownership.advance(after, status)
        self._section = after if ours else JOURNAL_SECTION.of(ownership.head)
        # Errors are ignored. The commit is done, so the caller must not try it again; keys that stay are never read
        # again, and memcached evicts them.
        with suppress(StoreUnavailableError):
            while some := list(islice(trimmed, MAX_TRIM_COUNT)):
                yield Step(write=[Write(Put.DELETE, key) for key in some])

    def _checkpoint(self, epoch: int, term: int, offset: int, nodes: HeldNodes) -> tuple[Checkpoint, list[Write]]:
        part_bytes = min(PART_BYTES, self._target.store.max_value_bytes)
        blocks = pack_records(nodes.records, part_bytes)
        checkpoint = Checkpoint(term, offset, len(blocks), sum(map(len, blocks)))
        names = checkpoint_keys(self._target.prefix, epoch, checkpoint)
        return checkpoint, [Write(Put.ADD, key, block) for key, block in zip(names, blocks, strict=True)]

    def _trimmed(self, section: JournalSection, first: int) -> Iterator[str]:
        """The keys that a new checkpoint makes superfluous. The section of another owner may claim many."""
        prefix, epoch = self._target.prefix, self.ownership.head.epoch
        for n in range(section.first, first):
            yield keys.segment(prefix, epoch, term_of(section.terms, n), n)
        if section.previous:
            yield from checkpoint_keys(prefix, epoch, section.previous)

"""Stored formats of the journal: segments of events, checkpoints, and the journal's section of the head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from nodestate.store import keys
from nodestate.store.head import Head, Offset, SectionCodec, Term, TermStart, are_terms_of
from nodestate.store.wire import Codec

TAIL_SHARE: Final = 8
"""A checkpoint is due when the tail is larger than 1 / TAIL_SHARE of the last checkpoint.

Folding an event costs a new reader 14 us, loading a folded node 2 us, so the tail is kept short (docs/adr/0004).
"""
MIN_TAIL_BYTES: Final = 64 * 1024
"""A tail with fewer bytes of segments than this is not worth a checkpoint (docs/adr/0004)."""


MAX_CHECKPOINT_PARTS_COUNT: Final = 2**20
"""A section that claims more parts of a checkpoint is damaged: together they would have 60 GB."""
MAX_SEGMENTS_COUNT: Final = 2**22
"""A section that claims more segments is damaged: a checkpoint is due long before."""


class Checkpoint(msgspec.Struct, frozen=True, array_like=True):
    """Names a checkpoint: all nodes of the partition, folded."""

    term: Term
    """The term that wrote it."""
    offset: Offset
    """The first commit that it does not contain."""
    parts: Annotated[int, Meta(ge=0, le=MAX_CHECKPOINT_PARTS_COUNT)]
    """Number of its items."""
    size_bytes: Annotated[int, Meta(ge=0)]
    """Size of all its items together."""


class JournalSection(msgspec.Struct, frozen=True, array_like=True):
    """The journal's part of a head."""

    first: Offset
    """The first commit whose segment is kept."""
    tail_bytes: Annotated[int, Meta(ge=0)]
    """Size of the segments since the last checkpoint."""
    terms: tuple[TermStart, ...]
    """The terms that wrote the segments."""
    checkpoint: Checkpoint
    """The last checkpoint."""
    previous: Checkpoint | None = None
    """The checkpoint before. It is kept, with the segments since, for readers that are loading it at the moment."""

    @property
    def tail_limit_bytes(self) -> int:
        """A checkpoint is due when the tail is larger than this number of bytes."""
        return max(MIN_TAIL_BYTES, self.checkpoint.size_bytes // TAIL_SHARE)


def _is_consistent(section: JournalSection, head: Head) -> bool:
    """True if the checkpoint and the segments from it on lead to the head."""
    previous = section.previous
    return (
        section.first <= section.checkpoint.offset <= head.next
        and head.next - section.first <= MAX_SEGMENTS_COUNT
        and (previous is None or previous.offset <= section.checkpoint.offset)
        and are_terms_of(section.terms, section.first, head)
    )


JOURNAL_SECTION: Final = SectionCodec(JournalSection, _is_consistent)
SEGMENT: Final = Codec(list[bytes])
"""The accepted events of one commit, each as its agent sent it."""


def checkpoint_keys(prefix: str, epoch: int, checkpoint: Checkpoint) -> Iterator[str]:
    """The keys of a checkpoint's parts. A damaged section may claim many, so they are made one by one."""
    for part in range(checkpoint.parts):
        yield keys.checkpoint(prefix, epoch, checkpoint.term, checkpoint.offset, part)

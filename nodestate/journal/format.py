"""Stored formats of the journal: segments of events, checkpoints, and the journal's section of the head."""

from __future__ import annotations

from typing import Final

import msgspec

from nodestate.store import keys
from nodestate.store.head import TermStart
from nodestate.store.wire import Codec

TAIL_SHARE: Final = 8
"""A checkpoint is due when the tail is larger than 1 / TAIL_SHARE of the last checkpoint.

Folding an event costs a new reader 14 us, loading a folded node 2 us, so the tail is kept short (docs/adr/0004).
"""
MIN_TAIL_BYTES: Final = 64 * 1024
"""A tail with fewer bytes of segments than this is not worth a checkpoint (docs/adr/0004)."""


class Checkpoint(msgspec.Struct, frozen=True, array_like=True):
    """Names a checkpoint: all nodes of the partition, folded."""

    term: int
    """The term that wrote it."""
    offset: int
    """The first commit that it does not contain."""
    parts: int
    """Number of its items."""
    size_bytes: int
    """Size of all its items together."""


class JournalSection(msgspec.Struct, frozen=True, array_like=True):
    """The journal's part of a head."""

    first: int
    """The first commit whose segment is kept."""
    tail_bytes: int
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


JOURNAL_SECTION: Final = msgspec.msgpack.Decoder(JournalSection)
SEGMENT: Final = Codec(list[bytes])
"""The accepted events of one commit, each as its agent sent it."""


def checkpoint_keys(prefix: str, epoch: int, checkpoint: Checkpoint) -> list[str]:
    """The keys of a checkpoint's parts."""
    return [
        keys.checkpoint(prefix, epoch, checkpoint.term, checkpoint.offset, part) for part in range(checkpoint.parts)
    ]

"""What the journal stores: segments of events, checkpoints, and its section of the head."""

from __future__ import annotations

from typing import Final

import msgspec

from nodestate.store import keys
from nodestate.store.head import TermStart
from nodestate.store.wire import Codec

TAIL_SHARE: Final = 8
"""A checkpoint is due when the tail is larger than one of so many parts of the last checkpoint: folding an event costs a
new reader 14 us where loading a folded node costs 2, so the tail is kept short (docs/adr/0004)."""
MIN_TAIL_BYTES: Final = 64 * 1024
"""Below so many bytes of segments a checkpoint is not worth its writing (docs/adr/0004)."""


class Checkpoint(msgspec.Struct, frozen=True, array_like=True):
    """Names a checkpoint: all nodes as of ``offset``, in ``parts`` items, of ``size_bytes`` together."""

    term: int
    offset: int
    parts: int
    size_bytes: int


class JournalSection(msgspec.Struct, frozen=True, array_like=True):
    """The journal's part of a head. Segments from ``first`` on are kept; ``terms`` tell who wrote which.

    ``previous`` is kept, with the segments since, for readers that are just loading it.
    """

    first: int
    tail_bytes: int
    terms: tuple[TermStart, ...]
    checkpoint: Checkpoint
    previous: Checkpoint | None = None

    @property
    def tail_limit_bytes(self) -> int:
        """A checkpoint is due when the tail is larger than this."""
        return max(MIN_TAIL_BYTES, self.checkpoint.size_bytes // TAIL_SHARE)


JOURNAL_SECTION: Final = msgspec.msgpack.Decoder(JournalSection)
SEGMENT: Final = Codec(list[bytes])
"""The accepted events of one commit, each as its agent sent it."""


def checkpoint_keys(prefix: str, epoch: int, checkpoint: Checkpoint) -> list[str]:
    """The keys of a checkpoint's parts."""
    return [
        keys.checkpoint(prefix, epoch, checkpoint.term, checkpoint.offset, part) for part in range(checkpoint.parts)
    ]

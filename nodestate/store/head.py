"""The head of a partition: what its owner and its readers agree on, and how to find it.

Readers accept only contents that a head names. ``Ownership`` (ownership.py) moves the head by compare-and-swap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from nodestate.errors import CorruptItemError
from nodestate.ports import Item, Key
from nodestate.store import keys
from nodestate.store.round_trips import Step, Steps
from nodestate.store.wire import Codec


class Head(msgspec.Struct, frozen=True, array_like=True):
    """The record at the head's key."""

    epoch: int
    term: int
    """Number of the ownership that wrote this head; higher than that of every owner before."""
    owner: str
    beat: int
    """Counts the writes of the head. (owner, term, beat) distinguishes each write from all others."""
    next: int
    """The first offset without a commit."""
    behind_ms: int
    """Milliseconds between the last moment at which the owner had taken everything in its queue, and this write."""
    vouched: bool
    """True if the owner knows all nodes of the partition."""
    lease_s: int
    """Time to live of this write, in seconds. Readers compute the head's age from it and the time that is left."""
    section: msgspec.Raw
    """The design's own part."""
    follows: int = -1
    """The beat of the stored head that this one replaces.

    The owner made the statements above after that one was stored.
    """


class TermStart(msgspec.Struct, frozen=True, array_like=True):
    """An entry of a list of terms: ``term`` wrote the commits from ``offset`` on, up to the next entry."""

    term: int
    offset: int


HEAD: Final = Codec(Head)
EPOCH: Final = Codec(int)


def term_of(terms: tuple[TermStart, ...], offset: int) -> int:
    """The term that wrote the commit ``offset``."""
    return next(start.term for start in reversed(terms) if start.offset <= offset)


def terms_from(terms: tuple[TermStart, ...], first: int) -> tuple[TermStart, ...]:
    """The entries that are still needed if no commit before ``first`` is kept."""
    later = [start for start in terms if start.offset > first]
    return (TermStart(term_of(terms, first), first), *later)


def epoch_in(pointer: Item | None) -> int | None:
    """The epoch that an epoch key's item names. None if there is no item or it is corrupt."""
    try:
        return EPOCH.unpack(pointer.value) if pointer else None
    except CorruptItemError:
        return None


class FoundHead(NamedTuple):
    """A head as stored, not decoded yet, and the items that were fetched with it."""

    epoch: int
    item: Item
    others: Mapping[Key, Item]


def find_head(prefix: str, known_epoch: int | None, others: Sequence[Key] = ()) -> Steps[FoundHead | None]:
    """Fetch the head of the current epoch. Returns None if the epoch key or the head is missing.

    Costs one round trip if ``known_epoch`` is the current epoch, two otherwise. If the epoch key is lost, the head of
    ``known_epoch`` is used: its owner writes the key again.

    Args:
        prefix: the partition and design.
        known_epoch: the epoch that the caller read last; None for a first read.
        others: keys to fetch in the first round trip, if there is a known epoch.

    Raises:
        CorruptItemError: if the epoch key's item is corrupt.
    """
    pointer_key = keys.epoch(prefix)
    known_key = keys.head(prefix, known_epoch) if known_epoch is not None else None
    reply = yield Step(fetch=[pointer_key, known_key, *others] if known_key else [pointer_key])
    pointer, item = reply.items.get(pointer_key), reply.items.get(known_key) if known_key else None
    epoch = EPOCH.unpack(pointer.value) if pointer else known_epoch
    if epoch is None:
        return None
    others_found = reply.items
    if epoch != known_epoch:
        key = keys.head(prefix, epoch)
        reply = yield Step(fetch=[key])
        item = reply.items.get(key)
    return FoundHead(epoch, item, others_found) if item else None


def read_head(prefix: str, known_epoch: int | None) -> Steps[tuple[Head, Item] | None]:
    """As ``find_head``, but returns the decoded head and its item. Raises ``CorruptItemError``."""
    found = yield from find_head(prefix, known_epoch)
    return (HEAD.unpack(found.item.value), found.item) if found else None

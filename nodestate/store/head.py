"""The head of a partition: what its owner and its readers agree on, and how to find it.

Readers accept only contents that a head names. ``Ownership`` (ownership.py) moves the head by compare-and-swap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Final, Generic, NamedTuple, TypeVar

import msgspec
from msgspec import Meta

from nodestate.errors import CorruptItemError
from nodestate.ports import MAX_TTL_S, Item, Key
from nodestate.store import keys
from nodestate.store.damage import DAMAGE
from nodestate.store.round_trips import Step, Steps
from nodestate.store.wire import DECODE_ERRORS, Codec, record_name
from nodestate.text import printable

T = TypeVar("T")

MAX_EPOCH: Final = 2**63 - 1
"""Epochs are random numbers of 63 bits; a database's column holds no more."""
MAX_TERM: Final = 2**24 - 1
MAX_OFFSET: Final = 2**40 - 1
"""The last term and the last offset for which a stamp has room."""
MAX_BEAT: Final = 2**53
NEVER_HEARD: Final = 0xFFFF_FFFF
"""In ``LivenessRecord.ages_ms``: no sign of life is known. As the age of a head: the age is unknown."""
MAX_OWNER_CHARS: Final = 1_000

Epoch = Annotated[int, Meta(ge=0, le=MAX_EPOCH)]
Term = Annotated[int, Meta(ge=1, le=MAX_TERM)]
Offset = Annotated[int, Meta(ge=0, le=MAX_OFFSET)]
WrittenMs = Annotated[int, Meta(ge=0, le=2**53)]
"""Time of writing by the server's clock, in whole milliseconds, rounded down."""


class Head(msgspec.Struct, frozen=True, array_like=True):
    """The record at the head's key."""

    epoch: Epoch
    term: Term
    """Number of the ownership that wrote this head; higher than that of every owner before."""
    owner: Annotated[str, Meta(max_length=MAX_OWNER_CHARS)]
    beat: Annotated[int, Meta(ge=0, le=MAX_BEAT)]
    """Counts the writes of the head. (owner, term, beat) distinguishes each write from all others."""
    next: Offset
    """The first offset without a commit."""
    behind_ms: Annotated[int, Meta(ge=0, le=NEVER_HEARD)]
    """Milliseconds between the last moment at which the owner had taken everything in its queue, and this write."""
    vouched: bool
    """True if the owner knows all nodes of the partition."""
    lease_s: Annotated[int, Meta(ge=1, le=MAX_TTL_S)]
    """Time to live of this write, in seconds. Readers compute the head's age from it and the time that is left."""
    section: msgspec.Raw
    """The design's own part."""
    follows: Annotated[int, Meta(ge=-1, le=MAX_BEAT)] = -1
    """The beat of the stored head that this one replaces.

    The owner made the statements above after that one was stored.
    """
    refused: Annotated[int, Meta(ge=0, le=MAX_BEAT)] = 0
    """How many refused messages the owner holds, because the dead-letter queue has not taken them. For ``doctor``."""
    written_ms: WrittenMs = 0
    """When the statements above were true, by the server's clock; 0: unknown, because the server has no such clock."""
    copies: Annotated[int, Meta(ge=1, le=MAX_BEAT)] = 1
    """Number of replicas that have all that the owner acknowledged, this one included.

    If it is 1, a later owner needs no other replica to know all. If it is 2, the other one may have gone on alone.
    """

    @property
    def has_room(self) -> bool:
        """True if no number has used more than half of its range, so that an owner who takes over never runs out.

        Half of the offsets are 17 years of a thousand commits a second. A head beyond is not taken over: its partition
        begins another epoch.
        """
        return self.term <= MAX_TERM // 2 and self.next <= MAX_OFFSET // 2 and self.beat <= MAX_BEAT // 2


class TermStart(msgspec.Struct, frozen=True, array_like=True):
    """An entry of a list of terms: ``term`` wrote the commits from ``offset`` on, up to the next entry."""

    term: Term
    offset: Offset


HEAD: Final = Codec(Head, optional=("refused", "written_ms", "copies"))
EPOCH: Final = Codec(Epoch)


class SectionCodec(Generic[T]):
    """Decodes the design's part of a head.

    Args:
        section_type: the type, whose annotations give the ranges of its fields.
        is_consistent: False if the fields contradict each other, or the head.
    """

    def __init__(self, section_type: type[T], is_consistent: Callable[[T, Head], bool]) -> None:
        # Decodes a section.
        self._decode = msgspec.msgpack.Decoder(section_type).decode
        # Checks the relations between the fields.
        self._is_consistent = is_consistent
        # The type of a section.
        self._type = section_type
        # Its name in words, for messages.
        self._name = record_name(section_type)

    def __reduce__(self) -> tuple[object, ...]:
        return SectionCodec, (self._type, self._is_consistent)

    def of(self, head: Head) -> T:
        """Decode the section of a head. Raises ``CorruptItemError``."""
        try:
            section = self._decode(head.section)
        except DECODE_ERRORS as error:
            raise CorruptItemError(f"no valid {self._name}: {printable(str(error))}") from None
        if not self._is_consistent(section, head):
            raise CorruptItemError(f"a {self._name} whose fields contradict each other")
        return section


def are_terms_of(terms: tuple[TermStart, ...], first: int, head: Head) -> bool:
    """True if a list of terms names the writer of each commit from ``first`` up to the head."""
    return (
        len(terms) > 0
        and terms[0].offset <= first
        and terms[-1].offset <= head.next
        and terms[-1].term <= head.term
        and (len(terms) == 1 or all(a.offset <= b.offset and a.term <= b.term for a, b in pairwise(terms)))
    )


def term_of(terms: tuple[TermStart, ...], offset: int) -> int:
    """The term that wrote the commit ``offset``."""
    if terms[-1].offset <= offset:  # nearly always
        return terms[-1].term
    return next(start.term for start in reversed(terms) if start.offset <= offset)


def terms_from(terms: tuple[TermStart, ...], first: int) -> tuple[TermStart, ...]:
    """The entries that are still needed if no commit before ``first`` is kept."""
    later = [start for start in terms if start.offset > first]
    return (TermStart(term_of(terms, first), first), *later)


class FoundHead(NamedTuple):
    """A head as stored, not decoded yet, and the items that were fetched with it."""

    epoch: int
    item: Item
    others: Mapping[Key, Item]

    def decoded(self) -> Head:
        """Decode the head. Raises ``CorruptItemError``, also if it is the head of another epoch."""
        head = HEAD.unpack(self.item.value)
        if head.epoch != self.epoch:
            raise CorruptItemError(f"a head of epoch {head.epoch:x} stands in the place of epoch {self.epoch:x}")
        return head


def sound_head(prefix: str, epoch: int, item: Item | None, sections: SectionCodec[Any] | None = None) -> Head | None:
    """The head of an epoch in an item; None if there is no item or it is damaged, which is reported.

    ``sections`` checks the design's part, too.
    """
    if item is None:
        return None
    try:
        head = FoundHead(epoch, item, {}).decoded()
        if sections is not None:
            sections.of(head)
    except CorruptItemError as error:
        DAMAGE.report(keys.head(prefix, epoch), str(error))
        return None
    return head


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
    return (found.decoded(), found.item) if found else None


def find_sound_head(prefix: str, sections: SectionCodec[Any] | None = None) -> Steps[tuple[Head, Item] | None]:
    """As ``read_head``, but a damaged epoch key or head counts as missing, and is reported.

    ``sections`` checks the design's part, too.
    """
    try:
        found = yield from find_head(prefix, None)
    except CorruptItemError as error:
        DAMAGE.report(keys.epoch(prefix), str(error))
        return None
    head = sound_head(prefix, found.epoch, found.item, sections) if found is not None else None
    return (head, found.item) if found is not None and head is not None else None

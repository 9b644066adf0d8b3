"""The head of a partition: who owns it, how far it is, and the one compare-and-swap that moves it.

A partition in one design, as its head sees it::

    (nothing) --begin: contents, head, epoch key--> owned, term 1
    owned, term t --take: CAS by a new owner--> owned, term t+1      unless that owner held it before the head was written
    owned --advance: CAS, offset+1--> owned        owned --renew: CAS, same offset--> owned
    any --the store lost the head or the epoch key--> (nothing), or the owner begins another epoch

Assumptions: an owner writes contents first, under keys that carry (epoch, term) or with stamps that do, and
advances the head last; readers accept only what a head names. So an owner that lost its term may write what
it likes: its compare-and-swap of the head fails, and nothing refers to its contents.

A CAS whose reply was lost has an unknown outcome. It is settled by reading: ``beat`` rises with every write of
the head, so (owner, term, beat) tells each of our own writes from another's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec
import numpy as np

from nodestate.errors import (
    CorruptItemError,
    EpochLostError,
    FencedError,
    ItemTooLargeError,
    StoreFullError,
)
from nodestate.ports import (
    Clock,
    Item,
    Key,
    NodeRow,
    Put,
    RowQuery,
    Store,
    SystemClock,
    Write,
    WriteResult,
    WriteStatus,
)
from nodestate.store import keys
from nodestate.store.round_trips import Step, Steps
from nodestate.store.wire import Codec

MAX_TRIES_COUNT: Final = 8
NEVER_HEARD: Final = 0xFFFF_FFFF
"""In ``Life.ages_ms``: no sign of life is known."""


class Head(msgspec.Struct, frozen=True, array_like=True):
    """What is stored at the head's key. ``next`` is the first offset that is not committed yet.

    ``behind_ms``: how long before this writing the owner was last known to have taken all the queue had.
    ``vouched``: the owner knows all nodes of the partition. ``lease_s``: the time to live this was written with,
    so that a reader can tell its age from what memcached says is left. ``section`` is the design's own.
    ``follows``: the beat of the head that its owner knew to be stored when it wrote this one, and that this one
    replaces; so whatever this one says was said after that one was stored.
    """

    epoch: int
    term: int
    owner: str
    beat: int
    next: int
    behind_ms: int
    vouched: bool
    lease_s: int
    section: msgspec.Raw
    follows: int = -1


class Since(msgspec.Struct, frozen=True, array_like=True):
    """Commits from ``offset`` on were written by ``term``, until the next entry of such a list."""

    term: int
    offset: int


class Life(msgspec.Struct, frozen=True, array_like=True):
    """Signs of life: for each slot, milliseconds before this writing, as little-endian uint32."""

    term: int
    ages_ms: bytes


@dataclass(frozen=True, slots=True)
class OwnerStatus:
    """What an owner says of itself with each write of a head. It is true at ``said_at`` of the place's clock (None:
    whenever it is written), and older by the time that passed since when it is written: a batch may take long, and
    another server may have to be waited for.
    """

    behind_ms: int
    vouched: bool
    ages_ms: bytes = b""
    said_at: float | None = None


HEAD: Final = Codec(Head)
LIFE: Final = Codec(Life)
EPOCH: Final = Codec(int)
_SYSTEM_CLOCK: Final = SystemClock()
_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class Place:
    """Where one design of one partition lives, and in whose name it is written. ``owned_since``: from this moment of the clock on
    nobody else should have written it, as the owner has the partition and joins a design of it; None where it follows another.
    """

    prefix: str
    partition: int
    owner: str
    lease_s: int
    store: Store
    clock: Clock = _SYSTEM_CLOCK
    owned_since: float | None = None

    def ms_since(self, moment: float | None) -> int:
        """Milliseconds from a moment of the clock until now, rounded up; 0 for None."""
        return math.ceil((self.clock.monotonic() - moment) * 1000) if moment is not None else 0


def term_of(terms: tuple[Since, ...], offset: int) -> int:
    """The term that wrote the commit ``offset``."""
    return next(since.term for since in reversed(terms) if since.offset <= offset)


def since_from(terms: tuple[Since, ...], first: int) -> tuple[Since, ...]:
    """The entries that still matter when nothing before ``first`` is kept."""
    later = [since for since in terms if since.offset > first]
    return (Since(term_of(terms, first), first), *later)


def require_stored(place: Place, writes: tuple[Write, ...] | list[Write], written: list[WriteResult]) -> None:
    """Raise ``StoreFullError`` if a write found no memory."""
    for write, outcome in zip(writes, written, strict=True):
        if outcome.status is WriteStatus.FULL:
            raise StoreFullError(place.store.name, write.key, len(write.value))


class Ownership:
    """One ownership of one partition in one design: holds the head as last written, and its CAS id."""

    def __init__(self, place: Place, head: Head, head_cas: int, life_cas: int = 0) -> None:
        self.place = place
        self.head = head
        self.inherited_ages_ms = b""
        self.inherited_behind_ms: int | None = None
        self._head_cas = head_cas
        self._life_cas = life_cas
        self._intended: Head | None = None
        self.conflicts = 0

    # -- beginning ------------------------------------------------------------------------------

    @classmethod
    def take(cls, place: Place, max_silent_s: float = math.inf) -> Steps[tuple[Ownership, Head] | None]:
        """Raise the term by CAS. Returns the tenure and the head as it was found, or None where nothing is stored. What
        nobody renewed for ``max_silent_s`` is not vouched for any more.

        Raises ``FencedError`` where another owner wrote the head when the partition should have been ours: it took it while we
        slept, and its term must not be raised by memory from before.
        """
        for _ in range(MAX_TRIES_COUNT):
            asked_at = place.clock.monotonic()
            try:
                found = yield from read_head(place.prefix, None)
            except CorruptItemError:
                return None
            if found is None:
                return None
            head, item = found
            # What the owner before said stays true of what it wrote, and gets older.
            age_ms = _age_ms(head, item)
            if (
                place.owned_since is not None
                and head.owner != place.owner
                and age_ms <= place.ms_since(place.owned_since)
            ):
                raise FencedError(place.partition, head.term, f"{head.owner} wrote epoch {head.epoch:x} since")
            ours = msgspec.structs.replace(
                head,
                term=head.term + 1,
                owner=place.owner,
                beat=head.beat + 1,
                behind_ms=head.behind_ms + age_ms + place.ms_since(asked_at),
                vouched=head.vouched and age_ms <= max_silent_s * 1000,
                lease_s=place.lease_s,
                follows=head.beat,
            )
            write = Write(Put.CAS, keys.head(place.prefix, head.epoch), HEAD.pack(ours), item.cas, place.lease_s)
            life_key = keys.life(place.prefix, head.epoch)
            reply = yield Step(write=[write], fetch=[life_key])
            require_stored(place, [write], list(reply.written))
            if reply.written[0].status is WriteStatus.STORED:
                life = reply.items.get(life_key)
                tenure = cls(place, ours, reply.written[0].cas, life.cas if life else 0)
                tenure.inherited_ages_ms = _aged(life, head.lease_s)
                tenure.inherited_behind_ms = ours.behind_ms
                return tenure, head
        raise FencedError(place.partition, 0, f"lost the head's CAS {MAX_TRIES_COUNT} times while taking over")

    @classmethod
    def begin(
        cls,
        place: Place,
        epoch: int,
        section: msgspec.Struct,
        vitals: OwnerStatus,
        rows: tuple[NodeRow, ...] = (),
        lost: Head | None = None,
    ) -> Steps[Ownership]:
        """Publish a new epoch whose contents are written already, or are ``rows``, as commit 0. ``lost``: see ``may_begin``.

        The head first, then the key that names the epoch: a reader that follows the one finds the other.
        """
        head = Head(
            epoch,
            1,
            place.owner,
            0,
            1,
            vitals.behind_ms + place.ms_since(vitals.said_at),
            vitals.vouched,
            place.lease_s,
            msgspec.Raw(_encode(section)),
        )
        write = Write(Put.ADD, keys.head(place.prefix, epoch), HEAD.pack(head), 0, place.lease_s, rows)
        reply = yield Step(write=[write])
        require_stored(place, [write], list(reply.written))
        if reply.written[0].status is not WriteStatus.STORED:
            raise FencedError(place.partition, 1, f"epoch {epoch:x} exists already")
        tenure = cls(place, head, reply.written[0].cas)
        key, value = keys.epoch(place.prefix), EPOCH.pack(epoch)
        replaced_cas = yield from cls.may_begin(place, lost)
        put = Write(Put.CAS, key, value, replaced_cas) if replaced_cas else Write(Put.ADD, key, value)
        reply = yield Step(write=[put])
        require_stored(place, [put], list(reply.written))
        if reply.written[0].status is not WriteStatus.STORED:
            raise FencedError(place.partition, 1, "another owner began an epoch at the same time")
        return tenure

    @classmethod
    def may_begin(cls, place: Place, lost: Head | None = None) -> Steps[int]:
        """The CAS id of the epoch key that a new epoch would replace (0: none is there).

        Raises ``FencedError`` where the present epoch has a head by another owner: an owner that slept through
        a restart of the store finds its own epoch gone, and must not overrun the one that others began since. The head
        of an owner that came before ``lost``, which was stored in the same epoch, is no hindrance: a database was set
        back to it.
        """
        key = keys.epoch(place.prefix)
        reply = yield Step(fetch=[key])
        pointer = reply.items.get(key)
        epoch = epoch_in(pointer)
        if epoch is None:
            return pointer.cas if pointer else 0
        head_key = keys.head(place.prefix, epoch)
        reply = yield Step(fetch=[head_key])
        item = reply.items.get(head_key)
        try:
            head = HEAD.unpack(item.value) if item else None
        except CorruptItemError:
            head = None
        set_back = head is not None and lost is not None and head.epoch == lost.epoch and head.term < lost.term
        if head is not None and head.owner != place.owner and not set_back:
            raise FencedError(place.partition, head.term, f"{head.owner} owns epoch {epoch:x}")
        assert pointer is not None
        return pointer.cas

    # -- advancing ------------------------------------------------------------------------------

    def advance(self, section: msgspec.Struct, vitals: OwnerStatus, rows: tuple[NodeRow, ...] = ()) -> Steps[bool]:
        """The commit: the next offset and the design's section become what readers see, with ``rows``, or nothing does.

        Returns False where an earlier try of the same commit, its reply lost, turned out to be stored: then the
        section that counts is the stored head's. After an unknown outcome the same commit must be tried again,
        with the same contents, before any other.
        """
        content = msgspec.Raw(_encode(section))
        yield from self._swap(self.head.next + 1, content, vitals, rows)
        return bytes(self.head.section) == bytes(content)

    def renew(self, vitals: OwnerStatus) -> Steps[bool]:
        """Say that the partition is looked after; put back an epoch key that got lost.

        Returns True where a reader asked for a repair (its request is taken away).
        """
        if self._intended is not None and self._intended.next != self.head.next:
            # An advance is under way with an unknown outcome: only the same commit, tried again, settles it.
            return False
        place, epoch = self.place, self.head.epoch
        pointer_key, repair_key = keys.epoch(place.prefix), keys.repair(place.prefix)
        head = self._next_head(self.head.next, self.head.section, vitals)
        head_put, life_put = self._head_put(head), self._life_put(vitals)
        self._intended = head
        reply = yield Step(
            write=[head_put, life_put, Write(Put.DELETE, repair_key)],
            fetch=[pointer_key, keys.life(place.prefix, epoch)],
        )
        head_outcome, life_outcome, repair_outcome = reply.written
        require_stored(place, [head_put], [head_outcome])
        yield from self._swapped(head, head_outcome)
        self._life_cas = 0
        if life_outcome.status is WriteStatus.STORED:
            self._life_cas = life_outcome.cas
        elif (life := reply.items.get(keys.life(place.prefix, epoch))) is not None:
            self._life_cas = life.cas
        pointer = reply.items.get(pointer_key)
        if pointer is None:
            reply = yield Step(write=[Write(Put.ADD, pointer_key, EPOCH.pack(epoch))])
            if reply.written[0].status is WriteStatus.CONFLICT:
                raise FencedError(place.partition, head.term, "another owner began an epoch")
        elif epoch_in(pointer) != epoch:
            raise FencedError(place.partition, head.term, "another owner began an epoch")
        return repair_outcome.status is WriteStatus.STORED

    def still_ours(self) -> Steps[None]:
        """Raises ``FencedError`` or ``EpochLostError`` unless the stored head is the one we wrote last."""
        reply = yield Step(fetch=[keys.head(self.place.prefix, self.head.epoch)])
        self._judge(reply.items.get(keys.head(self.place.prefix, self.head.epoch)))

    # -- inside ---------------------------------------------------------------------------------

    def _next_head(self, next_offset: int, section: msgspec.Raw, vitals: OwnerStatus) -> Head:
        beat = (self._intended or self.head).beat + 1
        head = self.head
        return Head(
            head.epoch,
            head.term,
            head.owner,
            beat,
            next_offset,
            vitals.behind_ms + self.place.ms_since(vitals.said_at),
            vitals.vouched,
            self.place.lease_s,
            section,
            head.beat,
        )

    def _head_put(self, head: Head) -> Write:
        key = keys.head(self.place.prefix, head.epoch)
        return Write(Put.CAS, key, HEAD.pack(head), self._head_cas, self.place.lease_s)

    def _life_put(self, vitals: OwnerStatus) -> Write:
        key = keys.life(self.place.prefix, self.head.epoch)
        value = LIFE.pack(Life(self.head.term, _older(vitals.ages_ms, self.place.ms_since(vitals.said_at))))
        if self._life_cas:
            return Write(Put.CAS, key, value, self._life_cas, self.place.lease_s)
        return Write(Put.ADD, key, value, 0, self.place.lease_s)

    def _swap(
        self, next_offset: int, section: msgspec.Raw, vitals: OwnerStatus, rows: tuple[NodeRow, ...]
    ) -> Steps[None]:
        """CAS the head forward; whatever an earlier try with a lost reply did is settled on the way."""
        for _ in range(MAX_TRIES_COUNT):
            head = self._next_head(next_offset, section, vitals)
            put = self._head_put(head)._replace(rows=rows)
            self._intended = head
            try:
                reply = yield Step(write=[put])
                require_stored(self.place, [put], list(reply.written))
            except (StoreFullError, ItemTooLargeError):
                self._intended = None  # refused, not unknown
                raise
            yield from self._swapped(head, reply.written[0])
            if self.head.next == head.next:
                return
            # What we met was an older write of our own that came late: go again from there.
        raise FencedError(self.place.partition, self.head.term, f"lost the head's CAS {MAX_TRIES_COUNT} times")

    def _swapped(self, head: Head, outcome: WriteResult) -> Steps[None]:
        """Take in the outcome of a CAS of the head; afterwards ``self.head`` is what is stored."""
        if outcome.status is WriteStatus.STORED:
            self.head, self._head_cas = head, outcome.cas
        elif outcome.status is WriteStatus.MISSING:
            self._intended = None
            raise EpochLostError(self.place.partition, head.epoch)
        else:
            self.conflicts += 1
            key = keys.head(self.place.prefix, head.epoch)
            reply = yield Step(fetch=[key])
            self.head, self._head_cas = self._judge(reply.items.get(key))
        self._intended = None

    def _judge(self, item: Item | None) -> tuple[Head, int]:
        if item is None:
            raise EpochLostError(self.place.partition, self.head.epoch)
        try:
            stored = HEAD.unpack(item.value)
        except CorruptItemError:
            raise EpochLostError(self.place.partition, self.head.epoch) from None
        if (stored.term, stored.beat) < (self.head.term, self.head.beat):
            # Older than what is known to have been stored: a database was set back to a backup, or a copy of it that lags
            # behind took its place. What was written since is lost, and readers may have seen it.
            raise EpochLostError(self.place.partition, self.head.epoch)
        if (stored.term, stored.owner) != (self.head.term, self.head.owner):
            raise FencedError(self.place.partition, self.head.term, f"term {stored.term} of {stored.owner} took it")
        return stored, item.cas


def forget(place: Place, *, rows: bool, silent_s: float | None = None) -> Steps[None]:
    """Take the epoch key of a design away that is no longer written: its readers see a loss, not an old state that
    passes for fresh, and an owner that writes it again begins another epoch. With ``rows``, of a database, the epoch's rows, too:
    what memcached has falls to its LRU, there it would stay.

    With ``silent_s`` it raises ``FencedError`` where another owner wrote the head so many seconds ago or less: it is in use.
    """
    prefix, key = place.prefix, keys.epoch(place.prefix)
    if silent_s is not None:
        try:
            found = yield from read_head(prefix, None)
        except CorruptItemError:
            found = None
        if found is not None and found[0].owner != place.owner and _age_ms(*found) <= silent_s * 1000:
            raise FencedError(place.partition, found[0].term, f"{found[0].owner} writes epoch {found[0].epoch:x}")
    pointer = (yield Step(fetch=[key])).items.get(key) if rows else None
    epoch = epoch_in(pointer)
    writes = [Write(Put.DELETE, key)]
    if epoch is not None:
        writes.append(Write(Put.DELETE_ROWS, query=RowQuery.of_epoch(prefix, epoch)))
    yield Step(write=writes)


def _age_ms(head: Head, item: Item) -> int:
    """How long ago a head was written at most, rounded up to a second; ``NEVER_HEARD`` where that can't be told."""
    if item.ttl_s is None or item.ttl_s > head.lease_s:
        return NEVER_HEARD
    return (head.lease_s - item.ttl_s + 1) * 1000


def epoch_in(pointer: Item | None) -> int | None:
    """The epoch that an epoch key's item names, or None."""
    try:
        return EPOCH.unpack(pointer.value) if pointer else None
    except CorruptItemError:
        return None


def _aged(life: Item | None, lease_s: int) -> bytes:
    """Signs of life as an owner left them, older by the time since it wrote them (rounded up to a second)."""
    if life is None or life.ttl_s is None or life.ttl_s > lease_s:
        return b""  # the last: written under another lease, so its age can't be told
    try:
        return _older(LIFE.unpack(life.value).ages_ms, (lease_s - life.ttl_s + 1) * 1000)
    except (CorruptItemError, ValueError):
        return b""


def _older(ages_ms: bytes, by_ms: int) -> bytes:
    """Signs of life when so much time has passed. Raises ``ValueError`` where the bytes are no ages."""
    ages = np.frombuffer(ages_ms, "<u4").astype(np.uint64)
    return np.where(ages == NEVER_HEARD, ages, np.minimum(ages + by_ms, NEVER_HEARD - 1)).astype("<u4").tobytes()


class Found(NamedTuple):
    """A head as it is stored, not decoded yet, and the items that were asked for with it."""

    epoch: int
    item: Item
    others: Mapping[Key, Item]


def find_head(prefix: str, known_epoch: int | None, others: Sequence[Key] = ()) -> Steps[Found | None]:
    """The head that counts, or None where the epoch key and the head are not both to be had.

    One round trip where ``known_epoch`` still counts, two otherwise. A lost epoch key is survived as long as
    the known epoch's head is there: its owner puts the key back. Raises ``CorruptItemError``.
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
    return Found(epoch, item, others_found) if item else None


def read_head(prefix: str, known_epoch: int | None) -> Steps[tuple[Head, Item] | None]:
    """The same, decoded."""
    found = yield from find_head(prefix, known_epoch)
    return (HEAD.unpack(found.item.value), found.item) if found else None

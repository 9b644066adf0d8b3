"""The ownership of a partition in one design: how an owner takes it, advances its head, and notices that it lost it.

A partition in one design, as its head shows it::

    (nothing) --begin: contents, head, epoch key--> owned, term 1
    owned, term t --take over: CAS by a new owner--> owned, term t+1
    owned --advance: CAS, offset+1--> owned        owned --renew: CAS, same offset--> owned
    any --the store lost the head or the epoch key--> (nothing), or the owner begins another epoch

Assumptions: an owner writes contents first, under keys or with stamps that carry (epoch, term), and advances the head
last; readers accept only contents that a head names. So an owner that lost its term changes nothing that readers
accept: its compare-and-swap of the head fails, and no head refers to its contents.

If the reply to a CAS is lost, its outcome is unknown. The owner then reads the head: ``beat`` rises with every write of
the head, so (owner, term, beat) distinguishes the owner's own writes from all other writes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from nodestate.errors import EpochLostError, FencedError, ItemTooLargeError, StoreFullError, StoreUnavailableError
from nodestate.ports import (
    Clock,
    Item,
    NodeRow,
    Put,
    Store,
    SystemClock,
    Write,
    WriteResult,
    WriteStatus,
)
from nodestate.store import keys
from nodestate.store.damage import DAMAGE
from nodestate.store.head import EPOCH, HEAD, NEVER_HEARD, Head, SectionCodec, find_sound_head, sound_head
from nodestate.store.liveness import LIVENESS, LivenessRecord, age_ms_of, ages_now, written_ms
from nodestate.store.owner_status import OwnerStatus, ms_between
from nodestate.store.round_trips import Step, Steps

MAX_TRIES_COUNT: Final = 8
_SYSTEM_CLOCK: Final = SystemClock()
_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class PartitionTarget:
    """One design of one partition as the target of writes: where it is stored, and the owner that writes it."""

    prefix: str
    """First part of all its keys (``keys.prefix``)."""
    partition: int
    owner: str
    """Name of the writing owner."""
    lease_s: int
    """Time to live of the items that the owner renews, in seconds."""
    store: Store
    clock: Clock = _SYSTEM_CLOCK
    owned_since: float | None = None
    """Monotonic time since which no other owner should have written here, because this owner holds the partition
    and now adds a design to it. None at a takeover from another owner.
    """

    def now(self) -> float:
        """The time by the owner's clock, in monotonic seconds."""
        return self.clock.monotonic()


def require_stored(
    target: PartitionTarget, writes: tuple[Write, ...] | list[Write], results: list[WriteResult]
) -> None:
    """Raise ``StoreFullError`` if the store had no memory for one of the writes."""
    for write, result in zip(writes, results, strict=True):
        if result.status is WriteStatus.FULL:
            raise StoreFullError(target.store.name, write.key, len(write.value))


class Ownership:
    """One ownership of one partition in one design."""

    def __init__(
        self,
        target: PartitionTarget,
        head: Head,
        head_cas: int,
        liveness_cas: int = 0,
        sections: SectionCodec[Any] | None = None,
    ) -> None:
        # The design and partition that is owned.
        self.target = target
        # Checks the design's part of stored heads.
        self._sections = sections
        # The head as it is stored, as far as this owner knows.
        self.head = head
        # Ages of the signs of life that the owner before had stored; empty if unknown.
        self.inherited_ages_ms = b""
        # Milliseconds since the owner before had taken everything in its queue; None if unknown.
        self.inherited_behind_ms: int | None = None
        # CAS id of the stored head.
        self._head_cas = head_cas
        # CAS id of the stored signs of life; 0: none are stored.
        self._liveness_cas = liveness_cas
        # The head whose write has an unknown outcome; None if there is none.
        self._intended: Head | None = None
        # CAS conflicts of the head so far.
        self.conflicts = 0
        # Key of the content that was written first before the epoch key; the next renewal looks at it, see ``renew``.
        self.first_content = ""

    # -- beginning ------------------------------------------------------------------------------

    @classmethod
    def take_over(
        cls, target: PartitionTarget, max_silent_s: float = math.inf, sections: SectionCodec[Any] | None = None
    ) -> Steps[tuple[Ownership, Head] | None]:
        """Become the owner of the stored state: raise the term by CAS.

        Returns the ownership and the head as it was found. Returns None if no head is stored or it is damaged. If the
        head was not renewed for more than ``max_silent_s`` seconds, the ownership starts as incomplete. ``sections``
        checks the design's part of the head.

        Raises:
            FencedError: if another owner wrote the head after ``target.owned_since``, or if the age of that owner's
                head is unknown. That owner took the partition while this process slept, and memory from before must not
                raise its term.
        """
        for _ in range(MAX_TRIES_COUNT):
            asked_at = target.now()
            found = yield from find_sound_head(target.prefix, sections)
            if found is None:
                return None
            head, item = found
            if not head.has_room:
                DAMAGE.report(keys.head(target.prefix, head.epoch), "its numbers are near their end")
                return None
            now = target.now()
            age_ms = age_ms_of(head, item, target.store, now)
            if (
                target.owned_since is not None
                and head.owner != target.owner
                and (age_ms <= ms_between(target.owned_since, now) or age_ms == NEVER_HEARD)
            ):
                raise FencedError(target.partition, head.term, f"{head.owner} wrote epoch {head.epoch:x} since")
            # The statements of the owner before stay true of the state that it wrote, and grow older.
            behind_ms = min(head.behind_ms + age_ms + ms_between(asked_at, now), NEVER_HEARD)
            ours = msgspec.structs.replace(
                head,
                term=head.term + 1,
                owner=target.owner,
                beat=head.beat + 1,
                behind_ms=behind_ms,
                vouched=head.vouched and age_ms <= max_silent_s * 1000,
                lease_s=target.lease_s,
                follows=head.beat,
                refused=0,
                written_ms=written_ms(target.store, now),
            )
            key = keys.head(target.prefix, head.epoch)
            write = Write(Put.CAS, key, HEAD.pack(ours), item.cas, target.lease_s, as_of=now)
            life_key = keys.life(target.prefix, head.epoch)
            reply = yield Step(write=[write], fetch=[life_key])
            require_stored(target, [write], list(reply.written))
            if reply.written[0].status is WriteStatus.STORED:
                life = reply.items.get(life_key)
                ownership = cls(target, ours, reply.written[0].cas, life.cas if life else 0, sections)
                ownership.inherited_ages_ms = ages_now(life_key, life, head.lease_s, target.store, target.now())
                ownership.inherited_behind_ms = behind_ms if behind_ms < NEVER_HEARD else None
                return ownership, head
        raise FencedError(target.partition, 0, f"lost the head's CAS {MAX_TRIES_COUNT} times while taking over")

    @classmethod
    def begin_epoch(
        cls,
        target: PartitionTarget,
        epoch: int,
        section: msgspec.Struct,
        status: OwnerStatus,
        rows: tuple[NodeRow, ...] = (),
        lost: Head | None = None,
        sections: SectionCodec[Any] | None = None,
    ) -> Steps[Ownership]:
        """Publish a new epoch whose commit 0 is the contents that were written before, or ``rows``.

        Writes the head first, then the key that names the epoch: a reader that follows the key finds the head.

        Args:
            target: the design and partition.
            epoch: number of the new epoch.
            section: the design's part of the head.
            status: the owner's statements.
            rows: for a database, the rows of all nodes.
            lost: see ``replaced_epoch_cas``.
            sections: checks the design's part of stored heads.

        Raises:
            FencedError: if another owner owns the current epoch, or began one at the same time.
        """
        said = status.as_of(target.now())
        content = msgspec.Raw(_encode(section))
        head = Head(
            epoch,
            1,
            target.owner,
            0,
            1,
            said.behind_ms,
            said.complete,
            target.lease_s,
            content,
            written_ms=said.written_ms(target.store),
            copies=said.copies,
        )
        key = keys.head(target.prefix, epoch)
        write = Write(Put.ADD, key, HEAD.pack(head), 0, target.lease_s, rows, as_of=said.said_at)
        ownership = cls(target, head, 0, 0, sections)
        reply = yield Step(write=[write, *ownership._liveness_puts(said)])
        require_stored(target, [write], [reply.written[0]])
        if reply.written[0].status is not WriteStatus.STORED:
            raise FencedError(target.partition, 1, f"epoch {epoch:x} exists already")
        ownership._head_cas = reply.written[0].cas
        ownership._note_liveness(reply.written[1:])
        key, value = keys.epoch(target.prefix), EPOCH.pack(epoch)
        replaced_cas = yield from cls.replaced_epoch_cas(target, lost, sections)
        put = Write(Put.CAS, key, value, replaced_cas) if replaced_cas else Write(Put.ADD, key, value)
        reply = yield Step(write=[put])
        require_stored(target, [put], list(reply.written))
        if reply.written[0].status is not WriteStatus.STORED:
            raise FencedError(target.partition, 1, "another owner began an epoch at the same time")
        return ownership

    @classmethod
    def replaced_epoch_cas(
        cls, target: PartitionTarget, lost: Head | None = None, sections: SectionCodec[Any] | None = None
    ) -> Steps[int]:
        """Check that this owner may begin an epoch. Returns the CAS id of the epoch key to replace; 0 if there is none.

        An owner that slept through a restart of the store finds its own epoch gone. It must not replace the epoch that
        another owner began since.

        Args:
            target: the design and partition.
            lost: the last head that this owner stored, if a database lost that head. A stored head of the same epoch
                with a lower term then comes from a backup to which the database was set back. Such a head does not
                prevent a new epoch.
            sections: checks the design's part of the stored head.

        Raises:
            FencedError: if another owner has a head in the current epoch.
        """
        key = keys.epoch(target.prefix)
        reply = yield Step(fetch=[key])
        pointer = reply.items.get(key)
        epoch = EPOCH.find(key, pointer)
        if epoch is None:
            return pointer.cas if pointer else 0
        head_key = keys.head(target.prefix, epoch)
        reply = yield Step(fetch=[head_key])
        head = sound_head(target.prefix, epoch, reply.items.get(head_key), sections)
        if head is not None and not head.has_room:
            head = None  # no takeover accepts it either
        set_back = head is not None and lost is not None and head.epoch == lost.epoch and head.term < lost.term
        if head is not None and head.owner != target.owner and not set_back:
            raise FencedError(target.partition, head.term, f"{head.owner} owns epoch {epoch:x}")
        assert pointer is not None
        return pointer.cas

    # -- advancing ------------------------------------------------------------------------------

    def advance(self, section: msgspec.Struct, status: OwnerStatus, rows: tuple[NodeRow, ...] = ()) -> Steps[bool]:
        """Commit: publish the next offset and the design's section, with ``rows``. Readers see all of it or nothing.

        If ``status`` has signs of life, they are stored, too. Returns False if an earlier try of the same commit, whose
        reply was lost, turned out to be stored; the stored head's section is then the valid one. After an unknown
        outcome the caller must try the same commit again, with the same contents, before any other.
        """
        content = msgspec.Raw(_encode(section))
        yield from self._swap(self.head.next + 1, content, status, rows)
        return bytes(self.head.section) == bytes(content)

    def renew(self, status: OwnerStatus) -> Steps[bool]:
        """Confirm the ownership and store the signs of life; write the epoch key again if it was lost.

        Returns True if the stored state must be written again: a reader asked for a repair, and its request is deleted,
        or the epoch key was lost, refused or outdated (``rewrite_epoch_key``). Or the first content is outdated, but
        the epoch key is not: the keys that sign changed between the two.
        """
        if self._intended is not None and self._intended.next != self.head.next:
            return False  # The outcome of an advance is unknown: only the same commit, tried again, resolves it.
        target, epoch = self.target, self.head.epoch
        pointer_key, repair_key = keys.epoch(target.prefix), keys.repair(target.prefix)
        life_key = keys.life(target.prefix, epoch)
        said = status.as_of(target.now())
        head = self._next_head(self.head.next, self.head.section, said)
        head_put, life_put = self._head_put(head, said), self._liveness_put(said)
        self._intended = head
        reply = yield Step(
            write=[head_put, life_put, Write(Put.DELETE, repair_key)],
            fetch=[pointer_key, life_key, *((self.first_content,) if self.first_content else ())],
        )
        head_result, life_result, repair_result = reply.written
        require_stored(target, [head_put], [head_result])
        before = self.head
        yield from self._resolve(head, head_result)
        if head_result.status is not WriteStatus.STORED and (
            self.head.next != before.next or bytes(self.head.section) != bytes(before.section)
        ):
            # Only an advance changes these, and none is under way: another program wrote a head in this owner's name.
            raise EpochLostError(target.partition, epoch)
        self._liveness_cas = 0
        if life_result.status is WriteStatus.STORED:
            self._liveness_cas = life_result.cas
        elif (life := reply.items.get(life_key)) is not None:
            self._liveness_cas = life.cas
        pointer, first = reply.items.get(pointer_key), reply.items.get(self.first_content)
        self.first_content = ""
        stored_epoch = EPOCH.find(pointer_key, pointer)
        if stored_epoch is None:
            value = EPOCH.pack(epoch)
            put = Write(Put.CAS, pointer_key, value, pointer.cas) if pointer else Write(Put.ADD, pointer_key, value)
            reply = yield Step(write=[put])
            if reply.written[0].status is WriteStatus.CONFLICT:
                raise FencedError(target.partition, head.term, "another owner began an epoch")
        elif stored_epoch != epoch:
            raise FencedError(target.partition, head.term, "another owner began an epoch")
        outdated = pointer is None or stored_epoch is None or pointer.outdated or (first is not None and first.outdated)
        return outdated or repair_result.status is WriteStatus.STORED

    def rewrite_epoch_key(self) -> Steps[None]:
        """Write the epoch key again if it is outdated. Call this after all contents were written again.

        So the signature of the epoch key tells whether an owner that signs with this key has written all contents.
        """
        key = keys.epoch(self.target.prefix)
        with suppress(StoreUnavailableError):  # the next renewal finds the key as it is
            item = (yield Step(fetch=[key])).items.get(key)
            if item is not None and item.outdated and EPOCH.find(key, item) == self.head.epoch:
                yield Step(write=[Write(Put.CAS, key, EPOCH.pack(self.head.epoch), item.cas)])

    def require_still_owned(self) -> Steps[None]:
        """Raise ``FencedError`` or ``EpochLostError`` unless the stored head is the one that this owner wrote last."""
        key = keys.head(self.target.prefix, self.head.epoch)
        reply = yield Step(fetch=[key])
        self._own_head(reply.items.get(key))

    # -- inside ---------------------------------------------------------------------------------

    def _next_head(self, next_offset: int, section: msgspec.Raw, said: OwnerStatus) -> Head:
        beat = (self._intended or self.head).beat + 1
        head = self.head
        return Head(
            head.epoch,
            head.term,
            head.owner,
            beat,
            next_offset,
            said.behind_ms,
            said.complete,
            self.target.lease_s,
            section,
            head.beat,
            said.refused,
            said.written_ms(self.target.store),
            said.copies,
        )

    def _head_put(self, head: Head, said: OwnerStatus) -> Write:
        key = keys.head(self.target.prefix, head.epoch)
        return Write(Put.CAS, key, HEAD.pack(head), self._head_cas, self.target.lease_s, as_of=said.said_at)

    def _liveness_put(self, said: OwnerStatus) -> Write:
        key = keys.life(self.target.prefix, self.head.epoch)
        value = LIVENESS.pack(LivenessRecord(self.head.term, said.ages_ms, said.written_ms(self.target.store)))
        put = Put.CAS if self._liveness_cas else Put.ADD
        return Write(put, key, value, self._liveness_cas, self.target.lease_s, as_of=said.said_at)

    def _liveness_puts(self, said: OwnerStatus) -> list[Write]:
        """The write of the signs of life, if the status has them. If it fails, the next renewal writes them."""
        return [self._liveness_put(said)] if said.ages_ms else []

    def _note_liveness(self, results: Sequence[WriteResult]) -> None:
        for result in results:
            if result.status is WriteStatus.STORED:
                self._liveness_cas = result.cas

    def _swap(
        self, next_offset: int, section: msgspec.Raw, status: OwnerStatus, rows: tuple[NodeRow, ...]
    ) -> Steps[None]:
        """Move the head to ``next_offset`` by CAS.

        First resolves the outcome of an earlier try whose reply was lost.
        """
        for _ in range(MAX_TRIES_COUNT):
            said = status.as_of(self.target.now())
            head = self._next_head(next_offset, section, said)
            put = self._head_put(head, said)._replace(rows=rows)
            self._intended = head
            try:
                reply = yield Step(write=[put, *self._liveness_puts(said)])
                require_stored(self.target, [put], [reply.written[0]])
            except (StoreFullError, ItemTooLargeError):
                self._intended = None  # the store rejected the write, so its outcome is known
                raise
            self._note_liveness(reply.written[1:])
            yield from self._resolve(head, reply.written[0])
            if self.head.next == head.next:
                return
            # The stored head is an older write of this owner that arrived late: continue from there.
        raise FencedError(self.target.partition, self.head.term, f"lost the head's CAS {MAX_TRIES_COUNT} times")

    def _resolve(self, head: Head, result: WriteResult) -> Steps[None]:
        """Process the result of a CAS of the head. Afterwards ``self.head`` is the stored head."""
        if result.status is WriteStatus.STORED:
            self.head, self._head_cas = head, result.cas
        elif result.status is WriteStatus.MISSING:
            self._intended = None
            raise EpochLostError(self.target.partition, head.epoch)
        else:
            self.conflicts += 1
            key = keys.head(self.target.prefix, head.epoch)
            reply = yield Step(fetch=[key])
            self.head, self._head_cas = self._own_head(reply.items.get(key))
        self._intended = None

    def _own_head(self, item: Item | None) -> tuple[Head, int]:
        """The stored head and its CAS id. Raises ``EpochLostError`` or ``FencedError`` unless this owner wrote it."""
        stored = sound_head(self.target.prefix, self.head.epoch, item, self._sections)
        if item is None or stored is None:
            raise EpochLostError(self.target.partition, self.head.epoch)
        if (stored.term, stored.beat) < (self.head.term, self.head.beat):
            # Older than a head that was stored: the database was set back to a backup, or replaced by a copy that lags
            # behind. The commits since are lost, and readers may have seen them.
            raise EpochLostError(self.target.partition, self.head.epoch)
        if (stored.term, stored.owner) != (self.head.term, self.head.owner):
            raise FencedError(self.target.partition, self.head.term, f"term {stored.term} of {stored.owner} took it")
        return stored, item.cas

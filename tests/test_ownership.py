"""The ownership of a partition: which owner may move the head, and how lost replies are resolved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import msgspec
import numpy as np
import pytest

from nodestate.errors import EpochLostError, FencedError, StoreFullError, StoreUnavailableError
from nodestate.ports import Put, Write, WriteResult
from nodestate.store import keys
from nodestate.store.epoch_removal import remove_epoch
from nodestate.store.head import EPOCH, HEAD, NEVER_HEARD, Head, TermStart, read_head, term_of, terms_from
from nodestate.store.liveness import LIVENESS, age_ms_of, ages_now
from nodestate.store.owner_status import OwnerStatus
from nodestate.store.ownership import Ownership, PartitionTarget
from nodestate.store.round_trips import Steps, run_one
from nodestate.testing import Fault, FaultyStore, ManualClock, MemoryServer, MemoryStore, script

T = TypeVar("T")
PREFIX = "ns:cell1:1.0:j"
LEASE_S = 100


class Section(msgspec.Struct, frozen=True, array_like=True):
    """A section that a design might store in a head."""

    text: str


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def server(clock: ManualClock) -> MemoryServer:
    return MemoryServer(clock=clock)


WELL = OwnerStatus(0, complete=True)


class Owner:
    """A process that owns the partition, or believes that it does. Its connection fails by script."""

    def __init__(
        self, server: MemoryServer, name: str, lease_s: int = LEASE_S, clock: ManualClock | None = None
    ) -> None:
        clock = clock or ManualClock()
        self.store = FaultyStore(MemoryStore(server, clock), script())
        self.place = PartitionTarget(PREFIX, 0, name, lease_s, self.store, clock)
        self.ownership: Ownership

    def run(self, steps: Steps[T], *faults: Fault | None) -> T:
        """Run steps, with one fault (None: success) for each call of the store in turn."""
        self.store.plan = script(*faults)
        return run_one(self.store, steps)

    def begin(self, epoch: int) -> Ownership:
        self.ownership = self.run(Ownership.begin_epoch(self.place, epoch, Section("begun"), WELL))
        return self.ownership

    def take(self) -> Ownership:
        taken = self.run(Ownership.take_over(self.place))
        assert taken is not None
        self.ownership = taken[0]
        return self.ownership

    def advance(self, text: str, *faults: Fault | None) -> bool:
        return self.run(self.ownership.advance(Section(text), WELL), *faults)

    def renew(self, *faults: Fault | None, says: OwnerStatus | None = None) -> bool:
        return self.run(self.ownership.renew(says or WELL), *faults)


def stored(server: MemoryServer) -> Head:
    found = run_one(MemoryStore(server), read_head(PREFIX, None))
    assert found is not None
    return found[0]


def text_of(head: Head) -> str:
    return msgspec.msgpack.decode(head.section, type=Section).text


UNKNOWN_DONE = Fault(done=None)
"""The writes are carried out without an answer."""
UNKNOWN_LATE = Fault(done=0, late=True)
"""The writes are under way still."""
LOST = Fault(done=0)


# -- taking and beginning -------------------------------------------------------------------------


def test_partition_without_a_head_cannot_be_taken_over(server: MemoryServer) -> None:
    """The absence of a head is an answer: the owner then begins an epoch."""
    owner = Owner(server, "a")
    assert owner.run(Ownership.take_over(owner.place)) is None


def test_takeover_raises_the_term_and_keeps_the_contents(server: MemoryServer) -> None:
    """The term fences the owner before; readers still see its commits."""
    Owner(server, "a").begin(7)
    Owner(server, "b").take()
    head = stored(server)
    assert (head.epoch, head.term, head.owner, head.next, text_of(head)) == (7, 2, "b", 1, "begun")


def test_owner_that_lost_its_partition_cannot_move_the_head(server: MemoryServer) -> None:
    """I7, the zombie: whatever it tries, the stored head stays as its successor wrote it."""
    zombie, heir = Owner(server, "a"), Owner(server, "b")
    zombie.begin(7)
    heir.take()
    heir.advance("heir's")
    before = server.fetch([keys.head(PREFIX, 7)])
    for attempt in (zombie.renew, lambda: zombie.advance("zombie's"), lambda: zombie.begin(8)):
        with pytest.raises(FencedError):
            attempt()
    assert server.fetch([keys.head(PREFIX, 7)]) == before
    assert stored(server).epoch == 7


def test_takeover_does_not_make_the_partition_look_fresher(server: MemoryServer, clock: ManualClock) -> None:
    """Regression (I5): the new owner's first head repeated the old ``behind_ms`` with a new time to live, so a backlog
    of an hour looked like one of a second.
    """
    owner = Owner(server, "a")
    owner.begin(7)
    owner.renew(says=OwnerStatus(250, complete=True))
    clock.advance(60)
    heir = Owner(server, "b").take()
    assert stored(server).behind_ms == 250 + 61_000
    assert heir.inherited_behind_ms == 250 + 61_000


def test_inherited_signs_of_life_are_older_by_the_time_since_their_writing(
    server: MemoryServer, clock: ManualClock
) -> None:
    """A silent node stays silent through a takeover."""
    owner = Owner(server, "a")
    owner.begin(7)
    owner.renew(says=OwnerStatus(0, complete=True, ages_ms=np.array([500, NEVER_HEARD], "<u4").tobytes()))
    clock.advance(10)
    ages = np.frombuffer(Owner(server, "b").take().inherited_ages_ms, "<u4").tolist()
    assert ages == [500 + 11_000, NEVER_HEARD]


def test_signs_of_life_written_with_another_lease_are_inherited_older_or_ignored(
    server: MemoryServer, clock: ManualClock
) -> None:
    """Regression: with a shorter lease than before, an age became negative and ended the consumer, again and again."""
    owner = Owner(server, "a")
    owner.begin(7)
    owner.renew(says=OwnerStatus(0, complete=True, ages_ms=np.array([500], "<u4").tobytes()))
    clock.advance(10)
    Owner(server, "b", LEASE_S // 5).take()
    assert Owner(server, "c", LEASE_S * 5).take().inherited_ages_ms == b""
    ages = np.frombuffer(Owner(server, "d").take().inherited_ages_ms, "<u4").tolist()
    assert ages == [500 + (5 * LEASE_S - (LEASE_S - 10) + 1) * 1000]


def test_second_epoch_that_begins_at_the_same_time_is_refused(server: MemoryServer) -> None:
    """Two owners found nothing, and both wrote an epoch. One of them gets the epoch key."""
    first, second = Owner(server, "a"), Owner(server, "b")
    moments = iter([lambda: first.begin(7)])

    def meanwhile(_operation: str, _count: int) -> None:
        for moment in moments:
            moment()

    second.store.plan = meanwhile
    with pytest.raises(FencedError):
        run_one(second.store, Ownership.begin_epoch(second.place, 8, Section("second's"), WELL))
    assert (stored(server).epoch, stored(server).owner) == (7, "a")


def test_owner_begins_another_epoch_after_its_own_was_lost(server: MemoryServer) -> None:
    """After a flush of the store, the owner still has everything in memory."""
    owner = Owner(server, "a")
    owner.begin(7)
    server.flush()
    with pytest.raises(EpochLostError):
        owner.advance("lost")
    owner.begin(8)
    assert (stored(server).epoch, stored(server).term) == (8, 1)


class LateClock(MemoryStore):
    """A connection whose estimate of the server's clock is from before a sleep of a minute."""

    def server_time_at(self, moment: float) -> float | None:
        server_time = super().server_time_at(moment)
        return server_time - 60.0 if server_time is not None else None


def head_in_the_future() -> tuple[MemoryServer, PartitionTarget]:
    """A server with the dated head of owner b, and the target of owner a, to which this head lies in the future."""
    clock = ManualClock()
    server = MemoryServer(clock=clock)
    clock.advance(100.0)
    owner = Owner(server, "b", clock=clock)
    owner.begin(7)
    owner.renew()  # asks for the server's clock
    owner.renew()
    assert stored(server).written_ms > 0
    return server, replace(Owner(server, "a", clock=clock).place, store=LateClock(server, clock))


def test_an_owner_that_slept_adds_no_design_over_a_head_that_seems_to_lie_in_the_future() -> None:
    """Another owner wrote it during the sleep. Its age is unknown, and memory from before must not replace it."""
    server, target = head_in_the_future()
    target = replace(target, owned_since=target.now() - 10.0)
    with pytest.raises(FencedError):
        run_one(target.store, Ownership.take_over(target))
    assert (stored(server).owner, stored(server).term) == ("b", 1)


def test_an_epoch_whose_head_seems_to_lie_in_the_future_is_not_removed_as_unused() -> None:
    """The server's machine was paused: its clock is behind the times of writing for a while."""
    server, target = head_in_the_future()
    with pytest.raises(FencedError):
        run_one(target.store, remove_epoch(target, rows=False, fresh_s=5.0))
    assert stored(server).owner == "b"


def test_removed_epoch_is_a_loss_to_readers_and_owner(server: MemoryServer) -> None:
    """A design that is no longer written must not look fresh, and its writer must notice."""
    owner = Owner(server, "a")
    owner.begin(7)
    owner.run(remove_epoch(owner.place, rows=False))
    assert run_one(MemoryStore(server), read_head(PREFIX, None)) is None


def test_epoch_that_another_owner_renews_is_not_removed(server: MemoryServer) -> None:
    """Neither a slow consumer nor an operator may remove it, because another owner took it back into use.

    Once it was not renewed for ``fresh_s``, it is removed.
    """
    owner, late = Owner(server, "a"), Owner(server, "b")
    owner.begin(7)
    with pytest.raises(FencedError):
        late.run(remove_epoch(late.place, rows=False, fresh_s=5.0))
    owner.run(remove_epoch(owner.place, rows=False, fresh_s=5.0))
    assert run_one(MemoryStore(server), read_head(PREFIX, None)) is None


# -- unknown outcomes -----------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [UNKNOWN_DONE, UNKNOWN_LATE, LOST], ids=["done", "late", "lost"])
def test_unanswered_advance_takes_effect_once(server: MemoryServer, fault: Fault) -> None:
    """The most important fault: when the commit is tried again it is stored exactly once, whatever happened to the
    first try.
    """
    owner = Owner(server, "a")
    owner.begin(7)
    with pytest.raises(StoreUnavailableError):
        owner.advance("one", fault)
    owner.advance("one")
    owner.store.arrive()
    owner.advance("two")
    assert (stored(server).next, text_of(stored(server))) == (3, "two")


def test_advance_that_arrives_during_its_retry_takes_effect_once(server: MemoryServer) -> None:
    """The delayed packet overtakes its own repetition."""
    owner = Owner(server, "a")
    owner.begin(7)
    with pytest.raises(StoreUnavailableError):
        owner.advance("one", UNKNOWN_LATE)
    owner.store.arrive()
    owner.advance("one")
    assert (stored(server).next, text_of(stored(server))) == (2, "one")


def test_late_renewal_does_not_undo_a_commit(server: MemoryServer) -> None:
    """It carries the head from before the commit, so its CAS id must be stale."""
    owner = Owner(server, "a")
    owner.begin(7)
    with pytest.raises(StoreUnavailableError):
        owner.renew(UNKNOWN_LATE)
    owner.advance("one")
    owner.store.arrive()
    assert (stored(server).next, text_of(stored(server))) == (2, "one")
    owner.advance("two")
    assert (stored(server).next, text_of(stored(server))) == (3, "two")


def test_renewal_that_arrives_before_a_commit_does_not_prevent_it(server: MemoryServer) -> None:
    """The owner recognizes its own write by term, owner and beat, and continues from there."""
    owner = Owner(server, "a")
    owner.begin(7)
    with pytest.raises(StoreUnavailableError):
        owner.renew(UNKNOWN_LATE)
    owner.store.arrive()
    owner.advance("one")
    assert (stored(server).next, text_of(stored(server)), owner.ownership.conflicts) == (2, "one", 1)


def test_renewal_waits_while_the_outcome_of_an_advance_is_unknown(server: MemoryServer) -> None:
    """It does not know which head it would confirm."""
    owner = Owner(server, "a")
    owner.begin(7)
    with pytest.raises(StoreUnavailableError):
        owner.advance("one", UNKNOWN_LATE)
    beat = stored(server).beat
    assert owner.renew() is False
    assert stored(server).beat == beat


@pytest.mark.parametrize("fault", [UNKNOWN_DONE, UNKNOWN_LATE, LOST], ids=["done", "late", "lost"])
@pytest.mark.parametrize("call", range(6))
def test_epoch_begins_again_after_any_of_its_calls_was_unanswered(
    server: MemoryServer, fault: Fault, call: int
) -> None:
    """The owner chooses another epoch number and begins again.

    In the end there is one epoch, and nothing of the first is used.
    """
    owner = Owner(server, "a")
    faults = [None] * call + [fault]
    try:
        owner.run(Ownership.begin_epoch(owner.place, 7, Section("first"), WELL), *faults)
        epoch = 7
    except StoreUnavailableError:
        owner.begin(8)
        epoch = 8
    owner.store.arrive()
    owner.ownership = owner.take()
    assert (stored(server).epoch, stored(server).term) == (epoch, 2)


@pytest.mark.parametrize("fault", [UNKNOWN_DONE, UNKNOWN_LATE, LOST], ids=["done", "late", "lost"])
def test_unanswered_takeover_is_repeated(server: MemoryServer, fault: Fault) -> None:
    """Terms may be skipped; they must not repeat."""
    Owner(server, "a").begin(7)
    heir = Owner(server, "b")
    with pytest.raises(StoreUnavailableError):
        heir.run(Ownership.take_over(heir.place), None, None, fault)
    heir.take()
    heir.store.arrive()
    heir.advance("one")
    assert (stored(server).owner, stored(server).next) == ("b", 2)


def test_full_store_refuses_a_commit_and_keeps_the_head(clock: ManualClock) -> None:
    """The failed write keeps the old value (I5), and the error names the key."""
    server = MemoryServer(clock=clock, max_bytes=600, no_evict=True)
    owner = Owner(server, "a")
    owner.begin(7)
    before = stored(server)
    with pytest.raises(StoreFullError) as caught:
        owner.advance("x" * 300)
    assert caught.value.key == keys.head(PREFIX, 7)
    assert stored(server) == before
    owner.advance("small")
    assert text_of(stored(server)) == "small"


# -- what the store loses -------------------------------------------------------------------------


def test_next_renewal_writes_a_lost_epoch_key_again(server: MemoryServer) -> None:
    """One evicted key of twenty bytes must not cost an epoch. Readers that know the epoch continue meanwhile."""
    owner = Owner(server, "a")
    owner.begin(7)
    server.evict(keys.epoch(PREFIX))
    assert run_one(MemoryStore(server), read_head(PREFIX, None)) is None
    known = run_one(MemoryStore(server), read_head(PREFIX, 7))
    assert known is not None
    owner.renew()
    assert stored(server) == owner.ownership.head


@pytest.mark.parametrize("act", ["advance", "renew", "require_still_owned"])
def test_lost_head_is_a_lost_epoch(server: MemoryServer, act: str) -> None:
    """Nothing else in the store can be trusted without the head."""
    owner = Owner(server, "a")
    owner.begin(7)
    server.evict(keys.head(PREFIX, 7))
    steps: dict[str, Callable[[], object]] = {
        "advance": lambda: owner.advance("x"),
        "renew": owner.renew,
        "require_still_owned": lambda: owner.run(owner.ownership.require_still_owned()),
    }
    with pytest.raises(EpochLostError):
        steps[act]()


def test_corrupt_head_is_a_lost_epoch(server: MemoryServer) -> None:
    """Damaged bytes count as missing, and never decode to a wrong head."""
    owner = Owner(server, "a")
    owner.begin(7)
    key = keys.head(PREFIX, 7)
    cas = server.fetch([key])[key].cas
    server.write([Write(Put.CAS, key, b"N\x02garbage garbage", cas)])
    with pytest.raises(EpochLostError):
        owner.advance("x")
    assert owner.run(Ownership.take_over(owner.place)) is None


def test_cas_id_from_before_a_restart_cannot_match_the_next_epoch(server: MemoryServer) -> None:
    """CAS ids start again at 1, so an owner from before may hold a matching number by chance. It uses another key."""
    zombie = Owner(server, "a")
    zombie.begin(7)
    server.restart()
    heir = Owner(server, "b")
    heir.begin(8)
    zombie.ownership._head_cas = (
        heir.ownership._head_cas
    )  # the coincidence that this is about: no store is relied on for it
    for attempt in (lambda: zombie.advance("zombie's"), zombie.renew):
        with pytest.raises(EpochLostError):
            attempt()
    with pytest.raises(FencedError):
        zombie.begin(9)
    assert (stored(server).epoch, text_of(stored(server))) == (8, "begun")


def test_owner_gets_a_readers_repair_request_once(server: MemoryServer) -> None:
    """The renewal that sees the request deletes it."""
    owner = Owner(server, "a")
    owner.begin(7)
    server.write([Write(Put.ADD, keys.repair(PREFIX), b"something")])
    assert [owner.renew(), owner.renew()] == [True, False]


def test_epoch_key_of_another_owner_fences_this_one(server: MemoryServer) -> None:
    """This owner's head still exists, but readers no longer follow it."""
    owner = Owner(server, "a")
    owner.begin(7)
    server.evict(keys.epoch(PREFIX))
    server.write([Write(Put.ADD, keys.epoch(PREFIX), EPOCH.pack(9))])
    with pytest.raises(FencedError):
        owner.renew()


def test_owner_replaces_signs_of_life_that_a_zombie_wrote(server: MemoryServer) -> None:
    """A zombie's packet may have changed the item. The owner writes its own by the second renewal after that."""
    owner = Owner(server, "a")
    owner.begin(7)
    key = keys.life(PREFIX, 7)
    mine = np.array([1], "<u4").tobytes()
    owner.renew(says=OwnerStatus(0, complete=True, ages_ms=mine))
    server.write([Write(Put.CAS, key, b"a zombie's", server.fetch([key])[key].cas)])
    owner.renew(says=OwnerStatus(0, complete=True, ages_ms=mine))
    owner.renew(says=OwnerStatus(0, complete=True, ages_ms=mine))
    assert LIVENESS.unpack(server.fetch([key])[key].value).ages_ms == mine


# -- terms ----------------------------------------------------------------------------------------


def test_term_of_a_commit_is_that_of_the_owner_at_its_offset() -> None:
    """Keys of segments and stamps contain the term: a wrong one would look like a missing segment."""
    terms = (TermStart(1, 1), TermStart(3, 5), TermStart(4, 5), TermStart(6, 9))
    assert [term_of(terms, n) for n in (1, 4, 5, 8, 9, 100)] == [1, 1, 4, 4, 6, 6]


def test_terms_before_the_first_kept_commit_are_dropped() -> None:
    """Otherwise the list would grow with every takeover for ever."""
    terms = (TermStart(1, 1), TermStart(3, 5), TermStart(4, 5), TermStart(6, 9))
    assert terms_from(terms, 5) == (TermStart(4, 5), TermStart(6, 9))
    assert terms_from(terms, 7) == (TermStart(4, 7), TermStart(6, 9))
    assert terms_from(terms, 9) == (TermStart(6, 9),)


def test_owner_status_ages_until_it_is_written(server: MemoryServer, clock: ManualClock) -> None:
    """Regression (I5): the status was computed at the start of a step, and a step may wait for another server."""
    owner = Owner(server, "a", clock=clock)
    owner.begin(7)
    said = OwnerStatus(250, complete=True, said_at=clock.monotonic())
    clock.advance(1.5)
    owner.renew(says=said)
    assert stored(server).behind_ms == 1_750


class FreezingStore(MemoryStore):
    """A connection whose process freezes when it begins a write, and goes on later."""

    def __init__(self, server: MemoryServer, clock: ManualClock, freeze_s: float) -> None:
        super().__init__(server, clock)
        self._freeze_s = freeze_s
        self._process_clock = clock

    def write(self, writes: Sequence[Write]) -> list[WriteResult]:
        self._process_clock.advance(self._freeze_s)
        return super().write(writes)


FROZEN_WRITES: dict[str, Callable[[PartitionTarget, Ownership], Steps[Any]]] = {
    "begin_epoch": lambda place, _: Ownership.begin_epoch(place, 8, Section("begun"), WELL),
    "take_over": lambda place, _: Ownership.take_over(place),
    "advance": lambda _, ownership: ownership.advance(Section("more"), WELL),
    "renew": lambda _, ownership: ownership.renew(OwnerStatus(0, complete=True, ages_ms=bytes(4))),
}


@pytest.mark.parametrize("what", FROZEN_WRITES)
def test_an_owner_that_freezes_between_packing_and_sending_makes_nothing_look_younger(
    server: MemoryServer, clock: ManualClock, what: str
) -> None:
    """I5: a head's age and its time to live come from one reading of the clock, also for signs of life."""
    owner = Owner(server, "a", clock=clock)
    owner.begin(7)
    store = FreezingStore(server, clock, 20.0)
    place = PartitionTarget(PREFIX, 0, "a", LEASE_S, store, clock)
    owner.ownership.target = place
    said_at = clock.monotonic()
    run_one(store, FROZEN_WRITES[what](place, owner.ownership))
    reading = MemoryStore(server, clock)
    found = run_one(reading, read_head(PREFIX, None))
    assert found is not None
    head, item = found
    assert age_ms_of(head, item, reading, clock.monotonic()) + head.behind_ms >= (clock.monotonic() - said_at) * 1000
    if what == "renew":
        item = server.fetch([keys.life(PREFIX, 7)])[keys.life(PREFIX, 7)]
        [age_ms] = np.frombuffer(ages_now("life", item, LEASE_S, reading, clock.monotonic()), "<u4").tolist()
        assert age_ms >= (clock.monotonic() - said_at) * 1000


def test_head_survives_encoding_and_decoding() -> None:
    """With a different value in each field."""
    head = Head(1, 2, "o", 3, 4, 5, vouched=True, lease_s=6, section=msgspec.Raw(b"\x90"))
    assert HEAD.unpack(HEAD.pack(head)) == head

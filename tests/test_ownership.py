"""The head of a partition: who may move it, and what a lost reply leaves to be settled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec
import numpy as np
import pytest

from nodestate.errors import EpochLostError, FencedError, StoreFullError, StoreUnavailableError
from nodestate.ports import Put, Write
from nodestate.store import keys
from nodestate.store.head import EPOCH, HEAD, Head, TermStart, read_head, term_of, terms_from
from nodestate.store.liveness import LIVENESS, NEVER_HEARD
from nodestate.store.ownership import Ownership, OwnerStatus, PartitionTarget, remove_epoch
from nodestate.store.round_trips import Steps, run_one
from nodestate.testing import Fault, FaultyStore, ManualClock, MemoryServer, MemoryStore, script

T = TypeVar("T")
PREFIX = "ns:cell1:1.0:j"
LEASE_S = 100


class Section(msgspec.Struct, frozen=True, array_like=True):
    """What a design might store in a head."""

    text: str


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def server(clock: ManualClock) -> MemoryServer:
    return MemoryServer(clock=clock)


WELL = OwnerStatus(0, complete=True)


class Owner:
    """One process that owns, or thinks it owns, the partition; its connection fails by script."""

    def __init__(
        self, server: MemoryServer, name: str, lease_s: int = LEASE_S, clock: ManualClock | None = None
    ) -> None:
        self.store = FaultyStore(MemoryStore(server), script())
        self.place = PartitionTarget(PREFIX, 0, name, lease_s, self.store, clock or ManualClock())
        self.ownership: Ownership

    def run(self, steps: Steps[T], *faults: Fault | None) -> T:
        """Carry out steps; one fault (None: a good call) for each call of the store in turn."""
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
"""The writes are carried out, and nobody is told."""
UNKNOWN_LATE = Fault(done=0, late=True)
"""The writes are under way still."""
LOST = Fault(done=0)


# -- taking and beginning -------------------------------------------------------------------------


def test_nothing_stored_can_not_be_taken(server: MemoryServer) -> None:
    """Absence is an answer: the owner begins an epoch then."""
    owner = Owner(server, "a")
    assert owner.run(Ownership.take_over(owner.place)) is None


def test_a_take_raises_the_term_and_leaves_the_contents(server: MemoryServer) -> None:
    """The term fences the owner before; what it committed stays what readers see."""
    Owner(server, "a").begin(7)
    Owner(server, "b").take()
    head = stored(server)
    assert (head.epoch, head.term, head.owner, head.next, text_of(head)) == (7, 2, "b", 1, "begun")


def test_an_owner_that_lost_its_partition_moves_nothing(server: MemoryServer) -> None:
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


def test_a_takeover_does_not_make_the_partition_look_fresher(server: MemoryServer, clock: ManualClock) -> None:
    """Regression (I5): the new owner's first head repeated the old one's ``behind_ms`` under a time to live that began
    anew, so an hour's backlog passed for a second's."""
    owner = Owner(server, "a")
    owner.begin(7)
    owner.renew(says=OwnerStatus(250, complete=True))
    clock.advance(60)
    heir = Owner(server, "b").take()
    assert stored(server).behind_ms == 250 + 61_000
    assert heir.inherited_behind_ms == 250 + 61_000


def test_signs_of_life_are_inherited_older_by_the_time_since(server: MemoryServer, clock: ManualClock) -> None:
    """A node that was silent stays so through a takeover."""
    owner = Owner(server, "a")
    owner.begin(7)
    owner.renew(says=OwnerStatus(0, complete=True, ages_ms=np.array([500, NEVER_HEARD], "<u4").tobytes()))
    clock.advance(10)
    ages = np.frombuffer(Owner(server, "b").take().inherited_ages_ms, "<u4").tolist()
    assert ages == [500 + 11_000, NEVER_HEARD]


def test_signs_of_life_of_another_lease_are_inherited_older_or_not_at_all(
    server: MemoryServer, clock: ManualClock
) -> None:
    """Regression: with a shorter lease than before, an age came out negative and ended the consumer, again and again."""
    owner = Owner(server, "a")
    owner.begin(7)
    owner.renew(says=OwnerStatus(0, complete=True, ages_ms=np.array([500], "<u4").tobytes()))
    clock.advance(10)
    Owner(server, "b", LEASE_S // 5).take()
    assert Owner(server, "c", LEASE_S * 5).take().inherited_ages_ms == b""
    ages = np.frombuffer(Owner(server, "d").take().inherited_ages_ms, "<u4").tolist()
    assert ages == [500 + (5 * LEASE_S - (LEASE_S - 10) + 1) * 1000]


def test_a_second_beginning_at_the_same_time_is_refused(server: MemoryServer) -> None:
    """Two owners found nothing, and both wrote an epoch: the epoch key goes to one."""
    first, second = Owner(server, "a"), Owner(server, "b")
    moments = iter([lambda: first.begin(7)])

    def meanwhile(_operation: str, _count: int) -> None:
        for moment in moments:
            moment()

    second.store.plan = meanwhile
    with pytest.raises(FencedError):
        run_one(second.store, Ownership.begin_epoch(second.place, 8, Section("second's"), WELL))
    assert (stored(server).epoch, stored(server).owner) == (7, "a")


def test_an_owner_begins_again_after_its_own_epoch_was_lost(server: MemoryServer) -> None:
    """A flush of the store: the owner still holds everything in memory."""
    owner = Owner(server, "a")
    owner.begin(7)
    server.flush()
    with pytest.raises(EpochLostError):
        owner.advance("lost")
    owner.begin(8)
    assert (stored(server).epoch, stored(server).term) == (8, 1)


def test_an_epoch_that_is_forgotten_is_a_loss_to_all(server: MemoryServer) -> None:
    """A design that is no longer written must not go on passing for fresh, and its writer must notice."""
    owner = Owner(server, "a")
    owner.begin(7)
    owner.run(remove_epoch(owner.place, rows=False))
    assert run_one(MemoryStore(server), read_head(PREFIX, None)) is None


def test_what_another_owner_keeps_up_is_not_forgotten_by_who_was_slow(server: MemoryServer) -> None:
    """Nor by an operator: somebody took it back into use. It is when nobody renewed it for as long as was said."""
    owner, late = Owner(server, "a"), Owner(server, "b")
    owner.begin(7)
    with pytest.raises(FencedError):
        late.run(remove_epoch(late.place, rows=False, fresh_s=5.0))
    owner.run(remove_epoch(owner.place, rows=False, fresh_s=5.0))
    assert run_one(MemoryStore(server), read_head(PREFIX, None)) is None


# -- unknown outcomes -----------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [UNKNOWN_DONE, UNKNOWN_LATE, LOST], ids=["done", "late", "lost"])
def test_an_advance_that_was_not_answered_is_carried_out_once(server: MemoryServer, fault: Fault) -> None:
    """The row that matters most: tried again, the same commit is there exactly once, whatever became of the first."""
    owner = Owner(server, "a")
    owner.begin(7)
    with pytest.raises(StoreUnavailableError):
        owner.advance("one", fault)
    owner.advance("one")
    owner.store.arrive()
    owner.advance("two")
    assert (stored(server).next, text_of(stored(server))) == (3, "two")


def test_an_advance_that_arrives_while_it_is_tried_again_is_carried_out_once(server: MemoryServer) -> None:
    """The delayed packet wins the race against its own repetition."""
    owner = Owner(server, "a")
    owner.begin(7)
    with pytest.raises(StoreUnavailableError):
        owner.advance("one", UNKNOWN_LATE)
    owner.store.arrive()
    owner.advance("one")
    assert (stored(server).next, text_of(stored(server))) == (2, "one")


def test_a_renewal_that_arrives_late_does_not_undo_a_commit(server: MemoryServer) -> None:
    """It carries the head as of before the commit: its CAS id has to be stale."""
    owner = Owner(server, "a")
    owner.begin(7)
    with pytest.raises(StoreUnavailableError):
        owner.renew(UNKNOWN_LATE)
    owner.advance("one")
    owner.store.arrive()
    assert (stored(server).next, text_of(stored(server))) == (2, "one")
    owner.advance("two")
    assert (stored(server).next, text_of(stored(server))) == (3, "two")


def test_a_renewal_that_arrives_first_does_not_stop_a_commit(server: MemoryServer) -> None:
    """The owner recognises its own write by term, owner and beat, and goes on from there."""
    owner = Owner(server, "a")
    owner.begin(7)
    with pytest.raises(StoreUnavailableError):
        owner.renew(UNKNOWN_LATE)
    owner.store.arrive()
    owner.advance("one")
    assert (stored(server).next, text_of(stored(server)), owner.ownership.conflicts) == (2, "one", 1)


def test_while_an_advance_is_unsettled_a_renewal_stands_back(server: MemoryServer) -> None:
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
def test_any_call_of_a_beginning_may_go_unanswered(server: MemoryServer, fault: Fault, call: int) -> None:
    """The owner draws another epoch and begins again; there is one epoch in the end, and nothing of the first stays."""
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
def test_a_take_that_was_not_answered_is_taken_again(server: MemoryServer, fault: Fault) -> None:
    """Terms may be skipped; they must not repeat."""
    Owner(server, "a").begin(7)
    heir = Owner(server, "b")
    with pytest.raises(StoreUnavailableError):
        heir.run(Ownership.take_over(heir.place), None, None, fault)
    heir.take()
    heir.store.arrive()
    heir.advance("one")
    assert (stored(server).owner, stored(server).next) == ("b", 2)


def test_a_full_store_refuses_a_commit_and_keeps_the_head(clock: ManualClock) -> None:
    """The failed write leaves what was there (I5); the error says which key found no room."""
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


def test_a_lost_epoch_key_is_put_back_by_the_next_renewal(server: MemoryServer) -> None:
    """One evicted key of twenty bytes must not cost an epoch; readers that know the epoch go on meanwhile."""
    owner = Owner(server, "a")
    owner.begin(7)
    server.evict(keys.epoch(PREFIX))
    assert run_one(MemoryStore(server), read_head(PREFIX, None)) is None
    known = run_one(MemoryStore(server), read_head(PREFIX, 7))
    assert known is not None
    owner.renew()
    assert stored(server) == owner.ownership.head


@pytest.mark.parametrize("act", ["advance", "renew", "require_still_owned"])
def test_a_lost_head_is_a_lost_epoch(server: MemoryServer, act: str) -> None:
    """Nothing else in the store can be trusted without it."""
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


def test_a_corrupt_head_is_a_lost_one(server: MemoryServer) -> None:
    """Torn bytes are a miss, never a half-right head."""
    owner = Owner(server, "a")
    owner.begin(7)
    key = keys.head(PREFIX, 7)
    cas = server.fetch([key])[key].cas
    server.write([Write(Put.CAS, key, b"N\x02garbage garbage", cas)])
    with pytest.raises(EpochLostError):
        owner.advance("x")
    assert owner.run(Ownership.take_over(owner.place)) is None


def test_a_cas_id_of_before_a_restart_can_not_hit_the_epoch_of_after(server: MemoryServer) -> None:
    """CAS ids start again at 1, so an owner of before may hold the right number by accident: its key is another."""
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


def test_a_reader_s_repair_is_told_to_the_owner_once(server: MemoryServer) -> None:
    """It is taken away with the renewal that sees it."""
    owner = Owner(server, "a")
    owner.begin(7)
    server.write([Write(Put.ADD, keys.repair(PREFIX), b"something")])
    assert [owner.renew(), owner.renew()] == [True, False]


def test_an_epoch_key_that_another_owner_wrote_fences(server: MemoryServer) -> None:
    """Our head is still there, but no reader follows it any more."""
    owner = Owner(server, "a")
    owner.begin(7)
    server.evict(keys.epoch(PREFIX))
    server.write([Write(Put.ADD, keys.epoch(PREFIX), EPOCH.pack(9))])
    with pytest.raises(FencedError):
        owner.renew()


def test_signs_of_life_survive_whoever_wrote_them_last(server: MemoryServer) -> None:
    """A zombie's packet may have changed the item under its owner: the renewal after the next writes it again."""
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


def test_a_commit_s_term_is_that_of_the_last_owner_before_it() -> None:
    """Segments and stamps carry their term in their names: a wrong one reads as a hole."""
    terms = (TermStart(1, 1), TermStart(3, 5), TermStart(4, 5), TermStart(6, 9))
    assert [term_of(terms, n) for n in (1, 4, 5, 8, 9, 100)] == [1, 1, 4, 4, 6, 6]


def test_terms_of_what_was_trimmed_are_dropped() -> None:
    """The list would grow with every takeover for ever."""
    terms = (TermStart(1, 1), TermStart(3, 5), TermStart(4, 5), TermStart(6, 9))
    assert terms_from(terms, 5) == (TermStart(4, 5), TermStart(6, 9))
    assert terms_from(terms, 7) == (TermStart(4, 7), TermStart(6, 9))
    assert terms_from(terms, 9) == (TermStart(6, 9),)


def test_what_an_owner_says_gets_older_until_it_is_written(server: MemoryServer, clock: ManualClock) -> None:
    """Regression (I5): vitals were worked out at the start of a step, and a step may wait for another server."""
    owner = Owner(server, "a", clock=clock)
    owner.begin(7)
    said = OwnerStatus(250, complete=True, said_at=clock.monotonic())
    clock.advance(1.5)
    owner.renew(says=said)
    assert stored(server).behind_ms == 1_750


def test_a_head_survives_its_bytes() -> None:
    """The round trip, with all fields different."""
    head = Head(1, 2, "o", 3, 4, 5, vouched=True, lease_s=6, section=msgspec.Raw(b"\x90"))
    assert HEAD.unpack(HEAD.pack(head)) == head

"""The database design: a commit's head and rows are one, and what happens when others remove them or set them back."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import pytest

from nodestate.errors import DatabaseFullError, EpochLostError, FencedError, StoreUnavailableError
from nodestate.ports import NodeRow, Put, Write
from nodestate.sql.writer import MAX_SILENT_S
from nodestate.store import keys
from nodestate.store.head import read_head
from nodestate.store.round_trips import run_one
from nodestate.testing import Fault, ManualClock, MemoryDatabase, MemoryStore, script
from tests.machines.world import at_call, small_limits
from tests.partition_owner import LEASE_S, WELL, Owner, Watcher, change, held, prefix_of, report

D = prefix_of("sql")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def database(clock: ManualClock) -> MemoryDatabase:
    return MemoryDatabase(clock=clock)


@pytest.fixture
def owner(database: MemoryDatabase, clock: ManualClock) -> Owner:
    owner = Owner("sql", database, clock)
    owner.begin()
    return owner


@pytest.fixture
def watcher(database: MemoryDatabase, clock: ManualClock) -> Watcher:
    return Watcher("sql", database, clock)


@pytest.fixture
def tight() -> Iterator[None]:
    with small_limits():
        yield


def head_of(database: MemoryDatabase) -> tuple[int, int, int]:
    """Epoch, term and next offset."""
    found = run_one(MemoryStore(database), read_head(D, None))
    assert found is not None
    head, _ = found
    return head.epoch, head.term, head.next


# -- following ------------------------------------------------------------------------------------


def test_a_reader_that_follows_gets_just_what_changed_in_one_round_trip(
    owner: Owner, watcher: Watcher, database: MemoryDatabase
) -> None:
    """Cost follows change: of a hundred nodes two changed, one of them twice."""
    owner.commit(*[report(f"n{n}", 1) for n in range(100)])
    watcher.look()
    owner.commit(change("n3", 2, zone="a"))
    owner.commit(change("n3", 3, zone="b"), change("n7", 2, zone="c"))
    assert {row.slot for row in database.rows(D) if row.offset >= 2} == {3, 7}
    assert held(watcher.look()) == owner.records
    assert watcher.fetches == [3]
    watcher.look()
    assert watcher.fetches == [3]


@pytest.mark.usefixtures("tight")
@pytest.mark.parametrize("behind", [1, 2, 6, 30])
def test_a_reader_may_be_behind_by_any_number_of_commits(
    owner: Owner, watcher: Watcher, database: MemoryDatabase, clock: ManualClock, behind: int
) -> None:
    """With nodes that changed, others that appeared, and a first load in several parts beside it."""
    owner.commit(report("n", 1), report("m", 1))
    watcher.look()
    for generation in range(2, 2 + behind):
        owner.commit(change("n", generation, zone=f"z{generation}"), report(f"new-{generation}", 1))
    for follower in (watcher, Watcher("sql", database, clock)):
        state = follower.look()
        assert (held(state), state.lost) == (owner.records, "")


@pytest.mark.usefixtures("tight")
def test_commits_in_the_midst_of_a_first_load_do_not_tear_it(
    owner: Owner, database: MemoryDatabase, clock: ManualClock
) -> None:
    """I3: its parts are read one after the other, while nodes change and appear. Nothing is older than the head said, and
    the next look has all of it."""
    owner.commit(*[report(f"n{n}", 1) for n in range(7)])
    generations = iter(range(2, 100))

    def meanwhile() -> None:
        generation = next(generations)
        if generation < 8:
            owner.commit(change("n0", generation, zone="z"), report(f"new-{generation}", 1))

    database.before_rows = meanwhile
    late = Watcher("sql", database, clock)
    state = late.look()
    database.before_rows = None
    assert state.lost == ""
    assert state.table is not None
    assert state.table.offset == 2
    assert len(held(state)) >= 7
    assert (held(late.look()), late.look().lost) == (owner.records, "")


@pytest.mark.parametrize("what", ["removed", "set back"])
def test_rows_that_are_not_those_of_the_head_do_not_pass_for_them(
    owner: Owner, watcher: Watcher, database: MemoryDatabase, what: str
) -> None:
    """Regression (I3, I5): between the head and the rows the owner began another epoch and removed these, or the database
    was set back. No row came, which passed for 'nothing changed'."""
    owner.commit(report("n", 1, zone="old"))
    backup = database.backup()
    before = watcher.look()
    owner.commit(change("n", 2, zone="new"))
    calls = iter(range(100))

    def meanwhile() -> None:
        if next(calls) == 0:
            if what == "removed":
                owner.begin(8)
            else:
                database.restore(backup)

    database.before_rows = meanwhile
    state = watcher.look()
    if what == "removed":
        assert (held(state), state.lost) == (owner.records, "")
        assert state.table is not None
        assert state.table.epoch == 8
    else:
        assert (held(state), state.table) == (held(before), before.table)


# -- owning ---------------------------------------------------------------------------------------


def test_a_fenced_owner_changes_nothing(
    owner: Owner, database: MemoryDatabase, watcher: Watcher, clock: ManualClock
) -> None:
    """I7: neither the head nor a row, whatever it tries; and its heir does not notice."""
    owner.commit(report("n", 1, zone="old"), report("m", 1))
    heir = Owner("sql", database, clock, "heir")
    heir.take()
    heir.commit(change("n", 2, zone="heir's"))
    before, rows = head_of(database), database.rows(D)
    with pytest.raises(FencedError):
        owner.renew()
    with pytest.raises(FencedError):
        owner.commit(change("n", 2, zone="zombie's"), report("zombie-s", 1))
    for attempt in (owner.again, owner.repair, owner.begin):
        with pytest.raises(FencedError):
            attempt()
    assert (head_of(database), database.rows(D)) == (before, rows)
    heir.commit(change("m", 2, zone="heir's"))
    assert held(watcher.look()) == heir.records


@pytest.mark.parametrize("fault", [Fault(0), Fault(None), Fault(0, late=True)], ids=["lost", "done", "late"])
@pytest.mark.parametrize("call", range(3))
def test_a_commit_that_went_unanswered_is_there_once(
    owner: Owner, database: MemoryDatabase, watcher: Watcher, clock: ManualClock, fault: Fault, call: int
) -> None:
    """The row that matters most: carried out, never, or later than the next try; and no offset is used twice."""
    owner.commit(report("n", 1))
    for generation in range(2, 12):
        events = [change("n", generation, zone=f"z{generation}"), report(f"new-{generation}", 1)]
        try:
            owner.commit(*events, plan=at_call(call, fault))
        except StoreUnavailableError:
            owner.again()
        owner.store.arrive()
        assert head_of(database) == (7, 1, generation + 1)
        for follower in (watcher, Watcher("sql", database, clock)):
            state = follower.look()
            assert (held(state), state.lost) == (owner.records, "")
    assert len(database.rows(D)) == len(owner.records)


def test_a_write_that_arrives_after_a_takeover_changes_nothing(
    owner: Owner, database: MemoryDatabase, watcher: Watcher, clock: ManualClock
) -> None:
    """I7: it was under way while its sender froze."""
    owner.commit(report("n", 1, zone="old"))
    with pytest.raises(StoreUnavailableError):
        owner.commit(change("n", 2, zone="late"), plan=script(Fault(0, late=True)))
    heir = Owner("sql", database, clock, "heir")
    heir.take()
    rows = database.rows(D)
    owner.store.arrive()
    assert database.rows(D) == rows
    assert held(watcher.look()) == heir.records


def test_an_heir_goes_on_where_the_owner_stopped(
    owner: Owner, database: MemoryDatabase, watcher: Watcher, clock: ManualClock
) -> None:
    """In the same epoch, with what was vouched for; readers follow across the takeover in one round trip."""
    owner.commit(report("n", 1), report("m", 1))
    owner.commit(change("n", 2, zone="a"))
    watcher.look()
    clock.advance(20)
    heir = Owner("sql", database, clock, "heir")
    taken = heir.take()
    assert taken is not None
    assert (taken.records, taken.complete, taken.whole) == (owner.records, True, True)
    assert taken.behind_ms is not None
    assert 20_000 <= taken.behind_ms <= 21_000
    heir.commit(change("m", 2, zone="b"), report("new", 1))
    assert head_of(database) == (7, 2, 4)
    assert held(watcher.look()) == heir.records
    assert watcher.fetches == [3]


def test_a_new_epoch_removes_the_rows_of_those_before(owner: Owner, database: MemoryDatabase) -> None:
    """A database loses nothing by itself, so somebody has to."""
    owner.commit(report("n", 1), report("m", 1))
    other = NodeRow("ns:cell1:8.1:d", 3, 0, 0, owner.records[0])
    database.write([Write(Put.ADD, "other", rows=(other,))])
    owner.begin(8)
    assert [(row.epoch, row.slot, row.offset) for row in database.rows(D)] == [(8, 0, 0), (8, 1, 0)]
    assert database.rows("ns:cell1:8.1:d") == [other]


def test_an_epoch_whose_former_rows_could_not_be_removed_is_begun_all_the_same(
    owner: Owner, database: MemoryDatabase, watcher: Watcher
) -> None:
    """They are nobody's; a second begin would ask all agents again. The next one removes them."""
    owner.commit(report("n", 1))
    is_delete = iter([False, False, True])
    owner.run(
        owner.writer.begin_epoch(8, owner, WELL),
        lambda operation, _count: Fault(0) if operation == "write" and next(is_delete) else None,
    )
    assert {row.epoch for row in database.rows(D)} == {7, 8}
    assert held(watcher.look()) == owner.records
    owner.commit(change("n", 2, zone="a"))
    owner.begin(9)
    assert {row.epoch for row in database.rows(D)} == {9}
    assert held(watcher.look()) == owner.records


@pytest.mark.parametrize("call", range(6))
@pytest.mark.parametrize("fault", [Fault(0), Fault(None), Fault(0, late=True)], ids=["lost", "done", "late"])
def test_a_begin_that_went_unanswered_anywhere_is_begun_again(
    database: MemoryDatabase, watcher: Watcher, clock: ManualClock, call: int, fault: Fault
) -> None:
    """Under another epoch, as consumers do; what the first left behind counts for nobody."""
    owner = Owner("sql", database, clock)
    try:
        owner.run(owner.writer.begin_epoch(7, owner, WELL), at_call(call, fault))
    except StoreUnavailableError:
        owner.begin(8)
    owner.store.arrive()
    owner.commit(report("n", 1))
    assert held(watcher.look()) == owner.records
    owner.commit(change("n", 2, zone="a"))
    assert held(watcher.look()) == owner.records


# -- loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [keys.head(D, 7), keys.epoch(D)], ids=["head", "epoch key"])
def test_a_lost_head_or_epoch_key_is_seen_and_healed(
    owner: Owner, database: MemoryDatabase, watcher: Watcher, key: str
) -> None:
    """Somebody deleted a row that is not theirs: a new reader is refused; the owner puts back the epoch key, and begins
    anew without the head."""
    owner.commit(report("n", 1))
    database.evict(key)
    state = watcher.look()
    assert (held(state), state.lost != "") == ([], True)
    try:
        owner.renew()
    except EpochLostError:
        owner.begin(8)
    assert held(watcher.look()) == owner.records


@pytest.mark.usefixtures("tight")
@pytest.mark.parametrize("slot", [0, 3, 6])
def test_rows_that_somebody_deleted_are_a_loss_to_new_readers_and_healed(
    owner: Owner, database: MemoryDatabase, watcher: Watcher, clock: ManualClock, slot: int
) -> None:
    """I5: at the beginning, in the middle, at the end. A missing row is never "no such node"; whoever follows along has
    all of it."""
    owner.commit(*[report(f"n{n}", 1) for n in range(7)])
    watcher.look()
    database.evict_rows(D, {slot})
    owner.commit(change(f"n{(slot + 1) % 7}", 2, zone="a"))
    late = Watcher("sql", database, clock)
    state = late.look()
    assert (held(state), state.lost) == ([], f"row {slot} is missing")
    assert held(watcher.look()) == owner.records
    assert owner.renew() is True, "the reader asked for a repair"
    with pytest.raises(EpochLostError):
        owner.repair()
    owner.begin(8)
    assert (held(late.look()), late.look().lost) == (owner.records, "")


def test_an_heir_of_rows_that_are_not_whole_begins_anew(
    owner: Owner, database: MemoryDatabase, watcher: Watcher, clock: ManualClock
) -> None:
    """Nothing can be built upon a state with a hole."""
    owner.commit(report("n", 1), report("m", 1))
    database.evict_rows(D, {0})
    heir = Owner("sql", database, clock, "heir")
    assert heir.take() is None
    heir.begin(8)
    heir.commit(report("n", 1, zone="again"))
    assert held(watcher.look()) == heir.records
    with pytest.raises((EpochLostError, FencedError)):
        owner.renew()


def test_a_full_database_refuses_a_commit_and_takes_it_later(
    owner: Owner, database: MemoryDatabase, watcher: Watcher
) -> None:
    """Nothing of it is there meanwhile, and its refusal is no unknown outcome: a renewal may go before it."""
    owner.commit(report("n", 1, zone="old"))
    before = watcher.look()
    database._max_bytes = database._used_bytes + 1_000
    with pytest.raises(DatabaseFullError):
        owner.commit(change("n", 2, namespaces={"x": "y" * 3_000}))
    owner.renew()
    assert held(watcher.look()) == held(before)
    database._max_bytes = None
    owner.again()
    assert held(watcher.look()) == owner.records


# -- a backup is restored -------------------------------------------------------------------------


def a_change(owner: Owner) -> None:
    owner.commit(change("n", 2, zone="after"))


@pytest.mark.parametrize("next_write", [Owner.renew, a_change], ids=["renewal", "commit"])
@pytest.mark.parametrize("commits_since", [1, 2, 3])
def test_a_backup_that_was_restored_is_seen_as_loss(
    owner: Owner,
    database: MemoryDatabase,
    watcher: Watcher,
    clock: ManualClock,
    commits_since: int,
    next_write: Callable[[Owner], object],
) -> None:
    """Regression (I5): the owner took its own older head for a write of its that came late, and committed on top of rows
    that lacked all commits between. Readers that followed along see that the head went back; the owner sees it at its
    next write, and begins another epoch with all that it holds."""
    owner.commit(report("n", 1), report("m", 1))
    backup = database.backup()
    for generation in range(2, 2 + commits_since):
        owner.commit(change("m", generation, zone=f"z{generation}"))
    before = watcher.look()
    database.restore(backup)
    state = watcher.look()
    assert (held(state), state.lost) == (held(before), f"commit {1 + commits_since} is missing")
    assert state.confirmed_at == before.confirmed_at, "it ages"
    with pytest.raises(EpochLostError):
        next_write(owner)
    owner.begin(8)
    assert head_of(database)[0] == 8
    for follower in (watcher, Watcher("sql", database, clock)):
        state = follower.look()
        assert (held(state), state.lost) == (owner.records, "")


def test_a_backup_that_is_restored_twice_brings_no_reader_back_to_an_epoch_that_it_left(
    owner: Owner, database: MemoryDatabase, watcher: Watcher
) -> None:
    """Regression (I1): found by the cell machine. The reader was in the next epoch by then, so nothing told it that it had
    seen more of this one."""
    owner.commit(report("n", 1))
    backup = database.backup()
    owner.commit(change("n", 2, zone="after"))
    watcher.look()
    database.restore(backup)
    owner.begin(8)
    before = watcher.look()
    database.restore(backup)
    state = watcher.look()
    assert (held(state), state.lost) == (held(before), "the store went back to an earlier state")
    assert state.confirmed_at == before.confirmed_at
    owner.begin(9)
    assert held(watcher.look()) == owner.records


def test_a_backup_from_before_the_takeover_is_seen_by_the_heir(
    owner: Owner, database: MemoryDatabase, watcher: Watcher, clock: ManualClock
) -> None:
    """The head that is there is another's, of an earlier term: whoever holds a later one was there after it, and may
    begin."""
    owner.commit(report("n", 1))
    backup = database.backup()
    heir = Owner("sql", database, clock, "heir")
    heir.take()
    heir.commit(change("n", 2, zone="heir's"))
    watcher.look()
    database.restore(backup)
    with pytest.raises(EpochLostError):
        heir.renew()
    heir.begin(8)
    assert held(watcher.look()) == heir.records
    with pytest.raises((EpochLostError, FencedError)):
        owner.renew()


@pytest.mark.parametrize("silent_s", [MAX_SILENT_S + 2, LEASE_S - 10])
def test_a_backup_that_was_restored_while_nobody_was_there_is_no_claim(
    owner: Owner, database: MemoryDatabase, watcher: Watcher, clock: ManualClock, silent_s: int
) -> None:
    """Regression (I5): what was acked after the backup is in no queue, and the rows passed for the newest; readers that
    followed along missed the commits that took the numbers of those they had. Nobody can tell, so whoever takes a head
    that was silent for so long begins another epoch, and does not vouch."""
    owner.commit(report("n", 1))
    backup = database.backup()
    owner.commit(change("n", 2, zone="acked"))
    watcher.look()
    clock.advance(silent_s)
    database.restore(backup)
    heir = Owner("sql", database, clock, "heir")
    taken = heir.take()
    assert taken is not None
    assert ([record.version.generation for record in taken.records], taken.complete) == ([1], False)
    assert (taken.whole, taken.behind_ms) == (False, None)
    heir.begin(8)
    heir.commit(change("n", 2, zone="acked"))
    assert held(watcher.look()) == heir.records


def test_a_backup_from_before_the_epoch_leaves_its_owner_nothing(
    owner: Owner, database: MemoryDatabase, watcher: Watcher
) -> None:
    """A database as new: what readers hold ages, and the owner writes all anew."""
    owner.commit(report("n", 1))
    before = watcher.look()
    database.flush()
    state = watcher.look()
    assert (held(state), state.lost != "") == (held(before), True)
    with pytest.raises(EpochLostError):
        owner.renew()
    owner.begin(8)
    assert held(watcher.look()) == owner.records


def test_a_backup_of_what_is_there_changes_nothing(owner: Owner, database: MemoryDatabase, watcher: Watcher) -> None:
    """The same head, the same rows, the same id: nobody has to begin anew."""
    owner.commit(report("n", 1))
    database.restore(database.backup())
    owner.commit(change("n", 2, zone="a"))
    assert head_of(database) == (7, 1, 3)
    assert held(watcher.look()) == owner.records


# -- the database's clock -------------------------------------------------------------------------


class SetClock(ManualClock):
    """A database's own clock, which somebody sets."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self._clock = clock
        self.set_by_s = 0.0

    def monotonic(self) -> float:
        return self._clock.monotonic() + self.set_by_s


@pytest.mark.parametrize("set_by_s", [-3_600.0, -60.0, 60.0, 3_600.0])
def test_a_database_s_clock_that_is_set_makes_nothing_look_fresher(clock: ManualClock, set_by_s: float) -> None:
    """Regression (I5): set back by an hour, the head of an owner that was gone for a minute had more to live than it was
    given, and passed for said just now. An age that can't be told is none that can be accepted."""
    of_database = SetClock(clock)
    database = MemoryDatabase(clock=of_database)
    owner, follower = Owner("sql", database, clock), Watcher("sql", database, clock)
    owner.begin()
    owner.commit(report("n", 1))
    said_at = clock.monotonic()
    follower.look()
    clock.advance(30)
    of_database.set_by_s = set_by_s
    late = Watcher("sql", database, clock)
    for watcher in (follower, late):
        assert watcher.look().confirmed_at <= said_at
    owner.renew()
    renewed_at = clock.monotonic()
    for watcher in (follower, late):
        assert watcher.look().confirmed_at <= renewed_at
    clock.advance(1)
    owner.renew()
    for watcher in (follower, late):
        state = watcher.look()
        assert clock.monotonic() - 3 <= state.confirmed_at <= clock.monotonic(), "and it is over with the next renewals"
    clock.advance(30)
    of_database.set_by_s -= 3_600.0
    taken = Owner("sql", database, clock, "heir").take()
    assert taken is not None
    assert (taken.complete, taken.behind_ms) == (False, None), "nobody can tell how long it was silent"


def test_who_goes_on_from_a_backup_is_no_heir_to_readers_that_saw_more(
    owner: Owner, database: MemoryDatabase, watcher: Watcher, clock: ManualClock
) -> None:
    """I1, I5: offsets are given again with other contents, and slots to other nodes. The reader does not wait until the
    new history has passed its own, but asks for another epoch.
    """
    owner.commit(report("x", 1))
    backup = database.backup()
    owner.commit(report("y", 1))
    owner.commit(change("y", 2, zone="a"))
    watcher.look()
    database.restore(backup)
    heir = Owner("sql", database, clock, "heir")
    assert heir.take() is not None
    for generation in range(1, 6):
        heir.commit(report("z", 1) if generation == 1 else change("z", generation, zone=str(generation)))
        assert watcher.look().lost, "the reader calls it lost, whatever comes"
    assert heir.renew() is True, "the reader asked for a repair"
    heir.renew()
    with pytest.raises(EpochLostError):
        heir.repair()
    heir.begin(8)
    assert (held(watcher.look()), watcher.look().lost) == (heir.records, "")


def test_a_begin_that_was_overtaken_removes_nobody_else_s_rows(
    owner: Owner, database: MemoryDatabase, clock: ManualClock
) -> None:
    """I7: frozen before it could clear up after its new epoch, and back when the next owner's epoch counts."""
    owner.commit(report("n", 1))

    writes = iter(range(100))

    def overtaken_before_the_third(operation: str, _count: int) -> None:
        if operation == "write" and next(writes) == 2:  # the head, the epoch key, and now what was before
            heir = Owner("sql", database, clock, "heir")
            heir.take()
            heir.begin(9)
            heir.commit(report("m", 1))

    owner.run(owner.writer.begin_epoch(8, owner, WELL), overtaken_before_the_third)
    late = Watcher("sql", database, clock)
    state = late.look()
    assert (state.lost, [record.name for record in held(state)]) == ("", ["n", "m"])


def test_a_row_that_is_no_record_is_begun_anew(owner: Owner, database: MemoryDatabase, clock: ManualClock) -> None:
    """One bad row must not keep a partition from ever being taken."""
    owner.commit(report("n", 1))
    for key, row in database._rows[D].items():
        database._rows[D][key] = row._replace(record=msgspec.structs.replace(row.record, status="nonsense"))
    heir = Owner("sql", database, clock, "heir")
    assert heir.take() is None


def test_an_empty_partition_that_is_renewed_is_whole(owner: Owner, watcher: Watcher) -> None:
    """A cell that has no nodes yet."""
    assert watcher.look().lost == ""
    owner.commit()
    owner.renew()
    assert watcher.look().lost == ""

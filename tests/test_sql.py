"""The database design: head and rows of a commit are one transaction, and rows may be removed or set back by others."""

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
from tests.machines.simulated_cell import at_call, small_limits
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


def test_reader_that_keeps_up_gets_changed_rows_in_one_round_trip(
    owner: Owner, watcher: Watcher, database: MemoryDatabase
) -> None:
    """Cost follows change: two of a hundred nodes changed, one of them twice."""
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
def test_reader_may_be_behind_by_any_number_of_commits(
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
def test_commits_during_a_first_load_do_not_corrupt_it(
    owner: Owner, database: MemoryDatabase, clock: ManualClock
) -> None:
    """I3: its parts are read one after the other, while nodes change and appear.

    No node is older than the head says, and the next refresh has all of it.
    """
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
def test_rows_that_do_not_belong_to_the_head_are_not_accepted(
    owner: Owner, watcher: Watcher, database: MemoryDatabase, what: str
) -> None:
    """Regression (I3, I5): between the head and the rows, the owner began another epoch and removed these rows, or the
    database was set back. The empty answer counted as 'nothing changed'.
    """
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


def test_fenced_owner_changes_neither_head_nor_rows(
    owner: Owner, database: MemoryDatabase, watcher: Watcher, clock: ManualClock
) -> None:
    """I7: whatever it tries, and its heir does not notice."""
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
def test_unanswered_transaction_takes_effect_once(
    owner: Owner, database: MemoryDatabase, watcher: Watcher, clock: ManualClock, fault: Fault, call: int
) -> None:
    """The most important fault: the commit was carried out, or never, or later than the next try.

    No offset is used twice.
    """
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


def test_write_that_arrives_after_a_takeover_changes_nothing(
    owner: Owner, database: MemoryDatabase, watcher: Watcher, clock: ManualClock
) -> None:
    """I7: it was on its way while its sender froze."""
    owner.commit(report("n", 1, zone="old"))
    with pytest.raises(StoreUnavailableError):
        owner.commit(change("n", 2, zone="late"), plan=script(Fault(0, late=True)))
    heir = Owner("sql", database, clock, "heir")
    heir.take()
    rows = database.rows(D)
    owner.store.arrive()
    assert database.rows(D) == rows
    assert held(watcher.look()) == heir.records


def test_new_owner_continues_in_the_same_epoch(
    owner: Owner, database: MemoryDatabase, watcher: Watcher, clock: ManualClock
) -> None:
    """With the same completeness; readers follow across the takeover in one round trip."""
    owner.commit(report("n", 1), report("m", 1))
    owner.commit(change("n", 2, zone="a"))
    watcher.look()
    clock.advance(20)
    heir = Owner("sql", database, clock, "heir")
    taken = heir.take()
    assert taken is not None
    assert (taken.records, taken.complete, taken.epoch_continues) == (owner.records, True, True)
    assert taken.behind_ms is not None
    assert 20_000 <= taken.behind_ms <= 21_000
    heir.commit(change("m", 2, zone="b"), report("new", 1))
    assert head_of(database) == (7, 2, 4)
    assert held(watcher.look()) == heir.records
    assert watcher.fetches == [3]


def test_new_epoch_removes_the_rows_of_former_epochs(owner: Owner, database: MemoryDatabase) -> None:
    """A database evicts nothing by itself."""
    owner.commit(report("n", 1), report("m", 1))
    other = NodeRow("ns:cell1:8.1:d", 3, 0, 0, owner.records[0])
    database.write([Write(Put.ADD, "other", rows=(other,))])
    owner.begin(8)
    assert [(row.epoch, row.slot, row.offset) for row in database.rows(D)] == [(8, 0, 0), (8, 1, 0)]
    assert database.rows("ns:cell1:8.1:d") == [other]


def test_epoch_begins_even_if_former_rows_cannot_be_removed(
    owner: Owner, database: MemoryDatabase, watcher: Watcher
) -> None:
    """Readers do not use these rows, and a second begin would ask all agents again. The next epoch removes them."""
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
def test_epoch_begins_again_after_any_of_its_calls_was_unanswered_in_a_database(
    database: MemoryDatabase, watcher: Watcher, clock: ManualClock, call: int, fault: Fault
) -> None:
    """Under another number, as consumers do it; nothing that the first try left behind is used."""
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
def test_deleted_head_or_epoch_key_is_repaired(
    owner: Owner, database: MemoryDatabase, watcher: Watcher, key: str
) -> None:
    """Another program deleted a row.

    A new reader finds nothing. The owner writes a lost epoch key again, and begins another epoch after a lost head.
    """
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
def test_deleted_rows_are_a_loss_to_new_readers_until_a_repair(
    owner: Owner, database: MemoryDatabase, watcher: Watcher, clock: ManualClock, slot: int
) -> None:
    """I5: at the beginning, in the middle, at the end.

    A missing row is never "no such node"; readers that keep up have all of it.
    """
    owner.commit(*[report(f"n{n}", 1) for n in range(7)])
    watcher.look()
    database.evict_rows(D, {slot})
    owner.commit(change(f"n{(slot + 1) % 7}", 2, zone="a"))
    late = Watcher("sql", database, clock)
    state = late.look()
    assert (held(state), state.lost) == ([], f"row {slot} is missing")
    assert held(watcher.look()) == owner.records
    assert owner.renew() is True, "the reader did not ask for a repair"
    with pytest.raises(EpochLostError):
        owner.repair()
    owner.begin(8)
    assert (held(late.look()), late.look().lost) == (owner.records, "")


def test_new_owner_begins_an_epoch_if_rows_are_missing(
    owner: Owner, database: MemoryDatabase, watcher: Watcher, clock: ManualClock
) -> None:
    """A state with a hole cannot be continued."""
    owner.commit(report("n", 1), report("m", 1))
    database.evict_rows(D, {0})
    heir = Owner("sql", database, clock, "heir")
    assert heir.take() is None
    heir.begin(8)
    heir.commit(report("n", 1, zone="again"))
    assert held(watcher.look()) == heir.records
    with pytest.raises((EpochLostError, FencedError)):
        owner.renew()


def test_full_database_refuses_a_commit_and_accepts_it_later(
    owner: Owner, database: MemoryDatabase, watcher: Watcher
) -> None:
    """No part of it is stored meanwhile, and its refusal is no unknown outcome: a renewal may come before it."""
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
def test_restored_backup_counts_as_a_loss(
    owner: Owner,
    database: MemoryDatabase,
    watcher: Watcher,
    clock: ManualClock,
    commits_since: int,
    next_write: Callable[[Owner], object],
) -> None:
    """Regression (I5): the owner took its own older head for a late write of its own, and committed on top of rows that
    lacked all commits in between. Readers that keep up notice that the head went back. The owner notices at its next
    write, and begins another epoch with all nodes that it has.
    """
    owner.commit(report("n", 1), report("m", 1))
    backup = database.backup()
    for generation in range(2, 2 + commits_since):
        owner.commit(change("m", generation, zone=f"z{generation}"))
    before = watcher.look()
    database.restore(backup)
    state = watcher.look()
    assert (held(state), state.lost) == (held(before), "the store went back to an earlier state")
    assert state.confirmed_at == before.confirmed_at, "the view does not age"
    with pytest.raises(EpochLostError):
        next_write(owner)
    owner.begin(8)
    assert head_of(database)[0] == 8
    for follower in (watcher, Watcher("sql", database, clock)):
        state = follower.look()
        assert (held(state), state.lost) == (owner.records, "")


def test_backup_restored_twice_does_not_bring_a_reader_back_to_an_epoch_that_it_left(
    owner: Owner, database: MemoryDatabase, watcher: Watcher
) -> None:
    """Regression (I1), found by the cell machine: the reader was in the next epoch by then, so nothing told it that it
    had seen later commits of the former epoch.
    """
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


def test_new_owner_notices_a_backup_from_before_its_takeover(
    owner: Owner, database: MemoryDatabase, watcher: Watcher, clock: ManualClock
) -> None:
    """The stored head is another owner's, of an earlier term.

    An owner with a later term came after it, and may begin an epoch.
    """
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
def test_backup_restored_while_no_owner_ran_is_taken_over_as_incomplete(
    owner: Owner, database: MemoryDatabase, watcher: Watcher, clock: ManualClock, silent_s: int
) -> None:
    """Regression (I5): events that were acknowledged after the backup are in no queue, and the rows counted as the
    newest. Readers that kept up missed the commits that used the same offsets again. An owner cannot tell, so it takes
    a head that was silent for long as incomplete, and begins another epoch.
    """
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
    assert (taken.epoch_continues, taken.behind_ms) == (False, None)
    heir.begin(8)
    heir.commit(change("n", 2, zone="acked"))
    assert held(watcher.look()) == heir.records


def test_owner_writes_all_nodes_again_after_a_backup_from_before_its_epoch(
    owner: Owner, database: MemoryDatabase, watcher: Watcher
) -> None:
    """The database is as new: readers' views age, and the owner writes all nodes again."""
    owner.commit(report("n", 1))
    before = watcher.look()
    database.flush()
    state = watcher.look()
    assert (held(state), state.lost != "") == (held(before), True)
    with pytest.raises(EpochLostError):
        owner.renew()
    owner.begin(8)
    assert held(watcher.look()) == owner.records


def test_backup_of_the_current_state_changes_nothing(owner: Owner, database: MemoryDatabase, watcher: Watcher) -> None:
    """The same head, rows and CAS id: no owner begins another epoch."""
    owner.commit(report("n", 1))
    database.restore(database.backup())
    owner.commit(change("n", 2, zone="a"))
    assert head_of(database) == (7, 1, 3)
    assert held(watcher.look()) == owner.records


# -- the database's clock -------------------------------------------------------------------------


class SetClock(ManualClock):
    """The clock of a database that an operator sets."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self._clock = clock
        self.set_by_s = 0.0

    def monotonic(self) -> float:
        return self._clock.monotonic() + self.set_by_s


@pytest.mark.parametrize("set_by_s", [-3_600.0, -60.0, 60.0, 3_600.0])
def test_setting_a_databases_clock_makes_nothing_look_fresher(clock: ManualClock, set_by_s: float) -> None:
    """Regression (I5): when the clock was set back by an hour, the head of an owner that had stopped a minute ago had
    more time left than its lease, and counted as just written. An unknown age must not be accepted.
    """
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
        assert clock.monotonic() - 3 <= state.confirmed_at <= clock.monotonic(), (
            "the next renewals do not repair the age"
        )
    clock.advance(30)
    of_database.set_by_s -= 3_600.0
    taken = Owner("sql", database, clock, "heir").take()
    assert taken is not None
    assert (taken.complete, taken.behind_ms) == (False, None), "its silence has an unknown length"


def test_readers_that_saw_more_do_not_follow_an_owner_that_continues_from_a_backup(
    owner: Owner, database: MemoryDatabase, watcher: Watcher, clock: ManualClock
) -> None:
    """I1, I5: offsets are used again with other contents, and slots for other nodes.

    The reader does not wait until the new history passes the old one, but asks for another epoch.
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
        assert watcher.look().lost, "the reader does not call it lost"
    assert heir.renew() is True, "the reader did not ask for a repair"
    heir.renew()
    with pytest.raises(EpochLostError):
        heir.repair()
    heir.begin(8)
    assert (held(watcher.look()), watcher.look().lost) == (heir.records, "")


def test_owner_that_was_overtaken_while_it_began_an_epoch_removes_no_other_rows(
    owner: Owner, database: MemoryDatabase, clock: ManualClock
) -> None:
    """I7: it froze before the clean-up after its new epoch, and came back when the next owner's epoch was current."""
    owner.commit(report("n", 1))

    writes = iter(range(100))

    def overtaken_before_the_third(operation: str, _count: int) -> None:
        if operation == "write" and next(writes) == 2:  # the head, the epoch key, and then the rows of the former epoch
            heir = Owner("sql", database, clock, "heir")
            heir.take()
            heir.begin(9)
            heir.commit(report("m", 1))

    owner.run(owner.writer.begin_epoch(8, owner, WELL), overtaken_before_the_third)
    late = Watcher("sql", database, clock)
    state = late.look()
    assert (state.lost, [record.name for record in held(state)]) == ("", ["n", "m"])


def test_corrupt_row_leads_to_a_new_epoch(owner: Owner, database: MemoryDatabase, clock: ManualClock) -> None:
    """One bad row must not prevent takeovers of a partition for ever."""
    owner.commit(report("n", 1))
    for key, row in database._rows[D].items():
        database._rows[D][key] = row._replace(record=msgspec.structs.replace(row.record, status="nonsense"))
    heir = Owner("sql", database, clock, "heir")
    assert heir.take() is None


def test_empty_partition_is_complete_after_a_renewal(owner: Owner, watcher: Watcher) -> None:
    """A cell that has no nodes yet."""
    assert watcher.look().lost == ""
    owner.commit()
    owner.renew()
    assert watcher.look().lost == ""

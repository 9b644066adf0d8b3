"""The journal: prefixes and nothing else, checkpoints, trimming, and what happens when keys get lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nodestate.errors import EpochLostError, FencedError, StoreFullError, StoreUnavailableError
from nodestate.journal.format import MIN_TAIL_BYTES
from nodestate.journal.writer import JournalWriter
from nodestate.ports import Put, Write
from nodestate.store import keys
from nodestate.testing import Fault, ManualClock, MemoryServer
from tests.machines.world import at_call, small_limits
from tests.partition_owner import Owner, Watcher, change, held, prefix_of, report

J = prefix_of("journal")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def server(clock: ManualClock) -> MemoryServer:
    return MemoryServer(clock=clock)


@pytest.fixture
def owner(server: MemoryServer, clock: ManualClock) -> Owner:
    owner = Owner("journal", server, clock)
    owner.begin()
    return owner


@pytest.fixture
def watcher(server: MemoryServer, clock: ManualClock) -> Watcher:
    return Watcher("journal", server, clock)


@pytest.fixture
def tight() -> Iterator[None]:
    with small_limits():
        yield


def keys_of(server: MemoryServer, kind: str) -> list[str]:
    return [key for key in server.keys() if f":{kind}:" in key]  # noqa: SIM118 - not a dict


def grow(owner: Owner, commits: int, first: int = 1) -> None:
    """Commits that change one node again and again."""
    for generation in range(first, first + commits):
        owner.commit(
            report("n", generation, zone=f"z{generation}")
            if generation == 1
            else change("n", generation, zone="x" * 50)
        )


def test_a_reader_that_follows_pays_for_what_is_new(owner: Owner, watcher: Watcher) -> None:
    """Nothing new, or one commit: one round trip, as the head is asked for with what comes next. k commits: one more."""
    owner.commit(report("n", 1))
    watcher.look()
    owner.commit(change("n", 2, zone="a"))
    assert (held(watcher.look()), watcher.fetches) == (owner.records, [3])
    owner.commit(change("n", 3, zone="b"))
    owner.commit(change("n", 4, zone="c"))
    assert (held(watcher.look()), watcher.fetches) == (owner.records, [3, 2])
    assert (held(watcher.look()), watcher.fetches) == (owner.records, [3])


def test_a_segment_is_never_written_twice(owner: Owner, server: MemoryServer) -> None:
    """Append-only: whoever read a key once has read it for ever."""
    grow(owner, 5)
    before = server.fetch(keys_of(server, "log"))
    grow(owner, 5, first=6)
    assert server.fetch(list(before)) == before
    assert len(keys_of(server, "log")) == 10


@pytest.mark.usefixtures("tight")
def test_what_two_checkpoints_cover_is_trimmed(owner: Owner, server: MemoryServer, watcher: Watcher) -> None:
    """A journal that only grew would be evicted from its unread end, that is, in the middle of its life."""
    grow(owner, 60)
    assert isinstance(owner.writer, JournalWriter)
    section = owner.writer.section
    assert section.previous is not None
    assert section.first == section.previous.offset
    offsets = {int(key.rpartition(":")[2]) for key in keys_of(server, "log")}
    assert offsets == set(range(section.first, 61))
    assert {int(key.split(":")[-2]) for key in keys_of(server, "ckpt")} == {
        section.previous.offset,
        section.checkpoint.offset,
    }
    assert held(watcher.look()) == owner.records


def test_a_checkpoint_waits_until_it_is_worth_its_writing(owner: Owner) -> None:
    """A small partition would otherwise write all of itself with each change."""
    grow(owner, 20)
    assert isinstance(owner.writer, JournalWriter)
    assert owner.writer.section.tail_bytes < MIN_TAIL_BYTES
    assert owner.writer.section.checkpoint.offset == 1


@pytest.mark.usefixtures("tight")
def test_a_reader_that_was_trimmed_from_under_begins_at_the_checkpoint(owner: Owner, watcher: Watcher) -> None:
    """A scheduler that paused for long is not told that the store lost something: it did not."""
    owner.commit(report("n", 1))
    watcher.look()
    grow(owner, 60, first=2)
    state = watcher.look()
    assert (held(state), state.lost) == (owner.records, "")


@pytest.mark.usefixtures("tight")
def test_a_reader_that_is_trimmed_while_it_reads_looks_again(owner: Owner, watcher: Watcher) -> None:
    """The head it read names segments that are gone a moment later; the next head is right."""
    owner.commit(report("n", 1))
    watcher.look()
    owner.commit(change("n", 2, zone="a"))
    owner.commit(change("n", 3, zone="b"))
    calls = iter(range(1_000))

    def trimmed_between(_operation: str, _count: int) -> None:
        if next(calls) == 1:
            grow(owner, 60, first=4)

    state = watcher.look(trimmed_between)
    assert (held(state), state.lost, state.table and state.table.offset) == (owner.records, "", 64)


def test_a_lost_segment_ends_the_prefix_and_is_healed_by_a_repair(
    owner: Owner, server: MemoryServer, watcher: Watcher
) -> None:
    """I5: the view stays the prefix that it was, says so, and asks; the owner covers the hole with a checkpoint."""
    owner.commit(report("n", 1))
    before = watcher.look()
    owner.commit(change("n", 2, zone="a"))
    owner.commit(change("n", 3, zone="b"))
    hole = keys.segment(J, 7, 1, 2)
    server.evict(hole)
    state = watcher.look()
    assert (held(state), state.lost) == (held(before), f"{hole} is missing")
    assert owner.renew() is True
    owner.repair()
    healed = watcher.look()
    assert (held(healed), healed.lost) == (owner.records, "")


def test_a_hole_does_not_look_fresh_however_often_the_owner_renews(
    owner: Owner, server: MemoryServer, watcher: Watcher, clock: ManualClock
) -> None:
    """The age of what a reader holds goes on; the head's own freshness is not the table's."""
    owner.commit(report("n", 1))
    confirmed_at = watcher.look().confirmed_at
    owner.commit(change("n", 2, zone="a"))
    server.evict(keys.segment(J, 7, 1, 2))
    for _ in range(3):
        clock.advance(10)
        owner.renew()
        assert watcher.look().confirmed_at == confirmed_at


@pytest.mark.parametrize("damage", ["evicted", "corrupt", "no event"])
def test_a_damaged_segment_is_a_lost_one(owner: Owner, server: MemoryServer, watcher: Watcher, damage: str) -> None:
    """Torn bytes never become half a commit."""
    owner.commit(report("n", 1), report("m", 1))
    key = keys.segment(J, 7, 1, 1)
    value = server.fetch([key])[key].value
    server.evict(key)
    if damage != "evicted":
        server.write([Write(Put.ADD, key, value[:-1] if damage == "corrupt" else b"N\x02" + value[2:] + b"\x00")])
    state = watcher.look()
    assert (held(state), state.lost) == ([], f"{key} is missing")


@pytest.mark.usefixtures("tight")
def test_a_lost_part_of_a_checkpoint_stops_new_readers_only(
    owner: Owner, server: MemoryServer, watcher: Watcher, clock: ManualClock
) -> None:
    """Rarely read items go first; whoever follows along does not need them. A repair writes another."""
    for n in range(12):
        owner.commit(report(f"n{n}", 1, zone="z" * 60))
    watcher.look()
    assert isinstance(owner.writer, JournalWriter)
    assert owner.writer.section.checkpoint.parts > 1
    lost = keys_of(server, "ckpt")[-1]
    server.evict(lost)
    owner.commit(report("n0", 2))
    assert watcher.look().lost == ""
    late = Watcher("journal", server, clock)
    assert (held(late.look()), late.look().lost) == ([], f"{lost} is missing")
    assert owner.renew() is True
    owner.repair()
    assert (held(late.look()), late.look().lost) == (owner.records, "")


def test_a_journal_with_a_hole_is_not_built_upon(owner: Owner, server: MemoryServer, clock: ManualClock) -> None:
    """An heir that began with half a history would write it on as if it were whole."""
    owner.commit(report("n", 1))
    owner.commit(change("n", 2, zone="a"))
    server.evict(keys.segment(J, 7, 1, 1))
    assert Owner("journal", server, clock, "b").take() is None


def test_an_heir_goes_on_where_the_owner_stopped(
    owner: Owner, server: MemoryServer, watcher: Watcher, clock: ManualClock
) -> None:
    """Readers that follow along notice nothing but the term in the names of segments."""
    owner.commit(report("n", 1))
    watcher.look()
    heir = Owner("journal", server, clock, "b")
    taken = heir.take()
    assert taken is not None
    assert taken.records == owner.records
    heir.commit(change("n", 2, zone="heir's"))
    state = watcher.look()
    assert (held(state), watcher.fetches) == (heir.records, [3, 1])
    assert held(Watcher("journal", server, clock).look()) == heir.records


def test_a_zombie_s_segment_is_nobody_s(
    owner: Owner, server: MemoryServer, watcher: Watcher, clock: ManualClock
) -> None:
    """I7: both wrote a commit of the same number; the head says whose counts."""
    owner.commit(report("n", 1))
    heir = Owner("journal", server, clock, "b")
    heir.take()
    with pytest.raises(FencedError):
        owner.commit(change("n", 2, zone="zombie's"))
    heir.commit(change("n", 2, zone="heir's"))
    assert held(watcher.look()) == heir.records
    assert heir.records[0].state()["zone"] == "heir's"


@pytest.mark.usefixtures("tight")
@pytest.mark.parametrize("fault", [Fault(0), Fault(1), Fault(None), Fault(0, late=True), Fault(1, late=True)])
@pytest.mark.parametrize("call", range(4))
def test_a_commit_that_went_unanswered_anywhere_is_there_once(
    owner: Owner, server: MemoryServer, watcher: Watcher, clock: ManualClock, fault: Fault, call: int
) -> None:
    """I2 and I6 through the row that matters most: at each call, carried out, partly, later or never."""
    grow(owner, 20)
    for generation in range(21, 40):
        try:
            owner.commit(
                change("n", generation, zone=f"z{generation}", metrics={f"m{generation}": 1.0}),
                plan=at_call(call, fault),
            )
        except StoreUnavailableError:
            owner.again()
        owner.store.arrive()
        assert held(watcher.look()) == owner.records
    assert held(Watcher("journal", server, clock).look()) == owner.records
    assert watcher.look().lost == ""


def test_a_full_store_keeps_what_was_there(clock: ManualClock) -> None:
    """A commit that finds no room is refused whole, and goes through once there is some."""
    server = MemoryServer(clock=clock, max_bytes=4_000, no_evict=True)
    owner, watcher = Owner("journal", server, clock), Watcher("journal", server, clock)
    owner.begin()
    owner.commit(report("n", 1, zone="old"))
    before = watcher.look()
    with pytest.raises(StoreFullError):
        owner.commit(change("n", 2, zone="new", namespaces={"x": "y" * 4_000}))
    assert held(watcher.look()) == held(before)
    server._max_bytes = None
    owner.again()
    assert held(watcher.look()) == owner.records


@pytest.mark.parametrize("key", [keys.head(J, 7), keys.epoch(J)], ids=["head", "epoch key"])
def test_what_names_the_contents_may_get_lost_too(
    owner: Owner, server: MemoryServer, watcher: Watcher, key: str
) -> None:
    """A new reader is refused; the owner puts back the epoch key, and begins anew without the head."""
    owner.commit(report("n", 1))
    server.evict(key)
    assert held(watcher.look()) == []
    assert "no head" in watcher.look().lost
    try:
        owner.renew()
    except EpochLostError:
        owner.begin(8)
    assert held(watcher.look()) == owner.records


def test_checkpoints_hold_incomplete_nodes_and_tombstones(
    owner: Owner, server: MemoryServer, clock: ManualClock
) -> None:
    """A reader that begins there must know no less than one that followed along (I2)."""
    owner.commit(report("n", 1), change("m", 9, zone="lost before"))
    owner.repair()
    late = Watcher("journal", server, clock).look()
    assert held(late) == owner.records
    assert late.table is not None
    assert late.table.incomplete == {"m"}

"""The journal: exact prefixes, checkpoints, trimming, and lost keys."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nodestate.errors import EpochLostError, FencedError, StoreFullError, StoreUnavailableError
from nodestate.journal.format import MIN_TAIL_BYTES
from nodestate.journal.writer import JournalWriter
from nodestate.ports import Put, Write
from nodestate.store import keys
from nodestate.testing import Fault, ManualClock, MemoryServer
from tests.machines.simulated_cell import at_call, small_limits
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
    """Commit changes of one node again and again."""
    for generation in range(first, first + commits):
        owner.commit(
            report("n", generation, zone=f"z{generation}")
            if generation == 1
            else change("n", generation, zone="x" * 50)
        )


def test_reader_that_keeps_up_needs_one_round_trip(owner: Owner, watcher: Watcher) -> None:
    """Without news or with one commit: one round trip, because the next segment is fetched with the head.

    With more commits: one more.
    """
    owner.commit(report("n", 1))
    watcher.look()
    owner.commit(change("n", 2, zone="a"))
    assert (held(watcher.look()), watcher.fetches) == (owner.records, [3])
    owner.commit(change("n", 3, zone="b"))
    owner.commit(change("n", 4, zone="c"))
    assert (held(watcher.look()), watcher.fetches) == (owner.records, [3, 2])
    assert (held(watcher.look()), watcher.fetches) == (owner.records, [3])


def test_segment_is_never_written_twice(owner: Owner, server: MemoryServer) -> None:
    """The journal is append-only: a key that was read once never changes."""
    grow(owner, 5)
    before = server.fetch(keys_of(server, "log"))
    grow(owner, 5, first=6)
    assert server.fetch(list(before)) == before
    assert len(keys_of(server, "log")) == 10


@pytest.mark.usefixtures("tight")
def test_segments_covered_by_two_checkpoints_are_trimmed(owner: Owner, server: MemoryServer, watcher: Watcher) -> None:
    """A journal that only grew would be evicted from its unread end, in the middle of its life."""
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


def test_checkpoint_is_written_only_if_the_tail_is_long_enough(owner: Owner) -> None:
    """Otherwise a small partition would write all of itself with each change."""
    grow(owner, 20)
    assert isinstance(owner.writer, JournalWriter)
    assert owner.writer.section.tail_bytes < MIN_TAIL_BYTES
    assert owner.writer.section.checkpoint.offset == 1


@pytest.mark.usefixtures("tight")
def test_reader_whose_segments_were_trimmed_starts_at_the_checkpoint(owner: Owner, watcher: Watcher) -> None:
    """A scheduler that paused for long gets no loss reported, because the store lost nothing."""
    owner.commit(report("n", 1))
    watcher.look()
    grow(owner, 60, first=2)
    state = watcher.look()
    assert (held(state), state.lost) == (owner.records, "")


@pytest.mark.usefixtures("tight")
def test_reader_whose_segments_are_trimmed_during_a_refresh_tries_again(owner: Owner, watcher: Watcher) -> None:
    """The head that it read names segments that are deleted a moment later; the next head is right."""
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


def test_lost_segment_ends_the_prefix_until_a_repair(owner: Owner, server: MemoryServer, watcher: Watcher) -> None:
    """I5: the view stays at its prefix, is marked as lost, and the reader asks for a repair.

    The owner covers the hole with a checkpoint.
    """
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


def test_view_with_a_missing_segment_ages_although_the_owner_renews(
    owner: Owner, server: MemoryServer, watcher: Watcher, clock: ManualClock
) -> None:
    """The age of the reader's table continues; the freshness of the head is not that of the table."""
    owner.commit(report("n", 1))
    confirmed_at = watcher.look().confirmed_at
    owner.commit(change("n", 2, zone="a"))
    server.evict(keys.segment(J, 7, 1, 2))
    for _ in range(3):
        clock.advance(10)
        owner.renew()
        assert watcher.look().confirmed_at == confirmed_at


@pytest.mark.parametrize("damage", ["evicted", "corrupt", "no event"])
def test_damaged_segment_counts_as_lost(owner: Owner, server: MemoryServer, watcher: Watcher, damage: str) -> None:
    """Damaged bytes never become half a commit."""
    owner.commit(report("n", 1), report("m", 1))
    key = keys.segment(J, 7, 1, 1)
    value = server.fetch([key])[key].value
    server.evict(key)
    if damage != "evicted":
        server.write([Write(Put.ADD, key, value[:-1] if damage == "corrupt" else b"N\x02" + value[2:] + b"\x00")])
    state = watcher.look()
    assert (held(state), state.lost) == ([], f"{key} is missing")


@pytest.mark.usefixtures("tight")
def test_lost_part_of_a_checkpoint_affects_only_new_readers(
    owner: Owner, server: MemoryServer, watcher: Watcher, clock: ManualClock
) -> None:
    """memcached evicts rarely read items first; readers that keep up do not need them.

    A repair writes another checkpoint.
    """
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


def test_journal_with_a_missing_segment_is_not_taken_over(
    owner: Owner, server: MemoryServer, clock: ManualClock
) -> None:
    """An heir that started with half of the history would continue it as if it were whole."""
    owner.commit(report("n", 1))
    owner.commit(change("n", 2, zone="a"))
    server.evict(keys.segment(J, 7, 1, 1))
    assert Owner("journal", server, clock, "b").take() is None


def test_new_owner_continues_where_the_old_one_stopped(
    owner: Owner, server: MemoryServer, watcher: Watcher, clock: ManualClock
) -> None:
    """Readers that keep up notice only the term in the keys of segments."""
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


def test_segment_of_a_zombie_is_ignored(
    owner: Owner, server: MemoryServer, watcher: Watcher, clock: ManualClock
) -> None:
    """I7: both owners wrote a commit of the same number; the head says whose is valid."""
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
def test_unanswered_commit_takes_effect_once(
    owner: Owner, server: MemoryServer, watcher: Watcher, clock: ManualClock, fault: Fault, call: int
) -> None:
    """I2 and I6 through the most important fault: at each call, whether it was carried out, partly, later or never."""
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


def test_full_store_keeps_the_old_state(clock: ManualClock) -> None:
    """A commit for which there is no memory is refused as a whole, and succeeds once there is memory."""
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
def test_lost_epoch_key_or_head_is_repaired(owner: Owner, server: MemoryServer, watcher: Watcher, key: str) -> None:
    """A new reader finds nothing.

    The owner writes a lost epoch key again, and begins another epoch after a lost head.
    """
    owner.commit(report("n", 1))
    server.evict(key)
    assert held(watcher.look()) == []
    assert "no head" in watcher.look().lost
    try:
        owner.renew()
    except EpochLostError:
        owner.begin(8)
    assert held(watcher.look()) == owner.records


def test_checkpoints_contain_incomplete_nodes_and_tombstones(
    owner: Owner, server: MemoryServer, clock: ManualClock
) -> None:
    """A reader that starts there must know as much as one that followed all commits (I2)."""
    owner.commit(report("n", 1), change("m", 9, zone="lost before"))
    owner.repair()
    late = Watcher("journal", server, clock).look()
    assert held(late) == owner.records
    assert late.table is not None
    assert late.table.incomplete == {"m"}

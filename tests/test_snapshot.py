"""The snapshot: every node at its stamp or later, lost keys, and items that another owner wrote."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nodestate.errors import EpochLostError, FencedError, StoreFullError, StoreUnavailableError
from nodestate.ports import Put, Write
from nodestate.snapshot.format import NODE, Index, SnapshotSection, StoredNode, ring_after, ring_with, stamp_of
from nodestate.snapshot.writer import SnapshotWriter
from nodestate.store import keys
from nodestate.store.head import TermStart
from nodestate.testing import Fault, ManualClock, MemoryServer
from tests.machines.simulated_cell import at_call, small_limits
from tests.partition_owner import Owner, Watcher, change, held, prefix_of, report

S = prefix_of("snapshot")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def server(clock: ManualClock) -> MemoryServer:
    return MemoryServer(clock=clock)


@pytest.fixture
def owner(server: MemoryServer, clock: ManualClock) -> Owner:
    owner = Owner("snapshot", server, clock)
    owner.begin()
    return owner


@pytest.fixture
def watcher(server: MemoryServer, clock: ManualClock) -> Watcher:
    return Watcher("snapshot", server, clock)


@pytest.fixture
def tight() -> Iterator[None]:
    with small_limits():
        yield


def section_of(owner: Owner) -> SnapshotSection:
    assert isinstance(owner.writer, SnapshotWriter)
    return owner.writer.section


def test_reader_that_keeps_up_fetches_only_changed_nodes(owner: Owner, watcher: Watcher) -> None:
    """Cost follows change: two of a hundred nodes changed, one of them twice."""
    owner.commit(*[report(f"n{n}", 1) for n in range(100)])
    watcher.look()
    owner.commit(change("n3", 2, zone="a"))
    owner.commit(change("n3", 3, zone="b"), change("n7", 2, zone="c"))
    assert held(watcher.look()) == owner.records
    assert watcher.fetches == [2, 2]
    watcher.look()
    assert watcher.fetches == [2]


@pytest.mark.usefixtures("tight")
@pytest.mark.parametrize("behind", [1, 2, 5, 6, 7, 30])
def test_reader_may_be_behind_by_any_number_of_commits(owner: Owner, watcher: Watcher, behind: int) -> None:
    """As far as the ring reaches back, the head alone tells which nodes changed; beyond that the index does."""
    owner.commit(report("n", 1), report("m", 1))
    watcher.look()
    for generation in range(2, 2 + behind):
        owner.commit(change("n", generation, zone=f"z{generation}"), report(f"new-{generation}", 1))
    state = watcher.look()
    assert (held(state), state.lost) == (owner.records, "")
    assert state.table is not None
    assert state.table.incomplete == set()


@pytest.mark.usefixtures("tight")
def test_reader_follows_a_commit_larger_than_the_ring_by_the_index(
    owner: Owner, watcher: Watcher, server: MemoryServer, clock: ManualClock
) -> None:
    """After an outage, thousands of nodes arrive at once."""
    owner.commit(report("first", 1))
    watcher.look()
    owner.commit(*[report(f"n{n}", 1) for n in range(50)])
    assert held(watcher.look()) == owner.records
    owner.commit(change("n3", 2, zone="a"))
    assert held(watcher.look()) == owner.records
    assert held(Watcher("snapshot", server, clock).look()) == owner.records


def test_lost_node_is_incomplete_until_a_repair(owner: Owner, server: MemoryServer, watcher: Watcher) -> None:
    """I5: a missing item is a loss, never "no such node"; all other nodes are right meanwhile."""
    owner.commit(report("n", 1, zone="a"), report("m", 1))
    server.evict(keys.node(S, "n"))
    state = watcher.look()
    assert state.table is not None
    assert (state.lost, state.table.incomplete) == ("", {"n"})
    assert [(r.name, r.live) for r in held(state)] == [("n", False), ("m", True)]
    assert owner.renew() is True
    owner.repair()
    healed = watcher.look()
    assert healed.table is not None
    assert (held(healed), healed.table.incomplete) == (owner.records, set())


def test_node_lost_between_two_refreshes_keeps_its_old_state_as_incomplete(
    owner: Owner, server: MemoryServer, watcher: Watcher
) -> None:
    """A read that excludes incomplete nodes must not return it; a read that does not may use it as a hint."""
    owner.commit(report("n", 1, zone="old"))
    before = watcher.look()
    owner.commit(change("n", 2, zone="new"))
    server.evict(keys.node(S, "n"))
    state = watcher.look()
    assert state.table is not None
    assert (held(state), state.table.incomplete) == (held(before), {"n"})


@pytest.mark.parametrize("damage", ["torn", "of another epoch", "older", "of another node"])
def test_item_that_the_head_does_not_name_is_not_accepted(
    owner: Owner, server: MemoryServer, watcher: Watcher, damage: str
) -> None:
    """I3 and I7: only the named stamp, or a later one of the head's term or a later term, is accepted as the node's
    state.
    """
    owner.commit(report("n", 1, zone="old"))
    owner.commit(change("n", 2, zone="new"))
    key = keys.node(S, "n")
    item = server.fetch([key])[key]
    stored = NODE.unpack(item.value)
    wrong = {
        "torn": item.value[:-3],
        "of another epoch": NODE.pack(StoredNode(8, stamp_of(1, 2), 0, stored.record)),
        "older": NODE.pack(StoredNode(7, stamp_of(1, 1), 0, stored.record)),
        "of another node": NODE.pack(StoredNode(7, stamp_of(1, 2), 5, stored.record)),
    }[damage]
    server.write([Write(Put.CAS, key, wrong, item.cas)])
    state = watcher.look()
    assert state.table is not None
    assert state.table.incomplete == {"n"}
    owner.renew()
    owner.repair()
    assert held(watcher.look()) == owner.records


def test_refresh_during_a_takeover_does_not_go_back(server: MemoryServer, clock: ManualClock) -> None:
    """Regression (I1): the reader read the head before the takeover, and the items after the fenced owner had written
    two more commits into them. The heir took over the state before these, and may reach a state between the two.
    """
    old, heir = Owner("snapshot", server, clock, "old"), Owner("snapshot", server, clock, "heir")
    old.begin()
    old.commit(report("n", 1, zone="1"))
    old.commit(change("n", 2, zone="2"))
    watcher = Watcher("snapshot", server, clock)
    taken = []

    def take_over_before_the_items(operation: str, _count: int) -> Fault | None:
        if operation == "fetch" and len(watcher.fetches) == 3 and not taken:
            taken.append(True)
            heir.take()
            with pytest.raises(FencedError):
                old.commit(change("n", 3, zone="3"), change("n", 4, zone="4"))
        return None

    before = held(watcher.look(take_over_before_the_items))[0]
    assert taken
    heir.commit(change("n", 3, zone="3"))
    assert held(watcher.look())[0].version >= before.version


def test_lost_index_affects_only_new_readers(
    owner: Owner, server: MemoryServer, watcher: Watcher, clock: ManualClock
) -> None:
    """Readers that keep up learn all changes from the ring."""
    owner.commit(report("n", 1), report("m", 1))
    owner.repair()
    watcher.look()
    lost = keys.index(S, 7, 1, 3, 0)
    assert server.evict(lost)
    owner.commit(change("n", 2, zone="a"))
    assert held(watcher.look()) == owner.records
    late = Watcher("snapshot", server, clock)
    assert late.look().lost == f"{lost} is missing"
    assert Owner("snapshot", server, clock, "b").take() is None


def test_owner_writes_a_lost_index_again(owner: Owner, server: MemoryServer, clock: ManualClock) -> None:
    """A reader's request is enough."""
    owner.commit(report("n", 1))
    owner.repair()
    assert server.evict(keys.index(S, 7, 1, 3, 0))
    late = Watcher("snapshot", server, clock)
    assert late.look().lost != ""
    assert owner.renew() is True
    owner.repair()
    assert (held(late.look()), late.look().lost) == (owner.records, "")


def test_new_owner_rewrites_items_that_the_old_one_wrote_ahead_of_its_head(
    owner: Owner, server: MemoryServer, watcher: Watcher, clock: ManualClock
) -> None:
    """The owner crashed between the items and the head.

    The state is true, so the heir keeps it; under its own term readers accept it, and no reader goes back (I1).
    """
    owner.commit(report("n", 1, zone="old"), report("m", 1))
    with pytest.raises(StoreUnavailableError):
        owner.commit(change("n", 2, zone="new"), plan=at_call(1, Fault(0)))
    assert [r.version.generation for r in held(watcher.look())] == [2, 1], "a node is older than the head says"
    heir = Owner("snapshot", server, clock, "b")
    taken = heir.take()
    assert taken is not None
    assert [(r.name, r.version.generation) for r in taken.records] == [("n", 2), ("m", 1)]
    assert taken.epoch_continues
    heir.commit(report("m", 2))
    for follower in (watcher, Watcher("snapshot", server, clock)):
        state = follower.look()
        assert state.table is not None
        assert (held(state), state.table.incomplete) == (heir.records, set())


def test_takeover_reports_that_a_node_was_lost(owner: Owner, server: MemoryServer, clock: ManualClock) -> None:
    """Regression (I1): the node was written again as unknown in the same epoch. Readers that had its state went back,
    and an old redelivered report counted as its newest.
    """
    owner.commit(report("n", 1), report("m", 1))
    server.evict(keys.node(S, "n"))
    taken = Owner("snapshot", server, clock, "b").take()
    assert taken is not None
    assert (taken.epoch_continues, taken.complete) == (False, False)
    assert [(r.name, r.live, r.incomplete) for r in taken.records] == [("n", False, True), ("m", True, False)]


def test_item_of_a_zombie_is_ignored_and_replaced(
    owner: Owner, server: MemoryServer, watcher: Watcher, clock: ManualClock
) -> None:
    """I7: a zombie may overwrite an item, but readers do not accept it."""
    owner.commit(report("n", 1, zone="old"), report("m", 1))
    heir = Owner("snapshot", server, clock, "b")
    heir.take()
    with pytest.raises(FencedError):
        owner.commit(change("n", 2, zone="zombie's"))
    stored = NODE.unpack(server.fetch([keys.node(S, "n")])[keys.node(S, "n")].value)
    assert (stored.stamp, stored.record.state()["zone"]) == (stamp_of(1, 2), "zombie's")
    state = watcher.look()
    assert state.table is not None
    assert state.table.incomplete == {"n"}
    assert heir.renew() is True
    heir.repair()
    healed = watcher.look()
    assert healed.table is not None
    assert (held(healed), healed.table.incomplete) == (heir.records, set())


def test_zombie_does_not_overwrite_items_of_the_new_owner(
    owner: Owner, server: MemoryServer, clock: ManualClock
) -> None:
    """Its CAS ids are stale, and when it looks why, it sees the new owner."""
    owner.commit(report("n", 1, zone="old"))
    heir = Owner("snapshot", server, clock, "b")
    heir.take()
    heir.commit(change("n", 2, zone="heir's"))
    before = server.fetch([keys.node(S, "n")])
    with pytest.raises(FencedError):
        owner.commit(change("n", 2, zone="zombie's"))
    assert server.fetch([keys.node(S, "n")]) == before


@pytest.mark.usefixtures("tight")
@pytest.mark.parametrize("fault", [Fault(0), Fault(1), Fault(None), Fault(0, late=True), Fault(1, late=True)])
@pytest.mark.parametrize("call", range(5))
def test_unanswered_commit_takes_effect_once(
    owner: Owner, server: MemoryServer, watcher: Watcher, clock: ManualClock, fault: Fault, call: int
) -> None:
    """The most important fault: at each call, whether it was carried out, partly, later or never; for a reader that
    follows every commit, one that reads every third, and a new one.
    """
    slow = Watcher("snapshot", server, clock)
    owner.commit(report("n", 1))
    slow.look()
    for generation in range(2, 32):
        events = [change("n", generation, zone=f"z{generation}"), report(f"new-{generation}", 1)]
        try:
            owner.commit(*events, plan=at_call(call, fault))
        except StoreUnavailableError:
            owner.again()
        owner.store.arrive()
        followers = [watcher, Watcher("snapshot", server, clock)] + ([slow] if generation % 3 == 0 else [])
        for follower in followers:
            state = follower.look()
            assert (held(state), state.lost) == (owner.records, "")
            assert state.table is not None
            assert state.table.incomplete == set()


@pytest.mark.usefixtures("tight")
def test_unanswered_deletion_of_an_index_does_not_repeat_the_commit(
    owner: Owner, watcher: Watcher, server: MemoryServer
) -> None:
    """Regression: the deletion was not answered, so the commit was tried again and added its new nodes twice. Readers
    that were behind gave the next new node a wrong name.
    """
    owner.commit(report("n", 1))
    watcher.look()
    for generation in range(1, 40):
        commits = section_of(owner).ring_from + len(section_of(owner).counts) // 2
        owner.commit(
            report(f"new-{generation}", 1),
            plan=lambda operation, _count: Fault(0) if operation == "write" and deletes(server, owner) else None,
        )
        assert section_of(owner).ring_from + len(section_of(owner).counts) // 2 == commits + 1
        if generation % 2:
            assert held(watcher.look()) == owner.records


def deletes(server: MemoryServer, owner: Owner) -> bool:
    """True once the head of the present commit is stored: all later writes are deletions."""
    head = server.fetch([keys.head(S, 7)])[keys.head(S, 7)]
    return head.cas != owner.writer.ownership._head_cas  # type: ignore[attr-defined]


def test_full_store_keeps_the_old_state(clock: ManualClock) -> None:
    """A failed set would have deleted the old state; a failed CAS keeps it, and the commit succeeds later."""
    server = MemoryServer(clock=clock, max_bytes=3_000, no_evict=True)
    owner, watcher = Owner("snapshot", server, clock), Watcher("snapshot", server, clock)
    owner.begin()
    owner.commit(report("n", 1, zone="old"))
    before = watcher.look()
    with pytest.raises(StoreFullError) as caught:
        owner.commit(change("n", 2, namespaces={"x": "y" * 3_000}))
    assert caught.value.key == keys.node(S, "n")
    assert held(Watcher("snapshot", server, clock).look()) == held(before)
    server._max_bytes = None
    owner.again()
    assert held(watcher.look()) == owner.records


@pytest.mark.parametrize("key", [keys.head(S, 7), keys.epoch(S)], ids=["head", "epoch key"])
def test_lost_epoch_key_or_head_is_repaired(owner: Owner, server: MemoryServer, watcher: Watcher, key: str) -> None:
    """A new reader finds nothing.

    The owner writes a lost epoch key again, and begins another epoch after a lost head.
    """
    owner.commit(report("n", 1))
    server.evict(key)
    assert held(watcher.look()) == []
    try:
        owner.renew()
    except EpochLostError:
        owner.begin(8)
    assert held(watcher.look()) == owner.records


def test_items_of_a_lost_epoch_are_not_accepted_in_the_next(
    owner: Owner, server: MemoryServer, watcher: Watcher, clock: ManualClock
) -> None:
    """Keys of nodes are the same in all epochs; the items say which epoch they belong to."""
    owner.commit(report("n", 1, zone="old"))
    server.evict(keys.epoch(S))
    heir = Owner("snapshot", server, clock, "b")
    assert heir.take() is None
    heir.begin(8)
    assert held(watcher.look()) == []
    heir.commit(report("n", 1, zone="again"))
    assert held(watcher.look()) == heir.records


def test_ring_has_the_newest_stamp_of_each_slot() -> None:
    """Compared with a naive implementation, for commits that are empty, repeat slots, or do not fit at all."""
    with small_limits():
        commits = [[0], [1, 2], [], [1], [3, 4, 5], list(range(9)), [2], [2, 3], [0]]
        owner_of = {offset: 1 if offset < 6 else 3 for offset in range(1, 20)}
        for n in range(len(commits)):
            section = _ring(commits[: n + 1])
            for offset in range(section.ring_from, n + 3):
                naive = {
                    slot: stamp_of(owner_of[at + 1], at + 1)
                    for at, slots in enumerate(commits[: n + 1])
                    if at + 1 >= offset
                    for slot in slots
                }
                assert ring_after(section, offset) == naive


def _ring(commits: list[list[int]]) -> SnapshotSection:
    terms = (TermStart(1, 1), TermStart(3, 6))
    section = SnapshotSection(1, b"", b"", (), terms, Index(1, 1, 0))
    for slots in commits:
        ring_from, counts, packed = ring_with(section, slots)
        section = SnapshotSection(ring_from, counts, packed, (), terms, section.index)
    return section

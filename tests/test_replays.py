"""Earlier values of a memcached, stored again by a program that cannot make values of its own (``auth_store``).

No reader takes them for newer than they are (I5), and no view goes back to them (I1).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from contextlib import closing, suppress
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.profile import by_profile
from harness.servers import MemcachedServer
from nodestate import Reader
from nodestate.designs import DESIGNS
from nodestate.designs.inspection import HeadStatus, head_status
from nodestate.errors import EpochLostError, FencedError, StaleViewError
from nodestate.ports import Put, SystemClock, Write
from nodestate.store import keys
from nodestate.store.head import HEAD, read_head
from nodestate.store.liveness import MAX_WRITE_TIME_AHEAD_S, WRITE_TIME_TOLERANCE_S
from nodestate.store.memcached import MemcachedStore
from nodestate.store.ownership import PartitionTarget
from nodestate.store.round_trips import run_one
from nodestate.store.server_clock import TICK_S
from nodestate.testing import ManualClock, MemoryServer, MemoryStore
from nodestate.view.follower import EPOCHS_OVERLAP_S, Follower
from tests.machines.simulated_cell import SimulatedCell
from tests.partition_owner import LEASE_S, WELL, Owner, Watcher, change, held, prefix_of, report
from tests.planted_values import keys_with, plant, with_field
from tests.test_repair import OnePartitionCell

SLACK_S = WRITE_TIME_TOLERANCE_S + TICK_S + 0.01
"""A replayed value looks younger than it is by at most this (``WRITE_TIME_TOLERANCE_S``)."""
IN_MEMCACHED = ["journal", "snapshot"]


Copies = list[tuple[str, bytes]]
"""Keys and values, in the order in which they were stored."""


class Attacker:
    """Keeps a copy of each value that a server stores, and stores copies again under their keys."""

    def __init__(self, server: MemoryServer) -> None:
        self._server = server
        self._store: Callable[[Write], Any] = server._write
        self.copies: Copies = []
        server._write = self._stored  # type: ignore[method-assign]  # it sees all writes

    def _stored(self, write: Write) -> Any:
        done = self._store(write)
        if done.cas and write.put is not Put.DELETE:
            self.copies.append((write.key, write.value))
        return done

    def copies_of(self, part: str) -> Copies:
        """All copies whose key contains this text, in their order."""
        return [copy for copy in self.copies if part in copy[0]]

    def replay(self, key: str, value: bytes, ttl_s: int = LEASE_S) -> None:
        """Store a copy again, with any time to live."""
        self._server.evict(key)
        MemoryServer._write(self._server, Write(Put.ADD, key, value, ttl_s=ttl_s))

    def replay_all(self, copies: Copies) -> None:
        """Store the last copy of each key again."""
        for key, value in dict(copies).items():
            self.replay(key, value)


# -- the whole cell is dead -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("design", "order"),
    [
        ("journal", "one after the other"),
        ("snapshot", "one after the other"),
        ("journal_b", "the last again and again"),
        ("snapshot_b", "the last again and again"),
    ],
)
def test_the_last_values_of_a_dead_cell_are_refused_by_each_reader_however_often_they_are_repeated(
    design: str, order: str
) -> None:
    """The bounds of issue 12: of a reader that saw the cell alive, of one that sees only copies, and of new ones."""
    cell = SimulatedCell(partitions=1, servers=1, servers_b=design.endswith("_b"), designs=(design,))
    attacker = Attacker(cell.both[-1])
    cell.start_member([0], [])
    for name in ("n", "m"):
        cell.start_agent(name, {"usage": {"VCPU": 1}})

    def reader() -> Reader:
        return Reader(cell.config, design=design, stores=cell.connected(MemoryStore)[1], clock=cell.clock)

    following = reader()
    for _ in range(40):
        cell.run_well(1.0)
        view = following.read(max_age=5.0, node_max_age=15.0, on_stale="flag")
    assert (len(view.nodes), view.stale) == (2, frozenset())
    died_at, copying = cell.clock.monotonic(), reader()
    heads, lives = attacker.copies_of(":head:"), attacker.copies_of(":life:")
    assert len(heads) >= 30
    assert len(lives) >= 30
    for number in range(-30, 0):
        copies = [*attacker.copies_of(":epoch"), heads[number], lives[number]]
        attacker.replay_all(copies if "after" in order else [*copies, heads[-1], lives[-1]])
        cell.clock.advance(0.5)
        dead_s = cell.clock.monotonic() - died_at
        for one in (following, copying, reader()):
            seen = one.read(max_age=math.inf, node_max_age=math.inf, on_stale="flag")
            assert seen.age >= dead_s - SLACK_S
            assert min(map(seen.node_age, seen.nodes)) >= dead_s - SLACK_S
            if dead_s > 5.0 + SLACK_S:
                with pytest.raises(StaleViewError):
                    one.read(max_age=5.0, node_max_age=10.0, on_stale="refuse")
            if dead_s > 10.0 + SLACK_S:
                with pytest.raises(StaleViewError):
                    one.read(node_max_age=10.0, on_stale="refuse")


def test_earlier_signs_of_life_under_a_living_owner_make_no_dead_node_look_alive() -> None:
    cell = SimulatedCell(partitions=1, servers=1, designs=("snapshot",))
    attacker = Attacker(cell.servers[0])
    cell.start_member([0], [])
    for name in ("n", "m"):
        cell.start_agent(name, {"usage": {"VCPU": 1}})
    cell.run_well(30.0)
    copy, died_at = attacker.copies_of(":life:")[-1], cell.clock.monotonic()
    del cell.agents["n"]
    reader = Reader(cell.config, design="snapshot", stores=cell.connected(MemoryStore)[1], clock=cell.clock)
    for _ in range(20):
        cell.run_well(1.0)
        attacker.replay(*copy)
        view = reader.read(max_age=5.0, node_max_age=math.inf, on_stale="flag")
        assert view.node_age("n") >= cell.clock.monotonic() - died_at - SLACK_S


# -- owners ---------------------------------------------------------------------------------------


def two_commits(design: str, clock: ManualClock) -> tuple[MemoryServer, Attacker, Owner]:
    server = MemoryServer(clock=clock)
    attacker = Attacker(server)
    owner = Owner(design, server, clock)
    owner.begin()
    owner.commit(report("n", 1, zone="a"))
    owner.commit(report("m", 1, zone="b"))
    return server, attacker, owner


@pytest.mark.parametrize("design", IN_MEMCACHED)
def test_an_owner_that_takes_over_from_replayed_values_says_how_old_they_are(design: str) -> None:
    """Regression (I5): it took a full time to live for a head that was just written, and its own head said so."""
    clock = ManualClock()
    server, attacker, owner = two_commits(design, clock)
    owner.renew()
    clock.advance(100.0)
    attacker.replay_all([*attacker.copies_of(":head:"), *attacker.copies_of(":life:")])
    taken = Owner(design, server, clock, "b").take()
    assert taken is not None
    assert taken.behind_ms is not None
    assert taken.behind_ms >= (100.0 - SLACK_S) * 1000
    assert min(memoryview(taken.ages_ms).cast("I")) >= (100.0 - SLACK_S) * 1000
    state = Watcher(design, server, clock).look()
    assert state.confirmed_at <= clock.monotonic() - 100.0 + SLACK_S


@pytest.mark.parametrize("design", IN_MEMCACHED)
@pytest.mark.parametrize("of", ["its own", "the owner before"])
def test_a_living_owner_that_finds_an_earlier_head_loses_no_commit(design: str, of: str) -> None:
    """Regression: it gave the partition up for the head of the owner before, whose successor then lost commits."""
    clock = ManualClock()
    server, attacker, first = two_commits(design, clock)
    owner = Owner(design, server, clock, "b")
    owner.take()
    owner.commit(change("n", 2, zone="c"))
    heads = attacker.copies_of(":head:")
    owner.commit(change("n", 3, zone="d"))
    watcher = Watcher(design, server, clock)
    watcher.look()
    attacker.replay(*(heads[-1] if of == "its own" else heads[2]))
    assert held(watcher.look()) == owner.records
    with pytest.raises(EpochLostError):
        owner.renew()
    owner.begin(8)
    for one in (watcher, Watcher(design, server, clock)):
        state = one.look()
        assert (held(state), state.lost) == (owner.records, "")
    assert first.records != owner.records


def cell_with_a_copy(design: str) -> tuple[OnePartitionCell, Attacker, Copies]:
    """A cell with one node, all values as they were, and a later change of the node that its consumer acked."""
    cell = OnePartitionCell((design,))
    attacker = Attacker(cell.server)
    cell.publish("report", state={"usage": {"VCPU": 1}})
    cell.step(4)
    copies = list(attacker.copies)
    cell.publish(patch={"usage": {"VCPU": 2}})
    cell.step(4)
    return cell, attacker, copies


@pytest.mark.parametrize("design", IN_MEMCACHED)
def test_a_takeover_of_earlier_values_shows_with_the_next_heartbeat_of_each_node(design: str) -> None:
    """Possible: no value tells the next owner that a later one was there. The node's agent does."""
    cell, attacker, copies = cell_with_a_copy(design)
    cell.consumer.close()
    attacker.replay_all(copies)
    cell.consumer = cell.another_consumer()
    cell.step(6)
    cell.publish("heartbeat")
    cell.step(4)
    assert "n" in cell.reader(design).read(max_age=5.0).incomplete
    cell.publish("report", state={"usage": {"VCPU": 3}})
    cell.step(4)
    view = cell.reader(design).read(max_age=5.0)
    assert (view.incomplete, view.nodes["n"].state) == (frozenset(), {"usage": {"VCPU": 3}})


@pytest.mark.parametrize("design", IN_MEMCACHED)
def test_a_former_epoch_that_comes_back_under_a_living_owner_costs_no_state(design: str) -> None:
    """The owner gives the partition up, takes it over, and keeps the later records that it knew."""
    cell, attacker, copies = cell_with_a_copy(design)
    cell.server.flush()
    cell.publish("heartbeat")
    cell.step(6)  # another epoch
    attacker.replay_all(copies)
    cell.publish("heartbeat")
    cell.step(12)
    view = cell.reader(design).read(max_age=5.0)
    assert (view.incomplete, view.nodes["n"].state) == (frozenset(), {"usage": {"VCPU": 2}})


# -- readers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("design", IN_MEMCACHED)
def test_a_former_epoch_with_all_its_values_does_not_come_back(design: str) -> None:
    """I1: the reader keeps the later table. A new reader shows the former one, with its true age."""
    clock = ManualClock()
    server, attacker, owner = two_commits(design, clock)
    copies, left_at = list(attacker.copies), clock.monotonic()
    clock.advance(10.0)
    for key in keys_with(server, ":head:"):
        server.evict(key)
    owner.begin(8)
    owner.commit(change("n", 2, zone="c"))
    owner.renew()
    watcher = Watcher(design, server, clock)
    assert held(watcher.look()) == owner.records
    attacker.replay_all(copies)
    state = watcher.look()
    assert (held(state), state.lost) == (owner.records, "the store went back to an earlier state")
    assert Watcher(design, server, clock).look().confirmed_at <= left_at + SLACK_S
    attacker.replay_all([copy for copy in attacker.copies if copy[0].endswith((":epoch", ":head:8"))])
    assert watcher.look().lost == ""


@pytest.mark.parametrize("design", IN_MEMCACHED)
@pytest.mark.parametrize("ahead_s", [MAX_WRITE_TIME_AHEAD_S + TICK_S, 1e6])
def test_a_head_that_was_written_in_the_future_confirms_nothing(design: str, ahead_s: float) -> None:
    """The server's clock was set back, so no copy from before tells its age."""
    clock = ManualClock()
    server, _, _ = two_commits(design, clock)
    plant(server, ":head:", with_field(11, value=int((clock.monotonic() + ahead_s) * 1000)))
    assert Watcher(design, server, clock).look().confirmed_at == -math.inf


@pytest.mark.parametrize("design", IN_MEMCACHED)
def test_a_head_on_a_real_server_is_as_old_as_it_says_whatever_its_time_to_live(
    memcached: MemcachedServer, design: str
) -> None:
    """Owner and reader have the clock of the machine, and a connection each."""
    owner, reading = (MemcachedStore(memcached.address, timeout_s=10.0) for _ in range(2))
    with closing(owner), closing(reading):
        writer = DESIGNS[design].writer(PartitionTarget(prefix_of(design), 0, "a", LEASE_S, owner))
        run_one(owner, writer.begin_epoch(7, SimpleNamespace(records=[]), WELL))
        key = keys.head(prefix_of(design), 7)
        for earlier_s in (0.0, 100.0):
            item = owner.fetch([key])[key]
            head = HEAD.unpack(item.value)
            copy = msgspec.structs.replace(head, written_ms=head.written_ms - int(earlier_s * 1000))
            began = time.monotonic()
            owner.write([Write(Put.CAS, key, HEAD.pack(copy), item.cas, LEASE_S)])
            follower = Follower(0, prefix_of(design), DESIGNS[design].reader(prefix_of(design)), reading, SystemClock())
            age_s = time.monotonic() - run_one(reading, follower.refresh(with_life=False)).confirmed_at
            assert earlier_s - SLACK_S <= age_s <= earlier_s + 3.0 + time.monotonic() - began


def test_commands_show_the_true_age_of_a_head_that_was_stored_again() -> None:
    """``doctor`` says how long ago each partition was renewed."""
    clock = ManualClock()
    server, attacker, _ = two_commits("snapshot", clock)
    clock.advance(100.0)
    attacker.replay(*attacker.copies_of(":head:")[-1])
    store = MemoryStore(server, clock)
    status = head_status(run_one(store, read_head(prefix_of("snapshot"), None)), store, clock.monotonic())
    assert isinstance(status, HeadStatus)
    assert status.age_s >= 100.0 - SLACK_S


@pytest.mark.parametrize("design", IN_MEMCACHED)
def test_a_head_of_an_owner_that_writes_no_time_is_judged_by_its_time_to_live(design: str) -> None:
    """Owners of earlier versions write ten fields."""
    clock = ManualClock()
    server, _, _ = two_commits(design, clock)
    plant(server, ":head:", lambda head: head[:10])
    clock.advance(20.0)
    state = Watcher(design, server, clock).look()
    assert 20.0 <= clock.monotonic() - state.confirmed_at <= 22.0


def test_an_earlier_item_of_a_node_is_named_and_written_again() -> None:
    clock = ManualClock()
    server, attacker, owner = two_commits("snapshot", clock)
    copy = attacker.copies_of(":node:n")[-1]
    owner.commit(change("n", 2, zone="c"))
    watcher = Watcher("snapshot", server, clock)
    following = Watcher("snapshot", server, clock)
    assert held(following.look()) == owner.records
    attacker.replay(*copy)
    assert held(following.look()) == owner.records
    state = watcher.look()
    assert state.table is not None
    assert "n" in state.table.incomplete
    assert owner.renew()
    owner.repair()
    assert held(watcher.look()) == owner.records


def some_history(design: str, clock: ManualClock, rng: random.Random, steps: int) -> tuple[Attacker, Owner, Watcher]:
    """An owner with commits, renewals, takeovers and new epochs, and a reader that followed it."""
    server = MemoryServer(clock=clock)
    attacker, owner = Attacker(server), Owner(design, server, clock)
    owner.begin(7)
    watcher, generation = Watcher(design, server, clock), 0
    for number in range(steps):
        clock.advance(rng.uniform(0.1, 3.0))
        match rng.choice(["commit", "commit", "renew", "repair", "take over", "begin"]):
            case "renew":
                owner.renew()
            case "repair":
                owner.repair()
            case "take over":
                records, owner = owner.records, Owner(design, server, clock, f"owner {number}")
                owner.take()
                assert owner.records == records
            case "begin":
                clock.advance(EPOCHS_OVERLAP_S + TICK_S)
                owner.begin(8 + number)
            case _:
                generation += 1
                owner.commit(report(rng.choice("nm"), generation, zone=str(generation)))
        watcher.look_at_life()
    return attacker, owner, watcher


@pytest.mark.parametrize("design", IN_MEMCACHED)
def test_segments_checkpoints_and_parts_of_an_index_have_one_value_under_one_key(design: str) -> None:
    """So a copy of one is the same as the original, or nothing names it any longer."""
    for seed in range(5):
        attacker, _, _ = some_history(design, ManualClock(), random.Random(seed), 30)
        for part in (":log:", ":ckpt:", ":index:"):
            copies = attacker.copies_of(part)
            assert len(dict(copies)) == len(set(copies))


@given(st.integers(0, 2**32), st.sampled_from(IN_MEMCACHED))
@settings(max_examples=by_profile(8, 2_000))
def test_no_copies_at_any_time_make_a_view_younger_or_older_than_one_before(seed: int, design: str) -> None:
    """I5 and I1, for a reader that saw the owner, one that sees copies only, and new ones; the owner lives or not."""
    clock, rng = ManualClock(), random.Random(seed)
    attacker, owner, following = some_history(design, clock, rng, 25)
    server, told_at, alive = attacker._server, clock.monotonic(), rng.random() < 0.5
    epochs = [int(key.rpartition(":")[2], 16) for key, _ in attacker.copies_of(":head:")]
    readers, seen = [following, Watcher(design, server, clock)], dict[int, tuple[int, int]]()
    for number in range(25):
        clock.advance(rng.uniform(0.05, 2.0))
        match rng.choice(["one", "one", "head", "all", "none"]):
            case "one":
                attacker.replay(*rng.choice(attacker.copies), rng.choice([0, 1, 5, LEASE_S]))
            case "head":
                attacker.replay(*rng.choice(attacker.copies_of(":head:")))
            case "all":  # as the server was at some moment
                until = rng.randrange(1, len(attacker.copies) + 1)
                attacker.replay_all(attacker.copies[:until])
        if alive and rng.random() < 0.5:
            told_at = clock.monotonic()
            try:
                owner.renew()
            except EpochLostError:
                clock.advance(EPOCHS_OVERLAP_S + TICK_S)
                epochs.append(100 + number)
                told_at = clock.monotonic()
                with suppress(FencedError):
                    owner.begin(100 + number)
            except FencedError:
                alive = False
        for place, reader in enumerate([*readers, Watcher(design, server, clock)]):
            state = reader.look_at_life()
            assert state.confirmed_at <= told_at + SLACK_S, "I5: it claims a time at which no owner lived"
            if state.heard_at is not None:
                assert max(state.heard_at, default=-math.inf) <= told_at + SLACK_S, "I5: no owner knew of that sign"
            if state.table is not None and place < len(readers):
                now = (max(n for n, epoch in enumerate(epochs) if epoch == state.table.epoch), state.table.offset)
                assert now >= seen.get(place, now), "I1: the view went back"
                seen[place] = now

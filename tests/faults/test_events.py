"""Events that arrive twice, out of order, malformed or not at all; and agents that begin another life."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from harness.cell import DESIGNS, Cell
from harness.profile import by_profile
from harness.servers import MemcachedServer
from harness.waiting import wait_until
from nodestate.agent.incarnation import IncarnationLock
from nodestate.broker import read_dead_letters
from nodestate.consumers.pending_work import MAX_DEAD_LETTER_BYTES
from nodestate.designs.reader import Reader
from nodestate.model import MAX_EVENT_BYTES, Change
from nodestate.model.partitioning import partition_of
from nodestate.ports import SystemClock
from tests.faults.conftest import CellFactory

pytestmark = pytest.mark.service

DAY_S: Final = 86_400
REPEATED_COUNT: Final = 3_000
ROUNDS_COUNT: Final = by_profile(fast=1, thorough=3)


class SteppedClock(SystemClock):
    """A wall clock that is ``back_s`` seconds slow."""

    def __init__(self, back_s: float) -> None:
        self.back_s = back_s

    def time(self) -> float:
        return time.time() - self.back_s


def test_repeated_and_reordered_events_do_not_change_the_final_state(
    cell_of: CellFactory, memcached: MemcachedServer
) -> None:
    """I1, I6: old messages arrive again in any order, and newer events before older ones. No read goes back."""
    with cell_of(memcached.url) as cell:
        cell.watch()
        fleet, rng = cell.fleet, random.Random(7)

        def again() -> int:
            sent = list(fleet.sink.sent)
            for _ in range(REPEATED_COUNT):
                fleet.sink.inner.publish(*rng.choice(sent), lambda _ok: None)
            return len(sent)

        fleet.sink.swap = lambda _event: rng.random() < 0.1
        for _ in range(ROUNDS_COUNT):
            changes = fleet.changes
            wait_until(lambda changes=changes: fleet.changes > changes + 200, "the fleet does not change")
            assert fleet.call(again) > 200
        fleet.call(fleet.sink.stop_swapping)
        cell.wait_until_recovered(
            f"after {ROUNDS_COUNT * REPEATED_COUNT} repeated messages, and every tenth event swapped with the next"
        )
        outcomes = [member.stop()["by_outcome"] for member in cell.members]
        assert sum(outcome["duplicate"] for outcome in outcomes) >= ROUNDS_COUNT * REPEATED_COUNT
        assert sum(outcome["gap"] for outcome in outcomes) > 0
        assert read_dead_letters(cell.config, 10) == []


def poison(node: str, other: str) -> dict[str, tuple[str, bytes]]:
    """Return every kind of malformed event by name, each with the reason for which it must be dead-lettered.

    Events with a malformed state or patch belong to a later incarnation than their agent's: an event of an older
    version would be dropped as a duplicate, whatever it contains.
    """
    now = int(time.time())
    good: dict[str, Any] = {"v": 1, "node": node, "incarnation": now - 100, "generation": 1, "reported_at": float(now)}

    def event(**fields: Any) -> bytes:
        return msgspec.msgpack.encode({name: value for name, value in {**good, **fields}.items() if value is not None})

    deep: Any = "bottom"
    for _ in range(40):
        deep = {"deeper": deep}
    later = now + 50
    return {
        "no msgpack": ("undecodable", b"\xc1 is what msgpack never uses"),
        "nothing": ("undecodable", b""),
        "half an event": ("undecodable", event(kind="heartbeat")[:20]),
        "JSON": ("wrong-type", b'{"v":1,"kind":"heartbeat"}'),
        "a list": ("wrong-type", msgspec.msgpack.encode([1, 2, 3])),
        "no kind": ("wrong-type", event()),
        "an unknown kind": ("wrong-type", event(kind="gossip")),
        "a field too few": ("wrong-type", event(kind="heartbeat", generation=None)),
        "a later format": ("unknown-version", event(kind="heartbeat", v=2)),
        "a name with a space": ("bad-name", event(kind="heartbeat", node="compute 1")),
        "a name too long": ("bad-name", event(kind="heartbeat", node="n" * 201)),
        "a name with a newline": ("bad-name", event(kind="heartbeat", node="compute-1\n")),
        "a generation of text": ("wrong-type", event(kind="heartbeat", generation="1")),
        "a generation of zero": ("wrong-type", event(kind="heartbeat", generation=0)),
        "an event too large": ("too-large", event(kind="report", state={"zone": "x" * MAX_EVENT_BYTES})),
        "a clock before 2001": ("clock", event(kind="heartbeat", reported_at=12.0)),
        "a clock two days ahead": ("clock", event(kind="heartbeat", reported_at=float(now + 2 * DAY_S))),
        "an incarnation two days ahead": ("clock", event(kind="heartbeat", incarnation=now + 2 * DAY_S)),
        "another partition's node": ("wrong-partition", event(kind="heartbeat", node=other)),
        "a negative amount": ("wrong-type", event(kind="report", incarnation=later, state={"usage": {"VCPU": -1}})),
        "an amount of text": ("wrong-type", event(kind="report", incarnation=later, state={"usage": {"VCPU": "all"}})),
        "an unknown status": ("wrong-type", event(kind="report", incarnation=later, state={"status": "tired"})),
        "a state too deep": ("too-deep", event(kind="report", incarnation=later, state={"namespaces": {"a": deep}})),
        "a patch of a list": ("wrong-type", event(kind="change", incarnation=later, patch=[1])),
        "a patch with a negative amount": (
            "wrong-type",
            event(kind="change", incarnation=later, patch={"usage": {"VCPU": -1}}),
        ),
    }


def test_malformed_events_are_dead_lettered_and_events_behind_them_are_applied(
    cell_of: CellFactory, memcached: MemcachedServer
) -> None:
    """I6: each malformed message is kept with its reason; the messages behind it in the same queue are applied."""
    with cell_of(memcached.url) as cell:
        cell.watch()
        fleet = cell.fleet
        victim = fleet.names_of_partition[3][0]
        kinds = poison(victim, fleet.names_of_partition[4][0])

        def send() -> None:
            for _, body in kinds.values():
                fleet.sink.inner.publish(3, body, lambda _ok: None)
            fleet.change(victim)

        fleet.call(send)
        wait_until(
            lambda: len(read_dead_letters(cell.config, 1_000)) >= len(kinds),
            lambda: f"only {[letter.reason for letter in read_dead_letters(cell.config, 1_000)]}",
        )
        letters = read_dead_letters(cell.config, 1_000)
        assert {letter.body: letter.reason for letter in letters} == {
            body[:MAX_DEAD_LETTER_BYTES]: reason for reason, body in kinds.values()
        }
        assert {letter.partition for letter in letters} == {3}
        assert all(letter.detail for letter in letters)
        # The refused events were of a later life of this node, so a newer version is known to exist: the node counts as
        # incomplete until the agent's next life.
        fleet.call(lambda: fleet.publisher(victim, int(time.time()) + 60).report(fleet.state(victim)))
        cell.wait_until_recovered(f"after {len(kinds)} kinds of malformed events in one queue")
        counted: dict[str, int] = {}
        for member in cell.members:
            for reason, count in member.stop()["dead_letters"].items():
                counted[reason] = counted.get(reason, 0) + count
        assert sum(counted.values()) == len(kinds)


def test_next_heartbeat_reveals_a_lost_change_and_a_report_repairs_it(
    cell_of: CellFactory, memcached: MemcachedServer
) -> None:
    """I5: the heartbeat carries the version, so the consumer notices that a change is missing and asks for a report."""
    with cell_of(memcached.url, rate=0.0) as cell:
        cell.watch()
        fleet = cell.fleet
        victims = fleet.names[10:20]
        answers = fleet.answers

        def lose() -> None:
            fleet.sink.lose = lambda event: isinstance(event, Change) and event.node in victims
            for name in victims:
                fleet.publishers[name].change({"metrics": {"lost": 1.0}})
            fleet.sink.lose = None

        fleet.call(lose)
        assert fleet.sink.lost == len(victims)
        began = time.monotonic()
        wait_until(lambda: fleet.answers == answers + len(victims), "no agent is asked for its lost change")
        cell.record(f"{len(victims)} lost changes: all asked for again after {time.monotonic() - began:.1f} s")
        cell.wait_until_recovered("after lost changes")
        assert fleet.answers == answers + len(victims)


def test_agent_whose_clock_was_set_back_begins_a_later_life_all_the_same(
    cell_of: CellFactory, memcached: MemcachedServer, tmp_path: Path
) -> None:
    """The agent stores its incarnation on disk, so the new life wins over the old one although its clock is a day
    slow.
    """
    with cell_of(memcached.url) as cell:
        cell.watch()
        fleet, node = cell.fleet, cell.fleet.names[3]
        fleet.unchanging = {node}

        def lives() -> tuple[int, int]:
            before = fleet.publishers[node]
            with IncarnationLock(tmp_path / "lives", node, time.time()) as life:
                first = fleet.publisher(node, life.incarnation)
            assert first.version > before.version
            first.report({**fleet.state(node), "zone": "first-life"})
            with IncarnationLock(tmp_path / "lives", node, time.time() - DAY_S) as life:
                second = fleet.publisher(node, life.incarnation, SteppedClock(DAY_S))
            second.report({**fleet.state(node), "zone": "second-life"})
            # An event of the first life arrives after the second life began.
            first.change({"zone": "ghost-of-the-first"})
            return first.version.incarnation, second.version.incarnation

        first, second = fleet.call(lives)
        assert second == first + 1
        wait_until(
            lambda: all(cell.read(d).nodes[node].version.incarnation == second for d in DESIGNS),
            "the new life does not win",
        )
        for design in DESIGNS:
            assert cell.read(design).nodes[node].state["zone"] == "second-life"
        cell.wait_until_recovered("after an agent's restart with its clock set back by a day")


def test_dead_agent_stays_stale_through_a_takeover(cell_of: CellFactory, memcached: MemcachedServer) -> None:
    """``node_max_age`` counts from the node's last sign of life; a new owner must not count from its own start."""
    with cell_of(memcached.url, rate=50.0) as cell:
        cell.watch()
        fleet, dead = cell.fleet, cell.fleet.names[5]
        owner = cell.members[partition_of(dead, 8) % 2]
        bound_s = 3.0

        fleet.call(lambda: fleet.dead.add(dead))
        died_at = time.monotonic()
        with Reader(cell.config, design="journal") as journal, Reader(cell.config, design="snapshot") as snapshot:
            readers = (journal, snapshot)

            def stale_nodes() -> list[frozenset[str]]:
                return [one.read(max_age=60, node_max_age=bound_s, on_stale="flag").stale for one in readers]

            wait_until(lambda: stale_nodes() == [{dead}] * 2, "the dead agent's node does not become stale")
            noticed_s = time.monotonic() - died_at
            # Ages are estimated too high, never too low: until the agent has really been silent for longer than the
            # bound, a new owner may rightly estimate a lower age. From then on the node must stay stale.
            wait_until(lambda: time.monotonic() > died_at + bound_s + 1.0, "the clock stands still")
            [heir] = [member for member in cell.members if member is not owner]
            owner.kill()

            def taken_over() -> bool:
                assert all(dead in stale for stale in stale_nodes()), "the takeover made a dead agent's node look alive"
                return len(heir.logged("partition taken over")) == cell.config.partitions and not cell.problems()

            wait_until(taken_over, "the standby does not take over", poll_s=0.05)
            for _ in range(10):
                assert all(dead in stale for stale in stale_nodes()), (
                    "the new owner made a dead agent's node look alive"
                )
            wait_until(lambda: stale_nodes() == [{dead}] * 2, "nodes of living agents stay stale after a takeover")
        cell.record(f"the node of a dead agent was stale (bound {bound_s:g} s) after {noticed_s:.1f} s")


def test_nodes_that_leave_and_return_are_right_through_a_takeover(
    cell_of: CellFactory, memcached: MemcachedServer
) -> None:
    """A node that left is not in a view, a later report brings it back, and both designs agree also after a
    takeover.
    """
    with cell_of(memcached.url) as cell:
        cell.watch()
        fleet = cell.fleet
        leavers = fleet.names[30:40]

        def leave(cell: Cell) -> None:
            for name in leavers:
                cell.fleet.publishers[name].report(cell.fleet.state(name))  # without allocations
                cell.fleet.publishers[name].leave()

        fleet.call(lambda: leave(cell))
        cell.wait_until_equal()
        for design in DESIGNS:
            assert not set(leavers) & set(cell.read_cold(design).nodes)
        cell.members[0].kill()
        cell.wait_until_equal()
        fleet.call(lambda: [fleet.publishers[name].report(fleet.state(name)) for name in leavers])
        cell.members[0].start()
        cell.members[0].wait_for_log("connected")
        cell.wait_until_recovered("after ten nodes left and came back")

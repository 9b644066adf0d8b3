"""What comes through the queues: twice, out of order, poisoned, or not at all; and agents that begin another life."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from harness.cell import DESIGNS, Cell
from harness.servers import MemcachedServer
from harness.waiting import wait_until
from nodestate.agent.incarnation import IncarnationLock
from nodestate.broker import read_dead_letters
from nodestate.designs.reader import Reader
from nodestate.model import MAX_EVENT_BYTES, Change
from nodestate.model.partitioning import partition_of
from nodestate.ports import SystemClock
from tests.faults.conftest import CellFactory

pytestmark = pytest.mark.service

DAY_S: Final = 86_400
MANY: Final = 3_000


class SteppedClock(SystemClock):
    """A clock that somebody set back."""

    def __init__(self, back_s: float) -> None:
        self.back_s = back_s

    def time(self) -> float:
        return time.time() - self.back_s


def test_duplicates_and_events_out_of_order_change_nothing_for_good(
    cell_of: CellFactory, memcached: MemcachedServer
) -> None:
    """I1, I6: old messages come again in any order, and younger ones before older. No read goes back."""
    with cell_of(memcached.url) as cell:
        cell.watch()
        fleet, rng = cell.fleet, random.Random(7)

        def again() -> int:
            sent = list(fleet.sink.sent)
            for _ in range(MANY):
                fleet.sink.inner.publish(*rng.choice(sent), lambda _ok: None)
            return len(sent)

        fleet.sink.swap = lambda _event: rng.random() < 0.1
        for _ in range(3):
            assert fleet.call(again) > 200
            time.sleep(0.7)
        fleet.call(fleet.sink.stop_swapping)
        cell.wait_until_recovered(f"after {3 * MANY} old messages again, and every tenth event swapped with the next")
        outcomes = [member.stop()["by_outcome"] for member in cell.members]
        assert sum(outcome["duplicate"] for outcome in outcomes) >= 3 * MANY
        assert sum(outcome["gap"] for outcome in outcomes) > 0
        assert read_dead_letters(cell.config, 10) == []


def poison(node: str, other: str) -> dict[str, tuple[str, bytes]]:
    """Every kind of bad input of DESIGN.md section 4: what it is, with the reason it must be given up for.

    Those that are bad only in their state or patch carry generation 1, which is old: they must be read to be refused.
    """
    now = int(time.time())
    good: dict[str, Any] = {"v": 1, "node": node, "incarnation": now - 100, "generation": 1, "reported_at": float(now)}

    def event(**fields: Any) -> bytes:
        return msgspec.msgpack.encode({name: value for name, value in {**good, **fields}.items() if value is not None})

    deep: Any = "bottom"
    for _ in range(40):
        deep = {"deeper": deep}
    young = now + 50  # above what its agent has: an older version is a duplicate, whatever it holds
    return {
        "no msgpack": ("undecodable", b"\xc1 is what msgpack never uses"),
        "nothing": ("undecodable", b""),
        "half an event": ("undecodable", event(kind="heartbeat")[:20]),
        "JSON": ("wrong-type", b'{"v":1,"kind":"heartbeat"}'),
        "a list": ("wrong-type", msgspec.msgpack.encode([1, 2, 3])),
        "no kind": ("wrong-type", event()),
        "an unknown kind": ("wrong-type", event(kind="gossip")),
        "a field too many": ("wrong-type", event(kind="heartbeat", colour="red")),
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
        "a negative amount": ("wrong-type", event(kind="report", incarnation=young, state={"usage": {"VCPU": -1}})),
        "an amount of text": ("wrong-type", event(kind="report", incarnation=young, state={"usage": {"VCPU": "all"}})),
        "an unknown status": ("wrong-type", event(kind="report", incarnation=young, state={"status": "tired"})),
        "a state too deep": ("too-deep", event(kind="report", incarnation=young, state={"namespaces": {"a": deep}})),
        "a patch of a list": ("wrong-type", event(kind="change", incarnation=young, patch=[1])),
        "a patch with a negative amount": (
            "wrong-type",
            event(kind="change", incarnation=young, patch={"usage": {"VCPU": -1}}),
        ),
    }


def test_poison_ends_in_the_dead_letters_and_stops_nobody(cell_of: CellFactory, memcached: MemcachedServer) -> None:
    """I6: each bad message is kept with its reason; what comes behind it in the same queue is applied."""
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
        assert {letter.body: letter.reason for letter in letters} == {body: reason for reason, body in kinds.values()}
        assert {letter.partition for letter in letters} == {3}
        assert all(letter.detail for letter in letters)
        # What claimed to be of a later life of this node was refused, but that it was said is known: until the agent's
        # next life the node counts as incomplete.
        fleet.call(lambda: fleet.publisher(victim, int(time.time()) + 60).report(fleet.state(victim)))
        cell.wait_until_recovered(f"after {len(kinds)} kinds of poison in one queue")
        counted: dict[str, int] = {}
        for member in cell.members:
            for reason, count in member.stop()["dead_letters"].items():
                counted[reason] = counted.get(reason, 0) + count
        assert sum(counted.values()) == len(kinds)


def test_a_change_that_was_lost_is_noticed_by_the_next_sign_of_life_and_healed(
    cell_of: CellFactory, memcached: MemcachedServer
) -> None:
    """I5: nobody published it, so nobody can know; the heartbeat tells the version, and a report fills the gap."""
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
        wait_until(lambda: fleet.answers == answers + len(victims), "nobody is asked for what was lost")
        cell.record(f"{len(victims)} lost changes: all asked for again after {time.monotonic() - began:.1f} s")
        cell.wait_until_recovered("after lost changes")
        assert fleet.answers == answers + len(victims)


def test_an_agent_whose_clock_was_set_back_still_begins_a_later_life(
    cell_of: CellFactory, memcached: MemcachedServer, tmp_path: Path
) -> None:
    """Its incarnation is on disk, so its new life wins over its older one although the clock says it is older."""
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
            # What the first life still had under way comes after the second began.
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


def test_a_dead_agent_looks_silent_also_after_a_takeover(cell_of: CellFactory, memcached: MemcachedServer) -> None:
    """``node_max_age`` counts from the last sign of life, which a new owner must not mistake for its own start."""
    with cell_of(memcached.url, rate=50.0) as cell:
        cell.watch()
        fleet, dead = cell.fleet, cell.fleet.names[5]
        owner = cell.members[partition_of(dead, 8) % 2]
        bound_s = 4.0

        fleet.call(lambda: fleet.dead.add(dead))
        died_at = time.monotonic()
        with Reader(cell.config, design="journal") as journal, Reader(cell.config, design="snapshot") as snapshot:
            readers = (journal, snapshot)

            def silent() -> list[frozenset[str]]:
                return [one.read(max_age=60, node_max_age=bound_s, on_stale="flag").stale for one in readers]

            wait_until(lambda: silent() == [{dead}] * 2, "the dead agent is not seen as silent")
            noticed_s = time.monotonic() - died_at
            owner.kill()
            until = time.monotonic() + 4.0
            while time.monotonic() < until:
                assert all(dead in stale for stale in silent()), "a takeover brought a dead agent back to life"
                time.sleep(0.05)
            wait_until(lambda: silent() == [{dead}] * 2, "living agents stay silent after a takeover")
        cell.record(f"a dead agent was seen as silent (bound {bound_s:g} s) after {noticed_s:.1f} s")


def test_views_stay_right_when_agents_and_consumers_come_and_go(
    cell_of: CellFactory, memcached: MemcachedServer
) -> None:
    """Leave and return: a tombstone is no node, a later report brings it back, and neither design forgets which."""
    with cell_of(memcached.url) as cell:
        cell.watch()
        fleet = cell.fleet
        leavers = fleet.names[30:40]

        def leave(cell: Cell) -> None:
            for name in leavers:
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

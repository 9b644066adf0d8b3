"""Stored values with a right checksum and a wrong content: each counts as missing, and is repaired as a missing one."""

from __future__ import annotations

import io
import math
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from rich.console import Console
from structlog.testing import capture_logs

from nodestate.cli import view as view_command
from nodestate.errors import EpochLostError
from nodestate.findings.store_checks import examine_damage
from nodestate.model import NodeRecord
from nodestate.store import keys
from nodestate.store.damage import DAMAGE, DamageLog
from nodestate.testing import ManualClock, MemoryDatabase, MemoryServer
from nodestate.view.documents import view_document
from tests.partition_owner import LEASE_S, Owner, Watcher, held, report
from tests.planted_values import content, item_at, keys_with, plant, replace, sealed, with_field
from tests.scheduling.fleets import ChangingPartition, host
from tests.test_repair import OnePartitionCell

HEAD_FIELDS = {"epoch": 0, "term": 1, "beat": 3, "next": 4, "behind_ms": 5, "lease_s": 7, "section": 8, "follows": 9}
SECTIONS: dict[str, list[tuple[tuple[int, ...], Any]]] = {
    "snapshot": [
        ((1,), b"\xff\xff" * 3),  # counts beyond the slots
        ((1,), b"\x00"),
        ((2,), b"\x01"),
        ((2,), b"\x63\0\0\0"),  # a slot that no node has
        ((0,), 2**40),
        ((3,), [[1, "n\r\nflush_all"]]),
        ((3,), [[1, "n"], [1, "n"]]),
        ((3, 1, 0), 127),  # a node that a later commit adds
        ((3, 0, 0), 0),  # a node that an earlier commit added
        ((3,), [[2, "m"], [1, "n"]]),
        ((4,), []),  # no term
        ((4, 0, 1), 2**39),
        ((5, 2), 2**31),  # parts of an index
        ((5, 1), 0),
        ((), "text"),
    ],
    "journal": [
        ((0,), 2**40),
        ((0,), 2),
        ((1,), -1),
        ((2,), []),
        ((2, 0, 1), 2**39),
        ((3, 2), 2**31),  # parts of a checkpoint
        ((3, 1), 2**38),
        ((3, 3), -1),
        ((), None),
    ],
    "sql": [((0,), 2**62), ((0,), -1), ((1,), 2**22), ((2,), 2**38), ((), 7)],
}
WRONG_HEADS = [
    *(("term", value) for value in (0, -1, 2**24, 2**63)),
    *(("beat", value) for value in (-1, 2**63, 2**64 - 1)),
    *(("next", value) for value in (-1, 2**40, 2**63)),
    *(("behind_ms", value) for value in (-(10**12), 2**32, 2**62)),
    *(("lease_s", value) for value in (0, -1, 2**62)),
    *(("epoch", value) for value in (-1, 8, 2**64 - 1)),
    ("follows", 2**63),
    ("section", b"bytes"),
]


def server_of(design: str, clock: ManualClock) -> MemoryServer:
    return MemoryDatabase(clock=clock) if design == "sql" else MemoryServer(clock=clock)


def partition_with_two_nodes(design: str, clock: ManualClock) -> tuple[MemoryServer, Owner]:
    server = server_of(design, clock)
    owner = Owner(design, server, clock)
    owner.begin()
    owner.commit(report("n", 1, zone="a"))
    owner.commit(report("m", 1, zone="b"))
    return server, owner


def require_repaired(design: str, server: MemoryServer, clock: ManualClock, owner: Owner) -> None:
    """A new owner, a new reader, and the owner itself go on after a value was damaged."""
    watcher = Watcher(design, server, clock)
    state = watcher.look()
    if state.table is not None and not state.lost:
        right = {record.name: record for record in owner.records}
        wrong = [record.name for record in held(state) if record != right.get(record.name)]
        assert state.table.incomplete.issuperset(wrong), "damaged state passed for right"
    try:
        if owner.renew():
            owner.repair()
    except EpochLostError:
        owner.begin(8)
    other = Owner(design, server, clock, "b")
    taken = other.take()
    if taken is None or not taken.epoch_continues:
        other.records = owner.records
        other.begin(9)
    assert other.records == owner.records
    state = watcher.look()
    assert (held(state), state.lost) == (owner.records, "")


@pytest.mark.parametrize("design", ["journal", "snapshot", "sql"])
@pytest.mark.parametrize(("field", "value"), WRONG_HEADS)
def test_a_head_with_a_value_that_no_owner_writes_is_a_lost_head(design: str, field: str, value: Any) -> None:
    clock = ManualClock()
    server, owner = partition_with_two_nodes(design, clock)
    plant(server, ":head:", with_field(HEAD_FIELDS[field], value=value))
    assert Watcher(design, server, clock).look().table is None
    assert Owner(design, server, clock, "b").take() is None
    require_repaired(design, server, clock, owner)


@pytest.mark.parametrize("design", ["journal", "snapshot", "sql"])
@pytest.mark.parametrize(("field", "value"), [("term", 2**24 - 1), ("beat", 2**53), ("beat", 2**53 - 1)])
def test_a_head_near_the_end_of_its_numbers_is_not_taken_over(design: str, field: str, value: int) -> None:
    """Regression: the next owner's own head had a number that no reader accepts."""
    clock = ManualClock()
    server, owner = partition_with_two_nodes(design, clock)
    plant(server, ":head:", with_field(HEAD_FIELDS[field], value=value))
    assert Owner(design, server, clock, "b").take() is None
    other = Owner(design, server, clock, "b")
    other.records = owner.records
    other.begin(9)
    assert held(Watcher(design, server, clock).look()) == owner.records


@pytest.mark.parametrize(
    ("design", "path", "value"), [(design, *wrong) for design, wrongs in SECTIONS.items() for wrong in wrongs]
)
def test_a_head_whose_section_contradicts_itself_is_a_lost_head(design: str, path: tuple[int, ...], value: Any) -> None:
    clock = ManualClock()
    server, owner = partition_with_two_nodes(design, clock)
    plant(server, ":head:", with_field(HEAD_FIELDS["section"], *path, value=value))
    state = Watcher(design, server, clock).look()
    assert state.lost
    other = Owner(design, server, clock, "b")
    assert other.take() is None
    other.records = owner.records
    other.begin(9)  # its former owner is dead
    assert held(Watcher(design, server, clock).look()) == owner.records


def test_a_ring_that_gives_a_node_to_another_commit_is_dropped_by_the_repair_that_a_reader_asks_for() -> None:
    """The numbers fit together, so another owner takes the partition over with this ring."""
    clock = ManualClock()
    server = server_of("snapshot", clock)
    owner, watcher = Owner("snapshot", server, clock), Watcher("snapshot", server, clock)
    owner.begin()
    owner.commit(report("n", 1, zone="a"))
    watcher.look()
    owner.commit(report("m", 1, zone="b"))
    plant(server, ":head:", with_field(HEAD_FIELDS["section"], 3, 0, 0, value=2))
    other = Owner("snapshot", server, clock, "b")
    assert other.take() is not None
    assert watcher.look().lost
    assert other.renew()
    other.repair()
    state = watcher.look()
    assert (held(state), state.lost) == (owner.records, "")


WRONG_RECORDS: list[tuple[tuple[int, ...], Any]] = [
    ((9,), b"abc"),  # columns of 3 bytes
    ((8,), "VCPU VCPU"),
    ((8,), "~"),
    ((1,), -1),
    ((2,), 2**63),
    ((0,), "n\r\nflush_all"),
    ((0,), ""),
    ((5,), float("nan")),
    ((7,), "\x1b[2J"),
    ((12,), 7),
]


@pytest.mark.parametrize(("path", "value"), WRONG_RECORDS)
@pytest.mark.parametrize("design", ["journal", "snapshot"])
def test_a_record_that_no_fold_makes_is_a_lost_record(design: str, path: tuple[int, ...], value: Any) -> None:
    clock = ManualClock()
    server, owner = partition_with_two_nodes(design, clock)
    if design == "journal":
        owner.repair()  # writes a checkpoint
    kind, inside = {"journal": (":ckpt:", (0,)), "snapshot": (":node:n", (3,))}[design]
    plant(server, kind, with_field(*inside, *path, value=value))
    state = Watcher(design, server, clock).look()
    assert state.lost or state.table is None or "n" in state.table.incomplete
    require_repaired(design, server, clock, owner)


@pytest.mark.parametrize(
    ("path", "value"),
    [((1,), b"abc"), ((1,), b""), ((0, 0), "n\r\nflush_all"), ((0, 0), "m"), ((0,), ["n"] * 100), ((1,), b"\xff" * 16)],
)
def test_an_index_that_contradicts_itself_is_a_lost_index(path: tuple[int, ...], value: Any) -> None:
    clock = ManualClock()
    server, owner = partition_with_two_nodes("snapshot", clock)
    owner.repair()  # writes an index
    plant(server, ":index:7:1:4:", with_field(*path, value=value))
    require_repaired("snapshot", server, clock, owner)


def test_a_record_with_a_part_of_a_state_has_no_state() -> None:
    """Regression: the next change of its node ended the owner."""
    record = NodeRecord("n", 1, 1, 1, 1, 1.0, False, "up", "", b"", b"\x81\xa4VCPU\x01", b"", b"")
    assert (record.body, record.state()) == (b"", {})


@pytest.mark.parametrize("stamp", [2**48, 2**63, (1 << 40) + 1_000])
def test_an_item_that_is_ahead_of_its_owner_does_not_hide_later_states(stamp: int) -> None:
    """Regression (I5): a reader kept it, and no later commit of the node was newer."""
    clock = ManualClock()
    server, owner = partition_with_two_nodes("snapshot", clock)
    plant(server, ":node:n", with_field(1, value=stamp))
    watcher = Watcher("snapshot", server, clock)
    state = watcher.look()
    assert state.table is not None
    assert "n" in state.table.incomplete
    owner.commit(report("n", 2, zone="c"))
    assert held(watcher.look()) == owner.records


@pytest.mark.parametrize(
    "events", [[b"\xc1"], [report("n", 2, inventory={"~": {}})], [report("n", 2**53 + 1)], [report("n\n", 1)]]
)
def test_a_segment_with_an_event_that_no_owner_accepts_is_a_lost_segment(events: list[bytes]) -> None:
    clock = ManualClock()
    server, owner = partition_with_two_nodes("journal", clock)
    plant(server, ":log:7:1:1", lambda _events: events)
    assert Watcher("journal", server, clock).look().lost
    require_repaired("journal", server, clock, owner)


@pytest.mark.parametrize("ages", [b"\x01\x02\x03", b"\xff" * 4_096])
def test_signs_of_life_of_a_wrong_size_are_lost(ages: bytes) -> None:
    clock = ManualClock()
    server, owner = partition_with_two_nodes("snapshot", clock)
    owner.renew()
    plant(server, ":life:", with_field(1, value=ages))
    assert Owner("snapshot", server, clock, "b").take() is not None
    owner_now = Owner("snapshot", server, clock, "c")
    assert owner_now.take() is not None
    assert held(Watcher("snapshot", server, clock).look()) == owner.records


@pytest.mark.parametrize("design", ["journal", "snapshot", "sql"])
@pytest.mark.parametrize("epoch", [-1, 2**63, "seven"])
def test_an_epoch_key_that_names_no_epoch_is_written_again(design: str, epoch: Any) -> None:
    """Regression: its owner took it for the epoch of another owner, and gave the partition up."""
    clock = ManualClock()
    server, owner = partition_with_two_nodes(design, clock)
    plant(server, ":epoch", lambda _epoch: epoch)
    owner.renew()
    assert held(Watcher(design, server, clock).look()) == owner.records


@pytest.mark.parametrize("design", ["journal", "snapshot"])
def test_an_owner_does_not_adopt_a_head_that_was_written_in_its_name(design: str) -> None:
    """Another program's head must not stay: without commits, the owner would renew it for ever."""
    clock = ManualClock()
    server, owner = partition_with_two_nodes(design, clock)
    plant(server, ":head:", lambda head: [*head[:3], head[3] + 1, head[4] + 1, *head[5:]])
    with pytest.raises(EpochLostError):
        owner.renew()
    require_repaired(design, server, clock, owner)


def test_a_damaged_value_is_logged_once_with_its_key_and_the_reason() -> None:
    clock = ManualClock()
    server, _ = partition_with_two_nodes("snapshot", clock)
    key = plant(server, ":node:n", with_field(3, 9, value=b"abc"))
    DAMAGE._logged.clear()
    before, watcher = DAMAGE.count, Watcher("snapshot", server, clock)
    with capture_logs() as logs:
        watcher.look()
        watcher.look()
    assert DAMAGE.count > before + 1
    [entry] = [entry for entry in logs if entry["event"].startswith("a stored value is damaged")]
    assert entry["key"] == key
    assert "columns" in entry["reason"]


# -- the same bytes again -------------------------------------------------------------------------


@pytest.mark.parametrize("design", ["journal", "snapshot", "sql"])
def test_a_head_that_is_written_again_with_a_full_time_to_live_confirms_nothing(design: str) -> None:
    """All consumers and agents are dead, and a copy of their last writes comes back: ages must go on to rise."""
    clock = ManualClock()
    server, owner = partition_with_two_nodes(design, clock)
    owner.renew()
    watcher = Watcher(design, server, clock)
    first = watcher.look()
    stored = {key: item_at(server, key).value for part in (":head:", ":life:") for key in keys_with(server, part)}
    clock.advance(100.0)
    for lost_before in (False, True):
        if lost_before:
            for key in stored:
                server.evict(key)
            assert watcher.look().lost
        for key, value in stored.items():
            replay(server, key, value)
        state = watcher.look()
        assert state.confirmed_at <= first.confirmed_at + 1.0
    owner_again = Owner(design, server, clock, "b")
    owner_again.take()
    assert watcher.look().lost == ""


@pytest.mark.parametrize("design", ["journal", "snapshot"])
def test_an_older_head_of_the_same_epoch_confirms_nothing(design: str) -> None:
    clock = ManualClock()
    server, owner = partition_with_two_nodes(design, clock)
    watcher = Watcher(design, server, clock)
    copies = []
    for _ in range(2):
        owner.renew()
        [key] = keys_with(server, ":head:")
        copies.append(item_at(server, key).value)
        before = watcher.look()
    for copy in [*copies, *copies]:
        clock.advance(50.0)
        replay(server, key, copy)
        state = watcher.look()
        assert state.confirmed_at <= before.confirmed_at + 1.0


def test_signs_of_life_that_are_written_again_are_not_younger() -> None:
    clock = ManualClock()
    server, owner = partition_with_two_nodes("snapshot", clock)
    owner.renew()
    watcher = Watcher("snapshot", server, clock)
    watcher.look()
    [key] = keys_with(server, ":life:")
    value = item_at(server, key).value
    found_at = clock.monotonic()
    clock.advance(100.0)
    replay(server, key, value)
    state = watcher.look_at_life()
    assert state.heard_at is not None
    assert all(heard_at <= found_at for heard_at in state.heard_at.tolist())


def replay(server: MemoryServer, key: str, value: bytes) -> None:
    replace(server, key, value, LEASE_S)


# -- the encoded state inside a record ------------------------------------------------------------


@pytest.mark.parametrize("design", ["journal", "snapshot"])
@pytest.mark.parametrize("state", [b"\x81", b"\xc1", b"\x90", b"\x91" * 2_000])
def test_a_node_whose_state_cannot_be_decoded_is_incomplete_after_a_takeover(design: str, state: bytes) -> None:
    """Regression: its next change ended the owner, and every owner after it."""
    cell = OnePartitionCell((design,))
    cell.step(4)
    cell.publish("report", state={"usage": {"VCPU": 1}})
    cell.step(4)
    cell.consumer.close()
    if design == "journal":
        plant_checkpoint(cell, state)
    else:
        plant(cell.server, ":node:n", with_field(3, 12, value=state))
    cell.consumer = cell.another_consumer()
    cell.step(4)
    assert "n" in cell.reader(design).read(max_age=math.inf, on_stale="flag").incomplete
    cell.publish(patch={"usage": {"VCPU": 2}})
    cell.step(4)
    assert "n" in cell.reader(design).read(max_age=math.inf, on_stale="flag").incomplete
    cell.publish("report", state={"usage": {"VCPU": 3}})
    cell.step(4)
    view = cell.reader(design).read(max_age=math.inf, on_stale="flag")
    assert view.nodes["n"].state == {"usage": {"VCPU": 3}}


def plant_checkpoint(cell: OnePartitionCell, state: bytes) -> None:
    """Let a checkpoint hold the node with this encoded state."""
    owner = Owner("journal", cell.server, cell.clock, "a")
    owner.take()
    owner.repair()
    for key in keys_with(cell.server, ":ckpt:"):
        inside = content(item_at(cell.server, key).value)
        replace(cell.server, key, sealed([[*record[:12], state] for record in inside]))


def test_the_command_view_shows_all_nodes_if_the_stored_state_of_one_is_damaged() -> None:
    damaged = msgspec.structs.replace(host("a", vcpu=8), rest=b"\x81\xc1")
    view = ChangingPartition(damaged, host("b", vcpu=8)).view
    document = view_document(view)
    assert (document.damaged, document.nodes["a"].state, bool(document.nodes["b"].state)) == (["a"], {}, True)
    run = SimpleNamespace(out=Console(file=io.StringIO(), width=200), err=Console(file=io.StringIO(), width=200))
    view_command._print(run, view, 0, "")  # type: ignore[arg-type]  # only its consoles are used
    assert [line.split()[:2] for line in run.out.file.getvalue().splitlines()[2:4]] == [["a", "up"], ["b", "up"]]
    assert "nodestate resync --node a" in run.err.file.getvalue()


def test_the_doctor_names_the_damaged_values_that_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    damage = DamageLog()
    monkeypatch.setattr("nodestate.findings.store_checks.DAMAGE", damage)
    damage.report(keys.control("cell1"), "it has findings of its own")
    assert list(examine_damage("cell1")) == []
    for _ in range(2):
        damage.report("ns:cell1:claim:n", "no valid claim record")
    [finding] = examine_damage("cell1")
    assert finding.level == "WARN"
    assert finding.says.startswith("1 stored value is damaged")
    assert "ns:cell1:claim:n: no valid claim record" in finding.says

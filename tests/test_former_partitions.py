"""The folded nodes of a partition outlive the session: none vanishes if broker and store fail at once."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from nodestate.consumers import partition as partition_module
from nodestate.consumers.handover_messages import HANDOVER, handed_over_events, handover_messages
from nodestate.consumers.watermarks import Watermarks, is_marker
from nodestate.model import MAX_EVENT_BYTES, Heartbeat, Leave, NodeRecord, Report, fold, parse_event
from nodestate.model.partitioning import partition_of
from nodestate.model.record import unknown_node
from nodestate.ports import ACTIVATION
from tests.machines.simulated_cell import JudgedReader, SimulatedCell

NODES = [f"node-{n}" for n in range(12)]
DESIGNS = [("journal", "snapshot"), ("sql", "journal")]


def records_of_each_kind() -> dict[str, NodeRecord]:
    """By name: a live node, one with a gap, one that left, one of which only a version is known, a very large one."""

    def folded(*events: Report | Heartbeat | Leave) -> NodeRecord:
        record = None
        for event in events:
            record = fold(record, event).record
        assert record is not None
        return record

    def report(name: str, generation: int = 1) -> Report:
        state = {"usage": {"VCPU": 1}, "inventory": {"VCPU": {"total": 8}}, "zone": "z", "metrics": {"load": 0.5}}
        return Report(
            node=name, incarnation=5, generation=generation, reported_at=7.0, state=msgspec.msgpack.encode(state)
        )

    def beat(name: str, generation: int) -> Heartbeat:
        return Heartbeat(node=name, incarnation=5, generation=generation, reported_at=7.0)

    live = folded(report("too-large"))
    large = msgspec.structs.replace(live, rest=msgspec.msgpack.encode({"namespaces": {"x": "y" * MAX_EVENT_BYTES}}))
    records = [
        folded(report("live")),
        folded(report("gap"), beat("gap", 4)),
        folded(report("gone"), Leave(node="gone", incarnation=5, generation=2, reported_at=7.0)),
        folded(beat("unknown", 3)),
        large,
    ]
    return {record.name: record for record in records}


RECORDS = records_of_each_kind()


def cell_of(designs: tuple[str, ...], consumers: int) -> SimulatedCell:
    """A cell of two partitions that has run for a minute, and whose agents then died, without a leave."""
    cell = SimulatedCell(servers=2, designs=designs)
    cell.start_member([0, 1] if consumers == 1 else [0], [1] if consumers == 2 else [])
    if consumers == 2:
        cell.start_member([1], [0])
    cell.readers = [JudgedReader(cell, design) for design in designs]
    for name in NODES:
        cell.start_agent(name, {"usage": {"VCPU": 1}})
    cell.run_well(30)
    cell.agents.clear()
    return cell


def lose_everything(cell: SimulatedCell) -> None:
    for number in range(len(cell.servers)):
        cell.restart_server(number)
    if cell.database is not None:
        cell.database.flush()


def swap_after_everything_restarted(cell: SimulatedCell) -> None:
    """Broker and stores restart together, and each of two members gets the partition that the other one had."""
    cell.broker.stop()
    lose_everything(cell)
    for member in cell.members:
        member.step()
    first, second = cell.members
    for member, other in ((first, second), (second, first)):
        member.source.inner.partitions, member.source.inner.standby = other.partitions, other.standby
    cell.broker.start()


def assert_no_node_vanishes(cell: SimulatedCell) -> None:
    """Run until long after the settling time: each view has all nodes or says that it lacks some; the last has all."""
    for second in range(int(cell.config.settle_s) + 10):
        cell.run_well(1)
        new_readers = [JudgedReader(cell, reader.design) for reader in cell.readers if second % 5 == 0]
        for reader in (*cell.readers, *new_readers):
            view = reader.read(5.0)
            missing = [name for name in NODES if name not in view.nodes]
            silent = [name for name in missing if f"partition {partition_of(name, 2)}" not in view.incomplete]
            assert not silent, f"{len(silent)} nodes vanished from {reader.design} without a word"
    for reader in cell.readers:
        view = reader.read(5.0)
        assert set(view.nodes) == set(NODES)
        assert view.incomplete == frozenset()


@pytest.mark.parametrize("designs", DESIGNS)
@pytest.mark.parametrize("consumers", [1, 2])
def test_broker_and_stores_that_restart_together_lose_no_node(designs: tuple[str, ...], consumers: int) -> None:
    cell = cell_of(designs, consumers)
    cell.broker.stop()
    lose_everything(cell)
    for member in cell.members:
        member.step()
    cell.broker.start()
    with capture_logs() as logs:
        assert_no_node_vanishes(cell)
    said = [entry for entry in logs if "the store lost" in entry["event"]]
    assert {entry["partition"] for entry in said} == {0, 1}
    assert all(entry["names"] for entry in said)


@pytest.mark.parametrize("designs", DESIGNS)
def test_members_that_swap_their_partitions_after_everything_restarted_hand_the_nodes_over(
    designs: tuple[str, ...],
) -> None:
    """Each of the two becomes the owner of a partition that the other one knew, and begins it from nothing."""
    cell = cell_of(designs, 2)
    swap_after_everything_restarted(cell)
    assert_no_node_vanishes(cell)
    assert [sorted(member.consumer.owned) for member in cell.members] == [[1], [0]]
    assert not any(member.consumer._owned.former for member in cell.members)


def test_a_store_that_is_flushed_while_the_broker_is_away_loses_no_node() -> None:
    cell = cell_of(("journal", "snapshot"), 1)
    cell.broker.stop()
    for _ in range(20):
        cell.members[0].step()
    for server in cell.servers:
        server.flush()
    for _ in range(20):
        cell.members[0].step()
    cell.broker.start()
    assert_no_node_vanishes(cell)


def test_a_node_that_left_does_not_return_by_a_handover() -> None:
    """Another consumer folded the leave, and then the store lost everything: the newest version wins."""
    cell = cell_of(("journal", "snapshot"), 2)
    left = next(name for name in NODES if partition_of(name, 2) == 0)
    first, second = cell.members
    first.source.inner.disconnect()  # the second one becomes the owner of both partitions
    for _ in range(3):
        second.step()
    cell.start_agent(left, {"usage": {"VCPU": 1}})
    cell.agents[left].publisher.leave()
    cell.confirm()
    for _ in range(3):
        second.step()
    lose_everything(cell)
    cell.run_well(40)
    for reader in cell.readers:
        view = reader.read(5.0)
        assert set(view.nodes) == set(NODES) - {left}
        assert view.incomplete == frozenset()


def test_former_nodes_are_forgotten_when_another_owner_has_them() -> None:
    """A normal move of a partition: nothing was lost, so nothing is handed over."""
    cell = cell_of(("journal", "snapshot"), 2)
    first, second = cell.members
    first.source.inner.disconnect()
    with capture_logs() as logs:
        cell.run_well(10)
    assert first.consumer._owned.former == {}
    assert sorted(second.consumer.owned) == [0, 1]
    assert [entry for entry in logs if "handed over" in entry["event"]] == []


def test_a_handed_over_node_gave_no_sign_of_life() -> None:
    """I5: it is only known that the node was there, so a read with node_max_age must not use it."""
    cell = cell_of(("journal",), 2)
    swap_after_everything_restarted(cell)
    cell.run_well(10)
    view = cell.readers[0]._reader.read(node_max_age=3_600, on_stale="flag")
    assert view.stale == set(NODES)


def test_nodes_that_the_new_owner_does_not_take_are_named_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer of an earlier version ignores handovers, so the former owner gives up after some, and says so."""
    monkeypatch.setattr(partition_module, "handed_over_events", lambda _body: iter(()))
    cell = cell_of(("journal",), 2)
    swap_after_everything_restarted(cell)
    with capture_logs() as logs:
        cell.run_well(3)
        for _ in range(100):
            cell.clock.advance(10)
            for member in cell.members:
                member.step()
    said = [entry for entry in logs if entry["log_level"] == "error"]
    assert sorted(name for entry in said for name in entry["names"]) == sorted(NODES)
    assert not any(member.consumer._owned.former for member in cell.members)


def test_an_event_that_was_folded_and_not_stored_is_no_reason_for_a_new_epoch() -> None:
    """The session ends while a store is away: the broker delivers the event again, and the epoch continues."""
    cell = cell_of(("journal", "snapshot"), 1)
    [member] = cell.members
    for server in cell.servers:
        server.stop()
    cell.start_agent(NODES[0], {"usage": {"VCPU": 2}})
    cell.start_agent("node-new", {"usage": {"VCPU": 2}})
    cell.confirm()
    for _ in range(3):
        member.step()
    begun = member.consumer.stats.epochs_begun
    member.source.inner.disconnect()
    member.step()
    for server in cell.servers:
        server.start()
    cell.run_well(5)
    assert member.consumer.stats.epochs_begun == begun
    view = cell.readers[0].read(5.0)
    assert set(view.nodes) == {*NODES, "node-new"}
    assert view.nodes[NODES[0]].state["usage"] == {"VCPU": 2}
    assert view.incomplete == frozenset()


@given(st.lists(st.sampled_from(sorted(RECORDS)), unique=True), st.integers(1, 3_000))
def test_a_handover_names_every_node_at_its_newest_version_and_with_its_state(names: list[str], max_bytes: int) -> None:
    records = [RECORDS[name] for name in names]
    folded: dict[str, NodeRecord] = {}
    for body in handover_messages(records, max_bytes):
        assert is_marker(body)
        assert Watermarks(b"key").sent_at(0, body) == -math.inf, "an owner of an earlier version ignores it"
        for event, raw in handed_over_events(body):
            assert parse_event(raw) == event
            record = fold(folded.get(event.node), event).record
            assert record is not None
            folded[event.node] = record
    assert {name: record.wanted for name, record in folded.items()} == {
        record.name: record.wanted for record in records
    }
    for record in records:
        if record.name != "too-large":
            assert folded[record.name] == record


def test_a_handover_ends_a_node_that_the_new_owner_knows_with_allocations() -> None:
    """The former owner saw that the allocations were gone and that the node left; the new owner has an older state."""
    allocations = {"i1": {"resources": {"VCPU": 1}}}
    older = Report(
        node="gone",
        incarnation=1,
        generation=9,
        reported_at=1.0,
        state=msgspec.msgpack.encode({"allocations": allocations}),
    )
    record = fold(None, older).record
    for body in handover_messages([RECORDS["gone"]], 1_000):
        for event, _ in handed_over_events(body):
            record = fold(record, event).record
    assert record == RECORDS["gone"]


@pytest.mark.parametrize("wanted", [(0, 1), (1_763_787_600, 3)])
def test_a_name_alone_is_handed_over_without_a_dead_letter(wanted: tuple[int, int]) -> None:
    """A former owner knew of a node that it exists, and perhaps a version, but neither its state nor a time."""
    cell = cell_of(("journal",), 2)
    name = next(f"only-{n}" for n in range(9) if partition_of(f"only-{n}", 2) == 0)
    record = msgspec.structs.replace(unknown_node(name), wanted_incarnation=wanted[0], wanted_generation=wanted[1])
    [message] = handover_messages([record], 1_000)
    cell.broker.source([], [], 2).send_marker(0, message)
    cell.run_well(5)
    assert not cell.broker.dead_letters
    assert name in cell.readers[0].read(5.0).incomplete


def test_bytes_that_are_no_handover_give_no_events() -> None:
    for body in (HANDOVER, HANDOVER + b"\xc1", HANDOVER + msgspec.msgpack.encode([b"no event"]), b"", ACTIVATION):
        assert list(handed_over_events(body)) == []


def test_a_node_that_is_handed_over_is_doubted_if_the_queue_was_lost() -> None:
    """Its former owner does not know the last event, which was in the queue, and its agent is dead."""
    cell = cell_of(("journal", "snapshot"), 2)
    name = next(node for node in NODES if partition_of(node, 2) == 0)
    cell.start_agent(name, {"usage": {"VCPU": 1}})
    cell.confirm()
    cell.run_well(3)
    agent = cell.agents.pop(name)
    agent.publisher.change({"zone": "lost"})
    cell.confirm()
    for partition in (0, 1):
        cell.broker.lose_queue(partition)
    swap_after_everything_restarted(cell)
    cell.run_well(150)
    for reader in cell.readers:
        assert name in reader.read(5.0).incomplete

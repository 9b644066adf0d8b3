"""The queue of a partition is deleted: its owner stops vouching, asks agents, and names nodes that stay silent."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from nodestate.errors import BrokerUnavailableError
from nodestate.model.partitioning import partition_of
from nodestate.ports import QUEUE_BEGAN, Resync
from tests.machines.simulated_cell import JudgedReader, SimulatedCell

NODES = [f"node-{n}" for n in range(8)]
ZERO = [name for name in NODES if partition_of(name, 2) == 0]
DESIGNS = [("journal", "snapshot"), ("sql",)]


def begun(designs: tuple[str, ...] = DESIGNS[0], members: int = 1, **settings: Any) -> SimulatedCell:
    """A cell of two partitions that has run for a minute."""
    cell = SimulatedCell(servers=1, designs=designs, **settings)
    for _ in range(members):
        cell.start_member([0, 1], [])
    cell.readers = [JudgedReader(cell, design) for design in designs]
    for name in NODES:
        cell.start_agent(name, {"usage": {"VCPU": 1}})
    cell.run_well(60)
    return cell


@pytest.mark.parametrize("designs", DESIGNS)
@pytest.mark.parametrize("members", [1, 2])
def test_a_view_names_the_partition_whose_queue_was_deleted_until_its_agents_have_reported(
    designs: tuple[str, ...], members: int
) -> None:
    """I5: a view that lacks a version that was confirmed, and then lost with the queue, does not seem whole."""
    cell = begun(designs, members)
    cell.agents[ZERO[0]].publisher.change({"zone": "lost"})
    cell.confirm()
    cell.broker.lose_queue(0)
    named = False
    for _ in range(50):
        cell.run_well(0.5)  # the readers judge each view
        named = named or all("partition 0" in reader.read(5.0).incomplete for reader in cell.readers)
    assert named
    assert cell.converge() < 60


@pytest.mark.parametrize("designs", DESIGNS)
def test_a_node_whose_leave_was_lost_with_the_queue_is_named_as_incomplete(designs: tuple[str, ...]) -> None:
    cell = begun(designs)
    agent = cell.agents.pop(ZERO[0])
    agent.publisher.leave()
    cell.confirm()
    cell.broker.lose_queue(0)
    with capture_logs() as logs:
        cell.run_well(120)
    for reader in cell.readers:
        assert reader.read(5.0, on_stale="flag").incomplete == {ZERO[0]}
    [named] = [entry for entry in logs if "gave no sign of life" in entry["event"]]
    assert named["names"] == [ZERO[0]]


def test_the_log_says_that_a_queue_was_deleted() -> None:
    cell = begun()
    with capture_logs() as logs:
        cell.broker.lose_queue(1)
        cell.run_well(60)
    [entry] = [entry for entry in logs if "queue" in entry["event"]]
    assert entry["partition"] == 1
    assert cell.members[0].consumer.stats.resyncs >= 1


def test_a_partition_is_complete_only_after_its_agents_were_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the broker takes no resync request, no agent reports a lost version."""

    def refuse(_resync: Resync) -> None:
        raise BrokerUnavailableError("broker", "it takes no messages")

    cell = begun()
    cell.agents[ZERO[0]].publisher.change({"zone": "lost"})
    cell.confirm()
    with monkeypatch.context() as patched:
        patched.setattr(cell.broker, "request_resync", refuse)
        cell.broker.lose_queue(0)
        cell.run_well(300)
        assert not cell.members[0].consumer.owned[0].complete
    assert cell.converge() < 120


@pytest.mark.parametrize("designs", DESIGNS)
def test_the_next_owner_also_doubts_the_nodes_of_a_queue_that_was_deleted(designs: tuple[str, ...]) -> None:
    """The owner of that time loses its session before the agents have had time to report."""
    cell = begun(designs, 2)
    agent = cell.agents.pop(ZERO[0])
    agent.publisher.change({"zone": "lost"})
    cell.confirm()
    cell.broker.lose_queue(0)
    cell.run_well(2.0)
    [owner] = [member for member in cell.members if 0 in member.consumer.owned]
    assert not owner.consumer.owned[0].complete
    owner.source.inner.disconnect()
    cell.run_well(150)
    for reader in cell.readers:
        assert ZERO[0] in reader.read(5.0).incomplete


@pytest.mark.parametrize("designs", DESIGNS)
def test_the_queues_of_a_new_cell_replace_none(designs: tuple[str, ...]) -> None:
    """Both members may declare a queue, and each says that it was missing; the second message comes late."""
    cell = SimulatedCell(designs=designs)
    with capture_logs() as logs:
        cell.start_member([0], [1])
        cell.start_member([1], [0])
        sources = [member.source.inner for member in cell.members]
        for partition, source in enumerate(sources):
            source.send_marker(partition, QUEUE_BEGAN)
        for name in ZERO:
            cell.start_agent(name, {"usage": {"VCPU": 1}})
        cell.run_well(3.0)
        for partition, source in enumerate(sources):
            source.send_marker(partition, QUEUE_BEGAN)
        cell.run_well(cell.config.settle_s + 3.0)
    assert [one for one in logs if "deleted" in one["event"]] == []
    assert all(partition.complete for member in cell.members for partition in member.consumer.owned.values())


def test_a_change_lost_with_a_queue_that_no_message_calls_new_shows_with_the_next_heartbeat() -> None:
    """The only consumer declared the queue again, and died before it put the message ``QUEUE_BEGAN`` there."""
    cell = begun()
    cell.readers = []  # for some seconds the view lacks the change, and does not say so
    cell.agents[ZERO[0]].publisher.change({"zone": "lost"})
    cell.confirm()
    cell.broker.lose_queue(0)
    cell.broker.queue(0).messages.clear()
    cell.run_well(3 * cell.config.heartbeat_s)
    view = JudgedReader(cell, "journal").read(5.0)
    assert view.nodes[ZERO[0]].state["zone"] == "lost"
    assert view.incomplete == frozenset()

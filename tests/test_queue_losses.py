"""The queue of a partition is deleted: its owner stops vouching, asks agents, and names nodes that stay silent."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from nodestate.errors import BrokerUnavailableError
from nodestate.model.partitioning import partition_of
from nodestate.ports import Resync
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

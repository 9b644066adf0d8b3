"""Drain: nodes are closed, their instances move in batches, and the rest is reported with reasons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nodestate.errors import BadRequestError
from nodestate.scheduling import NodeDrain, draining
from tests.machines.scheduling_cell import SchedulingCell
from tests.scheduling.cells import boot, cell_of

PINNED = {"force_nodes": ["n0"]}


def drained(cell: SchedulingCell, *nodes: str, **more: Any) -> list[NodeDrain]:
    scheduler = cell.processes[0].scheduler
    operation = draining(scheduler.session, scheduler.migrations, nodes or ["n0"], by="ann", **more)
    return scheduler.session.complete(operation)


@pytest.mark.parametrize("max_parallel", [1, 2, 10])
def test_all_instances_of_a_drained_node_are_on_other_nodes(tmp_path: Path, max_parallel: int) -> None:
    cell, [process] = cell_of(3, 1, state_dir=tmp_path)
    for number in range(5):
        boot(process.scheduler, f"i{number}", 1, **PINNED)
    seen: list[tuple[int, int]] = []
    [one] = drained(
        cell,
        max_parallel=max_parallel,
        on_progress=lambda drains: seen.extend((len(one.moved), len(one.left)) for one in drains),
    )
    assert one.is_drained
    assert {outcome.instance for outcome in one.moved} == {f"i{number}" for number in range(5)}
    assert (seen[0], seen[1], seen[-1]) == ((0, 0), (0, 5), (5, 0))
    assert len(seen) == 2 + -(-5 // max_parallel)
    cell.run_for(5.0)
    assert all(nodes != ["n0"] and len(nodes) == 1 for nodes in cell.nodes_by_instance().values())
    assert cell.fleet.resources_of("n0").allocations == {}
    assert {boot(process.scheduler, f"later{number}").node for number in range(3)}.isdisjoint({"n0"})


def test_a_drain_of_a_node_in_a_full_fleet_reports_what_is_left_and_why(tmp_path: Path) -> None:
    cell, [process] = cell_of(2, 1, state_dir=tmp_path)
    boot(process.scheduler, "large", 6, **PINNED)
    boot(process.scheduler, "small", 2, **PINNED)
    boot(process.scheduler, "other", 5)
    [one] = drained(cell)
    assert not one.is_drained
    assert [outcome.instance for outcome in one.moved] == ["small"]
    [left] = one.left
    assert left.instance == "large"
    assert "the filter resources removed the last" in left.reason
    cell.run_for(3.0)
    assert cell.nodes_by_instance() == {"large": ["n0"], "small": ["n1"], "other": ["n1"]}


def test_all_nodes_are_closed_before_the_first_instance_moves(tmp_path: Path) -> None:
    cell, [process] = cell_of(3, 1, state_dir=tmp_path)
    for number in range(2):
        boot(process.scheduler, f"i{number}", 1, force_nodes=[f"n{number}"])
    assert all(one.is_drained for one in drained(cell, "n0", "n1"))
    cell.run_for(5.0)
    assert set(cell.nodes_by_instance()) == {"i0", "i1"}
    assert all(nodes == ["n2"] for nodes in cell.nodes_by_instance().values())


def test_members_of_an_affinity_group_move_together(tmp_path: Path) -> None:
    cell, [process] = cell_of(3, 1, state_dir=tmp_path)
    group = {"name": "near", "policy": "affinity"}
    boot(process.scheduler, "m0", 2, **PINNED, group=group)
    for number in (1, 2):
        boot(process.scheduler, f"m{number}", 2, group=group)
    [one] = drained(cell, max_parallel=1)
    assert one.is_drained
    assert len({outcome.node for outcome in one.moved}) == 1


def test_a_node_whose_agent_is_away_is_not_drained(tmp_path: Path) -> None:
    cell, [process] = cell_of(3, 1, state_dir=tmp_path)
    boot(process.scheduler, "i", 1, **PINNED)
    cell.power_off("n0")
    [one] = drained(cell, timeout_s=2.0)
    assert (one.cordon.refused, one.moved, one.is_drained) == ("silent", (), False)
    assert cell.nodes_by_instance() == {"i": ["n0"]}


def test_no_instance_is_moved_after_the_deadline(tmp_path: Path) -> None:
    cell, [process] = cell_of(2, 1, state_dir=tmp_path)
    boot(process.scheduler, "i", 1, **PINNED)
    [one] = drained(cell, deadline_s=0.0)
    assert not one.cordon.refused
    assert [(left.instance, left.reason) for left in one.left] == [("i", "the deadline passed before it was tried")]
    with pytest.raises(BadRequestError, match="max_parallel"):
        drained(cell, max_parallel=0)


def test_an_empty_node_is_drained_at_once(tmp_path: Path) -> None:
    cell, _ = cell_of(1, 1, state_dir=tmp_path)
    [one] = drained(cell)
    assert one.is_drained
    assert one.moved == ()

"""Commands wait until a view shows their result, and meanwhile end no authoritative allocation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from nodestate.cli import scheduling as commands
from nodestate.scheduling.orders.boot import Booted, BootOutcome
from tests.machines.scheduling_cell import SchedulerProcess, SchedulingCell
from tests.scheduling.cells import boot, cell_of

Wait = Callable[[SchedulerProcess, Iterable[BootOutcome]], None]


@pytest.fixture
def waiting_cell(monkeypatch: pytest.MonkeyPatch) -> tuple[SchedulingCell, list[SchedulerProcess], Wait]:
    """Return a cell of four nodes, two schedulers, and the function by which a command of one of them waits."""
    cell, processes = cell_of(4)
    monkeypatch.setattr(commands, "time", SimpleNamespace(monotonic=cell.clock.monotonic))
    run: Any = SimpleNamespace(err=SimpleNamespace(print=lambda *_, **__: None))
    return cell, processes, lambda process, outcomes: commands.wait_until_shown(run, process.scheduler, outcomes)


def test_an_instance_that_was_migrated_before_its_boot_was_seen_stays_where_it_is(
    waiting_cell: tuple[SchedulingCell, list[SchedulerProcess], Wait],
) -> None:
    """The scheduler that booted it sees it on two nodes; the allocation of its own boot is the older one."""
    cell, (one, two), wait = waiting_cell
    booted = boot(one.scheduler, "a")
    cell.run_for(1.0)
    moved = two.scheduler.migrations.migrate("a")
    assert isinstance(moved, Booted)
    wait(one, [booted])
    cell.run_for(5.0)
    assert cell.nodes_by_instance() == {"a": [moved.node]}


def test_a_node_that_two_schedulers_evacuate_at_once_loses_no_instance(
    waiting_cell: tuple[SchedulingCell, list[SchedulerProcess], Wait],
) -> None:
    """Each scheduler sees the copy that the other made."""
    cell, (one, two), wait = waiting_cell
    at = boot(one.scheduler, "a").node
    cell.run_for(3.0)
    cell.power_off(at)
    two.scheduler.refresh()
    two.reader.lagging = True
    first, second = one.scheduler.migrations.evacuate(at), two.scheduler.migrations.evacuate(at)
    two.reader.lagging = False
    assert len({outcome.node for outcome in (*first, *second) if isinstance(outcome, Booted)}) == 2
    wait(one, first)
    wait(two, second)
    for process in list(cell.processes):
        cell.replace_dead(process)
    cell.run_for(3 * cell.config.claim_ttl_s)
    [place] = [node for node in cell.nodes_by_instance()["a"] if node != at]
    assert place in {outcome.node for outcome in second if isinstance(outcome, Booted)}

"""Commands wait until a view shows what they did, and end nothing that counts meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from nodestate.cli import scheduling as commands
from nodestate.scheduling.orders.boot import Booted, BootOutcome
from tests.machines.tenancy import Process, Tenancy
from tests.scheduling.cells import boot, cell_of

Wait = Callable[[Process, Iterable[BootOutcome]], None]


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> tuple[Tenancy, list[Process], Wait]:
    """Four nodes and two schedulers, and how a command of one of them waits."""
    tenancy, processes = cell_of(4)
    monkeypatch.setattr(commands, "time", SimpleNamespace(monotonic=tenancy.clock.monotonic))
    run: Any = SimpleNamespace(err=SimpleNamespace(print=lambda *_, **__: None))
    return tenancy, processes, lambda process, outcomes: commands.wait_until_shown(run, process.scheduler, outcomes)


def test_what_was_moved_before_the_boot_was_seen_stays_where_it_was_moved(
    cell: tuple[Tenancy, list[Process], Wait],
) -> None:
    """Whose boot it was sees it on two nodes, of which his is the older one."""
    tenancy, (one, two), wait = cell
    booted = boot(one.scheduler, "a")
    tenancy.rest(1.0)
    moved = two.scheduler.migrations.migrate("a")
    assert isinstance(moved, Booted)
    wait(one, [booted])
    tenancy.rest(5.0)
    assert tenancy.placed() == {"a": [moved.node]}


def test_a_node_that_two_evacuate_at_once_loses_nothing(cell: tuple[Tenancy, list[Process], Wait]) -> None:
    """Each of them sees the copy of the other."""
    tenancy, (one, two), wait = cell
    at = boot(one.scheduler, "a").node
    tenancy.rest(3.0)
    tenancy.kill(at)
    two.scheduler.refresh()
    two.reader.lagging = True
    first, second = one.scheduler.migrations.evacuate(at), two.scheduler.migrations.evacuate(at)
    two.reader.lagging = False
    assert len({outcome.node for outcome in (*first, *second) if isinstance(outcome, Booted)}) == 2
    wait(one, first)
    wait(two, second)
    for process in list(tenancy.processes):
        tenancy.bury(process)
    tenancy.rest(3 * tenancy.config.claim_ttl_s)
    [place] = [node for node in tenancy.placed()["a"] if node != at]
    assert place in {outcome.node for outcome in second if isinstance(outcome, Booted)}

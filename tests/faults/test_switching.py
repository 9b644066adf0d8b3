"""Switch designs while everything runs: readers in other processes follow, without an error and without going back."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from harness.cell import Cell
from harness.commands import run_design, start_command
from harness.processes import start_module
from harness.profile import by_profile
from harness.servers import MariadbServer, MemcachedServer
from harness.waiting import PATIENCE_S, wait_until
from harness.watchers import ViewWatcher
from nodestate.designs.reader import Reader
from nodestate.designs.stored_design import parse_stored_design
from nodestate.model import NEVER, Version
from nodestate.sql.migrate import upgrade
from tests.faults.conftest import CellFactory

pytestmark = pytest.mark.service


@pytest.fixture
def database(mariadb: MariadbServer) -> str:
    """The URL of a MariaDB with nodestate's tables."""
    upgrade(mariadb.url)
    return mariadb.url


@contextmanager
def following_processes(cell: Cell, count: int) -> Iterator[list[dict[str, Any]]]:
    """Start schedulers in processes of their own; when the context ends, the list has what each of them saw."""
    saw: list[dict[str, Any]] = []
    processes = [
        start_module("tests.faults.follower", [str(cell.bound_s)], cell.environment, stdin=subprocess.PIPE, stderr=None)
        for _ in range(count)
    ]
    try:
        yield saw
        saw += [json.loads(process.communicate(b"", timeout=PATIENCE_S)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def wait_until_followed(name: str, watcher: ViewWatcher) -> None:
    """Wait until this watcher reads the design ``name``, in 8 partitions unless the name says otherwise."""
    stored = str(parse_stored_design(name, 8))
    wait_until(lambda: watcher.last_design == stored, f"the reader does not follow to {stored}")


def switch_to(cell: Cell, watcher: ViewWatcher, name: str, *, prepare: bool = True) -> None:
    """Cut over to a design as an operator does, and wait until the watcher follows."""
    if prepare:
        assert run_design(cell.environment, "prepare", name)["nodes"] == len(cell.fleet.names)
    assert name in run_design(cell.environment, "cutover", name)["writes"]
    wait_until_followed(name, watcher)


def roll_back_to(cell: Cell, watcher: ViewWatcher, name: str) -> None:
    """Roll back as an operator does, and wait until the watcher follows to the design before."""
    assert run_design(cell.environment, "rollback")["reads"] == name
    wait_until_followed(name, watcher)


def require_followed(saw: list[dict[str, Any]], designs: Sequence[str]) -> None:
    """Each process met these designs in this order, without an error, and no node went back."""
    for one in saw:
        assert (one["errors"], one["regressed"]) == ([], [])
        assert one["designs"] == list(designs)
        assert one["fresh"] > 0


def record_reads(cell: Cell, saw: list[dict[str, Any]]) -> None:
    """Keep how many reads there were and the longest time without a fresh view."""
    cell.record(
        f"{sum(one['reads'] for one in saw)} reads of {len(saw)} processes; "
        f"not fresh for at most {max(one['unfresh_s'] for one in saw):.1f} s"
    )


def test_readers_follow_from_the_database_to_memcached_and_back(
    cell_of: CellFactory, memcached: MemcachedServer, database: str
) -> None:
    """sql, then journal, then sql by rollback: no reader in any process meets an error, an older node or an old state
    that passes for fresh (I1, I5), and in the end both designs agree (I4).
    """
    with cell_of(memcached.url, designs=["sql"], sql=database, bound_s=5.0) as cell:
        cell.wait_until_well()
        watcher = cell.watch_control_record()
        with following_processes(cell, 2) as saw:
            wait_until_followed("sql", watcher)
            switch_to(cell, watcher, "journal")
            roll_back_to(cell, watcher, "sql")
        require_followed(saw, ["sql@8", "journal@8", "sql@8"])
        record_reads(cell, saw)
        cell.wait_until_recovered("after all switches")
        assert run_design(cell.environment, "verify")["verdicts"]["journal"]["agree"]


@pytest.mark.thorough
def test_readers_follow_through_all_designs_at_2000_events_a_second(
    cell_of: CellFactory, memcached: MemcachedServer, database: str
) -> None:
    """sql -> snapshot -> journal, back by rollback and forward again, -> sql, with four processes that read: the
    same.
    """
    with cell_of(memcached.url, designs=["sql"], sql=database, rate=2_000.0, bound_s=5.0) as cell:
        cell.wait_until_well()
        watcher = cell.watch_control_record()
        began, events_before = time.monotonic(), events_sent(cell)
        with following_processes(cell, 4) as saw:
            wait_until_followed("sql", watcher)
            assert run_design(cell.environment, "status")["reads"] == "sql"
            switch_to(cell, watcher, "snapshot")
            switch_to(cell, watcher, "journal")
            roll_back_to(cell, watcher, "snapshot")
            switch_to(cell, watcher, "journal", prepare=False)
            run_design(cell.environment, "verify")
            switch_to(cell, watcher, "sql", prepare=False)
            rate = (events_sent(cell) - events_before) / (time.monotonic() - began)
        require_followed(saw, [f"{name}@8" for name in ("sql", "snapshot", "journal", "snapshot", "journal", "sql")])
        cell.record(f"{rate:,.0f} events a second")
        record_reads(cell, saw)
        run_design(cell.environment, "retire", "journal")
        assert run_design(cell.environment, "retire", "sql", code=1)["kind"] == "design-step"
        assert sorted(run_design(cell.environment, "status")["designs"]) == ["snapshot", "sql"]
        cell.wait_until_recovered("after all switches")
        assert run_design(cell.environment, "verify")["verdicts"]["snapshot"]["agree"]


def events_sent(cell: Cell) -> int:
    """Return how many states the fleet has published."""
    return sum(map(len, cell.fleet.history.values()))


STEPS = {
    "prepare": (["prepare", "journal"], {"writes": ["snapshot", "journal"], "reads": "snapshot"}),
    "cutover": (["cutover", "journal"], {"writes": ["snapshot", "journal"], "reads": "journal"}),
    "rollback": (["rollback"], {"writes": ["snapshot", "journal"], "reads": "snapshot"}),
    "retire": (["retire", "journal"], {"writes": ["snapshot"], "reads": "snapshot"}),
}
KILLED_AFTER_S = by_profile(fast=(0.02, 0.15), thorough=(0.2, 0.3, 0.4, 0.5))
"""Ages at which a command is killed.

It takes about half a second, and less if it is forked: it dies before it asks the cell, while it waits for the cell, or
after it has changed the record. Every one of these must be right, so it does not matter which of them happens.
"""


@pytest.mark.parametrize(
    "step",
    [
        pytest.param("prepare", marks=pytest.mark.thorough),
        "cutover",
        pytest.param("rollback", marks=pytest.mark.thorough),
        pytest.param("retire", marks=pytest.mark.thorough),
    ],
)
def test_step_that_was_killed_half_way_reaches_its_state_when_it_is_repeated(
    cell_of: CellFactory, memcached: MemcachedServer, step: str
) -> None:
    """kill -9 of the operator's command at several moments, and of a consumer at the same time; then the same
    command.
    """
    words, wanted = STEPS[step]
    with cell_of(memcached.url, designs=["snapshot"], bound_s=5.0) as cell:
        cell.wait_until_well()
        for before in list(STEPS)[: list(STEPS).index(step)]:
            run_design(cell.environment, *STEPS[before][0])
        watcher = cell.watch_control_record()
        for number, delay_s in enumerate(KILLED_AFTER_S):
            member = cell.members[number % len(cell.members)]
            process = start_command(cell.environment, "design", *words, "--json")
            time.sleep(delay_s)
            process.kill()
            member.kill()
            process.communicate()
            member.start()
        run_design(cell.environment, *words)
        status = run_design(cell.environment, "status")
        assert {name: status[name] for name in wanted} == wanted
        wait_until_followed(str(wanted["reads"]), watcher)
        cell.wait_until_recovered(f"{step}, killed {len(KILLED_AFTER_S)} times")
        assert all(verdict["agree"] for verdict in run_design(cell.environment, "verify")["verdicts"].values())


def test_cutover_and_retire_wait_for_a_design_that_consumers_keep_up_to_date(
    cell_of: CellFactory, memcached: MemcachedServer
) -> None:
    """I5: dead consumers leave a design in memcached that was complete once; that is not enough to read it."""
    with cell_of(memcached.url, designs=["snapshot"], bound_s=5.0) as cell:
        cell.wait_until_well()
        run_design(cell.environment, "prepare", "journal")
        for member in cell.members:
            member.kill()
        not_recent_s = 5 * cell.config.renew_s + 2.5
        wait_until(lambda: cell.read("snapshot").age > not_recent_s, "the view does not age")
        for step in ("cutover", "retire"):
            refusal = run_design(cell.environment, step, "journal", "--timeout", "0.5", code=1)
            assert refusal["kind"] == "design-incomplete"
        for member in cell.members:
            member.start()
        cutover = run_design(cell.environment, "cutover", "journal")
        assert cutover["reads"] == "journal"
        cell.wait_until_recovered("after a cutover that had to wait for consumers")


def test_cell_moves_to_other_memcached_servers_while_it_runs(cell_of: CellFactory) -> None:
    """One server becomes two: prepare, cutover, retire; then the old server is switched off, and no reader is
    affected.
    """
    with MemcachedServer() as old, MemcachedServer() as one, MemcachedServer() as two:
        store_b = f"memcached://{one.address},{two.address}"
        with cell_of(old.url, designs=["snapshot"], store_b=store_b, bound_s=5.0) as cell:
            cell.wait_until_well()
            watcher = cell.watch_control_record()
            switch_to(cell, watcher, "snapshot_b")
            run_design(cell.environment, "retire", "snapshot")
            old.stop()
            for member in cell.members:
                member.kill()
                member.start()
            cell.fleet.flush()
            wanted = {
                name: said.version for name, said in cell.fleet.authored_states().items() if said.state is not None
            }
            with Reader(cell.config) as reader:
                wait_until(lambda: shows(reader, wanted), "the moved cell does not show what the agents said")
                assert reader.design == "snapshot_b"


def shows(reader: Reader, wanted: dict[str, Version]) -> bool:
    """True if a new view shows every node at this version or a later one, and vouches for it."""
    view = reader.read(max_age=5.0, on_stale="flag")
    shown = {name: node.version for name, node in view.nodes.items()}
    return not view.incomplete and not view.stale and all(shown.get(n, NEVER) >= v for n, v in wanted.items())

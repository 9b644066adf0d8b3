"""Switching designs while everything runs: readers in other processes follow, without an error and without going back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from harness.cell import Cell
from harness.servers import MariadbServer, MemcachedServer
from harness.waiting import wait_until
from harness.watchers import ViewWatcher
from nodestate.designs.reader import Reader
from nodestate.designs.stored_design import parse_stored_design
from nodestate.model import NEVER, Version
from nodestate.sql.migrate import upgrade
from tests.faults.conftest import CellFactory

pytestmark = pytest.mark.service
FOLLOWERS = 4
_MAIN = "from nodestate.cli import main; main()"


@pytest.fixture
def database(mariadb: MariadbServer) -> str:
    """The URL of a MariaDB with nodestate's tables."""
    upgrade(mariadb.url)
    return mariadb.url


def design(cell: Cell, *words: str, code: int = 0) -> Any:
    """``nodestate design WORDS --json`` as an operator's process."""
    process = start_design(cell, *words)
    out, err = process.communicate(timeout=90)
    assert process.returncode == code, f"design {words} ended with {process.returncode}: {out}{err}"
    return json.loads((out if code == 0 else err).splitlines()[-1])


def start_design(cell: Cell, *words: str) -> subprocess.Popen[str]:
    """The same, not waited for."""
    return subprocess.Popen(  # noqa: S603  our own command
        [sys.executable, "-c", _MAIN, "design", *words, "--json"],
        env=cell.members[0].settings | {"PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def followers(cell: Cell, count: int) -> Iterator[list[dict[str, Any]]]:
    """Schedulers in processes of their own; what they saw is in the list when the context ends."""
    saw: list[dict[str, Any]] = []
    processes = [
        subprocess.Popen(  # noqa: S603  our own module
            [sys.executable, "-m", "tests.faults.follower", str(cell.bound_s)],
            env=cell.members[0].settings | {"PATH": os.environ["PATH"]},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    try:
        yield saw
        saw += [json.loads(process.communicate("", timeout=30)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def events_sent(cell: Cell) -> int:
    """States that the fleet published so far."""
    return sum(map(len, cell.fleet.history.values()))


def switched(name: str, watcher: ViewWatcher) -> None:
    """The reader of this process reads ``name`` (in 8 partitions, unless it says otherwise), too."""
    kept = str(parse_stored_design(name, 8))
    wait_until(lambda: watcher.last_design == kept, f"the reader does not follow to {kept}")


@pytest.mark.timeout(240)
def test_readers_follow_from_the_database_to_memcached_and_back(
    cell_of: CellFactory, memcached: MemcachedServer, database: str
) -> None:
    """sql -> snapshot -> journal, back by rollback and forward again, -> sql, at 2,000 events a second: no reader in any
    process meets an error, an older node or an old state that passes for fresh (I1, I5), and in the end all agree (I4).
    """
    with cell_of(memcached.url, designs=["sql"], sql=database, rate=2_000.0, bound_s=5.0) as cell:
        cell.wait_until_well()
        watcher = ViewWatcher(cell.config, None, cell.fleet, cell.bound_s)
        cell.watchers.append(watcher)
        watcher.start()
        began, events_before = time.monotonic(), events_sent(cell)
        with followers(cell, FOLLOWERS) as saw:
            switched("sql", watcher)
            assert design(cell, "status")["reads"] == "sql"
            for name in ("snapshot", "journal"):
                assert design(cell, "prepare", name)["nodes"] == len(cell.fleet.names)
                assert name in design(cell, "cutover", name)["writes"]
                switched(name, watcher)
            assert design(cell, "rollback")["reads"] == "snapshot"
            switched("snapshot", watcher)
            design(cell, "cutover", "journal")
            switched("journal", watcher)
            design(cell, "verify")
            design(cell, "cutover", "sql")
            switched("sql", watcher)
            rate = (events_sent(cell) - events_before) / (time.monotonic() - began)
        for one in saw:
            assert (one["errors"], one["regressed"]) == ([], [])
            assert one["designs"] == [
                f"{name}@8" for name in ("sql", "snapshot", "journal", "snapshot", "journal", "sql")
            ]
            assert one["fresh"] > 0
        cell.record(
            f"{rate:,.0f} events a second; {sum(one['reads'] for one in saw)} reads of 4 processes; not fresh for at most "
            f"{max(one['unfresh_s'] for one in saw):.1f} s"
        )
        design(cell, "retire", "journal")
        assert design(cell, "retire", "sql", code=1)["kind"] == "design-step"
        assert sorted(design(cell, "status")["designs"]) == ["snapshot", "sql"]
        cell.wait_until_recovered("after all switches")
        assert design(cell, "verify")["verdicts"]["snapshot"]["agree"]


STEPS = {
    "prepare": (["prepare", "journal"], {"writes": ["snapshot", "journal"], "reads": "snapshot"}),
    "cutover": (["cutover", "journal"], {"writes": ["snapshot", "journal"], "reads": "journal"}),
    "rollback": (["rollback"], {"writes": ["snapshot", "journal"], "reads": "snapshot"}),
    "retire": (["retire", "journal"], {"writes": ["snapshot"], "reads": "snapshot"}),
}
KILLED_AFTER_S = (0.2, 0.3, 0.4, 0.5)
"""A command takes about half a second: it is killed before it asked, while it waits, and after it changed the record."""


@pytest.mark.timeout(240)
@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_is_killed_half_way_ends_in_its_state_when_it_is_repeated(
    cell_of: CellFactory, memcached: MemcachedServer, step: str
) -> None:
    """kill -9 of the operator's command at several moments, and of a consumer in the midst of it; then the same again."""
    words, wanted = STEPS[step]
    with cell_of(memcached.url, designs=["snapshot"], bound_s=5.0) as cell:
        cell.wait_until_well()
        for before in list(STEPS)[: list(STEPS).index(step)]:
            design(cell, *STEPS[before][0])
        follower = ViewWatcher(cell.config, None, cell.fleet, cell.bound_s)
        cell.watchers.append(follower)
        follower.start()
        for number, delay_s in enumerate(KILLED_AFTER_S):
            member = cell.members[number % len(cell.members)]
            process = start_design(cell, *words)
            time.sleep(delay_s)
            process.kill()
            member.kill()
            process.communicate()
            member.start()
        design(cell, *words)
        status = design(cell, "status")
        assert {name: status[name] for name in wanted} == wanted
        switched(str(wanted["reads"]), follower)
        cell.wait_until_recovered(f"{step}, killed {len(KILLED_AFTER_S)} times")
        assert all(verdict["agree"] for verdict in design(cell, "verify")["verdicts"].values())


@pytest.mark.timeout(120)
def test_a_design_that_nobody_keeps_up_is_no_design_to_read(cell_of: CellFactory, memcached: MemcachedServer) -> None:
    """I5: what is left in memcached of consumers that are dead was whole once. cutover and retire ask for more than that."""
    with cell_of(memcached.url, designs=["snapshot"], bound_s=5.0) as cell:
        cell.wait_until_well()
        design(cell, "prepare", "journal")
        for member in cell.members:
            member.kill()
        time.sleep(5 * cell.config.renew_s + 2.5)
        assert design(cell, "cutover", "journal", "--timeout", "0.5", code=1)["kind"] == "design-incomplete"
        assert design(cell, "retire", "journal", "--timeout", "0.5", code=1)["kind"] == "design-incomplete"
        for member in cell.members:
            member.start()
        assert design(cell, "cutover", "journal", "--timeout", "30")["reads"] == "journal"
        cell.wait_until_recovered("after a cutover that had to wait for consumers")


@pytest.mark.timeout(120)
def test_a_cell_moves_to_other_memcached_servers_while_it_runs(cell_of: CellFactory) -> None:
    """One server becomes two: prepare, cutover, retire; then the old one is switched off, and nobody notices."""
    with MemcachedServer() as old, MemcachedServer() as one, MemcachedServer() as two:
        store_b = f"memcached://{one.address},{two.address}"
        with cell_of(old.url, designs=["snapshot"], store_b=store_b, bound_s=5.0) as cell:
            cell.wait_until_well()
            watcher = ViewWatcher(cell.config, None, cell.fleet, cell.bound_s)
            cell.watchers.append(watcher)
            watcher.start()
            assert design(cell, "prepare", "snapshot_b")["nodes"] == len(cell.fleet.names)
            design(cell, "cutover", "snapshot_b")
            switched("snapshot_b", watcher)
            design(cell, "retire", "snapshot")
            old.stop()
            for member in cell.members:
                member.kill()
                member.start()
            cell.fleet.flush(30.0)
            wanted = {
                name: said.version for name, said in cell.fleet.authored_states().items() if said.state is not None
            }
            with Reader(cell.config) as reader:
                wait_until(lambda: at_least(reader, wanted), "the moved cell is not what the agents said")
                assert reader.design == "snapshot_b"


def at_least(reader: Reader, wanted: dict[str, Version]) -> bool:
    """Whether a new look shows every node at this version or later, and vouches for it."""
    view = reader.read(max_age=5.0, on_stale="flag")
    shown = {name: node.version for name, node in view.nodes.items()}
    return not view.incomplete and not view.stale and all(shown.get(n, NEVER) >= v for n, v in wanted.items())

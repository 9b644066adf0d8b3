"""Switching designs while everything runs: readers in other processes follow, without an error and without going back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from bench.peer_servers import MariadbServer
from nodestate.sql.migrate import upgrade
from tests.faults.cell import CellUnderTest, wait_until
from tests.faults.conftest import CellFactory
from tests.faults.watch import Watcher
from tests.services.servers import MemcachedServer, ServiceMissing

pytestmark = pytest.mark.service
FOLLOWERS = 4
_MAIN = "from nodestate.cli import main; main()"


@pytest.fixture
def database() -> Iterator[str]:
    """The URL of a MariaDB with nodestate's tables."""
    try:
        with MariadbServer() as server:
            upgrade(server.url)
            yield server.url
    except ServiceMissing as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def design(cell: CellUnderTest, *words: str, code: int = 0) -> Any:
    """``nodestate design WORDS --json`` as an operator's process."""
    done = subprocess.run(  # noqa: S603  our own command
        [sys.executable, "-c", _MAIN, "design", *words, "--json"],
        env=cell.members[0].settings | {"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == code, f"design {words} ended with {done.returncode}: {done.stdout}{done.stderr}"
    return json.loads((done.stdout if code == 0 else done.stderr).splitlines()[-1])


@contextmanager
def followers(cell: CellUnderTest, count: int) -> Iterator[list[dict[str, Any]]]:
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


def switched(name: str, watchers: Sequence[Watcher]) -> None:
    """Readers of this process read ``name``, too."""
    wait_until(lambda: all(watcher.last_design == name for watcher in watchers), f"readers do not follow to {name}")


@pytest.mark.timeout(240)
def test_readers_follow_from_the_database_to_memcached_and_back(
    cell_of: CellFactory, memcached: MemcachedServer, database: str
) -> None:
    """sql -> snapshot -> journal, back by rollback and forward again, -> sql, at 2,000 events a second: no reader in any
    process meets an error, an older node or an old state that passes for fresh (I1, I5), and in the end all agree (I4).
    """
    with cell_of(memcached.url, designs=["sql"], sql=database, rate=2_000.0, bound_s=5.0) as cell:
        cell.begin()
        watchers = [Watcher(cell.config, None, cell.fleet, cell.bound_s) for _ in range(2)]
        cell.watchers += watchers
        for watcher in watchers:
            watcher.start()
        with followers(cell, FOLLOWERS) as saw:
            switched("sql", watchers)
            assert design(cell, "status")["reads"] == "sql"
            for name in ("snapshot", "journal"):
                assert design(cell, "prepare", name)["nodes"] == len(cell.fleet.names)
                assert name in design(cell, "cutover", name)["writes"]
                switched(name, watchers)
            assert design(cell, "rollback")["reads"] == "snapshot"
            switched("snapshot", watchers)
            design(cell, "cutover", "journal")
            switched("journal", watchers)
            design(cell, "verify")
            design(cell, "cutover", "sql")
            switched("sql", watchers)
        for one in saw:
            assert (one["errors"], one["regressed"]) == ([], [])
            assert one["designs"] == ["sql", "snapshot", "journal", "snapshot", "journal", "sql"]
            assert one["fresh"] > 0
        cell.record(
            f"{sum(one['reads'] for one in saw)} reads of 4 processes; not fresh for at most "
            f"{max(one['unfresh_s'] for one in saw):.1f} s"
        )
        design(cell, "retire", "journal")
        assert design(cell, "retire", "sql", code=1)["kind"] == "DesignStepError"
        assert sorted(design(cell, "status")["designs"]) == ["snapshot", "sql"]
        cell.recovered("after all switches")
        assert design(cell, "verify")["verdicts"]["snapshot"]["agree"]

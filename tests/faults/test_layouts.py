"""Another number of partitions while everything runs: agents and readers in other processes notice nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import msgspec
import pytest

from harness.cell import Cell
from harness.servers import MemcachedServer
from harness.waiting import wait_until
from harness.watchers import ViewWatcher
from nodestate.agent.publisher import Publisher
from nodestate.broker import KombuLayouts, KombuSource, queue_depths
from nodestate.designs.reader import Reader
from nodestate.model import Version
from nodestate.model.partitioning import partition_of
from nodestate.ports import SystemClock
from tests.faults.conftest import CellFactory
from tests.faults.test_switching import design, followers, start_design, switched

pytestmark = pytest.mark.service
FOLLOWERS = 3
KILLED_AFTER_S = (0.5, 0.7, 0.9)
"""A command takes a second or two: it is killed while it waits, or after it changed the record."""
SOON_S = 5.0
"""An agent that comes back is seen within so much."""


def command(cell: Cell, words: str) -> str:
    """What a command of ``nodestate`` says, as an operator's process; it must end well."""
    done = subprocess.run(  # noqa: S603  our own command
        [sys.executable, "-m", "nodestate.cli", *words.split()],
        env=cell.members[0].settings | {"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{words} ended with {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


def watched(cell: Cell) -> ViewWatcher:
    """A reader of this process that follows, held to I1 and I5 at each read."""
    watcher = ViewWatcher(cell.config, None, cell.fleet, cell.bound_s)
    cell.watchers.append(watcher)
    watcher.start()
    return watcher


def comes_back(cell: Cell, reader: Reader, incarnation: int) -> float:
    """An agent with the settings of the cell's first day reports; seconds until it is in what readers read."""
    publisher = Publisher(cell.config, "away", incarnation=incarnation)
    began = time.monotonic()
    receipt = publisher.report({"usage": {"VCPU": incarnation}})
    publisher.close()
    assert reader.read(at_least=receipt, timeout=SOON_S).nodes["away"].version == Version(incarnation, 1)
    return time.monotonic() - began


@pytest.mark.timeout(240)
def test_a_cell_gets_another_number_of_partitions_while_it_runs_and_gets_the_first_back(
    cell_of: CellFactory, memcached: MemcachedServer
) -> None:
    """8 -> 12, back by rollback and forward again, 8 retired, and -> 8, at 500 events a second from agents that know nothing
    of it: no reader in any process meets an error, an older node or an old state that passes for fresh (I1, I5).
    """
    with cell_of(memcached.url, designs=["snapshot"], rate=500.0, bound_s=5.0) as cell:
        cell.wait_until_well()
        watcher = watched(cell)
        answers = cell.fleet.answers
        now = int(time.time())
        with followers(cell, FOLLOWERS) as saw, Reader(cell.config) as reader:
            comes_back(cell, reader, now)
            began = time.monotonic()
            assert design(cell, "prepare", "snapshot@12")["nodes"] == len(cell.fleet.names) + 1
            prepared_s = time.monotonic() - began
            assert cell.fleet.answers == answers, "agents were asked"
            assert design(cell, "cutover", "snapshot@12")["reads"] == "snapshot@12"
            switched("snapshot@12", watcher)
            with ThreadPoolExecutor() as together:
                list(
                    together.map(
                        partial(command, cell), ("doctor", "top --once", "check", "resync --partition 11", "view")
                    )
                )
            assert design(cell, "rollback")["reads"] == "snapshot@8"
            switched("snapshot@8", watcher)
            design(cell, "cutover", "snapshot@12")
            switched("snapshot@12", watcher)
            done = design(cell, "retire", "snapshot@8")
            assert (done["writes"], done["partitions"]) == (["snapshot"], 12)
            assert [depth.missing for depth in queue_depths(cell.config)] == [True] * 8 + [False]
            back_s = comes_back(cell, reader, now + 1)
            assert partition_of("away", 12) != partition_of("away", 8)
            design(cell, "prepare", "snapshot@8")
            design(cell, "cutover", "snapshot@8")
            switched("snapshot@8", watcher)
            design(cell, "retire", "snapshot@12")
        for one in saw:
            assert (one["errors"], one["regressed"]) == ([], [])
            assert one["designs"] == [f"snapshot@{count}" for count in (8, 12, 8, 12, 8)]
        cell.record(
            f"12 partitions whole after {prepared_s:.1f} s; {sum(one['reads'] for one in saw)} reads of {FOLLOWERS} processes; "
            f"not fresh for at most {max(one['unfresh_s'] for one in saw):.1f} s; an agent seen after {back_s:.1f} s"
        )
        with Publisher(cell.config, "away", incarnation=now + 2) as publisher:  # the fleet knows nothing of it
            publisher.report({})
            publisher.leave()
        cell.wait_until_recovered("after all of it")
        command(cell, "check --agents 1")


def refused_while_read(cell: Cell, words: Sequence[str]) -> None:
    """A consumer that follows no record still reads the queues: they are left behind, and everybody is told."""
    source = KombuSource(msgspec.structs.replace(cell.config, broker_heartbeat_s=60), [3])
    source.receive(0, 0)
    assert design(cell, *words, "--timeout", "3", code=1)["kind"] == "layout-in-use"
    assert design(cell, "status")["leaving"] == ["journal@8"]
    assert "journal@8 was retired" in command(cell, "doctor")
    source.close()


@pytest.mark.timeout(240)
def test_each_step_that_is_killed_half_way_ends_in_its_state_when_it_is_repeated(
    cell_of: CellFactory, memcached: MemcachedServer
) -> None:
    """kill -9 of the operator's command, and of a consumer in the midst of it; then the same again, step by step."""
    with cell_of(memcached.url, designs=["journal"], bound_s=5.0) as cell:
        cell.wait_until_well()
        watcher = watched(cell)
        for number, (words, after) in enumerate(
            {
                ("prepare", "snapshot@5"): {"writes": ["journal@8", "snapshot@5"], "reads": "journal@8"},
                ("cutover", "snapshot@5"): {"writes": ["journal@8", "snapshot@5"], "reads": "snapshot@5"},
                ("retire", "journal@8"): {"writes": ["snapshot"], "reads": "snapshot", "leaving": []},
            }.items()
        ):
            member = cell.members[number % len(cell.members)]
            process = start_design(cell, *words)
            time.sleep(KILLED_AFTER_S[number])
            process.kill()
            member.kill()
            process.communicate()
            member.start()
            # On a busy machine it may have come to its end before it was killed: then nothing is left to be read.
            if words[0] == "retire" and not all(depth.missing for depth in queue_depths(cell.config)[:8]):
                refused_while_read(cell, words)
            design(cell, *words, "--timeout", "60")
            status = design(cell, "status")
            assert {name: status[name] for name in after} == after
        switched("snapshot@5", watcher)
        assert [depth.missing for depth in queue_depths(cell.config)] == [True] * 8 + [False]
        assert KombuLayouts(cell.config, 1, 1, SystemClock()).delete(8)
        cell.fleet.rate = 0.0
        cell.fleet.flush(30.0)
        wanted = {name: said.version for name, said in cell.fleet.authored_states().items()}
        with Reader(cell.config) as reader:
            wait_until(
                lambda: {n: o.version for n, o in reader.read(max_age=5.0, on_stale="flag").nodes.items()} == wanted,
                "readers do not see what the agents said",
            )

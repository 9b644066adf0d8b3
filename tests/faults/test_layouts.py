"""Change the number of partitions while everything runs: agents and readers in other processes are not affected."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from harness.cell import Cell
from harness.commands import run_command, run_design, start_command
from harness.profile import by_profile
from harness.servers import MemcachedServer
from harness.waiting import PATIENCE_S, wait_until
from nodestate.agent.publisher import Publisher
from nodestate.broker import KombuLayouts, KombuSource, queue_depths
from nodestate.designs.reader import Reader
from nodestate.model import Version
from nodestate.model.partitioning import partition_of
from nodestate.ports import SystemClock
from tests.faults.conftest import CellFactory
from tests.faults.test_switching import (
    following_processes,
    record_reads,
    require_followed,
    roll_back_to,
    wait_until_followed,
)

pytestmark = pytest.mark.service
KILLED_AFTER_S = by_profile(
    fast={"retire": 0.2},
    thorough={"prepare": 0.5, "cutover": 0.7, "retire": 0.9},
)
"""The steps that are killed, and at which age. A command takes a second or two, and less if it is forked: it dies while
it waits, or after it has changed the record."""


def report_from_another_agent(cell: Cell, reader: Reader, incarnation: int) -> float:
    """Let an agent with the cell's first settings report a node; returns the seconds until readers see it."""
    began = time.monotonic()
    with Publisher(cell.config, "away", incarnation=incarnation) as publisher:
        receipt = publisher.report({"usage": {"VCPU": incarnation}})
    view = reader.read(at_least=receipt, timeout=PATIENCE_S)
    assert view.nodes["away"].version == Version(incarnation, 1)
    return time.monotonic() - began


def test_cell_gets_another_number_of_partitions_while_it_runs(cell_of: CellFactory, memcached: MemcachedServer) -> None:
    """8 -> 12 partitions and 8 retired: no reader in any process meets an error, an older node or an old state that
    passes for fresh (I1, I5). No agent is asked for a report, and an agent with the old settings is still seen.
    """
    with cell_of(memcached.url, designs=["snapshot"], bound_s=5.0) as cell:
        cell.wait_until_well()
        watcher = cell.watch_control_record()
        answers = cell.fleet.answers
        incarnation = int(time.time())
        with following_processes(cell, 1) as saw, Reader(cell.config) as reader:
            report_from_another_agent(cell, reader, incarnation)
            assert run_design(cell.environment, "prepare", "snapshot@12")["nodes"] == len(cell.fleet.names) + 1
            assert cell.fleet.answers == answers, "agents were asked for reports"
            assert run_design(cell.environment, "cutover", "snapshot@12")["reads"] == "snapshot@12"
            wait_until_followed("snapshot@12", watcher)
            status = run_design(cell.environment, "retire", "snapshot@8")
            assert (status["writes"], status["partitions"]) == (["snapshot"], 12)
            report_from_another_agent(cell, reader, incarnation + 1)
        require_followed(saw, ["snapshot@8", "snapshot@12"])


@pytest.mark.thorough
def test_cell_gets_another_number_of_partitions_and_its_first_number_back(
    cell_of: CellFactory, memcached: MemcachedServer
) -> None:
    """8 -> 12, back by rollback and forward again, 8 retired, and -> 8, at 500 events a second of agents that do
    not know of it: no reader in any process meets an error, an older node or an old state that passes for fresh
    (I1, I5).
    """
    with cell_of(memcached.url, designs=["snapshot"], rate=500.0, bound_s=5.0) as cell:
        cell.wait_until_well()
        watcher = cell.watch_control_record()
        answers = cell.fleet.answers
        incarnation = int(time.time())
        with following_processes(cell, 3) as saw, Reader(cell.config) as reader:
            report_from_another_agent(cell, reader, incarnation)
            began = time.monotonic()
            assert run_design(cell.environment, "prepare", "snapshot@12")["nodes"] == len(cell.fleet.names) + 1
            prepared_s = time.monotonic() - began
            assert cell.fleet.answers == answers, "agents were asked for reports"
            assert run_design(cell.environment, "cutover", "snapshot@12")["reads"] == "snapshot@12"
            wait_until_followed("snapshot@12", watcher)
            commands = ("doctor", "top --once", "check", "resync --partition 11", "view")
            with ThreadPoolExecutor() as together:
                list(together.map(lambda words: run_command(cell.environment, *words.split()), commands))
            roll_back_to(cell, watcher, "snapshot@8")
            run_design(cell.environment, "cutover", "snapshot@12")
            wait_until_followed("snapshot@12", watcher)
            status = run_design(cell.environment, "retire", "snapshot@8")
            assert (status["writes"], status["partitions"]) == (["snapshot"], 12)
            assert [depth.missing for depth in queue_depths(cell.config)] == [True] * 8 + [False]
            seen_s = report_from_another_agent(cell, reader, incarnation + 1)
            assert partition_of("away", 12) != partition_of("away", 8)
            run_design(cell.environment, "prepare", "snapshot@8")
            run_design(cell.environment, "cutover", "snapshot@8")
            wait_until_followed("snapshot@8", watcher)
            run_design(cell.environment, "retire", "snapshot@12")
        require_followed(saw, [f"snapshot@{count}" for count in (8, 12, 8, 12, 8)])
        cell.record(f"12 partitions complete after {prepared_s:.1f} s; another agent's node seen after {seen_s:.1f} s")
        record_reads(cell, saw)
        with Publisher(cell.config, "away", incarnation=incarnation + 2) as publisher:  # not a node of the fleet
            publisher.report({})
            publisher.leave()
        cell.wait_until_recovered("after all of it")
        run_command(cell.environment, "check", "--agents", "1")


@pytest.mark.thorough
def test_queues_of_a_layout_whose_record_was_lost_are_unbound_and_named(
    cell_of: CellFactory, memcached: MemcachedServer
) -> None:
    """The cell went from 2 partitions to 3. Then memcached and all consumers were lost, and the settings still say 2.
    Without a consumer the queues of layout 3 would fill until the broker takes no messages.
    """
    with cell_of(memcached.url, designs=["snapshot"], bound_s=5.0, partitions=2) as cell:
        lost = msgspec.structs.replace(cell.config, partitions=3)

        def waiting() -> int:
            return sum(depth.ready for depth in queue_depths(lost) if depth.partition is not None)

        cell.wait_until_well()
        for words in (("prepare", "snapshot@3"), ("cutover", "snapshot@3"), ("retire", "snapshot@2")):
            run_design(cell.environment, *words)
        for member in cell.members:
            member.kill()
        memcached.kill()
        wait_until(lambda: waiting() > 100, "no events wait in the queues")
        memcached.start()
        for member in cell.members:
            member.start()
        event = "events wait in queues of a layout that no consumer takes from"
        wait_until(lambda: any(member.logged(event, layout=3) for member in cell.members), "no log names the layout")
        before = waiting()
        cell.wait_until_recovered("after the control record was lost with its stores")
        assert waiting() == before
        assert f"{before:,} messages wait in the queues of 3 partitions" in run_command(cell.environment, "doctor")[0]


def require_refused_while_queues_are_read(cell: Cell, words: Sequence[str]) -> None:
    """A consumer that does not follow the record still reads the old queues: retire refuses, and status and
    doctor say so.
    """
    source = KombuSource(msgspec.structs.replace(cell.config, broker_heartbeat_s=60), [3])
    source.receive(0, 0)
    assert run_design(cell.environment, *words, "--timeout", "1", code=1)["kind"] == "layout-in-use"
    assert run_design(cell.environment, "status")["leaving"] == ["journal@8"]
    assert "journal@8 was retired" in run_command(cell.environment, "doctor")[0]
    source.close()


def test_each_step_that_was_killed_half_way_reaches_its_state_when_it_is_repeated(
    cell_of: CellFactory, memcached: MemcachedServer
) -> None:
    """kill -9 of the operator's command, and of a consumer at the same time; then the same command, step by step."""
    with cell_of(memcached.url, designs=["journal"], bound_s=5.0) as cell:
        cell.wait_until_well()
        watcher = cell.watch_control_record()
        for number, (words, after) in enumerate(
            {
                ("prepare", "snapshot@5"): {"writes": ["journal@8", "snapshot@5"], "reads": "journal@8"},
                ("cutover", "snapshot@5"): {"writes": ["journal@8", "snapshot@5"], "reads": "snapshot@5"},
                ("retire", "journal@8"): {"writes": ["snapshot"], "reads": "snapshot", "leaving": []},
            }.items()
        ):
            if words[0] in KILLED_AFTER_S:
                member = cell.members[number % len(cell.members)]
                process = start_command(cell.environment, "design", *words, "--json")
                time.sleep(KILLED_AFTER_S[words[0]])
                process.kill()
                member.kill()
                process.communicate()
                member.start()
            # If the command reached its end before it was killed, no old queue is left to be read.
            if words[0] == "retire" and not all(depth.missing for depth in queue_depths(cell.config)[:8]):
                require_refused_while_queues_are_read(cell, words)
            run_design(cell.environment, *words)
            status = run_design(cell.environment, "status")
            assert {name: status[name] for name in after} == after
        wait_until_followed("snapshot@5", watcher)
        assert [depth.missing for depth in queue_depths(cell.config)] == [True] * 8 + [False]
        assert KombuLayouts(cell.config, 1, 1, SystemClock()).delete(8)
        cell.fleet.rate = 0.0
        cell.fleet.flush()
        wanted = {name: said.version for name, said in cell.fleet.authored_states().items()}
        with Reader(cell.config) as reader:
            wait_until(
                lambda: {n: o.version for n, o in reader.read(max_age=5.0, on_stale="flag").nodes.items()} == wanted,
                "readers do not see what the agents said",
            )

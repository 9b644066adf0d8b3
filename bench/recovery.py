"""Measures how long after a fault views are complete, fresh and right again.

Two consumers (``nodestate consume``), RabbitMQ, and memcached or a database are processes of their own. The agents are
a thread that changes nodes, sends heartbeats and answers resyncs. The clock starts when the failed part is gone or, if
it is started again, when it is back. At that moment some nodes of each partition change. A view has recovered when it
shows these changes, is complete and is within the bound of age. First the view of an existing reader must recover, then
that of a new reader, which needs every key. After each fault all views are compared with the agents, node by node.

The numbered faults of ``numbered_faults`` follow in the same cell, for the first design of memcached and the smallest
fleet, because they do not depend on either.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from bench.consumer_process import failures_as_wrong_results
from bench.design_names import DEFAULT_DESIGNS, DESIGN_NAMES, design_label
from bench.environments import Environment
from bench.fault_run import AGE_ERROR
from bench.memcached_environment import MemcachedEnvironment
from bench.numbered_faults import NUMBERED_FAULTS, measure_numbered_faults
from bench.record import Case, Goal, Measure
from bench.recovery_times import (
    BOUND_S,
    PATIENCE_S,
    FaultTarget,
    RecoveryTimes,
    measure_recovery,
    wait_until_at_rest,
)
from bench.runs import Runs
from bench.scenario import Findings, ReportProgress, Scenario, Settings
from bench.workload import require
from harness.cell import SETTINGS, Cell
from harness.fleet import SimulatedFleet
from harness.keyspace import KeySpace
from harness.servers import RabbitServer
from harness.waiting import wait_until
from nodestate.broker import connect_check
from nodestate.config import Config
from nodestate.model.partitioning import partition_of

BARE_STATE_BYTES: Final = 200
"""Bytes of a state of the simulated fleet without padding."""
RATE: Final = 100.0
"""Changes per second, all nodes together, during the whole run."""
SIGNS_PER_S: Final = 1_000.0
"""Heartbeats per second that one thread can send beside the changes. So a larger fleet has a longer heartbeat."""
HEARTBEAT_MIN_S: Final = 0.5
NO_MEMCACHED: Final = "memory://"
BRIEF_S: Final = 1.0
"""A run with fewer seconds causes only the faults that are marked as brief, and its consumers stand by sooner."""
BRIEF_STANDBY_S: Final = 0.5
GOAL_NODES, GOAL_S = 10_000, 10.0


class Fault(NamedTuple):
    """A fault that can be caused."""

    name: str
    make: Callable[[FaultTarget], None]
    """Causes the fault; the clock starts when it returns."""
    mend: Callable[[FaultTarget], None] = lambda _target: None
    """Restores parts that do not recover by themselves, after the clock has stopped."""
    names: Sequence[str] = DEFAULT_DESIGNS
    """Names of the designs that the fault applies to."""
    brief: bool = True
    """Whether brief runs cause it, too."""


def restart_store(target: FaultTarget) -> None:
    """Kill the server and start it again. memcached loses all keys; a database keeps committed data."""
    target.environment.restart()


def lose_key(kind: str) -> Callable[[FaultTarget], None]:
    """Return a fault that deletes one key of a kind.

    A key of a node is taken from a node that does not change, because a change would write the key again.
    """

    def lose(target: FaultTarget) -> None:
        assert isinstance(target.environment, MemcachedEnvironment), "only memcached loses keys"
        fleet, config = target.cell.fleet, target.cell.config
        partition = partition_of(fleet.names[0], config.partitions)
        other = fleet.names_of_partition[partition][-1]
        fleet.unchanging = {other}
        with KeySpace(config, target.environment.address) as space:
            fleet.call(lambda: fleet.change(fleet.names[0]))  # so that there is a segment since the last checkpoint
            wait_until(lambda: space.intact(target.design, partition, kind, other), f"there is no {kind}")
            space.delete(space.key(target.design, partition, kind, other))

    return lose


def let_all_change(target: FaultTarget) -> None:
    """Let the node change again whose key was deleted."""
    target.cell.fleet.unchanging = set()


def kill_consumer(target: FaultTarget) -> None:
    """Kill the consumer that owns partitions; the other one stands by.

    On a busy machine one consumer may start too late to own any partition; its death would change nothing.
    """
    owner = next((member for member in target.cell.members if member.logged("partition taken over")), None)
    require(owner is not None, "no consumer owns a partition")
    assert owner is not None, "required above"
    owner.kill()


def start_consumer(target: FaultTarget) -> None:
    """Start the consumers that are dead; the owner keeps its partitions."""
    for member in target.cell.members:
        if not member.running:
            member.start()


def restart_broker(target: FaultTarget) -> None:
    """Stop RabbitMQ and start it again; its queues are durable."""
    target.rabbit.restart()


def restart_all(target: FaultTarget) -> None:
    """Kill all consumers and the server and start them again, so that only agents know the states."""
    for member in target.cell.members:
        member.kill()
    restart_store(target)
    for member in target.cell.members:
        member.start()


SERVERS: Final = ("sql:mariadb", "sql:postgres")
"""Designs whose database is a server; SQLite is not."""
FAULTS: Final = (
    Fault("memcached restarted", restart_store),
    Fault("database restarted", restart_store, names=SERVERS),
    Fault("epoch lost", lose_key("epoch"), let_all_change, brief=False),
    Fault("head lost", lose_key("head"), let_all_change, brief=False),
    Fault("segment lost", lose_key("segment"), let_all_change, names=("journal",)),
    Fault("checkpoint lost", lose_key("checkpoint"), let_all_change, names=("journal",), brief=False),
    Fault("node lost", lose_key("node"), let_all_change, names=("snapshot",)),
    Fault("index lost", lose_key("index"), let_all_change, names=("snapshot",), brief=False),
    Fault("consumer killed", kill_consumer, start_consumer, names=DESIGN_NAMES),
    Fault("broker restarted", restart_broker, names=DESIGN_NAMES, brief=False),
    Fault("consumers and memcached restarted", restart_all, brief=False),
    Fault("consumers and database restarted", restart_all, names=SERVERS, brief=False),
)
"""All faults, in the order in which they are caused.

After the last one each consumer owns its own partitions again, so ``consumer killed`` can be caused in the next round.
"""


def run(settings: Settings, report_progress: ReportProgress) -> Findings:
    """Measure every fault in every design at every size."""
    runs = Runs()
    numbered_design = next((design for design in settings.designs if design in DEFAULT_DESIGNS), "")
    with RabbitServer() as rabbit:
        runs.servers["rabbitmq"] = connect_check(Config(broker=rabbit.url)).version
        for design in settings.designs:
            if design not in DEFAULT_DESIGNS:
                server = "" if design in SERVERS else ", and SQLite has no server to restart"
                runs.skipped[
                    f"{design_label([design])}: no faults that lose keys, because a database loses none{server}"
                ] = None
            for nodes in settings.nodes:

                def measure(environment: Environment, nodes: int = nodes, design: str = design) -> list[Case]:
                    faults = [
                        fault
                        for fault in FAULTS
                        if design in fault.names and (settings.seconds >= BRIEF_S or fault.brief)
                    ]
                    with failures_as_wrong_results(), _cell(environment, nodes, rabbit, settings) as cell:
                        target = FaultTarget(cell, environment, rabbit, settings.state_bytes)
                        cases = _measure(target, faults, settings, report_progress)
                        if (design, nodes) == (numbered_design, min(settings.nodes)):
                            cases += _measure_numbered(target, settings, report_progress)
                        return cases

                runs.measure_in([design], nodes * settings.state_bytes, measure)
    errors = [case.measures[AGE_ERROR].max for case in runs.cases if AGE_ERROR in case.measures]
    goal = Goal.at_most(f"numbered faults: {AGE_ERROR}", max(errors), 0.0, "s") if errors else None
    return runs.findings(goals=[goal] if goal else [])


SCENARIO: Final = Scenario("recovery", "from a fault to a view that is whole again", run, (1_000, GOAL_NODES))


@contextmanager
def _cell(environment: Environment, nodes: int, rabbit: RabbitServer, settings: Settings) -> Iterator[Cell]:
    """Run the cell of the harness with default settings, except for heartbeats."""
    heartbeat_s = max(HEARTBEAT_MIN_S, nodes / SIGNS_PER_S)
    usual = {name: getattr(Config(), name) for name in SETTINGS}
    brief = {"standby_s": BRIEF_STANDBY_S} if settings.seconds < BRIEF_S else {}
    own = {"heartbeat_s": heartbeat_s, "resync_jitter_s": heartbeat_s / 2}
    with tempfile.TemporaryDirectory(prefix="nodestate-bench-") as folder:
        cell = Cell(
            Path(folder),
            lambda _text: None,
            cell=f"bench-{environment.slug}-{nodes}",
            broker=rabbit.url,
            designs=environment.designs,
            bound_s=BOUND_S,
            **{"store": NO_MEMCACHED, **environment.settings, **usual, **own, **brief},
        )
        pad_bytes = max(0, settings.state_bytes - BARE_STATE_BYTES)
        cell.fleet = SimulatedFleet(cell.config, count=nodes, rate=RATE, seed=settings.seed, pad_bytes=pad_bytes)
        with cell:
            yield cell


def _measure(
    target: FaultTarget, faults: Sequence[Fault], settings: Settings, report_progress: ReportProgress
) -> list[Case]:
    cell = target.cell
    name = f"{target.environment.label}, {len(cell.fleet.names):,} nodes"
    report_progress(f"{name}: loading", 0.0)
    wait_until_at_rest(cell)
    cell.wait_until_equal(PATIENCE_S)
    times: dict[str, list[RecoveryTimes]] = {fault.name: [] for fault in faults}
    began = time.monotonic()
    while not times[faults[-1].name] or time.monotonic() - began < settings.seconds:
        for index, fault in enumerate(faults):
            report_progress(f"{name}: {fault.name}", index / len(faults))
            fault.make(target)
            times[fault.name].append(measure_recovery(target))
            cell.wait_until_equal(PATIENCE_S)
            fault.mend(target)
            wait_until_at_rest(cell)
    shown = target.environment.require_nothing_lost(len(cell.fleet.names))
    return [_case(target, fault, times[fault.name], shown) for fault in faults]


def _case_settings(target: FaultTarget) -> dict[str, float]:
    config = target.cell.config
    return {
        "state_bytes": target.state_bytes,
        "changes_per_s": RATE,
        "bound_s": BOUND_S,
        "renew_s": config.renew_s,
        "standby_s": config.standby_s,
        "heartbeat_s": config.heartbeat_s,
        "resync_jitter_s": config.resync_jitter_s,
    }


def _measure_numbered(target: FaultTarget, settings: Settings, report_progress: ReportProgress) -> list[Case]:
    faults = [one for one in NUMBERED_FAULTS if settings.seconds >= BRIEF_S or one.brief]
    return measure_numbered_faults(target, faults, settings.seconds, _case_settings(target), report_progress)


def _case(target: FaultTarget, fault: Fault, times: Sequence[RecoveryTimes], shown: str) -> Case:
    nodes = len(target.cell.fleet.names)
    label = f"{target.environment.label}: {fault.name}"
    recovery = Measure.of("s", [one.new_s for one in times])
    return Case(
        label,
        nodes,
        _case_settings(target),
        {"recovery": recovery, "recovery, following reader": Measure.of("s", [one.following_s for one in times])},
        {},
        [
            f"after the fault the views of an existing and of a new reader were complete, with all {nodes:,} nodes",
            "then both views showed version and state of each node as its agent had them",
            shown,
        ],
        [Goal.at_most(f"{label}: recovery, worst", recovery.max, GOAL_S, "s")]
        if (nodes, fault.name) == (GOAL_NODES, FAULTS[0].name)
        else [],
    )

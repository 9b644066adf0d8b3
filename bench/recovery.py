"""How long after a fault a view is whole again: nothing incomplete, nothing over a bound, every version right.

Two consumers (``nodestate consume``), RabbitMQ and memcached, or a database, are processes of their own; the agents are a thread that
changes nodes, gives their signs of life and answers resyncs. The clock starts when what failed is gone, or, where it was
started again, is back. Just then some nodes of each partition change. A view is whole when it shows these changes, vouches
for all nodes, and is within the bound: first that of a reader that lived through it, then that of a new one, which needs
every key. After each fault all views are compared with what the agents say, node by node.
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
from bench.memcached_environment import MemcachedEnvironment
from bench.record import Case, Goal, Measure
from bench.runs import Runs
from bench.scenario import Findings, ReportProgress, Scenario, Settings
from bench.workload import require
from harness.cell import SETTINGS, Cell
from harness.fleet import SimulatedFleet
from harness.keyspace import KeySpace
from harness.servers import RabbitServer
from harness.waiting import wait_until
from nodestate.broker import Topology, connect_check, queue_depths
from nodestate.config import Config
from nodestate.model import Version
from nodestate.model.partitioning import partition_of
from nodestate.view.view import View

BOUND_S: Final = 5.0
"""Age that counts as fresh: a new reader knows ages to two seconds only, and owners renew every second."""
BARE_STATE_BYTES: Final = 200
"""What a state of the fault tests' fleet takes without padding."""
RATE: Final = 100.0
"""Changes per second, all nodes together, from beginning to end."""
SIGNS_PER_S: Final = 1_000.0
"""Signs of life that one thread gives beside that; so a fleet's heartbeat is the longer the larger it is."""
HEARTBEAT_MIN_S: Final = 0.5
NO_MEMCACHED: Final = "memory://"
PROBES_COUNT: Final = 3
"""Nodes of each partition that change right after the fault."""
PAUSE_S: Final = 0.02
PATIENCE_S: Final = 90.0
BRIEF_S: Final = 1.0
"""A run with fewer seconds is content with the faults that are marked for it, and with consumers that stand by sooner."""
BRIEF_STANDBY_S: Final = 0.5
GOAL_NODES, GOAL_S = 10_000, 10.0


class FaultTarget(NamedTuple):
    """What a fault is done to."""

    cell: Cell
    environment: Environment
    rabbit: RabbitServer
    state_bytes: int

    @property
    def design(self) -> str:
        """There is one."""
        [design] = self.environment.designs
        return design


class Fault(NamedTuple):
    """``make`` does it and returns when the clock is to start; ``mend`` puts back, off the clock, what stays away."""

    name: str
    make: Callable[[FaultTarget], None]
    mend: Callable[[FaultTarget], None] = lambda _scene: None
    names: Sequence[str] = DEFAULT_DESIGNS
    brief: bool = True


def restart_store(target: FaultTarget) -> None:
    """Of memcached all keys are gone, and consumers know the states; a database has what was committed."""
    target.environment.restart()


def lose_key(kind: str) -> Callable[[FaultTarget], None]:
    """One key of this kind is gone; where it is a node's, of one that does not change, or that would heal it."""

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
    """The one that did not change does again."""
    target.cell.fleet.unchanging = set()


def kill_consumer(target: FaultTarget) -> None:
    """The other one stands by. Who came late on a busy machine owns nothing, and would not be missed."""
    owner = next((member for member in target.cell.members if member.logged("partition taken over")), None)
    require(owner is not None, "no consumer owns anything")
    assert owner is not None, "as was required"
    owner.kill()


def start_consumer(target: FaultTarget) -> None:
    """… and gives nothing back, until it dies itself."""
    for member in target.cell.members:
        if not member.running:
            member.start()


def restart_broker(target: FaultTarget) -> None:
    """In order; queues are durable."""
    target.rabbit.restart()


def restart_all(target: FaultTarget) -> None:
    """Nobody knows anything but the agents."""
    for member in target.cell.members:
        member.kill()
    restart_store(target)
    for member in target.cell.members:
        member.start()


SERVERS: Final = ("sql:mariadb", "sql:postgres")
"""SQLite has no server that could die."""
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
"""In this order: after the last, each consumer owns its own partitions again, as a consumer that is to die must."""


def run(settings: Settings, report_progress: ReportProgress) -> Findings:
    """Every fault, in every design at every size."""
    runs = Runs()
    with RabbitServer() as rabbit:
        runs.servers["rabbitmq"] = connect_check(Config(broker=rabbit.url)).version
        for design in settings.designs:
            if design not in DEFAULT_DESIGNS:
                server = "" if design in SERVERS else ", and SQLite has no server to restart"
                runs.skipped[
                    f"{design_label([design])}: no faults that lose keys, as a database loses none{server}"
                ] = None
            for nodes in settings.nodes:

                def measure(environment: Environment, nodes: int = nodes, design: str = design) -> list[Case]:
                    faults = [
                        fault
                        for fault in FAULTS
                        if design in fault.names and (settings.seconds >= BRIEF_S or fault.brief)
                    ]
                    with failures_as_wrong_results(), _cell(environment, nodes, rabbit, settings) as cell:
                        return _measure(
                            FaultTarget(cell, environment, rabbit, settings.state_bytes),
                            faults,
                            settings,
                            report_progress,
                        )

                runs.measure_in([design], nodes * settings.state_bytes, measure)
    return runs.findings()


SCENARIO: Final = Scenario("recovery", "from a fault to a view that is whole again", run, (1_000, GOAL_NODES))


@contextmanager
def _cell(environment: Environment, nodes: int, rabbit: RabbitServer, settings: Settings) -> Iterator[Cell]:
    """The cell of the fault tests, with an operator's settings but for the signs of life."""
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
    report_progress(f"{name}: loads", 0.0)
    _until_at_rest(cell)
    cell.wait_until_equal(PATIENCE_S)
    times: dict[str, list[Recovered]] = {fault.name: [] for fault in faults}
    began = time.monotonic()
    while not times[faults[-1].name] or time.monotonic() - began < settings.seconds:
        for index, fault in enumerate(faults):
            report_progress(f"{name}: {fault.name}", index / len(faults))
            fault.make(target)
            times[fault.name].append(_recovered(target))
            cell.wait_until_equal(PATIENCE_S)
            fault.mend(target)
            _until_at_rest(cell)
    shown = target.environment.require_nothing_lost(len(cell.fleet.names))
    return [_case(target, fault, times[fault.name], shown) for fault in faults]


def _until_at_rest(cell: Cell) -> None:
    """Wait until views are fresh and complete, and each consumer has queued up for every partition."""
    cell.wait_until_well(PATIENCE_S)
    queues = [queue for _, queue in Topology.of(cell.config).queues()]

    def all_stand_by() -> bool:
        consumers = {depth.queue: depth.consumers for depth in queue_depths(cell.config)}
        return all(consumers[queue] == len(cell.members) for queue in queues)

    wait_until(all_stand_by, "a consumer does not stand by", PATIENCE_S)


class Recovered(NamedTuple):
    """Seconds until the view of a reader that lived through it was whole, and until a new reader's was, too."""

    following_s: float
    new_s: float


def _recovered(target: FaultTarget) -> Recovered:
    cell, began = target.cell, time.monotonic()
    wanted = cell.fleet.call(lambda: _change_some(cell), PATIENCE_S)

    def until_whole(look: Callable[[], View]) -> float:
        while True:
            view = look()
            took_s = time.monotonic() - began
            lacks = _lacks(view, wanted)
            if not lacks:
                return took_s
            require(took_s < PATIENCE_S, f"not whole after {PATIENCE_S:g} s: {lacks}")
            time.sleep(PAUSE_S)

    following_s = until_whole(lambda: cell.read(target.design, BOUND_S))
    return Recovered(following_s, until_whole(lambda: cell.read_cold(target.design, BOUND_S)))


def _change_some(cell: Cell) -> dict[str, Version]:
    """Change the first nodes of each partition; returns, for all nodes, the versions that a view must show."""
    for names in cell.fleet.names_of_partition.values():
        for name in names[:PROBES_COUNT]:
            cell.fleet.change(name)
    return {name: one.version for name, one in cell.fleet.publishers.items()}


def _lacks(view: View, wanted: dict[str, Version]) -> str:
    """What a view still lacks; empty where it is whole."""
    if view.incomplete:
        return f"it does not vouch for {sorted(view.incomplete)[:4]}"
    if view.stale or view.age > BOUND_S:
        return f"it is {view.age:.1f} s old"
    behind = [
        name
        for name, version in wanted.items()
        if (record := view.nodes.record(name)) is None or record.version < version
    ]
    return f"{len(behind)} nodes are behind, as {behind[0]}" if behind else ""


def _case(target: FaultTarget, fault: Fault, times: Sequence[Recovered], shown: str) -> Case:
    config, nodes = target.cell.config, len(target.cell.fleet.names)
    label = f"{target.environment.label}: {fault.name}"
    recovery = Measure.of("s", [one.new_s for one in times])
    return Case(
        label,
        nodes,
        {
            "state_bytes": target.state_bytes,
            "changes_per_s": RATE,
            "bound_s": BOUND_S,
            "renew_s": config.renew_s,
            "standby_s": config.standby_s,
            "heartbeat_s": config.heartbeat_s,
            "resync_jitter_s": config.resync_jitter_s,
        },
        {"recovery": recovery, "recovery, following reader": Measure.of("s", [one.following_s for one in times])},
        {},
        [
            f"after the fault, views of a following and a new reader vouched for all {nodes:,} nodes",
            "then both showed version and state as the agents had them, node by node",
            shown,
        ],
        [Goal.at_most(f"{label}: recovery, worst", recovery.max, GOAL_S, "s")]
        if (nodes, fault.name) == (GOAL_NODES, FAULTS[0].name)
        else [],
    )

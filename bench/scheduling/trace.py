"""Runs a real task list through a whole cell: tasks are scheduled, booted by messages, and ended.

Agents have the nodes of the trace, all empty at first. Two schedulers boot each task when it starts and terminate it
when it ends, in the order of the trace, without the times in which nothing happens. Before tasks start, the tasks that
ended before them have ended on the agents, and views show that, as they would if minutes passed in between. Every
result is checked against the state of the agents. For comparison, the packing of the placement in the trace is
computed.

The fleet of the trace is nearly empty. So the same is done on a few of its nodes, so that it matters how tasks are
packed; there the comparison is a placement on any node that has room.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

from bench.consumer_process import consumer_running, settings_as_environment
from bench.design_names import DEFAULT_DESIGNS
from bench.environments import BRIEF_S, Environment
from bench.record import Case, Measure
from bench.runs import Runs, open_environment
from bench.scenario import Findings, ReportProgress, Scenario, Settings
from bench.scheduling.boot_worker import BootRequest, BootResult, ClaimCounts, TerminationRequest, serve
from bench.scheduling.tasks import BadTraceError, Packing, PackingLog, Task, Trace, Wave, read, replay, scatter
from bench.worker import Worker
from bench.workload import WrongResultError, require
from harness.servers import RabbitServer, ServerMissingError
from nodestate.agent.agent import Agent
from nodestate.agent.allocation_file import AllocationJson
from nodestate.agent.sources import FullState, StatePatch
from nodestate.agent.sources.static_fleet import StaticFleet
from nodestate.broker import KombuSink, connect_check
from nodestate.config import Config, load
from nodestate.designs.reader import Reader
from nodestate.ports import SystemClock

VARIABLE: Final = "NODESTATE_TRACE"
SCHEDULERS_COUNT: Final = 2
NO_SPREAD: Final = {"cpu": 0.0, "ram": 0.0, "disk": 0.0}
WEIGHTS: Final[Mapping[str, Mapping[str, float]]] = {
    "spread": {},
    "pack 1": {"pack": 1.0},
    "pack 1 and spare 1": {"pack": 1.0, "spare": 1.0},
    "only pack 1 and spare 1": {"pack": 1.0, "spare": 1.0, **NO_SPREAD},
}
"""Multipliers of weighers. The default weighers spread tasks, and have the multiplier 1 unless they are named."""
OWN: Final = "the trace's own placement"
RANDOM: Final = "any node with room"
FEW_NODES: Final = 24
"""Number of nodes, drawn by seed: about as many as the tasks need when most of them run at the same time."""
BRIEF_TASKS: Final = 200
BRIEF_WEIGHTS: Final = ("spread", "only pack 1 and spare 1")
"""A run with less than a second boots ``BRIEF_TASKS`` tasks, with these weights."""
FLUSH_S: Final = 0.005
"""``flush_s`` of the consumer: the next wave of tasks waits for it."""
SIGNS_PER_S: Final = 200.0
"""Heartbeats per second, all nodes together."""
HEARTBEAT_MIN_S: Final = 1.0
STEP_S: Final = 0.001
PATIENCE_S: Final = 60.0
AGAIN_AFTER_S: Final = (0.0, 0.1, 0.5, 2.0, 5.0)
"""Waits before a task that got no node is tried again, if an agent has room for it."""
CHECK_S: Final = 3.0
CHECK_BRIEF_S: Final = 1.0
"""Seconds for which ``nodestate check`` waits for answers of agents."""
STATE_BYTES: Final = 2_048


def run(settings: Settings, report_progress: ReportProgress) -> Findings:
    """Run the trace with each set of weights in a cell of its own, first on all nodes, then on a few."""
    brief = settings.seconds < BRIEF_S
    whole = _trace(settings, brief=brief)
    rng = random.Random(settings.seed)
    beside = {OWN: (whole, {task.name: task.node for task in whole.tasks})}
    if len(whole.nodes) > FEW_NODES:
        few = whole.on(sorted(rng.sample(sorted(whole.nodes), FEW_NODES)))
        beside[RANDOM] = (few, scatter(few, rng))
    runs = Runs()
    with RabbitServer() as rabbit:
        runs.servers["rabbitmq"] = connect_check(Config(broker=rabbit.url)).version
        for other, (trace, where) in beside.items():
            for label in BRIEF_WEIGHTS if brief else WEIGHTS:
                with open_environment(settings.designs, len(trace.nodes) * STATE_BYTES) as environment:
                    runs.servers |= environment.versions
                    config = _config(environment, f"trace-{len(runs.cases)}", rabbit.url, len(trace.nodes))
                    runs.cases.append(_measure(environment, config, trace, label, settings, report_progress))
            runs.cases.append(_other_placement(trace, other, where))
    return runs.findings(_compared(runs.cases))


SCENARIO: Final = Scenario(
    "trace", f"a real task list (FILE or {VARIABLE}), booted and ended, and the packing of nodes", run, takes_file=True
)


def _trace(settings: Settings, *, brief: bool) -> Trace:
    if settings.file is None:
        raise ServerMissingError(
            f"no task list is given: run `python -m bench trace FILE`, or set {VARIABLE} to a file"
        )
    if others := sorted(set(settings.designs) - set(DEFAULT_DESIGNS)):
        raise ServerMissingError(
            f"the trace needs designs in memcached, because claims are stored there: {others[0]} is not one"
        )
    try:
        trace = read(settings.file)
    except (BadTraceError, OSError) as error:
        raise WrongResultError(f"{settings.file.name}: {error}") from error
    return trace.first(BRIEF_TASKS) if brief else trace


def _config(environment: Environment, cell: str, broker: str, nodes: int) -> Config:
    heartbeat_s = max(HEARTBEAT_MIN_S, nodes / SIGNS_PER_S)
    given: dict[str, Any] = {
        **environment.settings,
        "cell": cell,
        "broker": broker,
        "designs": environment.designs,
        "read_design": environment.designs[0],
        "flush_s": FLUSH_S,
        "heartbeat_s": heartbeat_s,
        "resync_jitter_s": heartbeat_s / 4,
        "broker_heartbeat_s": 60,
    }
    return load(given, environ={}, file=os.devnull)


# -- the cell -------------------------------------------------------------------------------------


class WatchedFleet(StaticFleet):
    """The nodes of the agents, which check after each boot that no node is over its capacity."""

    def __init__(self, trace: Trace, packing: Packing) -> None:
        super().__init__(trace.nodes)
        self.packing = packing
        # Each time that a node was over its capacity.
        self.over: list[str] = []
        # Tasks built so far.
        self.built = 0
        # Tasks ended so far.
        self.ended = 0

    def build(self, node: str, instance: str, allocation: AllocationJson) -> FullState | StatePatch:
        """Build a task as the base class does, and check the node."""
        self._count(node, instance, -1)
        reading = super().build(node, instance, allocation)
        self._count(node, instance, 1)
        self.built += 1
        self._judge(node)
        return reading

    def end(self, node: str, instance: str) -> FullState | StatePatch:
        """End a task as the base class does."""
        self._count(node, instance, -1)
        self.ended += 1
        return super().end(node, instance)

    def _count(self, node: str, instance: str, sign: int) -> None:
        allocation = self.resources_of(node).allocations.get(instance)
        if allocation is not None:
            self.packing.put(node, allocation["resources"], sign)

    def _judge(self, node: str) -> None:
        room = self.resources_of(node)
        for name, amount in room.usage.items():
            if amount > room.inventory[name]["total"]:
                self.over.append(f"{node} had {amount} of {name}")


@dataclass(slots=True)
class Tally:
    """The outcomes of all tasks so far."""

    where: dict[str, str] = field(default_factory=dict)
    """The node of each task that was booted."""
    nowhere: list[str] = field(default_factory=list)
    """Tasks for which no node had room."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Why each task was not booted at its last attempt; empty if it was."""
    again: int = 0
    """Attempts after the first one, of all tasks."""
    conflicts: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """Reasons of agents that refused boots."""
    wave_ms: list[float] = field(default_factory=list)
    boot_ms: list[float] = field(default_factory=list)


class TraceReplay(NamedTuple):
    """One pass through the trace.

    One thread drives everything and is the agents as well. So the state of the agents does not change while the thread
    checks it.
    """

    trace: Trace
    fleet: WatchedFleet
    agent: Agent
    reader: Reader
    schedulers: Sequence[Worker[ClaimCounts]]
    where: dict[str, str]
    """The node of each running task."""
    by: dict[str, Worker[ClaimCounts]]
    """The scheduler that booted each of these tasks."""
    tally: Tally

    def until(self, done: Callable[[], bool], what: str) -> None:
        """Step the agents until ``done`` returns true. ``what`` names the condition in the error."""
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            require(time.monotonic() < deadline, f"{what}: not done within {PATIENCE_S:g} s")
            self.agent.step(STEP_S)

    def wave(self, wave: Wave) -> None:
        """Terminate the tasks that end, then boot the tasks that start."""
        began = time.monotonic()
        endings = [(self.where.pop(task.name), task) for task in wave.ends if task.name in self.where]
        self._end(endings)
        touched = {node for node, _ in endings}
        self.until_seen(touched)
        left = self._boot(wave.starts)
        for wait_s in AGAIN_AFTER_S:
            left = self._that_fit(left)
            if not left:
                break
            self.tally.again += len(left)
            again_at = time.monotonic() + wait_s
            self.until(partial(_has_passed, again_at), "waiting")
            self.until_seen(self.where.values())
            left = self._boot(left)
        left = self._that_fit(left)
        require(
            not left,
            "tasks got no node although agents have room: "
            f"{[(task.name, self.tally.reasons[task.name]) for task in left]}",
        )
        self.until_seen({self.where[task.name] for task in wave.starts if task.name in self.where})
        self.tally.wave_ms.append((time.monotonic() - began) * 1e3)

    def _that_fit(self, left: Sequence[Task]) -> list[Task]:
        """Return the tasks for which an agent has room now; note that the other tasks have no room anywhere.

        All schedulers are idle, so the state of the agents is final.
        """
        fitting = []
        for task in left:
            if self.fleet.packing.fitting(task.resources, task.any_traits).any():
                fitting.append(task)
            else:
                self.tally.nowhere.append(task.name)
        return fitting

    def _boot(self, tasks: Sequence[Task]) -> list[Task]:
        """Boot tasks, divided among the schedulers; return the tasks that got no node."""
        if not tasks:
            return []
        turn = len(self.tally.boot_ms)
        shares = [
            (scheduler, tasks[number :: len(self.schedulers)]) for number, scheduler in enumerate(self._in_turn(turn))
        ]
        began = time.monotonic()
        asked = [scheduler for scheduler, share in shares if share]
        for scheduler, share in shares:
            if share:
                scheduler.send(BootRequest(share))
        results: list[BootResult] = []

        def all_new_readings() -> bool:
            for scheduler in list(asked):
                answer = scheduler.receive(0.0)
                if answer is not None:
                    results.extend(answer)
                    self.by.update((one.task, scheduler) for one in answer)
                    asked.remove(scheduler)
            return not asked

        self.until(all_new_readings, f"booting {len(tasks)} tasks")
        self.tally.boot_ms.append((time.monotonic() - began) * 1e3)
        for one in results:
            self.tally.conflicts += one.conflicts
            self.tally.refused.update(one.refused)
            self.tally.reasons[one.task] = one.reason
            if one.node:
                require(one.task in self.fleet.resources_of(one.node).allocations, f"{one.task} is not on {one.node}")
                self.where[one.task] = one.node
                self.tally.where[one.task] = one.node
        return [task for task in tasks if task.name not in self.where]

    def _in_turn(self, turn: int) -> list[Worker[ClaimCounts]]:
        at = turn % len(self.schedulers)
        return [*self.schedulers[at:], *self.schedulers[:at]]

    def _end(self, endings: Sequence[tuple[str, Task]]) -> None:
        if not endings:
            return
        for scheduler in self.schedulers:
            own = [(node, task) for node, task in endings if self.by[task.name] is scheduler]
            if own:
                scheduler.send(TerminationRequest(own))
        self.until(
            lambda: all(task.name not in self.fleet.resources_of(node).allocations for node, task in endings),
            "ending tasks",
        )

    def until_seen(self, nodes: Iterable[str]) -> None:
        """Step the agents until views show these nodes as their agents have them."""
        wanted = {node: self.agent.publishers[node].version for node in nodes}

        def seen() -> bool:
            records = self.reader.read(max_age=PATIENCE_S, on_stale="flag").nodes
            return all(
                (record := records.record(node)) is not None and record.version >= version
                for node, version in wanted.items()
            )

        if wanted:
            self.until(seen, "views that show all events of the agents")


def _has_passed(at: float) -> bool:
    """Return whether a monotonic time has passed."""
    return time.monotonic() >= at


def _measure(
    environment: Environment,
    config: Config,
    trace: Trace,
    label: str,
    settings: Settings,
    report_progress: ReportProgress,
) -> Case:
    packing = Packing(trace)
    tally, tasks = Tally(), len(trace.tasks)
    with ExitStack() as held:
        held.enter_context(consumer_running(config))
        run = held.enter_context(_running(config, trace, packing, label, settings, tally, report_progress))
        began, done = time.monotonic(), 0
        for wave in trace.waves():
            report_progress(f"{label}: tasks", done / tasks)
            run.wave(wave)
            done += len(wave.starts)
        took_s = time.monotonic() - began
        for scheduler in run.schedulers:
            scheduler.stop()
        run.until(lambda: all(scheduler.has_ended(0.0) for scheduler in run.schedulers), "the end of the schedulers")
        served = [scheduler.result() for scheduler in run.schedulers]
        log = replay(trace, tally.where)
        check_s = CHECK_BRIEF_S if settings.seconds < BRIEF_S else CHECK_S
        shown = [
            *_require_sound(run),
            _require_clean(run, config, check_s),
            environment.require_nothing_lost(len(trace.nodes)),
        ]
    return Case(
        label,
        len(trace.nodes),
        {
            "tasks": tasks,
            "schedulers": SCHEDULERS_COUNT,
            "placed": len(tally.where),
            "not placed": len(tally.nowhere),
            "tried again": tally.again,
            "refused": tally.refused.total(),
            "conflicts": sum(one.conflicts for one in served),
            "seconds": round(took_s, 1),
            "peak nodes in use": log.peak,
        },
        {
            **_packed(log),
            "boots": Measure.of("boots/s", [len(tally.where) / took_s]),
            "boot": Measure.of("ms", tally.boot_ms),
            "wave": Measure.of("ms", tally.wave_ms),
        },
        {},
        shown,
        series=log.series,
    )


@contextmanager
def _running(
    config: Config,
    trace: Trace,
    packing: Packing,
    label: str,
    settings: Settings,
    tally: Tally,
    report_progress: ReportProgress,
) -> Iterator[TraceReplay]:
    """Start agents, a reader and schedulers; wait until the view is complete and the schedulers are ready."""
    report_progress(f"{label}: agents are reporting", 0.0)
    fleet = WatchedFleet(trace, packing)
    with ExitStack() as held:
        sink = KombuSink(config)
        held.callback(sink.close)
        rng = random.Random(settings.seed)
        agent = Agent(config, [fleet], sink, SystemClock(), rng, inbox=sink, incarnation=int(time.time()))
        reader = held.enter_context(Reader(config))
        run = TraceReplay(trace, fleet, agent, reader, [], {}, {}, tally)

        def whole() -> bool:
            view = reader.read(max_age=PATIENCE_S, on_stale="flag")
            return len(view.nodes) == len(trace.nodes) and not view.incomplete

        run.until(whole, "a complete view of all nodes")
        schedulers = [
            held.enter_context(
                Worker(serve, config, f"scheduler-{number}", dict(WEIGHTS[label]), settings.seed + number)
            )
            for number in range(SCHEDULERS_COUNT)
        ]
        for scheduler in schedulers:
            run.until(partial(scheduler.is_ready, 0.0), "a scheduler that is ready")
        yield run._replace(schedulers=schedulers)


# -- proofs --------------------------------------------------------------------------------------


def _require_sound(run: TraceReplay) -> list[str]:
    """Require that agents have and had the right tasks; return sentences that state it."""
    fleet, tally = run.fleet, run.tally
    require(not fleet.over, f"nodes were over their capacity: {fleet.over[:4]}")
    have = {task: node for node in fleet.nodes() for task in fleet.resources_of(node).allocations}
    require(have == run.where, "agents have other tasks than the running ones")
    require(fleet.built == len(tally.where), f"{fleet.built} tasks were built, {len(tally.where)} booted")
    placed = len(tally.where) + len(tally.nowhere)
    require(placed == len(run.trace.tasks), f"{placed} of {len(run.trace.tasks)} tasks have an outcome")
    nowhere = len(tally.nowhere)
    return [
        f"after each of {fleet.built:,} boots the node was within its capacity",
        f"agents ended {fleet.ended:,} tasks and have the {len(have)} tasks that should run, on their nodes",
        (
            f"for each of the {nowhere} tasks that got no node, no agent had room: all schedulers were idle, all "
            "earlier ends were visible, and all nodes were checked"
        ),
    ]


def _require_clean(run: TraceReplay, config: Config, wait_s: float) -> str:
    """Require that ``nodestate check`` finds no difference between designs and agents; return a sentence on it."""
    run.until_seen(run.trace.nodes)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NODESTATE_")}
    command = [sys.executable, "-m", "nodestate.cli", "check", "--agents", f"{wait_s:g}", "--json"]
    with subprocess.Popen(  # noqa: S603 - nodestate's own command
        command, env={**environment, **settings_as_environment(config)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        run.until(lambda: process.poll() is not None, "nodestate check")
        out, error = process.communicate()
    require(process.returncode == 0, f"nodestate check: {out.decode()[-400:]} {error.decode()[-400:]}")
    answered = json.loads(out)["agents"]["answered"]
    require(answered == len(run.trace.nodes), f"{answered} agents answered nodestate check")
    view = run.reader.read(max_age=PATIENCE_S, on_stale="flag")
    for node in run.trace.nodes:
        record, state = view.nodes.record(node), run.fleet.state(node)
        shown = record.state() if record is not None else {}
        same = all(shown.get(name) == state[name] for name in ("usage", "allocations"))
        require(same, f"the view shows {node} with another state than its agent has")
    return (
        f"nodestate check found no difference between {', '.join(config.designs)} and the states of {answered:,} agents"
    )


# -- packing --------------------------------------------------------------------------------------


def _packed(log: PackingLog) -> dict[str, Measure]:
    return {
        "nodes in use": Measure.of("nodes", log.in_use),
        "stranded GPUs": Measure.of("%", log.stranded),
    }


def _other_placement(trace: Trace, label: str, where: Mapping[str, str]) -> Case:
    """Return the case of another placement of the same tasks."""
    log, tasks = replay(trace, where), len(trace.tasks)
    require(log.over == 0, f"{label} overcommits nodes")
    return Case(
        label,
        len(trace.nodes),
        {"tasks": tasks, "placed": len(where), "not placed": tasks - len(where), "peak nodes in use": log.peak},
        _packed(log),
        {},
        ["no node was ever over its capacity"],
        series=log.series,
    )


def _compared(cases: Sequence[Case]) -> dict[str, float]:
    """Return ratios of each case to the placement that it is compared with."""
    across = {}
    for other in (case for case in cases if case.design in {OWN, RANDOM}):
        for case in (case for case in cases if case.nodes == other.nodes and case is not other):
            what = f"{case.design}, {case.nodes:,} nodes"
            peaks = [one.settings["peak nodes in use"] for one in (case, other)]
            across[f"{what}: peak nodes in use / {other.design}"] = peaks[0] / peaks[1]
            for name in ("nodes in use", "stranded GPUs"):
                if other.measures[name].p50:
                    across[f"{what}: {name} / {other.design}"] = case.measures[name].p50 / other.measures[name].p50
    return across

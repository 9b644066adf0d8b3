"""A task list: nodes and tasks that start and end on them, read from a file of events, and the packing of nodes.

The file has events in JSON as docs/reference/wire.md describes them. Resources, start and end of each task come from
the file. The node of a task in the file is only one of many possible placements.
"""

from __future__ import annotations

import gzip
import random
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

GPU: Final = "CUSTOM_GPU_MILLI"
DAY_S: Final = 86_400.0
SAMPLES_COUNT: Final = 60
"""Number of moments, evenly spaced over the time of the trace, at which the packing is sampled."""

_decode = msgspec.json.Decoder().decode


class BadTraceError(Exception):
    """Raised when a file is not a trace; the message names the line."""


class Task(NamedTuple):
    """A task of the trace."""

    name: str
    resources: dict[str, int]
    any_traits: tuple[str, ...]
    node: str
    """The node that ran it in the trace."""


class TaskEvent(NamedTuple):
    """The start or the end of a task, ``at`` seconds after the first one."""

    at: float
    task: Task
    starts: bool


class Wave(NamedTuple):
    """Starts of tasks without an end between them, and the ends that come just before these starts."""

    ends: list[Task]
    starts: list[Task]


@dataclass(frozen=True, slots=True)
class Trace:
    """A whole task list."""

    nodes: Mapping[str, dict[str, Any]]
    """States of the nodes, without tasks."""
    task_events: Sequence[TaskEvent]
    """Starts and ends in their order."""

    @property
    def tasks(self) -> list[Task]:
        """All tasks, in the order of their starts."""
        return [task_event.task for task_event in self.task_events if task_event.starts]

    def first(self, tasks: int) -> Trace:
        """Return the part of the trace in which the first ``tasks`` tasks start."""
        started = 0
        for index, task_event in enumerate(self.task_events):
            started += task_event.starts
            if started > tasks:
                return Trace(self.nodes, self.task_events[:index])
        return self

    def on(self, nodes: Iterable[str]) -> Trace:
        """Return the same tasks with these nodes only."""
        return Trace({name: self.nodes[name] for name in nodes}, self.task_events)

    def waves(self) -> Iterator[Wave]:
        """Yield all starts and ends in waves. Tasks that start find the room of tasks that ended before them."""
        ends: list[Task] = []
        for starts, of in groupby(self.task_events, key=lambda task_event: task_event.starts):
            run = list(of)
            if starts:
                yield Wave(ends, [task_event.task for task_event in run])
                ends = []
            else:
                ends = [task_event.task for task_event in run]
        if ends:
            yield Wave(ends, [])

    def moments(self) -> list[float]:
        """Return the times at which the packing is sampled."""
        last = self.task_events[-1].at if self.task_events else 0.0
        return [last * index / (SAMPLES_COUNT - 1) for index in range(SAMPLES_COUNT)]


def read(path: Path) -> Trace:
    """Read a trace from a file of JSON lines, which may be compressed. Raises BadTraceError or OSError."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
        return parse(lines)


def parse(lines: Iterable[bytes]) -> Trace:
    """Return the trace of these lines. Raises BadTraceError if they are not a trace."""
    nodes: dict[str, dict[str, Any]] = {}
    running: dict[str, Task] = {}
    task_events: list[TaskEvent] = []
    began: float | None = None
    for number, line in enumerate(lines, 1):
        try:
            event = _decode(line)
            if event["kind"] == "report":
                state = event["state"]
                nodes[event["node"]] = {**state, "usage": dict.fromkeys(state["inventory"], 0), "allocations": {}}
                continue
            began = event["reported_at"] if began is None else began
            for name, allocation in event["patch"].get("allocations", {}).items():
                if allocation is None:
                    task = running.pop(name)
                else:
                    wanted = {of: amount for of, amount in allocation["resources"].items() if amount}
                    traits = tuple((allocation.get("hints") or {}).get("any_traits", ()))
                    task = running[name] = Task(name, wanted, traits, event["node"])
                task_events.append(TaskEvent(event["reported_at"] - began, task, allocation is not None))
        except (msgspec.DecodeError, KeyError, TypeError, AttributeError) as error:
            raise BadTraceError(f"line {number} is not an event of a trace: {error!r}") from error
    if not nodes or not task_events:
        raise BadTraceError("the file has no nodes or no tasks")
    return Trace(nodes, task_events)


# -- the packing of nodes -------------------------------------------------------------------------


class Packing:
    """The usage of each node while tasks start and end."""

    def __init__(self, trace: Trace) -> None:
        self.classes = sorted({name for state in trace.nodes.values() for name in state["inventory"]})
        self._row = {name: row for row, name in enumerate(trace.nodes)}
        self._column = {name: column for column, name in enumerate(self.classes)}
        self.total = np.array(
            [[_capacity(state["inventory"].get(name)) for name in self.classes] for state in trace.nodes.values()],
            np.int64,
        )
        self.used: npt.NDArray[np.int64] = np.zeros_like(self.total)
        self._traits = [set(state.get("traits", ())) for state in trace.nodes.values()]
        gpu_tasks = [task.resources for task in trace.tasks if task.resources.get(GPU)]
        # The typical GPU task: the median of each resource class over all GPU tasks.
        self.median = {
            name: int(statistics.median(task.get(name, 0) for task in gpu_tasks)) for name in self.classes if gpu_tasks
        }

    def put(self, node: str, resources: Mapping[str, int], sign: int) -> None:
        """Add (``sign`` 1) or remove (``sign`` -1) a task of a node."""
        row = self._row[node]
        for name, amount in resources.items():
            self.used[row, self._column[name]] += sign * amount

    def fitting(self, resources: Mapping[str, int], any_traits: Sequence[str] = ()) -> npt.NDArray[np.bool_]:
        """Return, for each node, whether it has room for these resources and one of these traits."""
        asked = np.array([resources.get(name, 0) for name in self.classes])
        fits: npt.NDArray[np.bool_] = ((self.total - self.used >= asked) | (asked == 0)).all(axis=1)
        if set(resources) - self._column.keys():
            fits[:] = False
        if any_traits:
            fits &= np.array([bool(traits & set(any_traits)) for traits in self._traits])
        return fits

    @property
    def over(self) -> int:
        """Number of nodes that are over their capacity."""
        return int((self.used > self.total).any(axis=1).sum())

    @property
    def in_use(self) -> int:
        """Number of nodes that have at least one task."""
        return int((self.used > 0).any(axis=1).sum())

    @property
    def stranded(self) -> float:
        """Percentage of free GPUs on nodes without room for the typical GPU task."""
        if GPU not in self._column:
            return 0.0
        free = (self.total - self.used)[:, self._column[GPU]]
        every = int(free.sum())
        return 100.0 * float(free[~self.fitting(self.median)].sum()) / every if every else 0.0


class PackingLog:
    """Samples a packing at the moments of a trace."""

    def __init__(self, trace: Trace, packing: Packing) -> None:
        self._packing = packing
        self._moments = trace.moments()
        # Nodes in use, at each moment so far.
        self.in_use: list[float] = []
        # Percentage of stranded GPUs, at each moment so far.
        self.stranded: list[float] = []
        # Largest number of nodes in use at any time.
        self.peak = 0
        # Number of nodes found over their capacity, summed over all starts and ends.
        self.over = 0

    def until(self, at: float) -> None:
        """Sample the packing for all moments before this time. Call it before each change of the packing."""
        self.peak = max(self.peak, self._packing.in_use)
        while len(self.in_use) < len(self._moments) and self._moments[len(self.in_use)] < at:
            self.in_use.append(float(self._packing.in_use))
            self.stranded.append(self._packing.stranded)

    @property
    def series(self) -> dict[str, list[float]]:
        """All samples, with their days."""
        return {
            "day": [round(at / DAY_S, 3) for at in self._moments[: len(self.in_use)]],
            "nodes in use": self.in_use,
            "stranded GPUs": [round(share, 3) for share in self.stranded],
        }


def replay(trace: Trace, where: Mapping[str, str]) -> PackingLog:
    """Return the samples of a placement over the time of the trace.

    ``where`` has the node of each task; a task that is not in it takes no room.
    """
    packing = Packing(trace)
    log = PackingLog(trace, packing)
    for task_event in trace.task_events:
        log.until(task_event.at)
        if task_event.task.name in where:
            packing.put(where[task_event.task.name], task_event.task.resources, 1 if task_event.starts else -1)
            log.over += packing.over
    log.until(float("inf"))
    return log


def scatter(trace: Trace, rng: random.Random) -> dict[str, str]:
    """Place each task on any node that has room; return the node of each task that found one."""
    packing, where = Packing(trace), dict[str, str]()
    names = list(trace.nodes)
    for task_event in trace.task_events:
        task = task_event.task
        if task_event.starts:
            rows = np.flatnonzero(packing.fitting(task.resources, task.any_traits))
            if len(rows):
                where[task.name] = names[rng.choice(rows)]
                packing.put(where[task.name], task.resources, 1)
        elif task.name in where:
            packing.put(where[task.name], task.resources, -1)
    return where


def _capacity(inventory: Mapping[str, Any] | None) -> int:
    if inventory is None:
        return 0
    return int((inventory["total"] - inventory.get("reserved", 0)) * inventory.get("allocation_ratio", 1.0))

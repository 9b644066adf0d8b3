"""A list of nodes and of tasks that start and end on them, from a file of events (DESIGN.md section 4); and how a placement of
these tasks packs the nodes.

What a task asks for, when it starts and when it ends is taken from the file; where it went there is one placement of many.
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
"""Moments of the trace's time, evenly, at which nodes are looked at."""

_decode = msgspec.json.Decoder().decode


class BadTraceError(Exception):
    """Raised when a file is no trace; says which line."""


class Task(NamedTuple):
    """What is asked for. ``node``: where the trace had it."""

    name: str
    resources: dict[str, int]
    any_traits: tuple[str, ...]
    node: str


class Happening(NamedTuple):
    """A task starts or ends, ``at`` seconds since the first."""

    at: float
    task: Task
    starts: bool


class Wave(NamedTuple):
    """Starts without an end between them, after the ``ends`` that come right before them."""

    ends: list[Task]
    starts: list[Task]


@dataclass(frozen=True, slots=True)
class Trace:
    """``nodes``: their states, empty; ``happenings`` in their order."""

    nodes: Mapping[str, dict[str, Any]]
    happenings: Sequence[Happening]

    @property
    def tasks(self) -> list[Task]:
        """All that start."""
        return [happening.task for happening in self.happenings if happening.starts]

    def first(self, tasks: int) -> Trace:
        """What happens until so many tasks have started."""
        started = 0
        for place, happening in enumerate(self.happenings):
            started += happening.starts
            if started > tasks:
                return Trace(self.nodes, self.happenings[:place])
        return self

    def on(self, nodes: Iterable[str]) -> Trace:
        """The same on these nodes alone."""
        return Trace({name: self.nodes[name] for name in nodes}, self.happenings)

    def waves(self) -> Iterator[Wave]:
        """All happenings: who starts finds room that was left before, and nobody else's."""
        ends: list[Task] = []
        for starts, of in groupby(self.happenings, key=lambda happening: happening.starts):
            run = list(of)
            if starts:
                yield Wave(ends, [happening.task for happening in run])
                ends = []
            else:
                ends = [happening.task for happening in run]
        if ends:
            yield Wave(ends, [])

    def moments(self) -> list[float]:
        """When nodes are looked at."""
        last = self.happenings[-1].at if self.happenings else 0.0
        return [last * place / (SAMPLES_COUNT - 1) for place in range(SAMPLES_COUNT)]


def read(path: Path) -> Trace:
    """A trace from JSON lines, compressed or not. Raises ``BadTraceError`` and ``OSError``."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
        return parse(lines)


def parse(lines: Iterable[bytes]) -> Trace:
    """A trace from its lines. Raises ``BadTraceError``."""
    nodes: dict[str, dict[str, Any]] = {}
    running: dict[str, Task] = {}
    happenings: list[Happening] = []
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
                happenings.append(Happening(event["reported_at"] - began, task, allocation is not None))
        except (msgspec.DecodeError, KeyError, TypeError, AttributeError) as error:
            raise BadTraceError(f"line {number} is no event of a trace: {error!r}") from error
    if not nodes or not happenings:
        raise BadTraceError("no nodes, or nothing that happens on them")
    return Trace(nodes, happenings)


# -- how nodes are packed -------------------------------------------------------------------------


class Packing:
    """What is used of each node. ``median``: the usual GPU task, class by class."""

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
        self.median = {
            name: int(statistics.median(task.get(name, 0) for task in gpu_tasks)) for name in self.classes if gpu_tasks
        }

    def put(self, node: str, resources: Mapping[str, int], sign: int) -> None:
        """A task came (1) or went (-1)."""
        row = self._row[node]
        for name, amount in resources.items():
            self.used[row, self._column[name]] += sign * amount

    def fitting(self, resources: Mapping[str, int], any_traits: Sequence[str] = ()) -> npt.NDArray[np.bool_]:
        """The nodes that have room."""
        asked = np.array([resources.get(name, 0) for name in self.classes])
        fits: npt.NDArray[np.bool_] = ((self.total - self.used >= asked) | (asked == 0)).all(axis=1)
        if set(resources) - self._column.keys():
            fits[:] = False
        if any_traits:
            fits &= np.array([bool(traits & set(any_traits)) for traits in self._traits])
        return fits

    @property
    def over(self) -> int:
        """Nodes of which more is used than there is."""
        return int((self.used > self.total).any(axis=1).sum())

    @property
    def in_use(self) -> int:
        """Nodes that have at least one task."""
        return int((self.used > 0).any(axis=1).sum())

    @property
    def stranded(self) -> float:
        """The percentage of free GPUs that is on nodes which could not take the usual GPU task."""
        if GPU not in self._column:
            return 0.0
        free = (self.total - self.used)[:, self._column[GPU]]
        every = int(free.sum())
        return 100.0 * float(free[~self.fitting(self.median)].sum()) / every if every else 0.0


class Watch:
    """Looks at a packing at the trace's moments. ``until`` before what happens at a time is done. ``peak``: most nodes in use;
    ``over``: how often one was over its capacity.
    """

    def __init__(self, trace: Trace, packing: Packing) -> None:
        self._packing = packing
        self._moments = trace.moments()
        self.in_use: list[float] = []
        self.stranded: list[float] = []
        self.peak = 0
        self.over = 0

    def until(self, at: float) -> None:
        """Note what was so at all moments before this time."""
        self.peak = max(self.peak, self._packing.in_use)
        while len(self.in_use) < len(self._moments) and self._moments[len(self.in_use)] < at:
            self.in_use.append(float(self._packing.in_use))
            self.stranded.append(self._packing.stranded)

    @property
    def series(self) -> dict[str, list[float]]:
        """All moments, by day."""
        return {
            "day": [round(at / DAY_S, 3) for at in self._moments[: len(self.in_use)]],
            "nodes in use": self.in_use,
            "stranded GPUs": [round(share, 3) for share in self.stranded],
        }


def replay(trace: Trace, where: Mapping[str, str]) -> Watch:
    """What came of a placement over the trace's time; a task that is nowhere takes nothing. Node by node, ``where`` says."""
    packing = Packing(trace)
    watch = Watch(trace, packing)
    for happening in trace.happenings:
        watch.until(happening.at)
        if happening.task.name in where:
            packing.put(where[happening.task.name], happening.task.resources, 1 if happening.starts else -1)
            watch.over += packing.over
    watch.until(float("inf"))
    return watch


def scatter(trace: Trace, rng: random.Random) -> dict[str, str]:
    """Where tasks are that go to any node that has room; those that found none are left out."""
    packing, where = Packing(trace), dict[str, str]()
    names = list(trace.nodes)
    for happening in trace.happenings:
        task = happening.task
        if happening.starts:
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

"""Measures how long a reader takes to refresh its view after some nodes have changed.

In each round the consumer commits a change of K nodes, the reader reads, its columns are brought up to date, and the
reader reads again with nothing changed. In the same round a baseline client reads the heads that the reader fetches,
and then K states.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Mapping
from contextlib import closing
from typing import Final

from bench.baseline import BaselineClient, Question
from bench.design_names import DEFAULT_DESIGNS
from bench.environments import Environment, bytes_sent_during
from bench.record import Case, Goal, Timings
from bench.runs import Runs
from bench.scenario import Findings, ReportProgress, Scenario, Settings
from bench.stepped_cell import MAX_AGE_S, SteppedCell
from bench.workload import SeededFleet, require, require_equal, require_whole
from nodestate import Reader, View
from nodestate.view.columns import Columns

ROUNDS_MIN: Final = 20
WARM_UP_ROUNDS_MIN: Final = 20
WARM_UP_SHARE: Final = 0.5
"""Longest warm-up, as a share of the seconds to measure; it ends earlier if the heads stop growing."""
GOAL_NODES, GOAL_CHANGED = 10_000, 100


def run(settings: Settings, report_progress: ReportProgress) -> Findings:
    """Measure every design at every size."""
    runs = Runs()
    for design in settings.designs:
        for nodes in settings.nodes:

            def measure(environment: Environment, nodes: int = nodes) -> list[Case]:
                fleet = SeededFleet(
                    settings.seed, nodes, state_bytes=settings.state_bytes, change_bytes=settings.change_bytes
                )
                try:
                    with SteppedCell(fleet, environment, settings) as cell, closing(environment.baseline()) as bare:
                        return [_measure(cell, bare, settings, report_progress)]
                finally:
                    gc.unfreeze()

            runs.measure_in([design], nodes * settings.state_bytes, measure)
    return runs.findings(*_growth(runs.cases, settings.changed))


SCENARIO: Final = Scenario("refresh", "a reader refreshes its view after some nodes have changed", run)


def _measure(cell: SteppedCell, bare: BaselineClient, settings: Settings, report_progress: ReportProgress) -> Case:
    fleet, changed = cell.fleet, min(settings.changed, len(cell.fleet))
    picks = random.Random(settings.seed)
    cell.load(report_progress)
    bare.copy(fleet.body(number, 1) for number in range(len(fleet)))
    heads = bare.heads(cell.head_keys())
    # Objects that exist now belong to the benchmark; the garbage collector of a scheduler would not visit them.
    gc.collect()
    gc.freeze()
    timings = Timings()
    with Reader(cell.config) as reader:
        require_whole(_read(reader), fleet)
        head_bytes = _warm_up(cell, reader, bare, heads, picks, settings, report_progress)
        began = time.monotonic()
        rounds = 0
        while rounds < ROUNDS_MIN or time.monotonic() - began < settings.seconds:
            report_progress(
                f"{cell.label}, {len(fleet):,} nodes: rounds", (time.monotonic() - began) / settings.seconds
            )
            numbers = picks.sample(range(len(fleet)), changed)
            states = bare.states(numbers)
            timings.note("commit", cell.change(numbers) * 1e3)
            view = timings.time("refresh", _read, reader)
            timings.time("columns", _columns, view)
            again = timings.time("nothing", _read, reader)
            timings.time("bare states", bare.read, states)
            timings.time("bare heads", bare.read, heads)
            _require_round(view, again, fleet, numbers)
            rounds += 1
        wire = _on_the_wire(cell, reader, picks.sample(range(len(fleet)), changed))
        require_whole(_read(reader), fleet)
        columns = _columns(_read(reader))
        require(len(columns.names) == len(fleet), f"the columns have {len(columns.names)} rows of {len(fleet)}")
    measures = timings.measures
    p50 = {name: measure.p50 for name, measure in measures.items()}
    return Case(
        cell.label,
        len(fleet),
        {
            "changed": changed,
            "state_bytes": len(fleet.body(0, 1)),
            "change_bytes": settings.change_bytes,
            "head_bytes": head_bytes,
            **wire,
        },
        measures,
        {
            "refresh / bare states": p50["refresh"] / p50["bare states"],
            "refresh / bare heads and states": p50["refresh"] / (p50["bare heads"] + p50["bare states"]),
            "nothing / bare heads": p50["nothing"] / p50["bare heads"],
        },
        [
            f"in each of {rounds} rounds the {changed} changed nodes showed version and state of their last event",
            f"before and after the rounds all {len(fleet):,} nodes did, and none was stale or incomplete",
            cell.environment.require_nothing_lost(len(fleet)),
        ],
        _goals(cell.label, len(fleet), changed, p50),
    )


def _read(reader: Reader) -> View:
    return reader.read(max_age=MAX_AGE_S, on_stale="flag")


def _on_the_wire(cell: SteppedCell, reader: Reader, numbers: list[int]) -> dict[str, float]:
    """Return the bytes that the server sends for one refresh, with these nodes changed and with nothing changed.

    Empty if the server does not count bytes.
    """
    cell.change(numbers)
    sent = {
        "wire_bytes": bytes_sent_during(cell.environment, lambda: _read(reader)),
        "wire_bytes_nothing": bytes_sent_during(cell.environment, lambda: _read(reader)),
    }
    return {name: count for name, count in sent.items() if count is not None}


def _columns(view: View) -> Columns:
    return view.columns


def _warm_up(
    cell: SteppedCell,
    reader: Reader,
    bare: BaselineClient,
    heads: Question,
    picks: random.Random,
    settings: Settings,
    report_progress: ReportProgress,
) -> int:
    """Run rounds until the heads stop growing; return the bytes of all heads then.

    A head remembers the latest commits. In a new cell it has few of them, so a refresh would be faster than in use.
    """
    changed, largest, since = min(settings.changed, len(cell.fleet)), 0, 0
    deadline = time.monotonic() + max(settings.seconds * WARM_UP_SHARE, 0.1)
    while since < WARM_UP_ROUNDS_MIN and time.monotonic() < deadline:
        report_progress(f"{cell.label}, {len(cell.fleet):,} nodes: warms up, heads of {largest:,} bytes", 0.0)
        cell.change(picks.sample(range(len(cell.fleet)), changed))
        _columns(_read(reader))
        values = bare.read(heads)
        require(len(values) == 2 * cell.config.partitions, "a head, or the key that names its epoch, is missing")
        size = sum(map(len, values))
        since = since + 1 if size <= largest else 0
        largest = max(largest, size)
    return largest


def _require_round(view: View, again: View, fleet: SeededFleet, numbers: list[int]) -> None:
    require_equal(view, fleet, numbers)
    require(
        not view.stale and not view.incomplete,
        f"the view of {view.design} is stale or incomplete: {view.stale or view.incomplete}",
    )
    require(again.position == view.position, "the view changed between two reads although no event was committed")


def _goals(design: str, nodes: int, changed: int, p50: Mapping[str, float]) -> list[Goal]:
    if (nodes, changed) != (GOAL_NODES, GOAL_CHANGED) or design not in DEFAULT_DESIGNS:
        return []
    return [
        Goal.at_most(f"{design}: refresh, p50", p50["refresh"], 3.0, "ms"),
        Goal.at_most(f"{design}: refresh / bare states", p50["refresh"] / p50["bare states"], 4.0, "x"),
        Goal.at_most(f"{design}: nothing changed, p50", p50["nothing"], 0.5, "ms"),
    ]


def _growth(cases: list[Case], changed: int) -> tuple[dict[str, float], list[Goal]]:
    """Return ratios of each larger fleet to the smallest one, and their goals."""
    across: dict[str, float] = {}
    goals: list[Goal] = []
    for design in dict.fromkeys(case.design for case in cases):
        first, *larger = sorted((case for case in cases if case.design == design), key=lambda case: case.nodes)
        for case in larger:
            for name in ("refresh", "nothing", "bare states"):
                ratio = case.measures[name].p50 / first.measures[name].p50
                across[f"{design}: {name}, {case.nodes:,} / {first.nodes:,} nodes"] = ratio
            if first.nodes == GOAL_NODES and changed == GOAL_CHANGED and design in DEFAULT_DESIGNS:
                ratio = case.measures["refresh"].p50 / first.measures["refresh"].p50
                goals.append(
                    Goal.at_most(f"{design}: refresh, {case.nodes:,} / {first.nodes:,} nodes", ratio, 1.5, "x")
                )
    return across, goals

"""Measures how long a scheduler that has just been started takes until its first view of all nodes.

Every sample is taken in a process of its own, so that allocator, caches and garbage collector are as cold as in a new
scheduler. Each round starts three processes: one with a reader, one in which a baseline client reads the same states
with one key each, and one in which it reads the same bytes in few pieces.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from contextlib import closing
from typing import Final

from bench.cold_start import bare_read, digest_of, first_view
from bench.design_names import DEFAULT_DESIGNS
from bench.environments import Environment
from bench.fresh_process import run_in_fresh_process
from bench.record import Case, Goal, Measure, Timings
from bench.runs import Runs
from bench.scenario import Findings, ReportProgress, Scenario, Settings
from bench.stepped_cell import MAX_AGE_S, SteppedCell
from bench.workload import SeededFleet, require, require_whole, view_digest
from nodestate import Reader
from nodestate.journal.format import JOURNAL_SECTION

ROUNDS_MIN: Final = 3
"""Least number of rounds if the run has a second or more; a shorter run makes one round."""
TAIL_SHARE: Final = 0.5
"""The tail of a journal grows up to a limit and is cut then, so on average a reader finds half of the limit."""
GOAL_NODES: Final = 10_000
LARGE_GOAL_NODES: Final = 100_000


def run(settings: Settings, report_progress: ReportProgress) -> Findings:
    """Measure every design at every size, and the journal also right after a checkpoint."""
    runs = Runs()
    for design in settings.designs:
        for nodes in settings.nodes:

            def measure(environment: Environment, nodes: int = nodes) -> list[Case]:
                fleet = SeededFleet(
                    settings.seed, nodes, state_bytes=settings.state_bytes, change_bytes=settings.change_bytes
                )
                with SteppedCell(fleet, environment, settings) as cell:
                    return _measure(cell, settings, report_progress)

            runs.measure_in([design], nodes * settings.state_bytes, measure)
    return runs.findings(_growth(runs.cases))


SCENARIO: Final = Scenario("cold", "a new reader's first view of all nodes", run)


def _measure(cell: SteppedCell, settings: Settings, report_progress: ReportProgress) -> list[Case]:
    cell.load(report_progress)
    picks = random.Random(settings.seed)
    changed = min(settings.changed, len(cell.fleet))
    if cell.design != "journal":
        # Store changes, too, not only the first reports, as for the journal below.
        for _ in range(10):
            cell.change(picks.sample(range(len(cell.fleet)), changed))
        return [_sample(cell, settings, report_progress, "", {})]
    cell.repair()
    cases = [_sample(cell, settings, report_progress, "no tail", {"tail_share": 0.0, "tail_events": 0})]
    events = 0
    while (share := _tail_share(cell)) < TAIL_SHARE:
        report_progress(f"{cell.label}, {len(cell.fleet):,} nodes: waiting for the tail to grow", share / TAIL_SHARE)
        cell.change(picks.sample(range(len(cell.fleet)), changed))
        events += changed
    return [*cases, _sample(cell, settings, report_progress, "tail", {"tail_share": share, "tail_events": events})]


def _tail_share(cell: SteppedCell) -> float:
    """Return the length of the journal's tail as a share of its limit, as a mean over the partitions."""
    sections = [JOURNAL_SECTION.of(head) for head in cell.heads()]
    return sum(s.tail_bytes / s.tail_limit_bytes for s in sections) / len(sections)


def _sample(
    cell: SteppedCell, settings: Settings, report_progress: ReportProgress, variant: str, facts: Mapping[str, float]
) -> Case:
    fleet, name = cell.fleet, f"{cell.label}, {variant}" if variant else cell.label
    with Reader(cell.config) as reader:
        view = reader.read(max_age=MAX_AGE_S, on_stale="flag")
        require_whole(view, fleet)
        digest = view_digest(view)
    copies = _Copies(cell)
    timings = Timings()
    memory: list[float] = []
    began = time.monotonic()
    rounds, rounds_min = 0, ROUNDS_MIN if settings.seconds >= 1 else 1
    while rounds < rounds_min or time.monotonic() - began < settings.seconds:
        report_progress(f"{name}, {len(fleet):,} nodes: rounds", (time.monotonic() - began) / settings.seconds)
        first = run_in_fresh_process(first_view, cell.config, cell.environment.imports)
        require(first.digest == digest, f"a new reader of {cell.label} shows other states than those of the fleet")
        memory.append(first.resident_bytes / copies.size_bytes)
        for measure, ms in first.ms.items():
            timings.note(measure, ms)
        for measure, pieces in (("bare keys", 0), ("bare blocks", copies.pieces)):
            ms, content = run_in_fresh_process(bare_read, cell.environment.baseline, len(fleet), pieces)
            require(content == copies.digest, "the baseline client read other bytes than those that were stored")
            timings.note(measure, ms)
        rounds += 1
    measures = {**timings.measures, "memory / states": Measure.of("x", memory)}
    p50 = {measure: spread.p50 for measure, spread in measures.items()}
    return Case(
        name,
        len(fleet),
        {
            "state_bytes": copies.size_bytes / len(fleet),
            "change_bytes": settings.change_bytes,
            "blocks": copies.pieces,
            "us_per_node": p50["first view"] * 1e3 / len(fleet),
            **facts,
        },
        measures,
        {
            "first view / bare keys": p50["first view"] / p50["bare keys"],
            "first view / bare blocks": p50["first view"] / p50["bare blocks"],
        },
        [
            f"all {len(fleet):,} nodes showed version and state of their last event, and none was stale or incomplete",
            f"in each of {rounds} rounds the new reader showed these states, the baseline client the same bytes",
            cell.environment.require_nothing_lost(len(fleet)),
        ],
        _goals(name, len(fleet), p50) if cell.label in DEFAULT_DESIGNS else [],
    )


def _goals(name: str, nodes: int, p50: Mapping[str, float]) -> list[Goal]:
    if nodes < GOAL_NODES:
        return []
    ratio = p50["first view"] / p50["bare blocks"]
    goals = [Goal.at_most(f"{name}: first view of {nodes:,} / bare blocks", ratio, 4.0, "x")]
    if nodes == GOAL_NODES:
        goals.append(Goal.at_most(f"{name}: first view, p50", p50["first view"], 100.0, "ms"))
    if nodes == LARGE_GOAL_NODES:
        memory = p50["memory / states"]
        goals += [
            Goal.at_most(f"{name}: first view of {nodes:,}, p50", p50["first view"], 500.0, "ms"),
            Goal.at_most(f"{name}: memory of a reader of {nodes:,} / states, p50", memory, 1.5, "x"),
        ]
    return goals


class _Copies:
    """Copies of the bodies of all states, stored one by one and in pieces beside the data of the cell."""

    def __init__(self, cell: SteppedCell) -> None:
        fleet = cell.fleet
        bodies = [fleet.body(number, fleet.generations[number]) for number in range(len(fleet))]
        self.size_bytes = sum(map(len, bodies))
        self.digest = digest_of(bodies)
        with closing(cell.environment.baseline()) as bare:
            bare.copy(bodies)
            self.pieces = bare.copy_pieces(bodies)


def _growth(cases: list[Case]) -> dict[str, float]:
    """Return ratios of the time for each node, of each larger fleet to the smallest one."""
    across: dict[str, float] = {}
    for design in dict.fromkeys(case.design for case in cases):
        first, *larger = sorted((case for case in cases if case.design == design), key=lambda case: case.nodes)
        for case in larger:
            ratio = case.settings["us_per_node"] / first.settings["us_per_node"]
            across[f"{design}: first view per node, {case.nodes:,} / {first.nodes:,} nodes"] = ratio
    return across

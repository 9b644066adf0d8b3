"""Measures how much readers slow down the consumer and each other, and how much the consumer slows down readers.

One consumer commits changes at a steady pace, or nothing, while readers in processes of their own read at a steady
pace. All processes share the cores of the machine. With few cores, this is the main reason why they slow down.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, NamedTuple

from bench.environments import Environment
from bench.record import Case, Measure, Timings
from bench.runs import Runs
from bench.scenario import Findings, ReportProgress, Scenario, Settings
from bench.stepped_cell import MAX_AGE_S, SteppedCell
from bench.worker import ParentLink, Worker
from bench.workload import SeededFleet, require, require_whole, view_digest
from nodestate import Reader
from nodestate.config import Config

COMMIT_EVERY_S: Final = 0.05
"""Time between two commits: a consumer under steady traffic writes after its ``flush_s``."""
OFTEN_S: Final = 0.05
SELDOM_S: Final = 1.0
"""Time between two reads. A reader that reads seldom finds the changes of many commits at once."""
BRIEF_S: Final = 1.0
"""A run with fewer seconds has fewer readers."""


class Crowd(NamedTuple):
    """The readers beside a consumer."""

    variant: str
    """The variant in the label of the case."""
    readers: int
    every_s: float = OFTEN_S
    """Time between two reads of one reader."""
    writes: bool = True
    """Whether the consumer commits anything."""


ALONE: Final = Crowd("", 0)
CROWDS: Final = (
    ALONE,
    Crowd("", 1),
    Crowd("", 8),
    Crowd("", 32),
    Crowd("seldom read", 8, SELDOM_S),
    Crowd("nothing written", 8, writes=False),
)
CROWDS_BRIEF: Final = (
    ALONE,
    Crowd("", 1),
    Crowd("", 2),
    Crowd("seldom read", 2, SELDOM_S / 5),
    Crowd("nothing written", 2, writes=False),
)


def run(settings: Settings, report_progress: ReportProgress) -> Findings:
    """Measure every crowd, in every design at every size. The crowds share the seconds to measure."""
    runs = Runs()
    brief = settings.seconds < BRIEF_S
    crowds = CROWDS_BRIEF if brief else CROWDS
    seconds = settings.seconds / (1 if brief else len(crowds))
    for design in settings.designs:
        for nodes in settings.nodes:

            def measure(environment: Environment, nodes: int = nodes) -> list[Case]:
                fleet = SeededFleet(
                    settings.seed, nodes, state_bytes=settings.state_bytes, change_bytes=settings.change_bytes
                )
                with SteppedCell(fleet, environment, settings) as cell:
                    cell.load(report_progress)
                    picks = random.Random(settings.seed)
                    return [_measure(cell, crowd, seconds, settings, picks, report_progress) for crowd in crowds]

            runs.measure_in([design], nodes * settings.state_bytes, measure)
    return runs.findings(_compared(runs.cases))


SCENARIO: Final = Scenario(
    "contention", "many readers beside one consumer, and how much they slow each other down", run
)


def _measure(
    cell: SteppedCell,
    crowd: Crowd,
    seconds: float,
    settings: Settings,
    picks: random.Random,
    report_progress: ReportProgress,
) -> Case:
    fleet, changed = cell.fleet, min(settings.changed, len(cell.fleet))
    label = f"{cell.label}: {crowd.variant}" if crowd.variant else cell.label
    every_s = min(crowd.every_s, seconds / 2)  # otherwise a reader might not read at all
    timings = Timings()
    report_progress(f"{label}, {crowd.readers} readers start", 0.0)
    with ExitStack() as stack:
        readers = [
            stack.enter_context(Worker(read_along, cell.config, every_s, settings.seed + number))
            for number in range(crowd.readers)
        ]
        for reader in readers:
            reader.wait_until_ready()
        began = now = time.monotonic()
        commits = 0
        while now - began < seconds:
            report_progress(f"{label}, {crowd.readers} readers", (now - began) / seconds)
            if crowd.writes:
                timings.note("commit", cell.change(picks.sample(range(len(fleet)), changed)) * 1e3)
            commits += 1
            time.sleep(max(0.0, began + commits * COMMIT_EVERY_S - time.monotonic()))
            now = time.monotonic()
        for reader in readers:
            reader.stop()
        followed = [reader.result() for reader in readers]
    shown = [_require_same(cell, followed), cell.environment.require_nothing_lost(len(fleet))]
    measures = timings.measures
    for name in ("refresh", "nothing"):
        if samples := [ms for one in followed for ms in one.ms[name]]:
            measures[name] = Measure.of("ms", samples)
    return Case(
        label,
        len(fleet),
        {
            "readers": crowd.readers,
            "read_every_ms": every_s * 1e3,
            "changed": changed if crowd.writes else 0,
            "commit_every_ms": COMMIT_EVERY_S * 1e3,
            "reads_incomplete": sum(one.incomplete for one in followed),
        },
        measures,
        {},
        shown,
    )


def _require_same(cell: SteppedCell, followed: Sequence[ReaderResult]) -> str:
    """Require that the last view of every reader shows the whole fleet; return the sentence that states it."""
    with Reader(cell.config) as reader:
        view = reader.read(max_age=MAX_AGE_S, on_stale="flag")
        require_whole(view, cell.fleet)
    digest = view_digest(view)
    require(
        all(one.digest == digest for one in followed),
        "the last view of a reader shows other states than those of the fleet",
    )
    return (
        f"at the end the view of each of {len(followed)} readers was complete and showed version and state of the last "
        f"event of all {len(cell.fleet):,} nodes"
    )


def _compared(cases: Sequence[Case]) -> dict[str, float]:
    """Return ratios of cases.

    Commits with readers are compared with commits without, many readers with one, and variants with the same number of
    readers without the variant.
    """
    across: dict[str, float] = {}
    plain = {(one.design, one.nodes, one.settings["readers"]): one for one in cases if ": " not in one.design}
    for case in cases:
        design, _, variant = case.design.partition(": ")
        readers = case.settings["readers"]
        alike = plain[design, case.nodes, readers if variant else 1]
        for measure, beside in (("commit", plain[design, case.nodes, 0]), ("refresh", alike), ("nothing", alike)):
            if case is beside or measure not in case.measures.keys() & beside.measures.keys():
                continue
            got, was, than = case.measures[measure], beside.measures[measure], f"{beside.settings['readers']:g}"
            what = (
                f"{design}, {case.nodes:,} nodes: {measure} %s, {variant}{', ' if variant else ''}{readers:g} readers"
            )
            across[f"{what % 'p50'} / {than}"] = got.p50 / was.p50
            across[f"{what % 'p99'} / {than}"] = got.p99 / was.p99
    return across


# -- in a process of its own ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReaderResult:
    """The reads of one reader."""

    ms: Mapping[str, Sequence[float]]
    """Milliseconds of reads that found a change (``refresh``) and of reads that found none (``nothing``)."""
    incomplete: int
    """Views that were incomplete."""
    digest: int
    """The digest of the last view."""


def read_along(parent: ParentLink, config: Config, every_s: float, seed: int) -> ReaderResult:
    """Read every ``every_s`` seconds until the parent asks to stop; start at a random moment of the first interval."""
    ms: dict[str, list[float]] = {"refresh": [], "nothing": []}
    incomplete = 0
    with Reader(config) as reader:
        view = reader.read(max_age=MAX_AGE_S, on_stale="flag")
        parent.report_ready()
        due = time.monotonic() + random.Random(seed).uniform(0.0, every_s)
        while not parent.should_stop(due - time.monotonic()):
            before, began = view, time.perf_counter()
            view = reader.read(max_age=MAX_AGE_S, on_stale="flag")
            took_ms = (time.perf_counter() - began) * 1e3
            ms["nothing" if view.position == before.position else "refresh"].append(took_ms)
            incomplete += bool(view.incomplete)
            due = max(due + every_s, time.monotonic())
        view = reader.read(max_age=MAX_AGE_S, on_stale="flag")
    require(any(ms.values()), "a reader did not read once: measure for more seconds")
    require(not view.incomplete and not view.stale, "the last view of a reader is incomplete or stale")
    return ReaderResult(ms, incomplete, view_digest(view))

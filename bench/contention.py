"""What readers cost the consumer and each other, and what the consumer costs readers.

One consumer commits changes at a steady pace, or nothing at all, while readers in processes of their own read every so
many milliseconds. All of them share the machine's cores: where there are few, that is most of what they do to each other.
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
"""As a consumer does under steady traffic: it writes after its ``flush_s``."""
OFTEN_S: Final = 0.05
SELDOM_S: Final = 1.0
"""Readers that look once in so many commits meet all of them at once."""
BRIEF_S: Final = 1.0
"""A run with fewer seconds has fewer readers."""


class Crowd(NamedTuple):
    """Readers beside a consumer: how many, how often each reads, whether anything is committed meanwhile."""

    variant: str
    readers: int
    every_s: float = OFTEN_S
    writes: bool = True


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
    """Every crowd, in every design at every size. The timed seconds are shared out to crowds."""
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


SCENARIO: Final = Scenario("contention", "many readers beside one consumer, and what each costs the other", run)


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
    every_s = min(crowd.every_s, seconds / 2)  # or a reader might not come to read once
    timings = Timings()
    report_progress(f"{label}, {crowd.readers} readers: they begin", 0.0)
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


def _require_same(cell: SteppedCell, followed: Sequence[Followed]) -> str:
    """Every reader's last view is the fleet; returns what was shown."""
    with Reader(cell.config) as reader:
        view = reader.read(max_age=MAX_AGE_S, on_stale="flag")
        require_whole(view, cell.fleet)
    digest = view_digest(view)
    require(all(one.digest == digest for one in followed), "a reader ended with other states than the fleet's")
    return (
        f"at the end each of {len(followed)} readers showed version and state of the last event of all "
        f"{len(cell.fleet):,} nodes, and vouched for them"
    )


def _compared(cases: Sequence[Case]) -> dict[str, float]:
    """What readers do to commits, readers to each other, and a variant to as many readers without it: ratios."""
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
class Followed:
    """What one reader saw: milliseconds of each read that found a change (refresh) and of the others (nothing), how many
    views were incomplete, and the digest of the last.
    """

    ms: Mapping[str, Sequence[float]]
    incomplete: int
    digest: int


def read_along(parent: ParentLink, config: Config, every_s: float, seed: int) -> Followed:
    """Read every so many seconds, beginning at a random moment of the first, until told to stop."""
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
    require(any(ms.values()), "a reader did not come to read once: give it more seconds")
    require(not view.incomplete and not view.stale, "a reader's last view does not vouch for all")
    return Followed(ms, incomplete, view_digest(view))

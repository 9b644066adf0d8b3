"""Compares two modes of a cell in one run: a consumer that drains the same events, and a reader of the same changes.

A machine drifts by 30 to 50 % between minutes. So figures of two runs cannot show that one mode costs 5 % more than the
other. Here each round measures both modes, one right after the other, in an order that alternates from round to round.
"""

from __future__ import annotations

import gc
import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from bench import apply
from bench.apply import ConsumerOutcome
from bench.fresh_process import run_in_fresh_process
from bench.record import Case, Measure, Timings
from bench.scenario import ReportProgress, Settings
from bench.stepped_cell import MAX_AGE_S, SteppedCell
from bench.workload import SeededFleet, buckets_of, require, require_equal
from nodestate import Reader, View
from nodestate.auth import MessageAuth, event_auth
from nodestate.config import Config

ROUNDS_MIN: Final = 20
"""Rounds of the readers."""
WARM_UP_ROUNDS: Final = 3
"""Rounds before these: while one cell was loaded, the owner of the other one did not renew its heads."""
SAMPLE_EVERY_ROUNDS: Final = 10
HEAD: Final = ("ratio", "goal")
"""The last columns of the table."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The figures of both modes. Names of measures end in a comma and the mode."""

    settings: Mapping[str, float]
    measures: Mapping[str, Measure]
    shown: Sequence[str]

    def ratio(self, what: str, over: str, under: str) -> dict[str, float]:
        """Return the ratio of the medians of a measure in two modes, by its name."""
        ratio = self.measures[f"{what}, {over}"].p50 / self.measures[f"{what}, {under}"].p50
        return {ratio_name(what, over, under): ratio}


def ratio_name(what: str, over: str, under: str) -> str:
    """Return the name of the ratio of a measure in mode ``over`` to the same measure in mode ``under``."""
    return f"{what}, {over} / {under}"


def in_turn(modes: Sequence[str], number: int) -> Sequence[str]:
    """Return the modes in the order of round ``number``."""
    return modes if number % 2 else modes[::-1]


# -- consumers --------------------------------------------------------------------------------------------------------


class ConsumerSide:
    """A cell whose consumer is measured in one mode."""

    def __init__(self, config: Config, settings: Settings, nodes: int) -> None:
        self.outcomes: list[ConsumerOutcome] = []
        """The outcomes of all rounds."""
        self.message_bytes = 0.0
        """Mean size of the messages of the last round."""
        self._config = config
        self._fleet = fleet_of(settings, nodes)
        self._buckets = buckets_of(self._fleet)
        self._seed = settings.seed
        self._auth: MessageAuth = event_auth(config).events

    def load(self) -> None:
        """Store a report of each node."""
        numbers = range(len(self._fleet))
        apply.fill(self._config, [self._signed(number, self._fleet.report(number)) for number in numbers])
        loaded = run_in_fresh_process(apply.load, self._config, len(self._fleet), f"{self._seed}/load")
        apply.require_applied(loaded, self._config, len(self._fleet))

    def drain(self, numbers: Sequence[int], seed: str) -> None:
        """Measure a consumer that drains a change of each of these nodes."""
        messages = [self._signed(number, self._fleet.change(number)) for number in numbers]
        self.message_bytes = sum(len(body) for _, body in messages) / len(messages)
        self.outcomes.append(run_in_fresh_process(apply.drain, self._config, messages, seed))
        apply.require_applied(self.outcomes[-1], self._config, len(messages))
        apply.require_views(self._config, self._fleet)

    def _signed(self, number: int, body: bytes) -> tuple[int, bytes]:
        return self._buckets[number], self._auth.sign(self._fleet.names[number], body)


def compare_consumers(
    configs: Mapping[str, Config], settings: Settings, nodes: int, label: str, report_progress: ReportProgress
) -> Comparison:
    """Let a consumer of each mode drain the same events from its own queues.

    Args:
        configs: by mode, the settings of a cell that is empty.
        settings: what to measure.
        nodes: size of the fleet.
        label: the design, for the progress.
        report_progress: takes the current step.
    """
    rounds, count = apply.rounds_of(settings)
    modes = tuple(configs)
    sides = {mode: ConsumerSide(config, settings, nodes) for mode, config in configs.items()}
    for mode, side in sides.items():
        report_progress(f"{label}, {mode}: loads a cell", 0.0)
        side.load()
    picks = random.Random(settings.seed)
    for number in range(rounds):
        numbers = picks.choices(range(nodes), k=count)
        for mode in in_turn(modes, number):
            report_progress(f"{label}, {mode}: {count:,} events, round {number + 1}", number / rounds)
            sides[mode].drain(numbers, f"{settings.seed}/{number}")
    measures = {
        f"{name}, {mode}": Measure.of(unit, [getattr(one.stretch, field) for one in side.outcomes])
        for name, unit, field in (("consumer", "events/s", "rate"), ("consumer, CPU", "us/event", "cpu_us"))
        for mode, side in sides.items()
    }
    facts = {f"message_bytes, {mode}": side.message_bytes for mode, side in sides.items()}
    for mode, side in sides.items():
        commits = Measure.of("", [one.commits for one in side.outcomes]).p50
        facts[f"events_per_commit, {mode}"] = len(configs[mode].designs) * count / commits
    return Comparison(
        {"events": count, **facts},
        measures,
        [f"in each of {rounds} rounds both consumers applied the same {count:,} events, and no other event came"],
    )


# -- readers ----------------------------------------------------------------------------------------------------------


def compare_readers(
    cells: Mapping[str, tuple[SteppedCell, Reader]],
    settings: Settings,
    label: str,
    report_progress: ReportProgress,
    bytes_held: Mapping[str, Callable[[], float]] | None = None,
) -> Comparison:
    """Refresh the view of a reader of each cell after the same changes.

    Args:
        cells: by mode, a cell that is loaded, and a reader of it.
        settings: what to measure.
        label: the design, for the progress.
        report_progress: takes the current step.
        bytes_held: by mode, how to ask for the bytes that the servers of the cell hold for each node; None not to ask.
    """
    modes, fleet = tuple(cells), next(iter(cells.values()))[0].fleet
    changed = min(settings.changed, len(fleet))
    picks, timings, held = random.Random(settings.seed), Timings(), dict[str, list[float]]()
    with frozen_heap():
        for _, reader in cells.values():
            read(reader)
        began, rounds = time.monotonic(), -WARM_UP_ROUNDS
        while rounds < ROUNDS_MIN or time.monotonic() - began < settings.seconds:
            if rounds == 0:
                timings, began = Timings(), time.monotonic()
            report_progress(f"{label}: readers", (time.monotonic() - began) / settings.seconds)
            numbers = picks.sample(range(len(fleet)), changed)
            for mode in in_turn(modes, rounds):
                cell, reader = cells[mode]
                timings.note(f"commit, {mode}", cell.change(numbers) * 1e3)
                view = timings.time(f"refresh, {mode}", read, reader)
                timings.time(f"nothing, {mode}", read, reader)
                require_equal(view, cell.fleet, numbers)
                require(not view.stale and not view.incomplete, "a view is stale or incomplete")
                if bytes_held is not None and rounds >= 0 and rounds % SAMPLE_EVERY_ROUNDS == 0:
                    held.setdefault(f"stored, {mode}", []).append(bytes_held[mode]())
            rounds += 1
    stored = {name: Measure.of("bytes/node", held[name]) for name in sorted(held)}
    return Comparison(
        {"changed": changed},
        timings.measures | stored,
        [f"in each of {rounds} rounds both views showed the last event of the {changed} changed nodes"],
    )


def fleet_of(settings: Settings, nodes: int) -> SeededFleet:
    """Return the fleet of these settings; two of them send the same events."""
    return SeededFleet(settings.seed, nodes, state_bytes=settings.state_bytes, change_bytes=settings.change_bytes)


def read(reader: Reader) -> View:
    """Refresh a reader of a cell whose owner works only when it is stepped."""
    return reader.read(max_age=MAX_AGE_S, on_stale="flag")


@contextmanager
def frozen_heap() -> Iterator[None]:
    """Keep the garbage collector away from objects of the benchmark, which a scheduler would not have."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


# -- the table --------------------------------------------------------------------------------------------------------


def mode_rows(cases: Sequence[Case], modes: tuple[str, str]) -> list[list[str]]:
    """Return the rows of a table with a row for each ratio of two modes.

    The columns are the design with the measure, the median in each mode, the unit, and ``HEAD``.
    """
    rows = []
    for case in cases:
        for name, ratio in case.ratios.items():
            for over, under in itertools.permutations(modes):
                what = name.removesuffix(ratio_name("", over, under))
                if what == name:
                    continue
                one, other = (case.measures[f"{what}, {mode}"] for mode in modes)
                goal = next((goal for goal in case.goals if goal.what.endswith(f": {name}")), None)
                rows.append(
                    [
                        f"{case.design.partition(':')[0]}: {what}",
                        *(f"{value:,.0f}" if value >= 1_000 else f"{value:.3g}" for value in (one.p50, other.p50)),
                        one.unit,
                        f"{ratio:.2f}x" + (f" ({over} / {under})" if over != modes[1] else ""),
                        f"{goal.sense} {goal.bound:g}x {'met' if goal.met else 'NOT met'}" if goal is not None else "",
                    ]
                )
    return rows

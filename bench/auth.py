"""Measures the cost of authentication: a consumer and a reader with all of it required, and with all of it off.

In each round one consumer process drains the same events twice from its queues: unsigned with authentication off, and
signed by their nodes with authentication required. Two readers then follow two cells that commit the same changes, one
with each setting. The order of the two alternates from round to round, because the machine drifts.
"""

from __future__ import annotations

import gc
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from msgspec import structs

from bench import apply
from bench.apply import ConsumerOutcome
from bench.design_names import DEFAULT_DESIGNS
from bench.environments import Environment, config_for
from bench.fresh_process import run_in_fresh_process
from bench.record import Case, Goal, Measure, Timings
from bench.runs import Runs
from bench.scenario import Findings, ReportProgress, Scenario, Settings
from bench.stepped_cell import MAX_AGE_S, SteppedCell
from bench.workload import SeededFleet, buckets_of, require, require_equal
from harness.servers import RabbitServer
from nodestate import Reader, View
from nodestate.auth import MessageAuth, event_auth
from nodestate.auth.key_file import write_keys
from nodestate.auth.keys import CellKeys, Secret
from nodestate.broker import connect_check
from nodestate.config import Config

MODES: Final = ("off", "require")
SETTINGS: Final = ("auth_events", "auth_orders", "auth_store")
"""The settings that are required. Orders are measured by ``trace``; consumers and readers do not see them."""
MOST: Final = 1.2
"""Goal of the ratio of processor time or time with authentication to that without it."""
ROUNDS_MIN: Final = 20
"""Rounds of the readers."""


def run(settings: Settings, report_progress: ReportProgress) -> Findings:
    """Measure every design at every size."""
    runs = Runs()
    with RabbitServer() as rabbit, tempfile.TemporaryDirectory() as folder:
        runs.servers["rabbitmq"] = connect_check(Config(broker=rabbit.url)).version
        for nodes in settings.nodes:
            for design in settings.designs:

                def measure(environment: Environment, nodes: int = nodes) -> list[Case]:
                    measured = _Auth(environment, settings, nodes, Path(folder), rabbit.url, report_progress)
                    return [measured.consumers(), measured.readers()]

                runs.measure_in([design], 3 * nodes * settings.state_bytes, measure)
    return runs.findings()


SCENARIO: Final = Scenario("auth", "a consumer and a reader, with authentication required and with none", run)


class _Auth:
    """One design at one size."""

    def __init__(
        self,
        environment: Environment,
        settings: Settings,
        nodes: int,
        folder: Path,
        broker: str,
        report_progress: ReportProgress,
    ) -> None:
        self._environment = environment
        self._settings = settings
        self._nodes = nodes
        self._report_progress = report_progress
        self._folder = folder
        self._broker = broker
        self._label = f"{environment.label}, {nodes:,} nodes"

    def _config(self, what: str, mode: str) -> Config:
        """The settings of a cell of its own, whose keys are in a file."""
        cell = f"auth-{what}-{self._environment.slug}-{self._nodes}-{mode}"
        file = self._folder / f"{cell}.keys"
        write_keys(str(file), CellKeys(cell=cell, secrets=(Secret.new(time.time()),)), replace=True)
        config = config_for(self._environment, self._settings, broker=self._broker, cell=cell, broker_heartbeat_s=60)
        return structs.replace(config, keys_file=str(file), **dict.fromkeys(SETTINGS, mode))

    # -- consumers

    def consumers(self) -> Case:
        """Drain the same events with each setting."""
        rounds, count = apply.rounds_of(self._settings)
        sides = {mode: _ConsumerSide(self._config("c", mode), self._settings, self._nodes) for mode in MODES}
        for mode, side in sides.items():
            self._report_progress(f"{self._label}: loads a cell with authentication {mode}", 0.0)
            side.load()
        picks = random.Random(self._settings.seed)
        for number in range(rounds):
            numbers = picks.choices(range(self._nodes), k=count)
            for mode in _in_turn(number):
                self._report_progress(f"{self._label}: {count:,} events, authentication {mode}", number / rounds)
                sides[mode].drain(numbers, f"{self._settings.seed}/{number}")
        measures = {
            f"{name}, {mode}": Measure.of(unit, [getattr(one.stretch, field) for one in side.outcomes])
            for name, unit, field in (("consumer", "events/s", "rate"), ("consumer, CPU", "us/event", "cpu_us"))
            for mode, side in sides.items()
        }
        ratios = {
            "consumer, off / require": measures["consumer, off"].p50 / measures["consumer, require"].p50,
            "consumer, CPU, require / off": measures["consumer, CPU, require"].p50 / measures["consumer, CPU, off"].p50,
        }
        return self._case(
            "consumer",
            {"events": count, **{f"message_bytes, {mode}": side.message_bytes for mode, side in sides.items()}},
            measures,
            ratios,
            [f"in each of {rounds} rounds both consumers applied the same {count:,} events, and no other event came"],
        )

    # -- readers

    def readers(self) -> Case:
        """Refresh the view of a reader of each cell after the same changes."""
        settings, changed = self._settings, min(self._settings.changed, self._nodes)
        picks, timings = random.Random(settings.seed), Timings()
        with ExitStack() as stack:
            sides = {}
            for mode in MODES:
                fleet = _fleet_of(settings, self._nodes)
                config = structs.replace(self._config("r", mode), broker="memory://")
                cell = stack.enter_context(SteppedCell(fleet, self._environment, settings, config=config))
                cell.load(self._report_progress)
                sides[mode] = cell, stack.enter_context(Reader(config))
            stack.enter_context(_frozen_heap())
            for _, reader in sides.values():
                _read(reader)
            began, rounds = time.monotonic(), 0
            while rounds < ROUNDS_MIN or time.monotonic() - began < settings.seconds:
                share = (time.monotonic() - began) / settings.seconds
                self._report_progress(f"{self._label}: readers", share)
                numbers = picks.sample(range(self._nodes), changed)
                for mode in _in_turn(rounds):
                    cell, reader = sides[mode]
                    timings.note(f"commit, {mode}", cell.change(numbers) * 1e3)
                    view = timings.time(f"refresh, {mode}", _read, reader)
                    timings.time(f"nothing, {mode}", _read, reader)
                    require_equal(view, cell.fleet, numbers)
                    require(not view.stale and not view.incomplete, "a view is stale or incomplete")
                rounds += 1
        measures = timings.measures
        return self._case(
            "reader",
            {"changed": changed},
            measures,
            {
                f"{name}, require / off": measures[f"{name}, require"].p50 / measures[f"{name}, off"].p50
                for name in ("commit", "refresh", "nothing")
            },
            [f"in each of {rounds} rounds both views showed the last event of the {changed} changed nodes"],
        )

    def _case(
        self,
        what: str,
        settings: dict[str, float],
        measures: dict[str, Measure],
        ratios: dict[str, float],
        shown: Sequence[str],
    ) -> Case:
        label = f"{self._environment.label}: {what}"
        named = ("consumer, off / require", "consumer, CPU, require / off", "refresh, require / off")
        goals = [
            Goal.at_most(f"{self._environment.label}: {name}", ratios[name], MOST, "x")
            for name in named
            if name in ratios and self._environment.designs[0] in DEFAULT_DESIGNS
        ]
        state_bytes = len(_fleet_of(self._settings, 1).body(0, 1))
        proofs = [*shown, self._environment.require_nothing_lost(self._nodes)]
        return Case(label, self._nodes, {**settings, "state_bytes": state_bytes}, measures, ratios, proofs, goals)


class _ConsumerSide:
    """A cell whose consumer is measured with one setting."""

    def __init__(self, config: Config, settings: Settings, nodes: int) -> None:
        self.outcomes: list[ConsumerOutcome] = []
        """The outcomes of all rounds."""
        self.message_bytes = 0.0
        """Mean size of the messages of the last round."""
        self._config = config
        self._fleet = _fleet_of(settings, nodes)
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


def _in_turn(number: int) -> tuple[str, ...]:
    """The modes in the order of this round."""
    return MODES if number % 2 else MODES[::-1]


def _fleet_of(settings: Settings, nodes: int) -> SeededFleet:
    return SeededFleet(settings.seed, nodes, state_bytes=settings.state_bytes, change_bytes=settings.change_bytes)


def _read(reader: Reader) -> View:
    return reader.read(max_age=MAX_AGE_S, on_stale="flag")


@contextmanager
def _frozen_heap() -> Iterator[Any]:
    """Keep the garbage collector away from objects of the benchmark, which a scheduler would not have."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()

"""Measures the cost of authentication: a consumer and a reader with all of it required, and with all of it off.

In each round one consumer process drains the same events twice from its queues: unsigned with authentication off, and
signed by their nodes with authentication required. Two readers then follow two cells that commit the same changes, one
with each setting. The order of the two alternates from round to round, because the machine drifts.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from msgspec import structs

from bench.design_names import DEFAULT_DESIGNS
from bench.environments import Environment, config_for
from bench.mode_comparison import Comparison, compare_consumers, compare_readers, fleet_of
from bench.record import Case, Goal
from bench.runs import Runs
from bench.scenario import Findings, ReportProgress, Scenario, Settings
from bench.stepped_cell import SteppedCell
from harness.servers import RabbitServer
from nodestate import Reader
from nodestate.auth.key_file import write_keys
from nodestate.auth.keys import CellKeys, Secret
from nodestate.broker import connect_check
from nodestate.config import Config

MODES: Final = ("off", "require")
SETTINGS: Final = ("auth_events", "auth_orders", "auth_store")
"""The settings that are required. Orders are measured by ``trace``; consumers and readers do not see them."""
MOST: Final = 1.2
"""Goal of the ratio of processor time or time with authentication to that without it."""
WITH_GOAL: Final = ("consumer, off / require", "consumer, CPU, require / off", "refresh, require / off")
"""Ratios that have this goal."""


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


SCENARIO: Final = Scenario(
    "auth", "a consumer and a reader, with authentication required and with none", run, modes=MODES
)


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

    def consumers(self) -> Case:
        """Drain the same events with each setting."""
        compared = compare_consumers(
            {mode: self._config("c", mode) for mode in MODES},
            self._settings,
            self._nodes,
            self._label,
            self._report_progress,
        )
        ratios = compared.ratio("consumer", "off", "require") | compared.ratio("consumer, CPU", "require", "off")
        return self._case("consumer", compared, ratios)

    def readers(self) -> Case:
        """Refresh the view of a reader of each cell after the same changes."""
        settings = self._settings
        with ExitStack() as stack:
            cells = {}
            for mode in MODES:
                fleet = fleet_of(settings, self._nodes)
                config = structs.replace(self._config("r", mode), broker="memory://")
                cell = stack.enter_context(SteppedCell(fleet, self._environment, settings, config=config))
                cell.load(self._report_progress)
                cells[mode] = cell, stack.enter_context(Reader(config))
            compared = compare_readers(cells, settings, self._label, self._report_progress)
        ratios: dict[str, float] = {}
        for name in ("commit", "refresh", "nothing"):
            ratios |= compared.ratio(name, "require", "off")
        return self._case("reader", compared, ratios)

    def _case(self, what: str, compared: Comparison, ratios: dict[str, float]) -> Case:
        label = f"{self._environment.label}: {what}"
        goals = [
            Goal.at_most(f"{self._environment.label}: {name}", ratios[name], MOST, "x")
            for name in WITH_GOAL
            if name in ratios and self._environment.designs[0] in DEFAULT_DESIGNS
        ]
        settings = {**compared.settings, "state_bytes": len(fleet_of(self._settings, 1).body(0, 1))}
        proofs = [*compared.shown, self._environment.require_nothing_lost(self._nodes)]
        return Case(label, self._nodes, settings, compared.measures, ratios, proofs, goals)

"""The plan of the whole evaluation, and its execution: ``python -m bench all``.

Each run is a command that a person could type, in a process of its own. So the heap of one run does not affect the
figures of the next, a run that fails or hangs does not end the others, and its command line is enough to repeat it.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from harness.servers.hosts import end_processes

Value = int | float | str | tuple[int, ...] | tuple[str, ...]
PrintLine = Callable[[str], None]

RUN_LIMIT_S: Final = 1_800.0
"""Longest time for a run. The longest run of the full plan takes a third of it on two cores."""
STOP_LIMIT_S: Final = 20.0
"""Time that an interrupted run has to stop its servers."""


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """A run of a scenario, with the settings that differ from the command's defaults."""

    name: str
    scenario: str
    overrides: Mapping[str, Value] = field(default_factory=dict)
    quick: bool = False

    @property
    def options(self) -> list[str]:
        """The settings as options of the command line."""
        options = ["--quick"] if self.quick else []
        for name, value in self.overrides.items():
            text = ",".join(map(str, value)) if isinstance(value, tuple) else f"{value}"
            options += [f"--{ {'designs': 'design'}.get(name, name).replace('_', '-') }", text]
        return options

    @property
    def command(self) -> str:
        """The command that repeats the run."""
        return shlex.join(["python", "-m", "bench", self.scenario, *self.options])


MEMCACHED: Final = ("journal", "snapshot")
WITH_SQL: Final = (*MEMCACHED, "sql:mariadb")
"""Measured in one run, because figures of different runs are not comparable. Most operators use MariaDB."""
WITH_ALL: Final = (*WITH_SQL, "sql:postgres")
WITH_SQLITE: Final = (*MEMCACHED, "sql:sqlite")
"""SQLite needs no server."""

FULL: Final = (
    PlannedRun("refresh", "refresh", {"nodes": (10_000, 100_000, 1_000_000), "seconds": 15.0}),
    PlannedRun("refresh-changed-1", "refresh", {"changed": 1, "seconds": 10.0}),
    PlannedRun("refresh-changed-10", "refresh", {"changed": 10, "seconds": 10.0}),
    PlannedRun("refresh-changed-1000", "refresh", {"changed": 1_000, "seconds": 20.0}),
    PlannedRun("refresh-databases", "refresh", {"designs": (*WITH_ALL, "sql:sqlite"), "seconds": 5.0}),
    PlannedRun("cold", "cold", {"nodes": (10_000, 100_000), "seconds": 15.0}),
    PlannedRun("cold-million", "cold", {"nodes": (1_000_000,), "seconds": 5.0, "changed": 1_000}),
    PlannedRun("cold-databases", "cold", {"designs": (*WITH_ALL, "sql:sqlite"), "seconds": 5.0}),
    PlannedRun("scale", "scale", {"designs": WITH_SQL, "nodes": (1_000, 3_000, 10_000, 30_000), "seconds": 15.0}),
    PlannedRun("apply", "apply", {"designs": WITH_SQL, "nodes": (10_000,), "seconds": 15.0}),
    PlannedRun("auth", "auth"),
    PlannedRun("replicas", "replicas"),
    PlannedRun("footprint", "footprint", {"designs": WITH_ALL}),
    PlannedRun("propagation", "propagation", {"designs": WITH_SQL, "seconds": 30.0}),
    PlannedRun("recovery", "recovery", {"designs": WITH_SQL}),
    PlannedRun("contention", "contention", {"designs": WITH_SQL, "seconds": 30.0}),
    PlannedRun("http", "http", {"designs": ("snapshot",), "seconds": 30.0}),
    PlannedRun("peers", "peers", {"seconds": 20.0}),
    PlannedRun("select", "select", {"designs": ("snapshot",), "nodes": (10_000, 100_000), "seconds": 15.0}),
    PlannedRun("trace", "trace"),
    PlannedRun("reserve", "reserve", {"designs": ("snapshot",), "nodes": (200,)}),
)
"""The runs that give figures. They take about an hour on two cores; a million nodes take 10 GB of memory."""

QUICK: Final = (
    PlannedRun(
        "scale",
        "scale",
        {"designs": WITH_SQLITE, "nodes": (100, 300, 1_000), "seconds": 0.2, "changed": 100},
        quick=True,
    ),
    *(
        PlannedRun(name, name, {"designs": WITH_SQLITE}, quick=True)
        for name in ("apply", "footprint", "propagation", "contention")
    ),
    PlannedRun("auth", "auth", {"designs": ("snapshot",)}, quick=True),
    PlannedRun("replicas", "replicas", {"designs": ("snapshot",)}, quick=True),
    PlannedRun("http", "http", {"designs": ("snapshot",)}, quick=True),
    PlannedRun("select", "select", {"designs": ("snapshot",)}, quick=True),
    PlannedRun("trace", "trace", quick=True),
    PlannedRun("reserve", "reserve", {"designs": ("snapshot",), "nodes": (50,)}, quick=True),
    PlannedRun("peers", "peers", {}, quick=True),
    PlannedRun("recovery", "recovery", {"designs": ("snapshot",)}, quick=True),
)
"""The runs of ``--quick``, which show that everything works, in two minutes. ``scale`` runs ``refresh`` and
``cold``."""


def wanted(quick: bool, known: Collection[str]) -> tuple[list[PlannedRun], list[str]]:
    """Return the planned runs of scenarios in ``known``, and the names of the other scenarios of the plan."""
    runs = QUICK if quick else FULL
    missing = dict.fromkeys(run.scenario for run in runs if run.scenario not in known)
    return [run for run in runs if run.scenario in known], list(missing)


def carry_out(
    runs: Sequence[PlannedRun], results: Path, print_line: PrintLine, limit_s: float = RUN_LIMIT_S
) -> list[str]:
    """Execute the runs one after the other, each writing ``results/NAME.json``; return the names of failed runs."""
    results.mkdir(parents=True, exist_ok=True)
    failed: list[str] = []
    for number, run in enumerate(runs, 1):
        record = results / f"{run.name}.json"
        record.unlink(missing_ok=True)  # otherwise a failed run would keep the figures of an earlier commit
        print_line(f"[{number}/{len(runs)}] {run.name}: {run.command}")
        began = time.monotonic()
        code = _run([sys.executable, "-m", "bench", run.scenario, *run.options, "--json", str(record)], limit_s)
        took = f"{time.monotonic() - began:.0f} s"
        if code == 0:
            print_line(f"      {took}, {record}")
        else:
            failed.append(run.name)
            why = f"took longer than {limit_s:g} s" if code is None else f"exit {code}"
            print_line(f"      {took}, FAILED: {why}; the next run starts")
    return failed


def _run(command: list[str], limit_s: float) -> int | None:
    """Run a command; return its exit code, or None if it did not end in time. Only its stderr is shown."""
    with psutil.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            code: int = process.wait(limit_s)
            return code
        except psutil.TimeoutExpired:
            # A run ends its servers in order on SIGTERM. A run in the background may ignore SIGINT.
            process.terminate()
            try:
                process.wait(STOP_LIMIT_S)
            except psutil.TimeoutExpired:
                process.suspend()  # or it could start another server, which would survive
                children = process.children(recursive=True)
                process.kill()
                end_processes(children)
            return None

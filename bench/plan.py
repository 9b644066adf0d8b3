"""The whole evaluation as data, and carrying it out: ``python -m bench all``.

Each run is the command that a person would type, in a process of its own: what an earlier run left on the heap is not
in a later one's figures, one that fails or hangs does not end the others, and its command line is all there is to repeat.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

Value = int | float | str | tuple[int, ...] | tuple[str, ...]
PrintLine = Callable[[str], None]

RUN_LIMIT_S: Final = 1_800.0
"""Longest that a run may take; the longest of the full evaluation takes a third of it on two cores."""
STOP_LIMIT_S: Final = 20.0
"""What a run that was interrupted gets to stop its servers."""


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """A scenario with the ``Settings`` that differ from the command's defaults."""

    name: str
    scenario: str
    overrides: Mapping[str, Value] = field(default_factory=dict)
    quick: bool = False

    @property
    def options(self) -> list[str]:
        """The overrides as options of the command line."""
        options = ["--quick"] if self.quick else []
        for name, value in self.overrides.items():
            text = ",".join(map(str, value)) if isinstance(value, tuple) else f"{value}"
            options += [f"--{ {'designs': 'design'}.get(name, name).replace('_', '-') }", text]
        return options

    @property
    def command(self) -> str:
        """What to type to do it again."""
        return shlex.join(["python", "-m", "bench", self.scenario, *self.options])


MEMCACHED: Final = ("journal", "snapshot")
WITH_SQL: Final = (*MEMCACHED, "sql:mariadb")
"""In one run, as figures of different runs are not comparable. MariaDB is what most operators have."""
WITH_ALL: Final = (*WITH_SQL, "sql:postgres")
WITH_SQLITE: Final = (*MEMCACHED, "sql:sqlite")
"""Which needs no server to be started."""

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
    PlannedRun("footprint", "footprint", {"designs": WITH_ALL}),
    PlannedRun("propagation", "propagation", {"designs": WITH_SQL, "seconds": 30.0}),
    PlannedRun("recovery", "recovery", {"designs": WITH_SQL}),
    PlannedRun("contention", "contention", {"designs": WITH_SQL, "seconds": 30.0}),
    PlannedRun("peers", "peers", {"seconds": 20.0}),
    PlannedRun("select", "select", {"designs": ("snapshot",), "nodes": (10_000, 100_000), "seconds": 15.0}),
    PlannedRun("trace", "trace"),
    PlannedRun("reserve", "reserve", {"designs": ("snapshot",), "nodes": (200,)}),
)
"""For figures. Around an hour on two cores; a million nodes take 10 GB of memory."""

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
    PlannedRun("select", "select", {"designs": ("snapshot",)}, quick=True),
    PlannedRun("trace", "trace", quick=True),
    PlannedRun("reserve", "reserve", {"designs": ("snapshot",), "nodes": (50,)}, quick=True),
    PlannedRun("peers", "peers", {}, quick=True),
    PlannedRun("recovery", "recovery", {"designs": ("snapshot",)}, quick=True),
)
"""Shows that everything works, not how fast it is: two minutes at most. ``refresh`` and ``cold`` are what ``scale`` runs."""


def wanted(quick: bool, known: Collection[str]) -> tuple[list[PlannedRun], list[str]]:
    """The runs of the plan, and the scenarios that it names and ``known`` lacks."""
    runs = QUICK if quick else FULL
    missing = dict.fromkeys(run.scenario for run in runs if run.scenario not in known)
    return [run for run in runs if run.scenario in known], list(missing)


def carry_out(
    runs: Sequence[PlannedRun], results: Path, print_line: PrintLine, limit_s: float = RUN_LIMIT_S
) -> list[str]:
    """PlannedRun one after the other, each leaving ``results/NAME.json``; returns the names of those that failed."""
    results.mkdir(parents=True, exist_ok=True)
    failed: list[str] = []
    for number, run in enumerate(runs, 1):
        record = results / f"{run.name}.json"
        record.unlink(missing_ok=True)  # or figures of another commit would stand in for a run that failed
        print_line(f"[{number}/{len(runs)}] {run.name}: {run.command}")
        began = time.monotonic()
        code = _run([sys.executable, "-m", "bench", run.scenario, *run.options, "--json", str(record)], limit_s)
        took = f"{time.monotonic() - began:.0f} s"
        if code == 0:
            print_line(f"      {took}, {record}")
        else:
            failed.append(run.name)
            why = f"took longer than {limit_s:g} s" if code is None else f"exit {code}"
            print_line(f"      {took}, FAILED: {why}; the others go on")
    return failed


def _run(command: list[str], limit_s: float) -> int | None:
    """Its exit code, or nothing if it did not end in time. Its bar is drawn on our stderr, its tables are not shown."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:  # noqa: S603 - ourselves
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            # As Ctrl-C does: it stops the servers that it started, which nobody else knows of.
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
            return None

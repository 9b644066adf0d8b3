"""The record of a benchmark: its figures, with everything that is needed to judge and to repeat them."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final, ParamSpec, Self, TypeVar

import msgspec
import psutil

P = ParamSpec("P")
T = TypeVar("T")

FORMAT: Final = 1
LIBRARIES: Final = ("nodestate", "numpy", "msgspec", "kombu", "amqp", "pymemcache", "xxhash")
CALIBRATION_ROUNDS_COUNT: Final = 10
CALIBRATION_LOOPS_COUNT: Final = 200_000


@dataclass(frozen=True, slots=True)
class Measure:
    """How a figure was spread over ``count`` rounds.

    Percentiles are taken by nearest rank, so with few rounds p99 is the slowest round.
    """

    unit: str
    count: int
    min: float
    p50: float
    p99: float
    max: float

    @classmethod
    def of(cls, unit: str, samples: Sequence[float]) -> Self:
        """Return the spread of at least one sample."""
        ordered = sorted(samples)
        assert ordered, "nothing was measured"
        return cls(unit, len(ordered), ordered[0], _rank(ordered, 50), _rank(ordered, 99), ordered[-1])


def _rank(ordered: Sequence[float], percent: int) -> float:
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


class Timings:
    """A collection of times in milliseconds, by name."""

    def __init__(self) -> None:
        # All samples, by name.
        self._samples: dict[str, list[float]] = {}

    def time(self, name: str, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function, note how long the call took, and return its result."""
        began = time.perf_counter()
        result = call(*args, **kwargs)
        self.note(name, (time.perf_counter() - began) * 1e3)
        return result

    def note(self, name: str, ms: float) -> None:
        """Add a sample."""
        self._samples.setdefault(name, []).append(ms)

    @property
    def measures(self) -> dict[str, Measure]:
        """The spread of each name's samples."""
        return {name: Measure.of("ms", samples) for name, samples in self._samples.items()}


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure with the bound that it should keep. ``sense`` is ``<=`` or ``>=``."""

    what: str
    got: float
    sense: str
    bound: float
    unit: str
    met: bool

    @classmethod
    def at_most(cls, what: str, got: float, bound: float, unit: str) -> Self:
        """Return a goal for a figure of which a smaller value is better."""
        return cls(what, got, "<=", bound, unit, got <= bound)

    @classmethod
    def at_least(cls, what: str, got: float, bound: float, unit: str) -> Self:
        """Return a goal for a figure of which a larger value is better."""
        return cls(what, got, ">=", bound, unit, got >= bound)


@dataclass(frozen=True, slots=True)
class Case:
    """The figures of one design at one size."""

    design: str
    """The label: the design, and a variant after a comma or a colon."""
    nodes: int
    settings: Mapping[str, float]
    measures: Mapping[str, Measure]
    ratios: Mapping[str, float]
    """Ratios between medians of this case."""
    shown: Sequence[str]
    """Sentences on the proofs before and after the measurement."""
    goals: Sequence[Goal] = ()
    series: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Values over time, all of the same length."""
    said: Sequence[str] = ()
    """Lines that nodestate reported during a fault: views, errors, logs, the doctor."""


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine of a run. ``calibration_ms`` is the time of a fixed loop in plain Python just before the run."""

    cpu: str
    cores: int
    memory_bytes: int
    system: str
    load_1min: float
    calibration_ms: float


@dataclass(frozen=True, slots=True)
class Record:
    """One run of one scenario."""

    scenario: str
    seed: int
    seconds: float
    began_at: str
    commit: str
    """The commit that ran; ends in + if files differ from it."""
    versions: Mapping[str, str]
    machine: Machine
    cases: Sequence[Case]
    across: Mapping[str, float] = field(default_factory=dict)
    """Ratios between cases."""
    goals: Sequence[Goal] = ()
    format: int = FORMAT
    skipped: Sequence[str] = ()
    """Lines on measurements that were left out because something is not installed."""

    def to_json(self) -> bytes:
        """Return the record as JSON, with one field and one case on each line, so that two versions can be compared."""
        lines = []
        for name, value in msgspec.to_builtins(self).items():
            encoded = msgspec.json.encode(value)
            if name == "cases":
                encoded = b"[\n" + b",\n".join(map(msgspec.json.encode, value)) + b"\n]"
            lines.append(msgspec.json.encode(name) + b":" + encoded)
        return b"{" + b",\n".join(lines) + b"}\n"


def commit() -> str:
    """Return the commit that runs, with a + if files differ from it; empty outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - git of the machine
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""


def versions(**servers: str) -> dict[str, str]:
    """Return the versions of Python, of the libraries that nodestate uses, and of the servers."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}, **servers}


def machine() -> Machine:
    """Describe this machine and its present load."""
    times: list[float] = []
    for _ in range(CALIBRATION_ROUNDS_COUNT):
        began = time.perf_counter()
        sum(number * number % 7 for number in range(CALIBRATION_LOOPS_COUNT))
        times.append((time.perf_counter() - began) * 1e3)
    return Machine(
        cpu=_cpu(),
        cores=os.cpu_count() or 0,
        memory_bytes=psutil.virtual_memory().total,
        system=platform.platform(),
        load_1min=os.getloadavg()[0],
        calibration_ms=Measure.of("ms", times).p50,
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def now() -> str:
    """Return the present time in UTC, in ISO format."""
    return datetime.now(UTC).isoformat(timespec="seconds")

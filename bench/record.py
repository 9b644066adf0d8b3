"""What a benchmark leaves behind: figures, with all that is needed to judge and to repeat them."""

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
    """How a figure was spread over ``count`` rounds. Percentiles by nearest rank: the p99 of few rounds is the worst."""

    unit: str
    count: int
    min: float
    p50: float
    p99: float
    max: float

    @classmethod
    def of(cls, unit: str, samples: Sequence[float]) -> Self:
        """The spread of at least one sample."""
        ordered = sorted(samples)
        assert ordered, "nothing was measured"
        return cls(unit, len(ordered), ordered[0], _rank(ordered, 50), _rank(ordered, 99), ordered[-1])


def _rank(ordered: Sequence[float], percent: int) -> float:
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


class Timings:
    """Milliseconds of calls, by name."""

    def __init__(self) -> None:
        self._samples: dict[str, list[float]] = {}

    def time(self, name: str, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call it and note how long it took."""
        began = time.perf_counter()
        result = call(*args, **kwargs)
        self.note(name, (time.perf_counter() - began) * 1e3)
        return result

    def note(self, name: str, ms: float) -> None:
        """One more sample."""
        self._samples.setdefault(name, []).append(ms)

    @property
    def measures(self) -> dict[str, Measure]:
        """How each was spread."""
        return {name: Measure.of("ms", samples) for name, samples in self._samples.items()}


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure beside what it was wanted to be, ``sense`` being <= or >=."""

    what: str
    got: float
    sense: str
    bound: float
    unit: str
    met: bool

    @classmethod
    def at_most(cls, what: str, got: float, bound: float, unit: str) -> Self:
        """Smaller is better."""
        return cls(what, got, "<=", bound, unit, got <= bound)

    @classmethod
    def at_least(cls, what: str, got: float, bound: float, unit: str) -> Self:
        """Larger is better."""
        return cls(what, got, ">=", bound, unit, got >= bound)


@dataclass(frozen=True, slots=True)
class Case:
    """One design at one size. ``ratios`` are of medians of this case; ``shown`` says what was found to be right; ``series``
    is what changed over a run, all of one length.
    """

    design: str
    nodes: int
    settings: Mapping[str, float]
    measures: Mapping[str, Measure]
    ratios: Mapping[str, float]
    shown: Sequence[str]
    goals: Sequence[Goal] = ()
    series: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it ran. ``calibration_ms`` is a fixed loop in plain Python: how fast a core was at that moment."""

    cpu: str
    cores: int
    memory_bytes: int
    system: str
    load_1min: float
    calibration_ms: float


@dataclass(frozen=True, slots=True)
class Record:
    """One run of one scenario. ``across`` holds ratios between cases; ``commit`` ends in + where files differ from it;
    ``skipped`` says what could have been measured if it were installed.
    """

    scenario: str
    seed: int
    seconds: float
    began_at: str
    commit: str
    versions: Mapping[str, str]
    machine: Machine
    cases: Sequence[Case]
    across: Mapping[str, float] = field(default_factory=dict)
    goals: Sequence[Goal] = ()
    format: int = FORMAT
    skipped: Sequence[str] = ()

    def to_json(self) -> bytes:
        """The record for programs, indented for people."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def commit() -> str:
    """The commit that runs; empty outside of a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""


def versions(**servers: str) -> dict[str, str]:
    """Python, the libraries that what is measured rests on, and the servers."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}, **servers}


def machine() -> Machine:
    """This machine, as it is now."""
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
    """The time, in UTC, for the record."""
    return datetime.now(UTC).isoformat(timespec="seconds")

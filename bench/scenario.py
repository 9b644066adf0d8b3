"""What every scenario is given and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.record import Case, Goal
from nodestate.config import Config

ReportProgress = Callable[[str, float], None]
"""Takes what is being done and which part of it is done, for people who wait."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What was asked for. ``seconds`` bounds the timed part of each design at each size; ``batch_events`` and ``prefetch`` are
    a consumer's; ``file`` is for the scenario that takes one.
    """

    designs: tuple[str, ...]
    nodes: tuple[int, ...]
    seconds: float
    seed: int
    changed: int
    state_bytes: int
    change_bytes: int
    batch_events: int = Config().batch_events
    prefetch: int = Config().prefetch
    file: Path | None = None


@dataclass(frozen=True, slots=True)
class Findings:
    """What came of it. ``servers`` names those that were started, with their versions; ``skipped`` says what was not
    measured for want of something, and how to get it.
    """

    cases: Sequence[Case]
    across: Mapping[str, float] = field(default_factory=dict)
    goals: Sequence[Goal] = ()
    servers: Mapping[str, str] = field(default_factory=dict)
    skipped: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Scenario:
    """One thing that can be measured. ``nodes`` are the fleets where none was asked for, if not the command's own."""

    name: str
    what: str
    run: Callable[[Settings, ReportProgress], Findings]
    nodes: tuple[int, ...] = ()
    takes_file: bool = False

"""The input and the output of every scenario."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.record import Case, Goal
from nodestate.config import Config

ReportProgress = Callable[[str, float], None]
"""Takes the name of the current step and the share of it that is done, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What to measure."""

    designs: tuple[str, ...]
    """Full names of designs."""
    nodes: tuple[int, ...]
    """Sizes of fleets."""
    seconds: float
    """Time to measure each design at each size."""
    seed: int
    changed: int
    """Nodes changed in each commit."""
    state_bytes: int
    change_bytes: int
    batch_events: int = Config().batch_events
    """Setting of the consumer."""
    prefetch: int = Config().prefetch
    """Setting of the consumer."""
    file: Path | None = None
    """The task list, for the scenario that takes one."""


@dataclass(frozen=True, slots=True)
class Findings:
    """The results of a scenario."""

    cases: Sequence[Case]
    across: Mapping[str, float] = field(default_factory=dict)
    """Ratios between cases."""
    goals: Sequence[Goal] = ()
    servers: Mapping[str, str] = field(default_factory=dict)
    """Versions of the servers that were started."""
    skipped: Sequence[str] = ()
    """Lines on measurements that were left out because something is not installed, and how to install it."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A measurement that the command can run."""

    name: str
    what: str
    """One line of help."""
    run: Callable[[Settings, ReportProgress], Findings]
    nodes: tuple[int, ...] = ()
    """Sizes of fleets if the user names none; empty for the command's default."""
    takes_file: bool = False
    modes: tuple[str, str] | None = None
    """The two modes that the scenario compares, if it does: a table shows their ratios."""

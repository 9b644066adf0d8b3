"""Runs of scenarios that are as short as possible, and the properties that every result has."""

from __future__ import annotations

import itertools
import math

from bench.fault_run import AGE_ERROR, ERRORS
from bench.record import Case
from bench.scenario import Findings, Settings

BRIEF = Settings(("journal", "snapshot"), (60,), 0.2, 1, 10, 1_024, 200)
"""Two designs, 60 nodes, a fifth of a second: too short for figures, long enough for every step of a scenario."""
_SIZES = itertools.count(61)


def new_size() -> tuple[int]:
    """A size of fleet that no other test uses, so that scenarios on one RabbitMQ have cells of their own."""
    return (next(_SIZES),)


def ignore_progress(_step: str, _share: float) -> None:
    """Take reports of progress and do nothing."""


def require_sound(findings: Findings) -> None:
    """Assert the properties of every result: each case has proofs, and its figures are positive and in order."""
    assert findings.cases
    for case in findings.cases:
        require_sound_case(case)


def require_sound_case(case: Case) -> None:
    """Assert that a case has proofs, and that its figures are in order, and positive unless they count errors."""
    assert case.shown, "a case without a proof"
    assert all(isinstance(value, (int, float)) for value in case.settings.values())
    for name, measure in case.measures.items():
        least = 0 if name in (ERRORS, AGE_ERROR) or measure.unit == "nodes" else math.ulp(0)
        assert least <= measure.min <= measure.p50 <= measure.p99 <= measure.max, name

"""Findings: the lines of the doctor's report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

OK: Final = "OK"
WARN: Final = "WARN"
FAIL: Final = "FAIL"


class Finding(NamedTuple):
    """One line of the doctor's report."""

    level: str
    """``OK``, ``WARN`` or ``FAIL``."""
    about: str
    """The part of the cell: the broker, a store, a design, the agents."""
    says: str
    """The fault, or the present figures if there is none."""
    advice: str = ""
    """The remedy; empty if nothing is wrong."""


def range_text(numbers: Sequence[int]) -> str:
    """Return the range of some numbers as text: ``3 to 7``, or ``3`` if all are equal."""
    return f"{min(numbers)}" if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"


def span_text(seconds: float) -> str:
    """Return a duration as text, in the largest unit that fits into it twice: ``90 min`` for 5,400 seconds."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"

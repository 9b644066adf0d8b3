"""Numbers as they are read: three digits that count, and a unit of the right size."""

from __future__ import annotations

from typing import Final

_LARGER: Final = {
    "us": (1_000.0, "ms"),
    "ms": (1_000.0, "s"),
    "bytes": (1_000.0, "KB"),
    "KB": (1_000.0, "MB"),
    "MB": (1_000.0, "GB"),
}


def figure(value: float) -> str:
    """Three digits that count: more would be noise."""
    rounded = float(f"{value:.3g}")
    if rounded == 0 or abs(rounded) >= 100:
        return f"{rounded:,.0f}"
    text = f"{rounded:.3g}"
    return f"{rounded:.1e}" if "e" in text else text


def exact(value: float) -> str:
    """All digits, of what was set and not measured."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,g}"


def quantity(value: float, unit: str) -> str:
    """A figure with its unit, or a larger one that takes fewer digits."""
    head, slash, per = unit.partition("/")
    while head in _LARGER and abs(value) >= _LARGER[head][0] * 0.9995:  # which is written as 1,000 already
        step, head = _LARGER[head]
        value /= step
    if head == "x":
        return f"{figure(value)}×"
    return f"{figure(value)} {head}{slash}{per}".strip()


def times(value: float) -> str:
    """A ratio."""
    return f"{figure(value)}×" if value >= 10 or value < 0.1 else f"{value:.2f}×"

"""Numbers as the report writes them: three significant digits and a unit of the right size."""

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
    """Write a measured number with three significant digits; further digits would be noise."""
    rounded = float(f"{value:.3g}")
    if rounded == 0 or abs(rounded) >= 100:
        return f"{rounded:,.0f}"
    text = f"{rounded:.3g}"
    return f"{rounded:.1e}" if "e" in text else text


def exact(value: float) -> str:
    """Write all digits of a number that was set, not measured."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,g}"


def quantity(value: float, unit: str) -> str:
    """Write a measured number with its unit, or with a larger unit if that takes fewer digits."""
    head, slash, per = unit.partition("/")
    while head in _LARGER and abs(value) >= _LARGER[head][0] * 0.9995:  # this would be written as 1,000
        step, head = _LARGER[head]
        value /= step
    if head == "x":
        return f"{figure(value)}×"
    return f"{figure(value)} {head}{slash}{per}".strip()


def times(value: float) -> str:
    """Write a ratio."""
    return f"{figure(value)}×" if value >= 10 or value < 0.1 else f"{value:.2f}×"


def listed(parts: list[str], conjunction: str = "and") -> str:
    """Join words as a sentence does: ``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {conjunction} {parts[-1]}"

"""The result of an outage run as a Markdown table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from bench.outage.run import Row

HEAD: Final = (
    "outage",
    "away",
    "well after",
    "no fresh view",
    "longest",
    "reads refused",
    "incomplete",
    "greatest age",
    "events",
    "lost",
    "boots",
    "failed",
    "longest boot",
    "reserved",
    "refused",
    "refused for",
    "confirmed",
    "failed",
    "twice for",
)


def markdown_of(rows: Sequence[Row]) -> str:
    """Return a table with one line for each row."""
    lines = [HEAD, *map(_cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    aligned = [
        " | ".join(
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    rule = "|".join(
        "-" * (width + 2) if column == 0 else "-" * (width + 1) + ":" for column, width in enumerate(widths)
    )
    return "\n".join([f"| {aligned[0]} |", f"|{rule}|", *(f"| {line} |" for line in aligned[1:])])


def _cells(row: Row) -> tuple[str, ...]:
    seen = row.figures
    return (
        row.name,
        _seconds(row.outage_s),
        _seconds(row.healed_s),
        _seconds(seen.stale_s),
        _seconds(seen.longest_stale_s),
        f"{seen.refused_reads:,}",
        _seconds(seen.incomplete_s),
        _seconds(seen.greatest_age_s),
        f"{seen.events:,}",
        f"{row.lost:,}",
        f"{seen.boots:,}",
        f"{seen.boots_failed:,}",
        _seconds(seen.longest_boot_s),
        f"{seen.reserved:,}",
        f"{seen.reservations_refused:,}",
        _seconds(seen.longest_refused_s),
        f"{seen.confirmed:,}",
        f"{seen.confirms_failed:,}",
        _seconds(seen.longest_twice_s),
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if math.isfinite(seconds) else "never"

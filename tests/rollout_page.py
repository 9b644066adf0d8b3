"""The section of ``docs/how-to/secure.md`` that turns authentication on: its tables, its commands and its settings."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Final, NamedTuple

PAGE: Final = Path(__file__).parent.parent / "docs" / "how-to" / "secure.md"
PLACES: Final = frozenset({"agents", "consumers", "schedulers"})
ON, OFF = "Raise the mode", "Turn authentication off"
"""Headings of the two tables of steps."""


class Step(NamedTuple):
    """A row of a table: the processes to restart, in this order, and their new mode."""

    restart: tuple[str, ...]
    mode: str


def steps_of(heading: str) -> list[Step]:
    """Return the steps of the table under this heading."""
    rows = re.findall(r"^\| (\d) \| ([a-z, ]+) \| `(\w+)` \|", _part_under(heading), re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, len(rows) + 1))
    steps = [Step(tuple(places.split(", ")), mode) for _, places, mode in rows]
    assert all(PLACES.issuperset(step.restart) for step in steps)
    return steps


def commands_of(heading: str) -> list[str]:
    """Return the lines of the shell blocks under this heading; comments tell what to do between two commands."""
    blocks = re.findall(r"^```sh\n(.*?)^```", _part_under(heading), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def settings_of(heading: str) -> dict[str, Any]:
    """Return the settings of the TOML block under this heading."""
    [block] = re.findall(r"^```toml\n(.*?)^```", _part_under(heading), re.MULTILINE | re.DOTALL)
    return tomllib.loads(block)


def _part_under(heading: str) -> str:
    section = PAGE.read_text(encoding="utf-8").partition("\n## Turn authentication on without a flash cut\n")[2]
    section = section.partition("\n## ")[0]
    part = section.partition(f"\n### {heading}\n")[2].partition("\n### ")[0]
    assert part, f"{PAGE.name} has no heading {heading!r}"
    return part

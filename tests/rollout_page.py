"""The section of ``docs/how-to/secure.md`` that turns authentication on: its tables, its commands and its settings."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Final, NamedTuple

PAGE: Final = Path(__file__).parent.parent / "docs" / "how-to" / "secure.md"
PLACES: Final = frozenset({"agents", "consumers", "schedulers"})
ON, STORE, OFF = "Raise the mode", "Sign stored values", "Turn authentication off"
"""Headings of the parts with tables of steps."""


class Step(NamedTuple):
    """A row of a table: the processes to restart, in this order, with another mode."""

    restart: tuple[str, ...]
    settings: tuple[str, ...]
    """The settings that get the mode."""
    mode: str
    has_commands: bool = False
    """True if the commands under the heading belong to this step."""


def steps_of(heading: str, setting: str = "auth_events") -> list[Step]:
    """Return the steps of the table under this heading that changes this setting."""
    tables = re.findall(r"^(\| step \| restart \|.*\n)\|[-|]+\n((?:\|.*\n)+)", _part_under(heading), re.MULTILINE)
    [(head, body)] = [table for table in tables if f"`{setting}`" in table[0]]
    settings = tuple(re.findall(r"`(auth_\w+)`", head))
    rows = re.findall(r"^\| (\d) \| ([a-z, ]+) \| `(\w+)` \| (.*) \|$", body, re.MULTILINE)
    assert [int(row[0]) for row in rows] == list(range(1, body.count("\n") + 1))
    steps = [Step(tuple(places.split(", ")), settings, mode, "as below" in text) for _, places, mode, text in rows]
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

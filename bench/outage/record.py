"""The record of an outage run, and how it is printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
import msgspec

from bench.outage.run import Row
from bench.outage.table import markdown_of
from bench.record import Goal, Machine


@dataclass(frozen=True, slots=True)
class OutageRecord:
    """One run of ``python -m bench outage``."""

    began_at: str
    commit: str
    """The commit that ran; ends in + if files differ from it."""
    versions: Mapping[str, str]
    machine: Machine
    load: Mapping[str, Any]
    """The fields of ``Load``."""
    outage_s: float
    rows: Sequence[Row]
    goals: Sequence[Goal]
    violations: Sequence[str]
    """Violations of promises, in sentences."""
    checked: str
    """The numbers of checks, as a sentence."""
    scenario: str = "outage"

    def to_json(self) -> bytes:
        """Return the record as JSON."""
        rows = [{**row._asdict(), "figures": row.figures._asdict()} for row in self.rows]
        content = {name: getattr(self, name) for name in self.__slots__} | {"rows": rows}
        return msgspec.json.format(msgspec.json.encode(content)) + b"\n"


def show(record: OutageRecord, *, to_stderr: bool) -> None:
    """Print the table, the reasons of failures, the goals and the violations."""
    click.echo(markdown_of(record.rows), err=to_stderr)
    for row in record.rows:
        for reason in row.figures.reasons:
            click.echo(f"{row.name}: {reason}", err=to_stderr)
    met = sum(goal.met for goal in record.goals)
    click.echo(f"goals: {met} of {len(record.goals)} met", err=to_stderr)
    for goal in record.goals:
        if not goal.met:
            bound = f"{goal.sense} {goal.bound:g} {goal.unit}"
            click.echo(f"goal not met: {goal.what}: {goal.got:,.4g} {goal.unit}, goal {bound}", err=to_stderr)
    click.echo(record.checked, err=to_stderr)
    for violation in record.violations:
        click.echo(f"violation: {violation}", err=to_stderr)

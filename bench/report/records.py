"""The records of a results folder, and finding figures among them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import msgspec

from bench.design_names import DEFAULT_DESIGNS, DESIGN_NAMES, design_label
from bench.plan import FULL, QUICK
from bench.record import FORMAT, Case, Measure, Record

QUICK_BELOW_S: Final = 1.0
"""Runs shorter than this show that something works, not how fast it is."""
TYPICAL_NODES: Final = 10_000
"""The fleet that figures are quoted for, where a record has it; else its largest."""


LOADS: Final = ("rate", "readers", "schedulers", "full", "batch", "clients", "changed", "change_bytes", "state_bytes")
"""Settings that a scenario may vary, beside the size of the fleet."""


@dataclass(frozen=True, slots=True)
class RecordedCase:
    """A case, and the record that it stands in."""

    run: str
    record: Record
    case: Case

    @property
    def design(self) -> str:
        """The label up to its first comma or colon: of ``journal, tail`` the ``journal``."""
        return re.split("[,:]", self.case.design, maxsplit=1)[0].strip()

    @property
    def variant(self) -> str:
        """The rest of the label."""
        return self.case.design[len(self.design) :].lstrip(",: ")

    @property
    def estimated(self) -> bool:
        """Whether it was computed from others, and not measured."""
        return bool(self.case.settings.get("estimated"))

    def p50(self, measure: str) -> float:
        """The median of one of its measures."""
        return self.case.measures[measure].p50


@dataclass(frozen=True, slots=True)
class Records:
    """All records, by the name of the run; and the files that hold none."""

    by_run: Mapping[str, Record]
    unreadable: Sequence[str] = ()

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Every ``*.json`` of a folder."""
        records: dict[str, Record] = {}
        unreadable: list[str] = []
        for path in sorted(folder.glob("*.json")):
            try:
                record = msgspec.json.decode(path.read_bytes(), type=Record)
            except msgspec.DecodeError as error:
                unreadable.append(f"{path.name}: {error}")
                continue
            if record.format == FORMAT:
                records[path.stem] = record
            else:
                unreadable.append(f"{path.name}: format {record.format}, want {FORMAT}")
        return cls(records, unreadable)

    def found(self, *scenarios: str) -> Iterator[RecordedCase]:
        """Cases that were measured, of these scenarios, in the order of the scenarios named."""
        for scenario in scenarios:
            for run, record in self.by_run.items():
                if record.scenario == scenario:
                    yield from (one for case in record.cases if not (one := RecordedCase(run, record, case)).estimated)

    def widest(self, measure: str, *scenarios: str) -> list[RecordedCase]:
        """The cases with this measure of the one record that has it for most sizes: runs are not comparable."""
        by_run: dict[str, list[RecordedCase]] = {}
        for one in self.found(*scenarios):
            if measure in one.case.measures:
                by_run.setdefault(one.run, []).append(one)
        return max(by_run.values(), key=lambda of: len({one.case.nodes for one in of}), default=[])

    def estimates(self) -> Iterator[RecordedCase]:
        """Cases that were computed from others."""
        for run, record in self.by_run.items():
            yield from (one for case in record.cases if (one := RecordedCase(run, record, case)).estimated)

    @property
    def quick(self) -> list[str]:
        """The runs that were too short for figures."""
        return [run for run, record in self.by_run.items() if record.seconds < QUICK_BELOW_S]


def typical(found: Collection[RecordedCase]) -> list[RecordedCase]:
    """Those of the fleet that figures are quoted for."""
    sizes = {one.case.nodes for one in found}
    chosen = TYPICAL_NODES if TYPICAL_NODES in sizes else max(sizes, default=0)
    return [one for one in found if one.case.nodes == chosen]


def varied(found: Collection[RecordedCase], among: Sequence[str]) -> str | None:
    """The first of these settings that takes more than one value."""
    for name in among:
        if len({one.case.settings[name] for one in found if name in one.case.settings}) > 1:
            return name
    return None


def spread(found: RecordedCase, measure: str) -> Measure:
    """How a measure of a case was spread."""
    return found.case.measures[measure]


def command_of(run: str, record: Record) -> str:
    """What to type to make a record again: the plan's words if it made this, else what the record tells of it."""
    sizes = tuple(sorted({case.nodes for case in record.cases if not case.settings.get("estimated")}))
    for planned in (*FULL, *QUICK):
        same = (planned.name, planned.scenario, planned.quick) == (run, record.scenario, record.seconds < QUICK_BELOW_S)
        # A record of before the plan had a design was made by another command.
        if same and all(_has(record, str(design)) for design in _tuple(planned.overrides.get("designs", ()))):
            return planned.command
    words = ["python", "-m", "bench", record.scenario]
    found = [RecordedCase(run, record, case).design for case in record.cases if not case.settings.get("estimated")]
    designs = [name for name in DESIGN_NAMES if design_label([name]) in found]
    if designs and tuple(designs) != DEFAULT_DESIGNS:
        words += ["--design", ",".join(designs)]
    if sizes:
        words += ["--nodes", ",".join(map(str, sizes))]
    words += ["--seconds", f"{record.seconds:g}", "--seed", f"{record.seed}"]
    for setting in ("changed", "change_bytes"):
        values = {case.settings[setting] for case in record.cases if setting in case.settings}
        if len(values) == 1:
            words += [f"--{setting.replace('_', '-')}", f"{values.pop():g}"]
    return shlex.join(words)


def _has(record: Record, design: str) -> bool:
    """Whether a design was measured, or was to be."""
    label = design_label([design])
    return any(text.startswith(label) for text in [*(case.design for case in record.cases), *record.skipped])


def _tuple(value: object) -> tuple[object, ...]:
    return value if isinstance(value, tuple) else (value,)


def command_for(scenario: str) -> str:
    """What to type for records of a scenario that are missing."""
    return next((run.command for run in FULL if run.scenario == scenario), f"python -m bench {scenario}")

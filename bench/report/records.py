"""The records of a results folder, and searches for figures among them."""

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
"""A run with fewer seconds shows that a scenario works, and its figures mean nothing."""
TYPICAL_NODES: Final = 10_000
"""The size of fleet for which the report quotes figures, if a record has it; otherwise the largest size."""
LOAD_SETTINGS: Final = (
    "rate",
    "readers",
    "schedulers",
    "full",
    "batch",
    "clients",
    "changed",
    "change_bytes",
    "state_bytes",
)
"""Settings of a case that a scenario may vary, apart from the size of the fleet."""


@dataclass(frozen=True, slots=True)
class RecordedCase:
    """A case with the run and the record that contain it."""

    run: str
    record: Record
    case: Case

    @property
    def design(self) -> str:
        """The label up to its first comma or colon: ``journal`` for ``journal, tail``."""
        return re.split("[,:]", self.case.design, maxsplit=1)[0].strip()

    @property
    def variant(self) -> str:
        """The label after its first comma or colon: ``tail`` for ``journal, tail``."""
        return self.case.design[len(self.design) :].lstrip(",: ")

    @property
    def estimated(self) -> bool:
        """Whether the case was computed from other cases, not measured."""
        return bool(self.case.settings.get("estimated"))

    def p50(self, measure: str) -> float:
        """Return the median of one of the measures."""
        return self.case.measures[measure].p50


@dataclass(frozen=True, slots=True)
class Records:
    """All records of a folder."""

    by_run: Mapping[str, Record]
    unreadable: Sequence[str] = ()
    """Files that are no records, each with the reason."""

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Read every ``*.json`` of a folder."""
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
                unreadable.append(f"{path.name}: format {record.format}, but this version reads format {FORMAT}")
        return cls(records, unreadable)

    def of_scenarios(self, *scenarios: str) -> Iterator[RecordedCase]:
        """Yield the measured cases of these scenarios, in the order of the arguments."""
        for scenario in scenarios:
            for run, record in self.by_run.items():
                if record.scenario == scenario:
                    yield from (one for case in record.cases if not (one := RecordedCase(run, record, case)).estimated)

    def widest(self, measure: str, *scenarios: str) -> list[RecordedCase]:
        """Return the cases with this measure of the run that has it for the most sizes.

        Cases of one run only, because figures of different runs are not comparable.
        """
        by_run: dict[str, list[RecordedCase]] = {}
        for one in self.of_scenarios(*scenarios):
            if measure in one.case.measures:
                by_run.setdefault(one.run, []).append(one)
        return max(by_run.values(), key=lambda cases: len({one.case.nodes for one in cases}), default=[])

    def estimates(self) -> Iterator[RecordedCase]:
        """Yield the cases that were computed from other cases."""
        for run, record in self.by_run.items():
            yield from (one for case in record.cases if (one := RecordedCase(run, record, case)).estimated)

    @property
    def quick(self) -> list[str]:
        """The runs that were too short for figures."""
        return [run for run, record in self.by_run.items() if record.seconds < QUICK_BELOW_S]


def typical(cases: Collection[RecordedCase]) -> list[RecordedCase]:
    """Return the cases of the size of fleet for which the report quotes figures."""
    sizes = {one.case.nodes for one in cases}
    chosen = TYPICAL_NODES if TYPICAL_NODES in sizes else max(sizes, default=0)
    return [one for one in cases if one.case.nodes == chosen]


def varied(cases: Collection[RecordedCase], settings: Sequence[str]) -> str | None:
    """Return the first of these settings that has more than one value in the cases, or None."""
    for name in settings:
        if len({one.case.settings[name] for one in cases if name in one.case.settings}) > 1:
            return name
    return None


def spread(recorded: RecordedCase, measure: str) -> Measure:
    """Return how a measure of a case was spread."""
    return recorded.case.measures[measure]


def command_of(run: str, record: Record) -> str:
    """Return the command that repeats a run.

    This is the command of the plan if the plan made the record; otherwise it is put together from the record.
    """
    sizes = tuple(sorted({case.nodes for case in record.cases if not case.settings.get("estimated")}))
    for planned in (*FULL, *QUICK):
        same = (planned.name, planned.scenario, planned.quick) == (run, record.scenario, record.seconds < QUICK_BELOW_S)
        # The plan's command does not give this record if the plan gained a design after the record was made.
        if same and all(_names_design(record, str(design)) for design in _tuple(planned.overrides.get("designs", ()))):
            return planned.command
    words = ["python", "-m", "bench", record.scenario]
    labels = [RecordedCase(run, record, case).design for case in record.cases if not case.settings.get("estimated")]
    designs = [name for name in DESIGN_NAMES if design_label([name]) in labels]
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


def _names_design(record: Record, design: str) -> bool:
    """Return whether the record measured a design, or says why it was skipped."""
    label = design_label([design])
    return any(text.startswith(label) for text in [*(case.design for case in record.cases), *record.skipped])


def _tuple(value: object) -> tuple[object, ...]:
    return value if isinstance(value, tuple) else (value,)


def command_for(scenario: str) -> str:
    """Return the command that makes the first planned record of a scenario."""
    return next((run.command for run in FULL if run.scenario == scenario), f"python -m bench {scenario}")

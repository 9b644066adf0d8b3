"""Compares journal, snapshot and databases, measure by measure, in each record that has both designs of memcached."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from bench.report.number_format import listed, quantity, times
from bench.report.records import LOAD_SETTINGS, TYPICAL_NODES, RecordedCase, Records, command_of

JOURNAL, SNAPSHOT, SQL = "journal", "snapshot", "sql"
NOISE: Final = 1.5
"""Medians that differ by less than this factor count as even: the machines drift by 30 to 50 % between minutes."""
MORE_IS_BETTER: Final = ("/s",)
"""Ends of units of which a larger value is better."""
NOT_COMPARED: Final = (
    "bare",
    "takeover",
    "refresh, each",
    "publisher",
    "trimmed",
    "commit that",
    "stored, ",
    "write amplification, ",
    "written to the database's log",
    "select, ",
    "advance",
    "claim",
    "conflicts",
    "no room",
    "given up",
    "memory beyond the reader",
)
"""Beginnings of measures that do not depend on the design, or that are part of a measure that is compared."""
TYPICAL_LOAD: Final = {"changed": 100, "rate": 1_000}
"""Values of settings for which the report quotes figures, if a record has them."""
TYPICAL_VARIANTS: Final = ("tail", "memcached restarted")
"""The journal that a new reader finds on average (see bench/cold.py), and the fault that loses most."""
EQUIVALENT_FAULTS: Final = {
    "memcached restarted": "database restarted",
    "consumers and memcached restarted": "consumers and database restarted",
}
"""The fault of a database that corresponds to a fault of memcached."""
NEAR: Final = 1.05
"""Settings that differ by less than this factor are the same: some are means of random numbers."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One measure of all designs, at the same size and with the same settings."""

    measure: str
    journal: RecordedCase
    snapshot: RecordedCase
    databases: Sequence[RecordedCase] = ()

    @property
    def unit(self) -> str:
        """The unit of the measure."""
        return self.journal.case.measures[self.measure].unit

    @property
    def values(self) -> dict[str, float]:
        """The median of each design, by its label."""
        return {one.design: one.p50(self.measure) for one in (self.journal, self.snapshot, *self.databases)}

    @property
    def more_is_better(self) -> bool:
        """Whether the measure is a rate."""
        return self.unit.endswith(MORE_IS_BETTER)

    @property
    def order(self) -> list[str]:
        """All labels, the best one first."""
        return sorted(self.values, key=self.values.__getitem__, reverse=self.more_is_better)

    @property
    def near(self) -> list[str]:
        """The labels of the best design and of all designs within noise of it."""
        best = self.order[0]
        return [label for label in self.values if self.times_better(best, label) < NOISE]

    @property
    def winner(self) -> str:
        """The label of the best design; empty if another design is within noise of it."""
        return self.near[0] if len(self.near) == 1 else ""

    @property
    def command(self) -> str:
        """The command that repeats the run."""
        return command_of(self.journal.run, self.journal.record)

    def times_better(self, label: str, other: str) -> float:
        """Return how many times better one design is than another; less than 1 if it is worse."""
        one, another = self.values[label], self.values[other]
        if one == another:
            return 1.0
        if not one or not another:
            return math.inf if (one < another) is not self.more_is_better else 0.0
        return one / another if self.more_is_better else another / one

    def value_of(self, label: str) -> str:
        """Return a design's median with its unit."""
        return quantity(self.values[label], self.unit)

    def in_words(self) -> str:
        """Return the medians in words: of two designs each, of more designs the range."""
        if len(self.values) == 2:
            return listed([f"{self.value_of(label)} with {named(label)}" for label in self.values])
        first, *_, last = self.order
        return f"{self.value_of(first)} ({first}) to {self.value_of(last)} ({last})"

    @property
    def lead(self) -> float:
        """How many times better the best design is than the journal.

        If the journal is the best or within noise of the best, the best is compared with the next one instead.
        """
        best, second, *_ = self.order
        return self.times_better(best, second if best == JOURNAL or JOURNAL in self.near else JOURNAL)

    def lead_in_words(self) -> str:
        """Return the lead as text."""
        return times(self.lead) if self.lead != math.inf else "any factor"


def named(label: str) -> str:
    """Return a design's label as a sentence names it: ``the journal``, but ``sql on mariadb``."""
    return label if SQL in label else f"the {label}"


def comparisons(records: Records, *scenarios: str) -> Iterator[Comparison]:
    """Yield each measure that a case of the journal shares with a case of the snapshot, with the cases of databases."""
    cases = list(records.of_scenarios(*scenarios))
    for journal in (one for one in cases if one.design == JOURNAL):
        beside: dict[str, RecordedCase] = {}
        for label in dict.fromkeys(one.design for one in cases):
            if label == SNAPSHOT or SQL in label.split():
                others = [one for one in cases if one.design == label and _comparable(one, journal)]
                variants = (journal.variant, EQUIVALENT_FAULTS.get(journal.variant, journal.variant), "")
                same = [one for variant in variants for one in others if one.variant == variant]
                beside |= {label: same[0]} if same else {}
        if SNAPSHOT not in beside:
            continue
        snapshot = beside.pop(SNAPSHOT)
        for measure in journal.case.measures:
            if measure in snapshot.case.measures and not measure.startswith(NOT_COMPARED):
                databases = [one for one in beside.values() if measure in one.case.measures]
                yield Comparison(measure, journal, snapshot, databases)


def headline(of: list[Comparison]) -> Comparison:
    """Return the comparison to quote: for the typical fleet and load if there is one, otherwise for the largest."""

    def rank(one: Comparison) -> tuple[bool, bool, float, float, float, bool, int]:
        case = one.journal.case
        return (
            case.nodes == TYPICAL_NODES,
            all(case.settings.get(name, typical) == typical for name, typical in TYPICAL_LOAD.items()),
            case.nodes,
            -case.settings.get("change_bytes", 0.0),  # small changes are typical
            sum(case.settings.get(name, 0.0) for name in (*TYPICAL_LOAD, "readers")),
            one.journal.variant in TYPICAL_VARIANTS,
            len(one.databases),
        )

    return max(of, key=rank)


def by_measure(records: Records, *scenarios: str) -> dict[tuple[str, str, str], list[Comparison]]:
    """Group comparisons by scenario, variant of the journal, and measure."""
    grouped: dict[tuple[str, str, str], list[Comparison]] = {}
    for one in comparisons(records, *scenarios):
        grouped.setdefault((one.journal.record.scenario, one.journal.variant, one.measure), []).append(one)
    return grouped


def _comparable(one: RecordedCase, other: RecordedCase) -> bool:
    """Return whether two cases are of one run, of one size and of the same load."""
    if (one.run, one.case.nodes) != (other.run, other.case.nodes):
        return False
    return all(_same(one.case.settings.get(name), other.case.settings.get(name)) for name in LOAD_SETTINGS)


def _same(one: float | None, other: float | None) -> bool:
    return one == other if one is None or other is None else math.isclose(one, other, rel_tol=NEAR - 1)

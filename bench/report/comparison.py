"""The journal against the snapshot, and the database beside both, figure by figure, wherever one record has both."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from bench.report.number_format import quantity, times
from bench.report.records import LOADS, TYPICAL_NODES, RecordedCase, Records, command_of

JOURNAL, SNAPSHOT, SQL = "journal", "snapshot", "sql"
NOISE: Final = 1.5
"""Machines drift by 30 to 50 % between minutes: designs whose medians are nearer than this are called even."""
MORE_IS_BETTER: Final = ("/s",)
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
"""Beginnings of measures that are not a design's own, or that are a part of one which is compared."""
TYPICAL_LOADS: Final = {"changed": 100, "rate": 1_000}
"""Loads that figures are quoted for, where a record has them."""


TYPICAL_VARIANTS: Final = ("tail", "memcached restarted")
"""What a new reader meets on average (see bench/cold.py), and the fault that loses most."""
ALIKE: Final = {
    "memcached restarted": "database restarted",
    "consumers and memcached restarted": "consumers and database restarted",
}
"""What happens to a database instead."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One measure of both designs of memcached, at the same size and settings; and of ``databases``, where there are any."""

    measure: str
    journal: RecordedCase
    snapshot: RecordedCase
    databases: Sequence[RecordedCase] = ()

    @property
    def unit(self) -> str:
        """Of all."""
        return self.journal.case.measures[self.measure].unit

    @property
    def values(self) -> dict[str, float]:
        """The median of each, by label."""
        return {one.design: one.p50(self.measure) for one in (self.journal, self.snapshot, *self.databases)}

    @property
    def more_is_better(self) -> bool:
        """Whether it is a rate."""
        return self.unit.endswith(MORE_IS_BETTER)

    @property
    def order(self) -> list[str]:
        """All labels, the best one first."""
        return sorted(self.values, key=self.values.__getitem__, reverse=self.more_is_better)

    @property
    def near(self) -> list[str]:
        """The best one, and those that noise could put before it."""
        best = self.order[0]
        return [label for label in self.values if self.times_better(best, label) < NOISE]

    @property
    def winner(self) -> str:
        """The better design; nothing if noise could tell otherwise."""
        return self.near[0] if len(self.near) == 1 else ""

    @property
    def command(self) -> str:
        """What makes it again."""
        return command_of(self.journal.run, self.journal.record)

    def times_better(self, label: str, other: str) -> float:
        """How many times better one is than another; below 1, it is worse."""
        one, another = self.values[label], self.values[other]
        if one == another:
            return 1.0
        if not one or not another:
            return math.inf if (one < another) is not self.more_is_better else 0.0
        return one / another if self.more_is_better else another / one

    def of(self, label: str) -> str:
        """A design's figure with its unit."""
        return quantity(self.values[label], self.unit)

    def each(self) -> str:
        """All figures, in words."""
        *said, last = [f"{self.of(label)} with {label if SQL in label else f'the {label}'}" for label in self.values]
        return f"{', '.join(said)} and {last}"

    @property
    def lead(self) -> float:
        """How many times better the best one is: than the journal, or than the next if it is the journal."""
        best, second, *_ = self.order
        return self.times_better(best, second if best == JOURNAL or JOURNAL in self.near else JOURNAL)

    def by(self) -> str:
        """The same as text."""
        return times(self.lead) if self.lead != math.inf else "all of it"


def pairs(records: Records, *scenarios: str) -> Iterator[Pair]:
    """Each measure that a journal's case shares with the snapshot's case beside it, with those of databases."""
    found = list(records.found(*scenarios))
    for journal in (one for one in found if one.design == JOURNAL):
        beside: dict[str, RecordedCase] = {}
        for label in dict.fromkeys(one.design for one in found):
            if label == SNAPSHOT or SQL in label.split():
                others = [one for one in found if one.design == label and _beside(one, journal)]
                variants = (journal.variant, ALIKE.get(journal.variant, journal.variant), "")
                same = [one for variant in variants for one in others if one.variant == variant]
                beside |= {label: same[0]} if same else {}
        if SNAPSHOT not in beside:
            continue
        snapshot = beside.pop(SNAPSHOT)
        for measure in journal.case.measures:
            if measure in snapshot.case.measures and not measure.startswith(NOT_COMPARED):
                having = [one for one in beside.values() if measure in one.case.measures]
                yield Pair(measure, journal, snapshot, having)


def headline(of: list[Pair]) -> Pair:
    """The pair to quote: at the fleet and the load that figures are quoted for, else the largest of both."""

    def rank(pair: Pair) -> tuple[bool, bool, float, float, float, bool, int]:
        case = pair.journal.case
        return (
            case.nodes == TYPICAL_NODES,
            all(case.settings.get(name, usual) == usual for name, usual in TYPICAL_LOADS.items()),
            case.nodes,
            -case.settings.get("change_bytes", 0.0),  # the usual ones are the smallest
            sum(case.settings.get(name, 0.0) for name in (*TYPICAL_LOADS, "readers")),
            pair.journal.variant in TYPICAL_VARIANTS,
            len(pair.databases),
        )

    return max(of, key=rank)


def by_measure(records: Records, *scenarios: str) -> dict[tuple[str, str, str], list[Pair]]:
    """Pairs by (scenario, the journal's variant, measure)."""
    grouped: dict[tuple[str, str, str], list[Pair]] = {}
    for pair in pairs(records, *scenarios):
        key = pair.journal.record.scenario, pair.journal.variant, pair.measure
        grouped.setdefault(key, []).append(pair)
    return grouped


def _beside(one: RecordedCase, other: RecordedCase) -> bool:
    if (one.run, one.case.nodes) != (other.run, other.case.nodes):
        return False
    return all(_near(one.case.settings.get(name), other.case.settings.get(name)) for name in LOADS)


def _near(one: float | None, other: float | None) -> bool:
    """Whether both were set to the same: what is said of a size may be the mean of what came."""
    return one == other if one is None or other is None else math.isclose(one, other, rel_tol=0.05)

"""The journal against the snapshot, figure by figure, wherever one record has both."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from bench.report.figures import quantity, times
from bench.report.shelf import LOADS, TYPICAL_NODES, Found, Shelf, command_of

JOURNAL, SNAPSHOT = "journal", "snapshot"
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
)
"""Beginnings of measures that are not a design's own, or that are a part of one which is compared."""
USUAL: Final = {"changed": 100, "rate": 1_000}
"""Loads that figures are quoted for, where a record has them."""


USUAL_VARIANTS: Final = ("tail", "memcached restarted")
"""What a new reader meets on average (see bench/cold.py), and the fault that loses most."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One measure of both designs, at the same size and settings."""

    measure: str
    journal: Found
    snapshot: Found

    @property
    def unit(self) -> str:
        """Of both."""
        return self.journal.case.measures[self.measure].unit

    @property
    def values(self) -> tuple[float, float]:
        """The journal's median and the snapshot's."""
        return self.journal.p50(self.measure), self.snapshot.p50(self.measure)

    @property
    def advantage(self) -> float:
        """How many times better the journal is; below 1, it is worse."""
        journal, snapshot = self.values
        if journal == snapshot:
            return 1.0
        if not journal or not snapshot:
            return float("inf") if (journal < snapshot) is not self.more_is_better else 0.0
        return journal / snapshot if self.more_is_better else snapshot / journal

    @property
    def more_is_better(self) -> bool:
        """Whether it is a rate."""
        return self.unit.endswith(MORE_IS_BETTER)

    @property
    def winner(self) -> str:
        """The better design; nothing if noise could tell otherwise."""
        if self.advantage >= NOISE:
            return JOURNAL
        return SNAPSHOT if self.advantage <= 1 / NOISE else ""

    @property
    def command(self) -> str:
        """What makes it again."""
        return command_of(self.journal.run, self.journal.record)

    def of(self, design: str) -> str:
        """A design's figure with its unit."""
        return quantity(self.values[design == SNAPSHOT], self.unit)

    def by(self) -> str:
        """How many times better the better one is."""
        best = max(self.advantage, 1 / self.advantage if self.advantage else float("inf"))
        return times(best) if best != float("inf") else "all of it"


def pairs(shelf: Shelf, *scenarios: str) -> Iterator[Pair]:
    """Each measure that a journal's case shares with the snapshot's case beside it."""
    found = list(shelf.found(*scenarios))
    for journal in (one for one in found if one.design == JOURNAL):
        beside = [one for one in found if one.design == SNAPSHOT and _beside(one, journal)]
        same = next((one for one in beside if one.variant == journal.variant), None)
        snapshot = same or next((one for one in beside if not one.variant), None)
        if snapshot is None:
            continue
        for measure in journal.case.measures:
            if measure in snapshot.case.measures and not measure.startswith(NOT_COMPARED):
                yield Pair(measure, journal, snapshot)


def headline(of: list[Pair]) -> Pair:
    """The pair to quote: at the fleet and the load that figures are quoted for, else the largest of both."""

    def rank(pair: Pair) -> tuple[bool, bool, float, float, float, bool]:
        case = pair.journal.case
        return (
            case.nodes == TYPICAL_NODES,
            all(case.settings.get(name, usual) == usual for name, usual in USUAL.items()),
            case.nodes,
            -case.settings.get("change_bytes", 0.0),  # the usual ones are the smallest
            sum(case.settings.get(name, 0.0) for name in (*USUAL, "readers")),
            pair.journal.variant in USUAL_VARIANTS,
        )

    return max(of, key=rank)


def by_measure(shelf: Shelf, *scenarios: str) -> dict[tuple[str, str, str], list[Pair]]:
    """Pairs by (scenario, the journal's variant, measure)."""
    grouped: dict[tuple[str, str, str], list[Pair]] = {}
    for pair in pairs(shelf, *scenarios):
        key = pair.journal.record.scenario, pair.journal.variant, pair.measure
        grouped.setdefault(key, []).append(pair)
    return grouped


def _beside(one: Found, other: Found) -> bool:
    if (one.run, one.case.nodes) != (other.run, other.case.nodes):
        return False
    return all(_near(one.case.settings.get(name), other.case.settings.get(name)) for name in LOADS)


def _near(one: float | None, other: float | None) -> bool:
    """Whether both were set to the same: what is said of a size may be the mean of what came."""
    return one == other if one is None or other is None else math.isclose(one, other, rel_tol=0.05)

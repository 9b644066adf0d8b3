"""Counters of a scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from nodestate.histogram import DECISION_BOUNDS_S, Histogram

Phase = Literal["refresh", "choose", "claim", "answer"]
"""A part of a decision: refresh the view, choose nodes, write claims, wait for the answer of an agent."""
DecisionResult = Literal["selected", "claimed", "booted", "no-host", "failed"]
"""The result for one instance: a node was named, was claimed, or built it; no node was found; or its boot failed."""

MAX_REASONS_COUNT: Final = 32
"""Reasons of refusals that are counted each by itself: agents write them, and each one is a time series."""
PHASES: Final[tuple[Phase, ...]] = ("refresh", "choose", "claim", "answer")
RESULTS: Final[tuple[DecisionResult, ...]] = ("selected", "claimed", "booted", "no-host", "failed")


class SchedulerStats:
    """Counters of one scheduler, since it started. Its thread counts; any thread may read them."""

    def __init__(self) -> None:
        self.durations_s: dict[Phase, Histogram] = {phase: Histogram(DECISION_BOUNDS_S) for phase in PHASES}
        """By phase, the seconds that it took, for all instances of one call together."""
        self.decisions: dict[DecisionResult, int] = dict.fromkeys(RESULTS, 0)
        """By result, the number of instances."""
        self.filter_removed: dict[str, int] = {}
        """By filter, the nodes that it removed and no filter before it did, in all decisions."""
        self.orders_refused: dict[str, int] = {}
        """By reason, the orders that agents refused, that came back or that were not answered."""

    def count_refusal(self, reason: str) -> None:
        """Count an order that was not carried out. Reasons beyond ``MAX_REASONS_COUNT`` count as ``other``."""
        if reason not in self.orders_refused and len(self.orders_refused) >= MAX_REASONS_COUNT:
            reason = "other"
        self.orders_refused[reason] = self.orders_refused.get(reason, 0) + 1

    def count_decision(self, result: DecisionResult, removed: Mapping[str, int]) -> None:
        """Count the decision about one instance, and the nodes that each filter removed in it."""
        self.decisions[result] += 1
        for name, nodes in removed.items():
            self.filter_removed[name] = self.filter_removed.get(name, 0) + nodes

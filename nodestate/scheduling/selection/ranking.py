"""The score of every node for one shape of request, kept up to date."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

import numpy as np

from nodestate.errors import BadRequestError
from nodestate.scheduling.fleet import Fleet, RowIndex, Scores, count_of
from nodestate.scheduling.request import Request
from nodestate.scheduling.selection.filters import Filter
from nodestate.scheduling.selection.policy_guard import guarded_filter, guarded_weigher
from nodestate.scheduling.selection.weighers import Weigher

TIE_WIDTH: Final = 1 / 128
"""Nodes whose weights are in the same interval of this width are equally good, and are shuffled."""
FULL_REFRESH_SHARE: Final = 1 / 16
"""If a larger share of the rows than this changed, it is faster to weigh all rows."""


class Ranking:
    """The scores of all rows of a fleet for one shape of request. A refresh costs only what changed since the last
    one::

    new --refresh--> exactly the fleet as it is
    exactly the fleet as it was --few rows changed, refresh: these are weighed again--> exactly the fleet as it is
    exactly the fleet as it was --many rows changed, refresh: all are weighed again--> exactly the fleet as it is
    """

    def __init__(
        self, fleet: Fleet, request: Request, filters: Mapping[str, Filter], weighers: Mapping[str, Weigher]
    ) -> None:
        self.score: Scores = np.zeros(0)
        """The score of each row: the higher the better, and -inf if a filter refuses the row."""
        self._fleet = fleet
        """The fleet whose rows are scored."""
        self._request = request
        """A request of the shape that the rows are scored for."""
        self._filters = [guarded_filter(name, filter_) for name, filter_ in filters.items()]
        """All filters, in their order."""
        active = active_weighers(request, weighers)
        self._weighers = [(guarded_weigher(name, weigher), multiplier) for name, weigher, multiplier in active]
        """The weighers that count for the request, with their multipliers."""
        self._by_group = request.group is not None and (
            request.group.policy == "affinity" or any(weigher.by_group for _, weigher, _ in active)
        )
        """Whether a row's score depends on other rows, so that all rows are weighed at each refresh."""
        self._as_of: int | None = None
        """The fleet's count of changes at the last refresh; None before the first one."""
        self._basis = (0, 0, 0)
        """At the last refresh: the numbers of rows, of resource classes, and of changes of the preferred nodes."""

    def refresh(self, shuffle: Scores, bonus: Scores | None = None, bonus_changes: int = 0) -> None:
        """Bring the scores up to date. If this raises ``PolicyError``, it may be called again.

        Args:
            shuffle: A number from 0 to 1 for each row, which decides between equally good rows.
            bonus: A weight to add for each row; None for none.
            bonus_changes: The number of changes of ``bonus`` so far; if it has grown, all rows are weighed.
        """
        fleet = self._fleet
        rows = None
        basis = (len(fleet), len(fleet.amounts), bonus_changes)
        if self._as_of is not None and self._basis == basis and not self._by_group:
            rows = fleet.changed_since(self._as_of)
        if rows is None or len(rows) > FULL_REFRESH_SHARE * len(fleet):
            self.score = self._scored(fleet.all, shuffle, bonus)
        elif rows:
            some = np.array(sorted(set(rows)), np.intp)
            self.score[some] = self._scored(some, shuffle, bonus)
        self._as_of, self._basis = fleet.changes, basis

    def best(self, count: int = 1, exclude: Collection[int] = ()) -> list[int]:
        """Up to ``count`` rows that pass all filters, the best first, without the rows in ``exclude``."""
        score = self.score
        if not len(score):
            return []
        if exclude:
            score = score.copy()
            score[list(exclude)] = -np.inf
        if count == 1:
            row = int(score.argmax())
            return [row] if score[row] != -np.inf else []
        top = np.argpartition(score, -count)[-count:] if count < len(score) else np.arange(len(score))
        top = top[np.argsort(-score[top], kind="stable")]
        return [int(row) for row in top if score[row] != -np.inf]

    def _scored(self, rows: RowIndex, shuffle: Scores, bonus: Scores | None) -> Scores:
        fleet, request = self._fleet, self._request
        total: Scores = np.zeros(count_of(rows))
        for weigh, multiplier in self._weighers:
            total += multiplier * weigh(fleet, rows, request)
        if bonus is not None:
            total += bonus[rows]
        total = np.floor(total / TIE_WIDTH) + shuffle[rows]
        for filter_ in self._filters:
            passed = filter_(fleet, rows, request)
            if passed is False:
                total[:] = -np.inf
            elif passed is not True:
                total[~passed] = -np.inf
        return total


def active_weighers(request: Request, weighers: Mapping[str, Weigher]) -> list[tuple[str, Weigher, float]]:
    """The weighers that count for a request, each with its name and multiplier. Raises ``BadRequestError`` if the
    request gives a weight to a weigher that is not among ``weighers``.
    """
    unknown = sorted(request.weights.keys() - weighers.keys())
    if unknown:
        raise BadRequestError(f"weights.{unknown[0]}", f"no such weigher; there are {', '.join(weighers)}")
    chosen = []
    for name, weigher in weighers.items():
        multiplier = request.weights.get(name, weigher.multiplier)
        if weigher.needs and not getattr(request, weigher.needs):
            continue
        if multiplier:
            chosen.append((name, weigher, multiplier))
    return chosen

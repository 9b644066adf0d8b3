"""The ranking: the score of every node for requests of one shape. A ranking is brought up to date when it is used."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Final

import numpy as np

from nodestate.errors import BadRequestError
from nodestate.scheduling.fleet import Flags, Fleet, RowIndex, Scores, count_of
from nodestate.scheduling.request import Request
from nodestate.scheduling.selection.exclusions import Exclusions
from nodestate.scheduling.selection.filters import Filter, active_filters
from nodestate.scheduling.selection.node_preference import PREFERENCE_BONUS
from nodestate.scheduling.selection.policy_guard import guarded_filter, guarded_weigher
from nodestate.scheduling.selection.weighers import Weigher

TIE_WIDTH: Final = 1 / 128
"""Total weights are rounded down to a multiple of this width. Nodes with the same result are equally good, and their
order is random.
"""
FULL_REFRESH_SHARE: Final = 1 / 16
"""If more than this share of all rows changed, all rows are filtered and weighed again, because that is faster."""


class Ranking:
    """The scores of all rows of a fleet for requests of one shape (``Request.shape``)::

        new --refresh: all rows are filtered and weighed--> up to date
        up to date --rows of the fleet change--> out of date
        out of date --few rows changed, refresh: only these rows are filtered and weighed--> up to date
        out of date --many rows changed, refresh: all rows are filtered and weighed--> up to date

    In all cases the scores after a refresh are the same as if all rows had been filtered and weighed.
    """

    def __init__(
        self, fleet: Fleet, request: Request, filters: Mapping[str, Filter], weighers: Mapping[str, Weigher]
    ) -> None:
        self.score: Scores = np.zeros(0)
        """The score of each row at the last refresh: the higher the better, and -inf if a filter excludes the row."""
        self._fleet = fleet
        """The fleet whose rows are scored."""
        self._request = request
        """Any request of the shape for which the rows are scored."""
        called = active_filters(request, filters)
        self._filters = [guarded_filter(name, filter_) for name, filter_ in called]
        """The filters that are called for the request, in the order in which they are applied."""
        self.exclusions = Exclusions([name for name, _ in called])
        """Which of these filters excludes each row."""
        active = active_weighers(request, weighers)
        self._weighers = [(guarded_weigher(name, weigher), multiplier) for name, weigher, multiplier in active]
        """The weighers that are called for the request, each with its multiplier."""
        self._range = sum(abs(multiplier) for _, _, multiplier in active) + PREFERENCE_BONUS + TIE_WIDTH
        """The largest difference between the total weights of two nodes."""
        self._by_group = request.group is not None and (
            request.group.policy == "affinity"
            or request.spread is not None
            or any(weigher.by_group for _, weigher, _ in active)
        )
        """Whether a row's score depends on members of the group on other rows. If so, each refresh weighs all rows."""
        self._as_of: int | None = None
        """``Fleet.changes`` at the last refresh; None before the first refresh."""
        self._basis = (0, 0, 0)
        """At the last refresh, the number of rows, the number of resource classes, and ``bonus_changes``.

        If one of these numbers differs at the next refresh, all rows are weighed.
        """

    def refresh(self, shuffle: Scores, bonus: Scores | None = None, bonus_changes: int = 0) -> None:
        """Bring the scores up to date.

        Args:
            shuffle: A random number from 0 to 1 for each row, which decides the order of equally good rows.
            bonus: A number for each row to add to its total weight; None to add nothing.
            bonus_changes: How many times ``bonus`` has changed so far (``NodePreference.changes``). If the number is
                another one than at the last refresh, all rows are weighed.

        Raises:
            PolicyError: A filter or weigher failed. The scores remain as the last refresh computed them.
        """
        fleet = self._fleet
        rows = None
        basis = (len(fleet), len(fleet.amounts), bonus_changes)
        if self._as_of is not None and self._basis == basis and not self._by_group:
            rows = fleet.changed_since(self._as_of)
        if rows is None or len(rows) > FULL_REFRESH_SHARE * len(fleet):
            score = self._weighed(fleet.all, shuffle, bonus)
            score[self.exclusions.judge_all(len(fleet), self._flags(fleet.all))] = -np.inf
            self.score = score
        elif rows:
            some = np.array(sorted(set(rows)), np.intp)
            score = self._weighed(some, shuffle, bonus)
            for passed in self._flags(some):
                if passed is False:
                    score[:] = -np.inf
                elif passed is not True:
                    score[~passed] = -np.inf
            behind = self.exclusions.changed(rows)
            if behind is not None:
                self.exclusions.judge_some(behind, self._flags(behind))
            self.score[some] = score
        self._as_of, self._basis = fleet.changes, basis

    def best(
        self, count: int = 1, exclude: Collection[int] = (), losses: Mapping[int, float] = MappingProxyType({})
    ) -> list[int]:
        """Return the best rows that pass all filters, the best first.

        Args:
            count: The largest number of rows to return. Fewer are returned if fewer pass all filters.
            exclude: Rows that are not returned.
            losses: For some rows, how much lower they rank, as a multiple of the range of all total weights.
        """
        score = self.score
        if not len(score):
            return []
        if exclude or losses:
            score = score.copy()
            for row, loss in losses.items():
                score[row] -= self.loss_of_weight(loss) / TIE_WIDTH
            score[list(exclude)] = -np.inf
        if count == 1:
            row = int(np.argmax(score))
            return [row] if score[row] != -np.inf else []
        top = np.argpartition(score, -count)[-count:] if count < len(score) else np.arange(len(score))
        top = top[np.argsort(-score[top], kind="stable")]
        return [int(row) for row in top if score[row] != -np.inf]

    def loss_of_weight(self, loss: float) -> float:
        """Return the total weight that a row loses for a loss of rank (``NodeFaults.losses``)."""
        return loss * self._range

    def _weighed(self, rows: RowIndex, shuffle: Scores, bonus: Scores | None) -> Scores:
        """Weigh rows, and return the score that each of ``rows`` has if no filter excludes it."""
        fleet, request = self._fleet, self._request
        total: Scores = np.zeros(count_of(rows))
        for weigh, multiplier in self._weighers:
            total += multiplier * weigh(fleet, rows, request)
        if bonus is not None:
            total += bonus[rows]
        return np.asarray(np.floor(total / TIE_WIDTH) + shuffle[rows], np.float64)

    def _flags(self, rows: RowIndex) -> list[Flags | bool]:
        """Return the result of each filter for some rows."""
        return [filter_(self._fleet, rows, self._request) for filter_ in self._filters]


def active_weighers(request: Request, weighers: Mapping[str, Weigher]) -> list[tuple[str, Weigher, float]]:
    """Return the weighers that are called for a request, each with its name and its multiplier.

    A weigher is not called if its multiplier is 0, or if the request does not set the field that the weigher needs.

    Args:
        request: The request. ``Request.weights`` may replace the multipliers of weighers.
        weighers: All weighers, by name.

    Raises:
        BadRequestError: ``Request.weights`` contains a name that is not in ``weighers``.
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

"""How good every node is for one kind of request, kept up to date: asked again, it costs what changed.

new --refresh--> exactly the fleet as it is now --rows change--> refresh weighs those rows again --many change--> all anew
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

import numpy as np

from nodestate.errors import BadRequestError
from nodestate.scheduling.fleet import Fleet
from nodestate.scheduling.fleet.row_types import RowIndex, Scores, count_of
from nodestate.scheduling.request import Request
from nodestate.scheduling.selection import policy_guard as asking
from nodestate.scheduling.selection.filters import Filter
from nodestate.scheduling.selection.weighers import Weigher

TIE_WIDTH: Final = 1 / 128
"""Nodes whose weights differ by less count as equally good, and are shuffled."""
ALL_ANEW_SHARE: Final = 1 / 16
"""With more rows changed than this share of all, it is faster to weigh all of them."""


class Ranking:
    """``score[row]``: how good the row is, -inf where a filter is against it. ``shuffle[row]`` in [0, 1) breaks ties."""

    def __init__(
        self, fleet: Fleet, request: Request, filters: Mapping[str, Filter], weighers: Mapping[str, Weigher]
    ) -> None:
        self._fleet = fleet
        self._request = request
        self._filters = [asking.guarded_filter(name, filter_) for name, filter_ in filters.items()]
        weighed = active(request, weighers)
        self._weighs = [(asking.guarded_weigher(name, weigher), multiplier) for name, weigher, multiplier in weighed]
        self._by_group = request.group is not None and (
            request.group.policy == "affinity" or any(weigher.by_group for _, weigher, _ in weighed)
        )
        self._as_of: int | None = None
        self._known = (0, 0, 0)  # rows, resource classes and shares
        self.score: Scores = np.zeros(0)

    def refresh(self, shuffle: Scores, worth: Scores | None = None, shares: int = 0) -> None:
        """Weigh again what changed since the last time. ``worth`` is added to the weights, and all are weighed again when
        ``shares`` is another number. Raises ``PolicyError``, and may be called again.
        """
        fleet = self._fleet
        rows = None
        known = (len(fleet), len(fleet.amounts), shares)
        if self._as_of is not None and self._known == known and not self._by_group:
            rows = fleet.changed_since(self._as_of)
        if rows is None or len(rows) > ALL_ANEW_SHARE * len(fleet):
            self.score = self._weigh(fleet.all, shuffle, worth)
        elif rows:
            some = np.array(sorted(set(rows)), np.intp)
            self.score[some] = self._weigh(some, shuffle, worth)
        self._as_of, self._known = fleet.changes, known

    def best(self, count: int = 1, exclude: Collection[int] = ()) -> list[int]:
        """Up to ``count`` rows that pass, the best first, without those in ``exclude``."""
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

    def _weigh(self, rows: RowIndex, shuffle: Scores, worth: Scores | None) -> Scores:
        fleet, request = self._fleet, self._request
        total: Scores = np.zeros(count_of(rows))
        for weigh, multiplier in self._weighs:
            total += multiplier * weigh(fleet, rows, request)
        if worth is not None:
            total += worth[rows]
        total = np.floor(total / TIE_WIDTH) + shuffle[rows]
        for filter_ in self._filters:
            passed = filter_(fleet, rows, request)
            if passed is False:
                total[:] = -np.inf
            elif passed is not True:
                total[~passed] = -np.inf
        return total


def active(request: Request, weighers: Mapping[str, Weigher]) -> list[tuple[str, Weigher, float]]:
    """The weighers that count for a request, with names and multipliers. Raises ``BadRequestError`` for names there are not."""
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

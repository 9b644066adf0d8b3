"""Which filter excludes each row of a fleet, for counters. Belongs to a ranking.

To judge each changed row at once costs a decision on 10,000 nodes 3 to 7 % of its time. So changed rows are collected,
and judged once they are ``BEHIND_SHARE`` of the fleet. In a fleet of less than 64 nodes, that is at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from nodestate.scheduling.fleet import Flags

MAX_FILTERS_COUNT: Final = 127
"""Most filters of one request: the number of a filter must fit into 8 bits."""
BEHIND_SHARE: Final = 1 / 64
"""Largest share of the rows that changed since they were judged."""


class Exclusions:
    """The first filter that excludes each row, and how many rows each filter excludes.

    Args:
        names: The filters, in the order in which they are applied.
    """

    def __init__(self, names: Sequence[str]) -> None:
        assert len(names) <= MAX_FILTERS_COUNT, f"{len(names)} filters"
        self._names = names
        """The filters."""
        self._first: npt.NDArray[np.int8] = np.zeros(0, np.int8)
        """By row, the number of the first filter that excludes it; the number of filters if none does."""
        self._counts = [0] * (len(names) + 1)
        """By such a number, how many rows have it."""
        self._removed: Mapping[str, int] | None = None
        """The result of ``removed``; None if the counts have changed since."""
        self._changed: set[int] = set()
        """The rows that changed since they were judged."""

    def changed(self, rows: Sequence[int]) -> npt.NDArray[np.intp] | None:
        """Note rows that changed. Returns the rows that are to be judged now; None if none are."""
        self._changed.update(rows)
        if len(self._changed) <= BEHIND_SHARE * len(self._first):
            return None
        return np.array(sorted(self._changed), np.intp)

    def judge_all(self, size: int, flags: Sequence[Flags | bool]) -> Flags:
        """Take the result of each filter for all rows. Returns for each row whether a filter excludes it.

        Args:
            size: The number of rows.
            flags: For each filter, one flag for each row or a single flag for all rows; True if the row passes.
        """
        left: Flags = np.ones(size, np.bool_)
        ones = left.view(np.int8)
        first, number, count = np.zeros(size, np.int8), 0, size
        self._counts = [0] * len(self._counts)
        for at, passed in enumerate(flags):
            if passed is not True:
                first += ones * np.int8(at - number)  # the rows that are left come to this filter
                number = at
                left &= passed
                before, count = count, int(np.count_nonzero(left))
                self._counts[at] = before - count
        self._counts[-1] = count
        self._first = first + ones * np.int8(len(flags) - number)
        self._removed = None
        self._changed.clear()
        return ~left

    def judge_some(self, rows: npt.NDArray[np.intp], flags: Sequence[Flags | bool]) -> None:
        """Take the result of each filter for the rows that ``changed`` returned."""
        table = np.ones((len(flags) + 1, len(rows)), np.bool_)
        for at, passed in enumerate(flags):
            if passed is not True:
                table[at] = passed
        table[-1] = False  # the search for the first False ends here
        first = table.argmin(axis=0)
        for old, new in zip(self._first[rows].tolist(), first.tolist(), strict=True):
            self._counts[old] -= 1
            self._counts[new] += 1
        self._first[rows] = first
        self._removed = None
        self._changed.clear()

    def removed(self) -> Mapping[str, int]:
        """Return by filter how many rows it excluded that no filter before it did, as they were judged last.

        Filters without such rows are missing.
        """
        if self._removed is None:
            self._removed = {name: count for name, count in zip(self._names, self._counts, strict=False) if count}
        return self._removed

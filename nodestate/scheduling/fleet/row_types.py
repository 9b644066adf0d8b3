"""Array types of filters and weighers: rows of a fleet, and one value for each of these rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Flags = npt.NDArray[np.bool_]
"""A flag for each row, as a filter returns it."""
Scores = npt.NDArray[np.float64]
"""A score for each row, as a weigher returns it."""
RowAmounts = npt.NDArray[np.int64]
"""An amount of one resource class for each row."""
RowIndex = slice | npt.NDArray[np.intp]
"""Rows of a fleet: a slice for all of them, which costs no copy, or their numbers."""


def count_of(rows: RowIndex) -> int:
    """The number of rows that an index selects."""
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)

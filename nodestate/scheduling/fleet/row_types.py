"""How filters and weighers say which nodes: all of a fleet, or some."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Flags = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
RowIndex = slice | npt.NDArray[np.intp]
"""Rows of a fleet: a slice costs no copy."""


def count_of(rows: RowIndex) -> int:
    """How many rows these are."""
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)

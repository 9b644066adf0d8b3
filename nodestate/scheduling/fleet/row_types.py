"""Array types for filters and weighers: a selection of rows, and arrays with one value for each selected row."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Flags = npt.NDArray[np.bool_]
"""One flag for each selected row, as a filter returns them."""
Scores = npt.NDArray[np.float64]
"""One number for each selected row, as a weigher returns them."""
RowAmounts = npt.NDArray[np.int64]
"""One amount for each selected row, all of one resource class."""
RowIndex = slice | npt.NDArray[np.intp]
"""A selection of rows to index the fleet's arrays with: the slice of all rows, which copies nothing, or an array of row
numbers.
"""


def count_of(rows: RowIndex) -> int:
    """Return the number of selected rows."""
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)

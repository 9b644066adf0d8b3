"""Filters and weighers of others are asked through these, so what fails, or gives what can't be meant, is named.

Ours are asked as they are: they keep to it, and are asked on every decision.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np

from nodestate.errors import PolicyError
from nodestate.scheduling.fleet import Fleet
from nodestate.scheduling.fleet.row_types import Flags, RowIndex, Scores, count_of
from nodestate.scheduling.request import Request
from nodestate.scheduling.selection.filters import FILTERS, Filter
from nodestate.scheduling.selection.weighers import WEIGHERS, Weigher

ROUNDING: Final = 1e-6
"""How far beyond 0 to 1 a weight may lie for want of precision."""


Weigh = Callable[[Fleet, RowIndex, Request], Scores | float]


def guarded_filter(name: str, filter_: Filter) -> Filter:
    """The filter, to be asked: gives a flag for each row, or one for all; raises ``PolicyError`` where it is not ours."""
    return filter_ if FILTERS.get(name) is filter_ else partial(_checked_flags, name, filter_)


def guarded_weigher(name: str, weigher: Weigher) -> Weigh:
    """A weigher's function, to be asked: gives a weight for each row, or one for all, without the multiplier.

    Raises ``PolicyError`` where it is not ours; for weights out of range where all rows are weighed, not where few are.
    """
    return weigher.weigh if WEIGHERS.get(name) is weigher else partial(_weight, name, weigher)


def _checked_flags(name: str, filter_: Filter, fleet: Fleet, rows: RowIndex, request: Request) -> Flags | bool:
    try:
        passed: Any = filter_(fleet, rows, request)
    except Exception as error:  # somebody else's code may raise whatever it likes
        raise PolicyError("filter", name, _place(filter_), f"failed: {error!r}") from error
    if passed is True or passed is False:
        return passed
    count = count_of(rows)
    if (
        not isinstance(passed, np.ndarray | np.generic)
        or passed.dtype != np.bool_
        or passed.shape not in ((), (count,))
    ):
        why = f"gave {_kind(passed)}; want a bool, or an array of {count:,} of them"
        raise PolicyError("filter", name, _place(filter_), why)
    return np.asarray(passed, np.bool_) if passed.shape else bool(passed)


def _weight(name: str, weigher: Weigher, fleet: Fleet, rows: RowIndex, request: Request) -> Scores | float:
    try:
        found: Any = weigher.weigh(fleet, rows, request)
    except Exception as error:  # somebody else's code may raise whatever it likes
        raise PolicyError("weigher", name, _place(weigher.weigh), f"failed: {error!r}") from error
    if type(found) is not float:
        count = count_of(rows)
        numbers = np.asarray(found) if isinstance(found, int | float | np.ndarray | np.generic) else None
        if numbers is None or numbers.dtype.kind not in "fiub" or numbers.shape not in ((), (count,)):
            why = f"gave {_kind(found)}; want a number, or an array of {count:,} of them"
            raise PolicyError("weigher", name, _place(weigher.weigh), why)
    if isinstance(rows, slice) and np.size(found):
        least, most = float(np.min(found)), float(np.max(found))
        if not (least >= -ROUNDING and most <= 1.0 + ROUNDING):  # so that nan is none, either
            why = f"gave weights from {least:g} to {most:g}; want 0 to 1"
            raise PolicyError("weigher", name, _place(weigher.weigh), why)
    weights: Scores | float = found
    return weights


def _place(function: Callable[..., Any]) -> str:
    """Where it is, as an entry point says it."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}, shape {value.shape}"
    return f"a {type(value).__name__}"

"""The policy guard: checks the results of filters and weighers that other packages add.

If such a filter or weigher fails or returns an invalid value, the guard raises a ``PolicyError`` that names it. The
filters and weighers of nodestate are not checked: their tests do that, and checks would slow down every decision.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np

from nodestate.errors import PolicyError
from nodestate.scheduling.fleet import Flags, Fleet, RowIndex, Scores, count_of
from nodestate.scheduling.request import Request
from nodestate.scheduling.selection.filters import FILTERS, Filter
from nodestate.scheduling.selection.weighers import WEIGHERS, Weigher

ROUNDING: Final = 1e-6
"""How far a weight may be below 0 or above 1: a correct weigher may be off by a rounding error."""


Weigh = Callable[[Fleet, RowIndex, Request], Scores | float]
"""The type of a weigher's function: returns one weight for each row or for all rows, not yet multiplied."""


def guarded_filter(name: str, filter_: Filter) -> Filter:
    """Return a function that calls the filter and checks the result.

    The returned function raises ``PolicyError`` if the filter raises any exception. It also raises ``PolicyError``
    unless the filter returns a bool, or an array with one bool for each row. A filter of nodestate is returned
    unchanged, without checks.
    """
    return filter_ if FILTERS.get(name) is filter_ else partial(_checked_flags, name, filter_)


def guarded_weigher(name: str, weigher: Weigher) -> Weigh:
    """Return a function that calls the weigher's function and checks the result.

    The returned function raises ``PolicyError`` if the weigher raises any exception. It also raises ``PolicyError``
    unless the weigher returns a number, or an array with one number for each row. Weights below 0 or above 1 raise
    ``PolicyError`` if all rows are weighed; if only some rows are weighed, the range is not checked. The function of a
    weigher of nodestate is returned unchanged, without checks.
    """
    return weigher.weigh if WEIGHERS.get(name) is weigher else partial(_checked_weights, name, weigher)


def _checked_flags(name: str, filter_: Filter, fleet: Fleet, rows: RowIndex, request: Request) -> Flags | bool:
    """Call a filter and check its result, as ``guarded_filter`` describes."""
    try:
        passed: Any = filter_(fleet, rows, request)
    except Exception as error:  # code of another package may raise anything
        raise PolicyError("filter", name, _import_path(filter_), f"failed: {error!r}") from error
    if passed is True or passed is False:
        return passed
    count = count_of(rows)
    if (
        not isinstance(passed, np.ndarray | np.generic)
        or passed.dtype != np.bool_
        or passed.shape not in ((), (count,))
    ):
        reason = f"returned {_description(passed)}; want a bool, or an array of {count:,} of them"
        raise PolicyError("filter", name, _import_path(filter_), reason)
    return np.asarray(passed, np.bool_) if passed.shape else bool(passed)


def _checked_weights(name: str, weigher: Weigher, fleet: Fleet, rows: RowIndex, request: Request) -> Scores | float:
    """Call a weigher's function and check its result, as ``guarded_weigher`` describes."""
    try:
        found: Any = weigher.weigh(fleet, rows, request)
    except Exception as error:  # code of another package may raise anything
        raise PolicyError("weigher", name, _import_path(weigher.weigh), f"failed: {error!r}") from error
    if type(found) is not float:
        count = count_of(rows)
        numbers = np.asarray(found) if isinstance(found, int | float | np.ndarray | np.generic) else None
        if numbers is None or numbers.dtype.kind not in "fiub" or numbers.shape not in ((), (count,)):
            reason = f"returned {_description(found)}; want a number, or an array of {count:,} of them"
            raise PolicyError("weigher", name, _import_path(weigher.weigh), reason)
    if isinstance(rows, slice) and np.size(found):
        least, most = float(np.min(found)), float(np.max(found))
        if not (least >= -ROUNDING and most <= 1.0 + ROUNDING):  # written so that NaN fails
            reason = f"returned weights from {least:g} to {most:g}; want 0 to 1"
            raise PolicyError("weigher", name, _import_path(weigher.weigh), reason)
    weights: Scores | float = found
    return weights


def _import_path(function: Callable[..., Any]) -> str:
    """Return a function's module and name in the form ``module:name``, as entry points are written."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def _description(value: Any) -> str:
    """Describe an invalid result for an error message: its type, and for an array also the shape."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}, shape {value.shape}"
    return f"a {type(value).__name__}"

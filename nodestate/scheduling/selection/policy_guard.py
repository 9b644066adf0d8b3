"""The policy guard: calls filters and weighers of other packages, and names the one that fails or returns nonsense.

The filters and weighers of nodestate are called directly: they are tested, and they are called for every decision.
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
"""How far a weight may be outside of 0 to 1, for rounding errors."""


Weigh = Callable[[Fleet, RowIndex, Request], Scores | float]
"""A weigher's function: returns a weight for each row, or one for all, before the multiplier."""


def guarded_filter(name: str, filter_: Filter) -> Filter:
    """The filter as a function that raises ``PolicyError`` if the filter fails, or returns neither a flag for each row
    nor one for all. A filter of nodestate is returned unchanged.
    """
    return filter_ if FILTERS.get(name) is filter_ else partial(_checked_flags, name, filter_)


def guarded_weigher(name: str, weigher: Weigher) -> Weigh:
    """The weigher as a function that raises ``PolicyError`` if the weigher fails, or returns neither a weight for each
    row nor one for all. If all rows are weighed, weights outside of 0 to 1 are an error, too; if only some are, the
    weights' range is not checked. The function of a weigher of nodestate is returned unchanged.
    """
    return weigher.weigh if WEIGHERS.get(name) is weigher else partial(_checked_weights, name, weigher)


def _checked_flags(name: str, filter_: Filter, fleet: Fleet, rows: RowIndex, request: Request) -> Flags | bool:
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
    """The function's module and name, as an entry point has them."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def _description(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}, shape {value.shape}"
    return f"a {type(value).__name__}"

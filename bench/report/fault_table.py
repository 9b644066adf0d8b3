"""One table of all numbered faults, for the terminal and for the report."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from bench.fault_run import AGE_ERROR, ERRORS, HEALED, HEALED_FROM_END
from bench.record import Case
from bench.report.number_format import quantity

HEAD: Final = (
    "row",
    "fault",
    "healed after",
    "after the end of its cause",
    "errors",
    AGE_ERROR,
    "other figures",
    "reports of nodestate",
)
LONG_COLUMNS_COUNT: Final = 2
"""The last columns, whose cells are sentences."""
_COLUMNS: Final = (HEALED, HEALED_FROM_END, ERRORS, AGE_ERROR)


def is_numbered(case: Case) -> bool:
    """Whether a case is one of a numbered fault."""
    return HEALED in case.measures


def fault_rows(cases: Iterable[Case]) -> list[list[str]]:
    """Return one row for each numbered fault among the cases, with the columns of ``HEAD``."""
    rows = []
    for case in filter(is_numbered, cases):
        _, number, fault = case.design.split(": ", 2)
        figures = {name: quantity(one.max, one.unit) for name, one in case.measures.items()}
        others = "; ".join(f"{name}: {text}" for name, text in figures.items() if name not in _COLUMNS)
        rows.append(
            [
                number,
                fault,
                figures[HEALED],
                figures[HEALED_FROM_END],
                f"{case.measures[ERRORS].max:,.0f}",
                figures[AGE_ERROR],
                others or "–",
                "; ".join(case.said) or "nothing",
            ]
        )
    return rows

"""Columns that filters and weighers of other packages compute from the nodes' metrics, namespaces and other state.

A fleet has arrays only for the fields that nodestate's own filters and weighers need. A state column is made when it is
asked for the first time. Later only the nodes that changed are decoded again, so that it may be asked for in every
decision.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np

from nodestate.errors import CorruptItemError
from nodestate.model import NodeRecord, Version
from nodestate.scheduling.fleet.change_log import ChangeLog
from nodestate.scheduling.fleet.node_reports import NodeReports
from nodestate.scheduling.fleet.row_types import Scores

KEPT_COLUMNS_COUNT: Final = 64
"""The largest number of state columns that a fleet keeps. The least recently used one is dropped first."""

StateFunction = Callable[[Mapping[str, Any]], float]
"""The type of a function that computes a number from a node's state."""

_decode_metrics = msgspec.msgpack.Decoder(dict[str, float]).decode


@dataclass(slots=True)
class _StateColumn:
    """One number for each row."""

    values: Scores = field(default_factory=lambda: np.zeros(0))
    """The numbers; NaN for nodes that are gone or whose state is unknown."""
    versions: list[Version | None] = field(default_factory=list)
    """The version of the state from which each row's number was computed; None if it was not computed."""
    as_of: int | None = None
    """The number of changes in the log for which all numbers are up to date; None before the first time."""


class StateColumns:
    """The state columns of one fleet.

    Args:
        reports: The nodes' records.
        version: The version of the state that each row shows.
        log: The log of changed rows.
    """

    def __init__(self, reports: NodeReports, version: Sequence[Version], log: ChangeLog) -> None:
        self._reports = reports
        """The nodes' records."""
        self._version = version
        """The version of the state that each row shows. The list belongs to the fleet's columns."""
        self._log = log
        """The log of changed rows."""
        self._columns: OrderedDict[str | StateFunction, _StateColumn] = OrderedDict()
        """The columns by the name of the metric, or by the function. The most recently used one is the last."""

    def metric(self, name: str) -> Scores:
        """Return the value of a metric for each row, such as ``cpu.percent``; NaN if a node does not report it."""

        def value(record: NodeRecord) -> float:
            try:
                return _decode_metrics(record.metrics).get(name, np.nan) if record.metrics else np.nan
            except (msgspec.DecodeError, ValueError):  # damaged
                return np.nan

        return self._current(name, value)

    def computed(self, function: StateFunction) -> Scores:
        """Return a number for each row that a function computes from the node's state; NaN for nodes without a state.

        Args:
            function: A function of the state, as in an event: a map with ``metrics``, ``namespaces`` and the other
                fields that the node reports. It is called again only for nodes that changed, so the result may depend
                on nothing else. Pass the same function each time, and not a new ``lambda``.
        """

        def value(record: NodeRecord) -> float:
            try:
                state = record.state()
            except CorruptItemError:
                return np.nan
            return float(function(state))

        return self._current(function, value)

    def _current(self, key: str | StateFunction, value: Callable[[NodeRecord], float]) -> Scores:
        """Return the column with this key, with new numbers for the rows that changed since the last call."""
        column = self._columns.setdefault(key, _StateColumn())
        self._columns.move_to_end(key)
        if len(self._columns) > KEPT_COLUMNS_COUNT:
            self._columns.popitem(last=False)
        size = len(self._version)
        if len(column.values) < size:
            column.values = np.concatenate([column.values, np.full(2 * size - len(column.values), np.nan)])
        column.versions += [None] * (size - len(column.versions))
        changed = self._log.since(column.as_of) if column.as_of is not None else None
        for row in range(size) if changed is None else set(changed):
            if column.versions[row] != self._version[row]:
                record = self._reports.record(row)
                column.values[row] = value(record) if record is not None and record.live else np.nan
                column.versions[row] = self._version[row]
        column.as_of = self._log.count
        return column.values

"""The scheduler's columns: capacity and usage by resource class, as numpy arrays over all nodes.

The rows are the slots of the partitions, one partition after the other. Arrays that a view returned never change: for
the next view they are copied, and the rows that changed are written into the copies. If nothing changed, the next view
returns the same arrays.
"""

from __future__ import annotations

import itertools
import operator
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nodestate.model import STATUSES, NodeRecord
from nodestate.view.table import Table

Amounts = npt.NDArray[np.int64]

_STATUS_CODE = {status: code for code, status in enumerate(STATUSES)}
NOT_THERE = 255
"""Status of a row to skip."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a view, all with the same rows."""

    names: Sequence[str]
    """Name of each row's node."""
    capacity: Mapping[str, Amounts]
    """By resource class, the capacity of each row; 0 if the node does not have the class."""
    usage: Mapping[str, Amounts]
    """By resource class, the usage of each row; 0 if the node does not have the class."""
    status: npt.NDArray[np.uint8]
    """Index into ``model.STATUSES``; ``NOT_THERE`` for rows to skip: gone, without a state, or left out of the view."""

    @property
    def free(self) -> dict[str, Amounts]:
        """Capacity minus usage by resource class; negative if a node is overcommitted."""
        return {name: self.capacity[name] - self.usage[name] for name in self.capacity}


@dataclass(frozen=True, slots=True)
class _Base:
    """The columns of all nodes of some tables."""

    tables: tuple[Table | None, ...]
    """By partition, its table."""
    starts: tuple[int, ...]
    """By partition, its first row; the row of a node is this plus its slot."""
    names: list[str]
    status: npt.NDArray[np.uint8]
    amounts: dict[str, Amounts]
    """By resource class, capacity and usage as an array of two rows."""


class ColumnStore:
    """Computes the columns of each view from the view before. Belongs to one reader; safe for several threads."""

    def __init__(self) -> None:
        # Columns of the last view, before nodes are left out.
        self._base = _Base((), (), [], np.zeros(0, np.uint8), {})
        # Held while the columns of a view are computed.
        self._lock = threading.Lock()

    def of(self, tables: Sequence[Table | None], left_out: Collection[str] = ()) -> Columns:
        """The columns of a view's tables, without the nodes named in ``left_out``."""
        with self._lock:
            base = self._base = _advanced(self._base, tuple(tables))
        status = base.status
        if left_out:
            status = status.copy()
            row_of = {name: row for row, name in enumerate(base.names)}
            status[[row_of[name] for name in left_out if name in row_of]] = NOT_THERE
            status.flags.writeable = False
        classes = sorted(base.amounts)
        capacity = {name: base.amounts[name][0] for name in classes}
        return Columns(base.names, capacity, {name: base.amounts[name][1] for name in classes}, status)


def _advanced(before: _Base, tables: tuple[Table | None, ...]) -> _Base:
    """The columns of these tables: a copy of the columns before, with the changed rows written again."""
    if len(before.tables) == len(tables) and all(map(operator.is_, before.tables, tables)):
        return before
    if len(before.tables) != len(tables):  # another number of partitions: no row keeps its number
        before = _Base((None,) * len(tables), (0,) * len(tables), [], np.zeros(0, np.uint8), {})
    kept = [
        old if old and new and old.epoch == new.epoch and old.size <= new.size else None
        for old, new in zip(before.tables, tables, strict=True)
    ]
    sizes = [table.size if table is not None else 0 for table in tables]
    if [old.size if old is not None else -1 for old in kept] == sizes:
        starts, names = before.starts, before.names
        status, amounts = before.status.copy(), {name: array.copy() for name, array in before.amounts.items()}
    else:
        *starts_and_end, total = itertools.accumulate(sizes, initial=0)
        starts = tuple(starts_and_end)
        names = [name for table in tables if table is not None for name in table.names[: table.size]]
        status, amounts = (
            np.full(total, NOT_THERE, np.uint8),
            {name: np.zeros((2, total), np.int64) for name, array in before.amounts.items() if array.any()},
        )
        for old, was, start in zip(kept, before.starts, starts, strict=True):
            if old is not None:
                here, there = slice(start, start + old.size), slice(was, was + old.size)
                status[here] = before.status[there]
                for name, array in amounts.items():
                    array[:, here] = before.amounts[name][:, there]
    rows = [
        (start + slot, table.record(row))
        for table, old, start in zip(tables, kept, starts, strict=True)
        if table is not None and table is not old
        for slot, row in table.rows.differing(old.rows if old is not None else None)
    ]
    write_rows(rows, status, amounts)
    status.flags.writeable = False
    for array in amounts.values():
        array.flags.writeable = False
    return _Base(tables, starts, names, status, amounts)


def write_rows(rows: list[tuple[int, NodeRecord]], status: npt.NDArray[np.uint8], amounts: dict[str, Amounts]) -> None:
    """Write records into their rows of ``status`` and ``amounts``. Adds arrays for new resource classes.

    Args:
        rows: row numbers and records.
        status: the array of statuses.
        amounts: by resource class, capacity and usage.
    """
    by_classes: dict[str, tuple[list[int], list[NodeRecord]]] = {}
    for row, record in rows:
        where, records = by_classes.setdefault(record.classes, ([], []))
        where.append(row)
        records.append(record)
    for joined, (where, records) in by_classes.items():
        at_rows = np.array(where)
        status[at_rows] = [_STATUS_CODE[record.status] if record.live else NOT_THERE for record in records]
        classes = joined.split()
        for name in amounts.keys() - set(classes):
            amounts[name][:, at_rows] = 0
        packed = np.frombuffer(b"".join([record.columns for record in records]), "<i8")
        by_class = packed.reshape(len(records), 2, len(classes))
        for at, name in enumerate(classes):
            if name not in amounts:
                amounts[name] = np.zeros((2, len(status)), np.int64)
            amounts[name][:, at_rows] = by_class[:, :, at].T

"""The scheduler's columns: capacity and usage by resource class, as numpy arrays over all nodes.

A row is a node's slot, partitions one after the other. Blocks of partitions are kept from view to view; of a
partition that changed, a copy is made and the rows of changed chunks are written again: cost follows change,
and arrays that a view gave out never change.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nodestate.model import STATUSES, NodeRecord
from nodestate.table import Table

Amounts = npt.NDArray[np.int64]

_STATUS_CODE = {status: code for code, status in enumerate(STATUSES)}
NOT_THERE = 255


@dataclass(frozen=True, slots=True)
class Columns:
    """``names[row]`` is a node; ``capacity[c][row]`` and ``usage[c][row]`` its amounts of resource class c, 0 where it
    has none. ``status[row]`` indexes ``model.STATUSES``; 255 marks rows to pass over: gone, unknown, or left out.
    """

    names: Sequence[str]
    capacity: Mapping[str, Amounts]
    usage: Mapping[str, Amounts]
    status: npt.NDArray[np.uint8]

    @property
    def free(self) -> dict[str, Amounts]:
        """Capacity minus usage by resource class; may be negative where a node is overcommitted."""
        return {name: self.capacity[name] - self.usage[name] for name in self.capacity}


class _Block:
    """One partition's columns as of one table."""

    def __init__(self, table: Table | None, before: _Block | None) -> None:
        self.table = table
        size = table.size if table is not None else 0
        old = before.table if before is not None else None
        if table is None or old is None or old.epoch != table.epoch or old.size > size:
            before = old = None
        rows = _changed_rows(table, old)
        classes = {name for joined in {record.classes for _, record in rows} for name in joined.split()}
        self.names: list[str] = before.names if before is not None else []
        self.status = np.full(size, NOT_THERE, np.uint8)
        if before is None:
            self.amounts = {name: np.zeros((2, size), np.int64) for name in classes}
        else:
            kept = len(before.status)
            self.status[:kept] = before.status
            self.amounts = {name: np.zeros((2, size), np.int64) for name in classes | before.amounts.keys()}
            for name, amounts in before.amounts.items():
                self.amounts[name][:, :kept] = amounts
        if len(self.names) < size and table is not None:
            self.names = table.names[:size]
        self._write(rows)

    def _write(self, rows: list[tuple[int, NodeRecord]]) -> None:
        alike: dict[str, list[tuple[int, NodeRecord]]] = {}
        for row, record in rows:
            self.status[row] = _STATUS_CODE[record.status] if record.live else NOT_THERE
            alike.setdefault(record.classes, []).append((row, record))
        for joined, members in alike.items():
            classes = joined.split()
            where = np.array([row for row, _ in members])
            for name in self.amounts.keys() - set(classes):
                self.amounts[name][:, where] = 0
            if not classes:
                continue
            packed = np.frombuffer(b"".join([record.columns for _, record in members]), "<i8")
            by_class = packed.reshape(len(members), 2, len(classes))
            for at, name in enumerate(classes):
                self.amounts[name][:, where] = by_class[:, :, at].T


def _changed_rows(table: Table | None, old: Table | None) -> list[tuple[int, NodeRecord]]:
    """The rows that are not the very same record as before."""
    if table is None:
        return []
    return [(slot, table.record(row)) for slot, row in table.rows.differing(old.rows if old is not None else None)]


class ColumnStore:
    """Makes columns for views, from those of the view before. Belongs to one reader; safe for several threads."""

    def __init__(self) -> None:
        self._blocks: list[_Block] = []
        self._parts: list[list[str]] = []
        self._names: list[str] = []
        self._lock = threading.Lock()

    def of(self, tables: Sequence[Table | None], left_out: Collection[str] = ()) -> Columns:
        """The columns of a view's tables."""
        with self._lock:
            before = self._blocks if len(self._blocks) == len(tables) else [None] * len(tables)
            blocks = [
                old if old is not None and old.table is table else _Block(table, old)
                for table, old in zip(tables, before, strict=True)
            ]
            self._blocks = blocks
            if [id(block.names) for block in blocks] != [id(part) for part in self._parts]:
                self._parts = [block.names for block in blocks]
                self._names = [name for part in self._parts for name in part]
            names = self._names
        classes = sorted({name for block in blocks for name in block.amounts})
        status = np.concatenate([block.status for block in blocks])
        capacity: dict[str, Amounts] = {}
        usage: dict[str, Amounts] = {}
        for name in classes:
            both = np.concatenate(
                [b.amounts[name] if name in b.amounts else np.zeros((2, len(b.status)), np.int64) for b in blocks],
                axis=1,
            )
            both.flags.writeable = False
            capacity[name], usage[name] = both[0], both[1]
        if left_out:
            row_of = {name: row for row, name in enumerate(names)}
            status[[row_of[name] for name in left_out if name in row_of]] = NOT_THERE
        status.flags.writeable = False
        return Columns(names, capacity, usage, status)

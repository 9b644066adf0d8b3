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
from nodestate.table import CHUNK_SLOTS, Table

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
        known = (
            before is not None and before.table is not None and table is not None and before.table.epoch == table.epoch
        )
        old = before.table.chunks if known and before is not None and before.table is not None else ()
        chunks = table.chunks if table is not None else ()
        changed = [n for n, chunk in enumerate(chunks) if n >= len(old) or old[n] is not chunk]
        rows = [(n * CHUNK_SLOTS + i, record) for n in changed for i, record in enumerate(chunks[n])]
        classes = {name for _, record in rows for name in record.classes.split()}
        if known and before is not None:
            classes |= before.amounts.keys()
        self.amounts: dict[str, Amounts] = {}
        self.names: list[str] = []
        self.status = np.full(size, NOT_THERE, np.uint8)
        for name in sorted(classes):
            self.amounts[name] = np.zeros((2, size), np.int64)
        if known and before is not None:
            kept = len(before.status)
            self.status[:kept] = before.status
            for name, amounts in before.amounts.items():
                self.amounts[name][:, :kept] = amounts
            self.names = list(before.names)
        self._write(rows)

    def _write(self, rows: list[tuple[int, NodeRecord]]) -> None:
        alike: dict[str, list[tuple[int, NodeRecord]]] = {}
        for row, record in rows:
            if row >= len(self.names):
                self.names.append(record.name)
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


class ColumnStore:
    """Makes columns for views, from those of the view before. Belongs to one reader; safe for several threads."""

    def __init__(self) -> None:
        self._blocks: list[_Block] = []
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
        names = [name for block in blocks for name in block.names]
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

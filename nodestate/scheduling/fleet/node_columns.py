"""The nodes of a fleet as numpy arrays: one row for each node, changed in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from nodestate.model import NEVER, STATUSES, NodeRecord, Version
from nodestate.scheduling.fleet.bitsets import WordBits
from nodestate.scheduling.fleet.row_types import Flags
from nodestate.view.columns import NOT_THERE, Amounts, write_rows

N = TypeVar("N", bound=np.generic)

UP = STATUSES.index("up")
DOWN = STATUSES.index("down")
FIRST_ROWS = 256
"""Rows that the arrays have room for at first; they double when they are full."""


class NodeColumns:
    """The state of each node, by row. A node gets its row when it first appears and keeps it, also if the node
    moves to another partition, or readers follow another design. The arrays are longer than there are rows.
    """

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        """The row of each node."""
        self.names: list[str] = []
        """The node of each row."""
        self.version: list[Version] = []
        """The version of the node's state that each row is of."""
        self.amounts: dict[str, Amounts] = {}
        """For each resource class an array of two lines: capacity and usage of each row."""
        self.free: dict[str, Amounts] = {}
        """For each resource class what each row has left: capacity less usage and claims; may be negative."""
        self.status: npt.NDArray[np.uint8] = np.full(FIRST_ROWS, NOT_THERE, np.uint8)
        """The index of each row's status in ``STATUSES``; ``NOT_THERE`` if the node is gone."""
        self.usable: Flags = np.zeros(FIRST_ROWS, np.bool_)
        """Whether an instance may be placed on each row: the node is up, not left out of the view and not blocked."""
        self.zone: npt.NDArray[np.int32] = np.zeros(FIRST_ROWS, np.int32)
        """The code of each row's availability zone, by ``zones``."""
        self.zones: dict[str, int] = {"": 0}
        """The code of each availability zone."""
        self.traits = WordBits()
        """The traits of each row, as bits."""
        self.aggregates = WordBits()
        """The aggregates of each row, as bits."""
        self.traits.grow(FIRST_ROWS)
        self.aggregates.grow(FIRST_ROWS)

    @property
    def capacity(self) -> int:
        """The number of rows that the arrays have room for."""
        return len(self.status)

    def add(self, name: str) -> int:
        """Give a node that has none the next row, and return the row."""
        row = self.rows[name] = len(self.names)
        self.names.append(name)
        self.version.append(NEVER)
        if row >= len(self.status):
            self._grow(2 * len(self.status))
        return row

    def write(self, rows: list[tuple[int, NodeRecord]], at_rows: npt.NDArray[np.intp]) -> Sequence[str]:
        """Write status and amounts of these records, and the free amounts as if nothing were claimed.

        Args:
            rows: Row numbers with the records to write there.
            at_rows: The same row numbers, as an array.

        Returns:
            The resource classes that no row had before.
        """
        known = len(self.amounts)
        write_rows(rows, self.status, self.amounts)
        new = [name for name in self.amounts if name not in self.free] if len(self.amounts) != known else []
        for name in new:
            self.free[name] = np.zeros(len(self.status), np.int64)
        for name, (capacity, usage) in self.amounts.items():
            self.free[name][at_rows] = capacity[at_rows] - usage[at_rows]
        self.usable[at_rows] = self.status[at_rows] == UP
        return new

    def set_claimed(self, resource: str, row: int, claimed: int) -> None:
        """Write the free amount of a resource class on a row, less ``claimed``. Ignored for a class that no row has."""
        amounts = self.amounts.get(resource)
        if amounts is not None:
            self.free[resource][row] = amounts[0][row] - amounts[1][row] - claimed

    def set_placement(self, row: int, zone: str, traits: tuple[str, ...], aggregates: tuple[str, ...]) -> None:
        """Write zone, traits and aggregates of a row, in place of its earlier ones."""
        self.zone[row] = self.zones.setdefault(zone, len(self.zones))
        self.traits.put(row, traits)
        self.aggregates.put(row, aggregates)

    def _grow(self, size: int) -> None:
        self.status = _lengthened(self.status, size, NOT_THERE)
        self.usable = _lengthened(self.usable, size, False)
        self.zone = _lengthened(self.zone, size, 0)
        for name, free in self.free.items():
            more = np.zeros((2, size - len(free)), np.int64)
            self.amounts[name] = np.concatenate([self.amounts[name], more], axis=1)
            self.free[name] = _lengthened(free, size, 0)
        self.traits.grow(size)
        self.aggregates.grow(size)


def _lengthened(array: npt.NDArray[N], size: int, fill: object) -> npt.NDArray[N]:
    return np.concatenate([array, np.full(size - len(array), fill, array.dtype)])

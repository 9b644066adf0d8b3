"""The arrays of a fleet: the state of every node in numpy arrays, one row for each node. The arrays change in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from nodestate.model import NEVER, STATUSES, NodeRecord, Version
from nodestate.scheduling.fleet.allocation_units import AllocationUnits
from nodestate.scheduling.fleet.bitsets import WordBits
from nodestate.scheduling.fleet.placement_fields import PlacementFields
from nodestate.scheduling.fleet.row_types import Flags
from nodestate.view.columns import NOT_THERE, Amounts, write_rows

N = TypeVar("N", bound=np.generic)

UP = STATUSES.index("up")
"""The code of the status ``up`` in ``NodeColumns.status``."""
DOWN = STATUSES.index("down")
"""The code of the status ``down`` in ``NodeColumns.status``."""
FIRST_ROWS = 256
"""The number of rows for which new arrays have room. When the arrays are full, their length doubles."""


class NodeColumns:
    """The state of each node, by row.

    A node gets a row when it first appears. It keeps the row even if it comes into another partition, or if readers
    switch to another design. The arrays are longer than the number of rows, so that not every new node lengthens them.
    """

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        """The row number of each node, by the node's name."""
        self.names: list[str] = []
        """The name of each row's node."""
        self.version: list[Version] = []
        """The version of the node's state that each row shows."""
        self.amounts: dict[str, Amounts] = {}
        """For each resource class an array with two lines: line 0 is the capacity of each row, line 1 the usage."""
        self.free: dict[str, Amounts] = {}
        """For each resource class the free amount of each row: capacity, minus usage, minus claims. May be negative."""
        self.status: npt.NDArray[np.uint8] = np.full(FIRST_ROWS, NOT_THERE, np.uint8)
        """The status of each row's node: an index into ``STATUSES``.

        It is ``NOT_THERE`` if the node is gone, or if its state is unknown.
        """
        self.usable: Flags = np.zeros(FIRST_ROWS, np.bool_)
        """Whether instances may be placed on each row's node (``Fleet.usable``)."""
        self.zone: npt.NDArray[np.int32] = np.zeros(FIRST_ROWS, np.int32)
        """The availability zone of each row's node, as a number from ``zones``."""
        self.zones: dict[str, int] = {"": 0}
        """The number that stands for each availability zone in ``zone``, by the name of the zone."""
        self.traits = WordBits()
        """The traits of each row, as bits."""
        self.aggregates = WordBits()
        """The aggregates of each row, as bits."""
        self.taints = WordBits()
        """The taints of each row, as bits."""
        self._has_taints = False
        """Whether a row ever had a taint. Most fleets have none."""
        self.units = AllocationUnits()
        """The units in which each row's node gives its resources."""
        self._grow_words(FIRST_ROWS)

    @property
    def capacity(self) -> int:
        """The number of rows for which the arrays have room."""
        return len(self.status)

    def add(self, name: str) -> int:
        """Give a new node the next row, and return the row. The node must not have a row already."""
        row = self.rows[name] = len(self.names)
        self.names.append(name)
        self.version.append(NEVER)
        if row >= len(self.status):
            self._grow(2 * len(self.status))
        return row

    def write(self, rows: list[tuple[int, NodeRecord]], at_rows: npt.NDArray[np.intp]) -> Sequence[str]:
        """Write the status and the amounts of some nodes into their rows.

        The new ``free`` does not consider claims, and the new ``usable`` considers the status only. The caller must
        correct both for rows that have claims, and ``usable`` also for nodes that the view left out.

        Args:
            rows: Each row to write, with the record of its node.
            at_rows: The same row numbers, as an array.

        Returns:
            The resource classes that no row had before. If some of them were claimed already, the caller must also
            correct ``free`` on the rows with such claims.
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
        """Write the free amount of a resource class on a row: capacity, minus usage, minus ``claimed``.

        Does nothing if no node has this resource class, because there is no array for it.
        """
        amounts = self.amounts.get(resource)
        if amounts is not None:
            self.free[resource][row] = amounts[0][row] - amounts[1][row] - claimed

    def set_placement(self, row: int, fields: PlacementFields) -> None:
        """Write the zone, the sets of words and the units of a row, in place of the earlier ones."""
        self.zone[row] = self.zones.setdefault(fields.zone, len(self.zones))
        self.traits.put(row, fields.traits)
        self.aggregates.put(row, fields.aggregates)
        if fields.taints or self._has_taints:
            self._has_taints = True
            self.taints.put(row, fields.taints)
        self.units.put(row, bytes(fields.inventory))

    def _grow(self, size: int) -> None:
        """Lengthen all arrays so that they have room for ``size`` rows."""
        self.status = _lengthened(self.status, size, NOT_THERE)
        self.usable = _lengthened(self.usable, size, False)
        self.zone = _lengthened(self.zone, size, 0)
        for name, free in self.free.items():
            more = np.zeros((2, size - len(free)), np.int64)
            self.amounts[name] = np.concatenate([self.amounts[name], more], axis=1)
            self.free[name] = _lengthened(free, size, 0)
        self._grow_words(size)

    def _grow_words(self, size: int) -> None:
        """Make room for ``size`` rows in the sets of words, and in the units."""
        self.traits.grow(size)
        self.aggregates.grow(size)
        self.taints.grow(size)
        self.units.grow(size)


def _lengthened(array: npt.NDArray[N], size: int, fill: object) -> npt.NDArray[N]:
    """Return a longer copy of an array. The elements beyond the old length are ``fill``."""
    return np.concatenate([array, np.full(size - len(array), fill, array.dtype)])

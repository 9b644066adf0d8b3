"""The units in which the nodes of a fleet give their resources: how much of a class one allocation may have.

OpenStack's inventories name them: an amount is at least ``min_unit``, at most ``max_unit``, and a multiple of
``step_size``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import msgspec
import numpy as np

from nodestate.errors import CorruptItemError
from nodestate.model import MAX_AMOUNT
from nodestate.model.fields import Unit
from nodestate.scheduling.fleet.row_types import Flags, RowAmounts, RowIndex


class UnitFields(msgspec.Struct, frozen=True, gc=False):
    """The fields of one resource class in a node's inventory that limit the amount of one allocation."""

    min_unit: Unit = 1
    max_unit: Unit = MAX_AMOUNT
    step_size: Unit = 1


_decode_units = msgspec.msgpack.Decoder(dict[str, UnitFields]).decode
_DEFAULTS: Final = {"min_unit": 1, "max_unit": MAX_AMOUNT, "step_size": 1}


_NO_UNITS: Final[Mapping[str, UnitFields]] = {}


@lru_cache(maxsize=1_024)
def _units_of(encoded: bytes) -> Mapping[str, UnitFields]:
    """Return the units in an encoded inventory; ``_NO_UNITS`` if all are the default. Most nodes of a fleet share one
    inventory.
    """
    units = _decode_units(encoded) if encoded else {}
    return units if any(one != UnitFields() for one in units.values()) else _NO_UNITS


class AllocationUnits:
    """The units of each resource class, by row.

    A field of a class gets an array when a node has another value than the default in it. So a filter costs nothing for
    the fields that no node sets.
    """

    def __init__(self) -> None:
        self._arrays: dict[str, dict[str, RowAmounts]] = {field: {} for field in _DEFAULTS}
        """By field and resource class, the value of each row."""
        self._units: list[Mapping[str, UnitFields]] = []
        """The units of each row by resource class, empty if all are the default. Equal rows share one map."""
        self._size = 0
        """The number of rows for which the arrays have room."""

    def grow(self, size: int) -> None:
        """Make room for ``size`` rows."""
        self._size = size
        self._units += [_NO_UNITS] * (size - len(self._units))
        for field, default in _DEFAULTS.items():
            self._arrays[field] = {
                name: np.concatenate([array, np.full(size - len(array), default, np.int64)])
                for name, array in self._arrays[field].items()
            }

    def put(self, row: int, encoded: bytes) -> None:
        """Store the units of a row, in place of the row's earlier ones. ``encoded`` is the node's inventory.

        Raises ``CorruptItemError`` if the inventory is damaged.
        """
        try:
            inventory = _units_of(encoded)
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            raise CorruptItemError(f"a damaged inventory: {str(error)!a}") from None
        if inventory is self._units[row]:
            return
        self._units[row] = inventory
        for field, default in _DEFAULTS.items():
            arrays = self._arrays[field]
            for name, array in arrays.items():
                array[row] = getattr(inventory[name], field) if name in inventory else default
            for name, units in inventory.items():
                if name not in arrays and getattr(units, field) != default:
                    arrays[name] = np.full(self._size, default, np.int64)
                    arrays[name][row] = getattr(units, field)

    def allow(self, resources: Mapping[str, int], rows: RowIndex) -> Flags | bool:
        """Return an array that says for each of ``rows`` whether one allocation may have these amounts.

        If no row has a limit for any of these classes, a single True is returned.
        """
        least, most, step = (self._arrays[field] for field in _DEFAULTS)
        allowed: Flags | bool = True
        for name, amount in resources.items():
            if name in least:
                allowed = allowed & (least[name][rows] <= amount)
            if name in most:
                allowed = allowed & (most[name][rows] >= amount)
            if name in step:
                allowed = allowed & (amount % step[name][rows] == 0)
        return allowed

    def allow_on(self, resources: Mapping[str, int], row: int) -> bool:
        """Return whether one allocation on this row may have these amounts."""
        allowed = self.allow(resources, slice(row, row + 1))
        return allowed if isinstance(allowed, bool) else bool(allowed[0])

    def of(self, name: str, row: int) -> UnitFields:
        """Return the units of a resource class on one row."""
        return UnitFields(**{field: int(arrays[name][row]) for field, arrays in self._arrays.items() if name in arrays})

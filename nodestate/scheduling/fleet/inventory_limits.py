"""Inventory limits: the rows whose nodes report more than the ceilings on inventories allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from nodestate.model.inventory_ceilings import InventoryCeilings
from nodestate.view.columns import Amounts

MAX_LOGGED_COUNT: Final = 1_000
"""Nodes that the log names."""


class InventoryLimits:
    """Finds the nodes above a ceiling. Such a node is faulty: it gets no instances, and its instances stay known.

    Args:
        ceilings: The largest believable capacities.
        names: The name of each row's node. The list belongs to the fleet's columns, which append new nodes to it.
    """

    def __init__(self, ceilings: InventoryCeilings, names: Sequence[str]) -> None:
        self.exceeding: set[int] = set()
        """The rows whose nodes report more than a ceiling allows. Callers may only read it."""
        self._ceilings = ceilings
        """The largest believable capacities."""
        self._names = names
        """The name of each row's node."""
        self._limits = {name: np.zeros(0, np.int64) for name in ceilings.classes}
        """For each resource class with a ceiling, the ceiling of each row."""
        self._logged: set[str] = set()
        """The names of the nodes that the log has named."""

    def examine(self, rows: npt.NDArray[np.intp], amounts: Mapping[str, Amounts]) -> None:
        """Compare the capacities of some rows with the ceilings.

        Args:
            rows: The rows that were written.
            amounts: For each resource class the capacity and the usage of each row.
        """
        found: dict[int, str] = {}
        for resource in self._limits:
            if resource in amounts:
                capacity, limits = amounts[resource][0][rows], self._limits_of(resource)[rows]
                found |= dict.fromkeys(rows[capacity > limits].tolist(), resource)
        if found or self.exceeding:
            self.exceeding.difference_update(rows.tolist())
            self.exceeding.update(found)
        for row, resource in found.items():
            name = self._names[row]
            if name not in self._logged and len(self._logged) < MAX_LOGGED_COUNT:
                self._logged.add(name)
                import structlog  # noqa: PLC0415  it would take half of the time of `import nodestate.scheduling`

                structlog.get_logger("nodestate.scheduling").warning(
                    "a node reports more than inventory_ceilings allows; it gets no instances",
                    node=name,
                    resource=resource,
                    capacity=int(amounts[resource][0][row]),
                    ceiling=self._ceilings.of(name, resource),
                )

    def _limits_of(self, resource: str) -> npt.NDArray[np.int64]:
        """Return the ceiling of a resource class for each row."""
        limits = self._limits[resource]
        if len(limits) < len(self._names):
            new = [self._ceilings.of(name, resource) for name in self._names[len(limits) :]]
            limits = self._limits[resource] = np.concatenate([limits, np.array(new, np.int64)])
        return limits

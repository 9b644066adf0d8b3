"""The nodes' own reports of their allocations, read from the last view when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nodestate.model import NodeRecord
from nodestate.scheduling.fleet.placement_fields import hints_of_allocations
from nodestate.view.view import View


class NodeReports:
    """Allocations and hints by row, as the last view has them. Each call decodes the node's state again."""

    def __init__(self, names: Sequence[str]) -> None:
        self.view: View | None = None
        """The view that the reports are read from; None before the first one."""
        self._names = names
        """The node of each row; shared with the fleet's columns."""

    def allocations(self, row: int) -> Mapping[str, Mapping[str, Any]]:
        """All allocations in the report of a row's node, by instance; empty if the view has no such node."""
        record = self._record(row)
        allocations: Mapping[str, Mapping[str, Any]] = (
            record.state().get("allocations", {}) if record is not None else {}
        )
        return allocations

    def hints(self, row: int, instance: str) -> Mapping[str, Any]:
        """The hints that a row's node reports for an instance; empty if it reports none."""
        return self.hints_by_instance(row).get(instance, {})

    def hints_by_instance(self, row: int) -> Mapping[str, Mapping[str, Any]]:
        """The hints that a row's node reports for each of its instances; empty if the node is gone."""
        record = self._record(row)
        if record is None or not record.live:
            return {}
        return hints_of_allocations(record)

    def _record(self, row: int) -> NodeRecord | None:
        return self.view.nodes.record(self._names[row]) if self.view is not None else None

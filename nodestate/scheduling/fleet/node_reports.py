"""The nodes' reports of their allocations and hints, decoded from the last view when a caller asks for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from nodestate.errors import CorruptItemError
from nodestate.model import NodeRecord, has_left
from nodestate.ports import Clock
from nodestate.scheduling.fleet.placement_fields import allocations_of, hints_of_allocations
from nodestate.scheduling.order_ids import without_future_ids
from nodestate.view.view import View


class NodeReports:
    """The allocations and hints in the last view, by row. Every call decodes the node's state again."""

    def __init__(self, names: Sequence[str], clock: Clock) -> None:
        self.view: View | None = None
        """The view from which the reports are read. The fleet assigns it; None before the fleet's first view."""
        self._names = names
        """The name of each row's node. The list belongs to the fleet's columns, which append new nodes to it."""

        self._clock = clock
        """The wall clock, by which ids of orders may lie in the future."""

        self.damaged: set[int] = set()
        """The rows whose stored state is damaged. The fleet changes it."""

    def record(self, row: int) -> NodeRecord | None:
        """Return the record of a row's node in the last view; None if the view does not have the node, or if its stored
        state is damaged.
        """
        if self.view is None or row in self.damaged:
            return None
        return self.view.nodes.record(self._names[row])

    def has_left(self, row: int) -> bool:
        """Return whether a row's node has left, but is still known because it has allocations."""
        record = self.record(row)
        return record is not None and has_left(record)

    def allocations(self, row: int) -> Mapping[str, Mapping[str, Any]]:
        """Return all allocations that a row's node reports, by instance. Empty if the node is gone or unknown.

        Their hints name no orders of the future.
        """
        record, now = self.record(row), self._clock.time()
        if record is None:
            return {}
        allocations: Mapping[str, Mapping[str, Any]] = {}
        with suppress(CorruptItemError):
            allocations = allocations_of(record)
        return {
            instance: {**one, "hints": without_future_ids(one["hints"], now)} if one.get("hints") else one
            for instance, one in allocations.items()
        }

    def hints(self, row: int, instance: str) -> Mapping[str, Any]:
        """Return the hints of an instance's allocation on a row's node.

        They name no orders of the future. Empty if the node does not report the instance, or if the allocation has no
        hints.
        """
        return without_future_ids(self.hints_by_instance(row).get(instance, {}), self._clock.time())

    def hints_by_instance(self, row: int) -> Mapping[str, Mapping[str, Any]]:
        """Return the hints of all allocations on a row's node, by instance. Empty if the node is gone or unknown."""
        record = self.record(row)
        if record is None or not record.live:
            return {}
        with suppress(CorruptItemError):
            return hints_of_allocations(record)
        return {}

"""The nodes' reports of their allocations and hints, decoded from the last view when a caller asks for them.

A report is the node's own word. So hints that only a scheduler can have written are believed only as far as the tag of
the allocation proves it (``auth.allocation_tags``), and no order of the future is believed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from nodestate.auth import NO_TAGS, AllocationTags, without_tag
from nodestate.errors import CorruptItemError
from nodestate.model import NodeRecord, has_left
from nodestate.ports import Clock
from nodestate.scheduling.fleet.placement_fields import (
    allocations_of,
    decoded_allocation,
    encoded_allocations_of,
    hints_of_allocations,
)
from nodestate.scheduling.order_ids import without_future_ids, without_ids
from nodestate.view.view import View


class NodeReports:
    """The allocations and hints in the last view, by row. Every call decodes the node's state again."""

    def __init__(self, names: Sequence[str], clock: Clock, tags: AllocationTags = NO_TAGS) -> None:
        self.view: View | None = None
        """The view from which the reports are read. The fleet assigns it; None before the fleet's first view."""
        self._names = names
        """The name of each row's node. The list belongs to the fleet's columns, which append new nodes to it."""

        self._clock = clock
        """The wall clock, by which ids of orders may lie in the future."""

        self.damaged: set[int] = set()
        """The rows whose stored state is damaged. The fleet changes it."""

        self.tags = tags
        """Proves which allocations a scheduler of the cell ordered."""

        self._judged: dict[str, dict[str, tuple[int, bool]]] = {}
        """By node and instance, the hash of an allocation that ``unbelieved_among`` judged, and whether it is believed.
        """

        self._judged_with = tags.keys_version
        """The version of the keys with which these were judged."""

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

        Their hints have no tag, and no ids of orders that are not believed: orders of the future, and orders without
        a valid tag if tags are required.
        """
        return {
            instance: {**one, "hints": self._believed_hints(row, instance, one)} if one.get("hints") else one
            for instance, one in self.reported(row).items()
        }

    def reported(self, row: int) -> Mapping[str, Mapping[str, Any]]:
        """Return all allocations of a row's node as it reports them, with their tags, also if they are not believed."""
        record = self.record(row)
        with suppress(CorruptItemError):
            return allocations_of(record) if record is not None else {}
        return {}

    def hints(self, row: int, instance: str) -> Mapping[str, Any]:
        """Return the hints of an instance's allocation on a row's node, as in ``allocations``.

        Empty if the node does not report the instance, or if the allocation has no hints.
        """
        allocation = self._allocation(row, instance)
        return self._believed_hints(row, instance, allocation) if allocation is not None else {}

    def is_believed(self, row: int, instance: str) -> bool:
        """Return whether clean-up, moves and groups believe the allocation of an instance on a row's node.

        Returns False if the cell requires tags, and the node does not report the instance.
        """
        if not self.tags.checks:
            return True
        allocation = self._allocation(row, instance)
        if allocation is None:
            return not self.tags.requires
        return self.tags.is_believed(self._names[row], instance, allocation)

    def unbelieved_among(self, record: NodeRecord, instances: Collection[str]) -> Collection[str]:
        """Return the instances on a node, of the given ones, that are not believed.

        An allocation that was judged before, and did not change since, is not judged again. So a node that reports
        thousands of invalid tags costs time only when it changes them.

        Args:
            record: The node.
            instances: The instances. Pass all that matter at once: only the last call for a node is remembered.
        """
        if self._judged_with != self.tags.keys_version:
            self._judged_with = self.tags.keys_version
            self._judged.clear()
        before = self._judged.pop(record.name, {})
        if not instances:
            return ()
        judged: dict[str, tuple[int, bool]] = {}
        encoded = encoded_allocations_of(record)
        for instance in instances:
            allocation_hash = hash(bytes(encoded[instance]))
            known_hash, is_believed = before.get(instance, (None, False))
            if known_hash != allocation_hash:
                allocation = decoded_allocation(record, encoded[instance])
                is_believed = self.tags.is_believed(record.name, instance, allocation)
            judged[instance] = allocation_hash, is_believed
        self._judged[record.name] = judged
        return [instance for instance, (_, is_believed) in judged.items() if not is_believed]

    def hints_by_instance(self, row: int) -> Mapping[str, Mapping[str, Any]]:
        """Return the hints of all allocations on a row's node, by instance. Empty if the node is gone or unknown.

        They are as the node reports them, also if they are not believed.
        """
        record = self.record(row)
        if record is None or not record.live:
            return {}
        with suppress(CorruptItemError):
            return hints_of_allocations(record)
        return {}

    def _allocation(self, row: int, instance: str) -> dict[str, Any] | None:
        """Return the allocation of an instance on a row's node, with its tag.

        Returns None if the node does not report the instance, and an empty allocation if it is damaged.
        """
        record = self.record(row)
        if record is None:
            return None
        with suppress(CorruptItemError):
            encoded = encoded_allocations_of(record).get(instance)
            if encoded is None:
                return None
            allocation = decoded_allocation(record, encoded)
            if isinstance(allocation.get("hints", {}), dict):
                return allocation
        return {}

    def _believed_hints(self, row: int, instance: str, allocation: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the hints of an allocation, without its tag, and without ids of orders that are not believed."""
        hints = without_tag(allocation.get("hints") or {})
        if not self.tags.is_believed(self._names[row], instance, allocation):
            return without_ids(hints)
        return without_future_ids(hints, self._clock.time())

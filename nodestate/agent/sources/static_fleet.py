"""A fleet in memory. Its nodes change only by orders and by the methods of ``StaticFleet``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nodestate.agent.allocation_file import AllocationChange, AllocationFile, AllocationJson
from nodestate.agent.diff import InexpressibleError, diff_patch
from nodestate.agent.sources import FullState, NodeResources, NodeSilent, Reading, StatePatch
from nodestate.errors import SourceUnavailableError


@dataclass(slots=True, eq=False)
class StaticNode:
    """One node of a static or simulated fleet."""

    fixed: dict[str, Any]
    """The node's state, without usage and allocations."""
    usage: dict[str, int]
    """By resource class, the used amount."""
    allocations: dict[str, AllocationJson] = field(default_factory=dict)
    """By instance, its allocation."""
    ordered: set[str] = field(default_factory=set)
    """Instances that an order built, in this incarnation of the agent or an earlier one."""
    silent: bool = False
    """True while the node does not answer."""


class StaticFleet:
    """A ``StateSource`` and ``AdmittingSource`` of nodes with given states.

    An order changes the allocations and the usage at once. Nothing is checked here, because ``Admission`` has checked
    the order before it calls. Tests change nodes with ``set_status``, ``kill`` and ``revive``.

    Args:
        states: the full state of each node at the start, by name.
        name: the fleet's name.
        every_s: seconds between two polls.
        allocations: stores the instances that orders built. The first poll adds the stored instances to ``states``.
            None if these instances are lost with the agent.
    """

    def __init__(
        self,
        states: Mapping[str, Mapping[str, Any]],
        *,
        name: str = "given-fleet",
        every_s: float = 0.05,
        allocations: AllocationFile | None = None,
    ) -> None:
        self._name = name
        """The fleet's name."""
        self._every_s = every_s
        """Seconds between two polls."""
        self._allocations = allocations
        """Stores the instances that orders built; None if these instances are lost with the agent."""
        self._nodes = {node: _static_node(state) for node, state in states.items()}
        """All nodes, by name."""
        self._names = list(self._nodes)
        """All names, in the given order."""
        self._new_readings: list[Reading] = []
        """Readings that the next poll gives."""
        self._polled = False
        """True after the first poll."""
        self._unsaved: list[AllocationChange] = []
        """Changes that orders made since the last ``save``, in sequence."""
        self._undo: list[AllocationChange] = []
        """For each entry of ``_unsaved``, the allocation before the change."""

    # -- StateSource

    @property
    def name(self) -> str:
        """The fleet's name."""
        return self._name

    @property
    def every_s(self) -> float:
        """Seconds between two polls."""
        return self._every_s

    def nodes(self) -> Sequence[str]:
        """Return the names of all nodes."""
        return self._names

    def poll(self, now: float) -> Iterator[Reading]:  # noqa: ARG002 - no node changes by itself
        """Yield every node's full state at the first call, and the changes made by tests at later calls."""
        readings, self._new_readings = self._new_readings, []
        if self._polled:
            for reading in readings:  # give the present state: orders may have changed the node since the reading
                yield FullState(reading.node, self.state(reading.node)) if isinstance(reading, FullState) else reading
            return
        self._polled = True
        self._restore_allocations()
        for name in self._names:
            yield FullState(name, self.state(name))
        yield from (NodeSilent(name) for name in self._names if self._nodes[name].silent)

    def state(self, name: str) -> dict[str, Any]:
        """Return the full state of one node."""
        node = self._nodes[name]
        return {**node.fixed, "usage": dict(node.usage), "allocations": dict(node.allocations)}

    def close(self) -> None:
        """Close the file of allocations."""
        if self._allocations is not None:
            self._allocations.close()

    # -- AdmittingSource

    def resources_of(self, node: str) -> NodeResources:
        """Return the node's present resources and allocations."""
        static = self._nodes[node]
        return NodeResources(
            static.fixed.get("status", "up"),
            static.fixed.get("inventory", {}),
            static.usage,
            static.allocations,
            static.fixed.get("taints", ()),
        )

    def build(self, node: str, instance: str, allocation: AllocationJson) -> FullState | StatePatch:
        """Give the instance this allocation, which replaces any allocation that the instance has on the node."""
        return self._change(node, instance, allocation)

    def end(self, node: str, instance: str) -> FullState | StatePatch:
        """Remove the instance's allocation."""
        return self._change(node, instance, None)

    def save(self) -> None:
        """Store all changes by orders since the last call, if the fleet has a file.

        Raises ``SourceUnavailableError`` if the file can't be written; all of these changes are undone then.
        """
        unsaved, self._unsaved = self._unsaved, []
        undo, self._undo = self._undo, []
        if self._allocations is None or not unsaved:
            return
        try:
            self._allocations.save(unsaved)
        except OSError as error:
            for node, instance, allocation in reversed(undo):
                put(self._nodes[node], instance, allocation)
                if allocation is not None:
                    self._nodes[node].ordered.add(instance)
            raise SourceUnavailableError(self._name, f"allocations can't be stored: {error}") from error

    # -- changes made by tests

    def set_status(self, name: str, status: str) -> None:
        """Change a node's status, as an operator does."""
        self._nodes[name].fixed["status"] = status
        self._new_readings.append(StatePatch(name, {"status": status}))

    def kill(self, name: str) -> None:
        """Make a node silent, as if its machine had lost its power: it gives no sign of life and answers no order."""
        self._nodes[name].silent = True
        self._new_readings.append(NodeSilent(name))

    def revive(self, name: str) -> None:
        """Bring a silent node back, with all its instances."""
        self._nodes[name].silent = False
        self._new_readings.append(FullState(name, self.state(name)))

    # -- inside

    def _change(self, name: str, instance: str, allocation: AllocationJson | None) -> FullState | StatePatch:
        """Replace or remove (None) an instance's allocation on a node. Returns the reading that shows the change."""
        node = self._nodes[name]
        before = node.allocations.get(instance)
        used = dict(node.usage)
        put(node, instance, allocation)
        if allocation is None:
            node.ordered.discard(instance)
        else:
            node.ordered.add(instance)
        self._unsaved.append(AllocationChange(name, instance, allocation))
        self._undo.append(AllocationChange(name, instance, before))
        usage = {resource: amount for resource, amount in node.usage.items() if used.get(resource) != amount}
        patch: dict[str, Any] = {"usage": usage} if usage else {}
        if allocation is None:
            return StatePatch(name, {**patch, "allocations": {instance: None}})
        try:
            return StatePatch(name, {**patch, "allocations": {instance: diff_patch(before or {}, allocation)}})
        except InexpressibleError:  # the hints hold a null
            return FullState(name, self.state(name))

    def _restore_allocations(self) -> None:
        """Add the stored instances of earlier incarnations to the nodes. Instances of unknown nodes are ignored."""
        if self._allocations is None:
            return
        for name, instances in self._allocations.open().items():
            if name in self._nodes:
                for instance, allocation in instances.items():
                    self._make_room(self._nodes[name], instance, allocation)
                    put(self._nodes[name], instance, allocation)
                    self._nodes[name].ordered.add(instance)

    def _make_room(self, node: StaticNode, instance: str, allocation: AllocationJson) -> None:
        """Make room for an instance of an earlier incarnation. A static fleet has nothing to remove."""


def put(node: StaticNode, instance: str, allocation: AllocationJson | None) -> None:
    """Replace an instance's allocation on a node, and adjust the node's usage.

    If ``allocation`` is None, the instance's allocation is removed.
    """
    before = node.allocations.pop(instance, None)
    if before is not None:
        _count(node, before["resources"].items(), -1)
    if allocation is not None:
        node.allocations[instance] = allocation
        _count(node, allocation["resources"].items(), 1)


def _count(node: StaticNode, resources: Iterable[tuple[str, int]], sign: int) -> None:
    for name, amount in resources:
        node.usage[name] = node.usage.get(name, 0) + sign * amount


def _static_node(state: Mapping[str, Any]) -> StaticNode:
    fixed = {name: value for name, value in state.items() if name not in {"usage", "allocations"}}
    usage = {**dict.fromkeys(state.get("inventory", {}), 0), **state.get("usage", {})}
    return StaticNode(fixed, usage, dict(state.get("allocations", {})))

"""Nodes that are given: nothing happens on them but what they are told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nodestate.agent.allocation_file import AllocationChange, AllocationFile, AllocationJson
from nodestate.agent.diff import InexpressibleError, diff_patch
from nodestate.agent.sources import FullState, NodeSilent, Reading, Room, StatePatch
from nodestate.errors import SourceUnavailableError


@dataclass(slots=True, eq=False)
class StaticNode:
    """One node. ``ordered`` are those of its instances that were built by an order, now or in an earlier life."""

    fixed: dict[str, Any]
    usage: dict[str, int]
    allocations: dict[str, AllocationJson] = field(default_factory=dict)
    ordered: set[str] = field(default_factory=set)
    silent: bool = False


class StaticFleet:
    """A ``StateSource`` and ``AdmittingSource`` of nodes in the states that it is given.

    Orders are carried out at once, and usage follows; who asks for more than there is must not call (``admission``).
    With ``allocations`` what was ordered outlives the agent: it is taken over at the first poll, in addition to what
    the nodes are given. Nodes that a test wants in another condition: ``set_status``, ``kill`` and ``revive``.
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
        self._every_s = every_s
        self._allocations = allocations
        self._nodes = {node: _given(state) for node, state in states.items()}
        self._names = list(self._nodes)
        self._told: list[Reading] = []
        self._polled = False
        self._unkept: list[AllocationChange] = []
        self._undo: list[AllocationChange] = []

    # -- StateSource

    @property
    def name(self) -> str:
        """The fleet's name."""
        return self._name

    @property
    def every_s(self) -> float:
        """How often to poll."""
        return self._every_s

    def nodes(self) -> Sequence[str]:
        """All names."""
        return self._names

    def poll(self, now: float) -> Iterator[Reading]:  # noqa: ARG002 - nothing happens by itself
        """Every state at the first call; afterwards what it was told."""
        told, self._told = self._told, []
        if self._polled:
            for reading in told:  # as it is by now: orders may have come since it was told
                yield FullState(reading.node, self.state(reading.node)) if isinstance(reading, FullState) else reading
            return
        self._polled = True
        self._take_over()
        for name in self._names:
            yield FullState(name, self.state(name))
        yield from (reading for reading in told if isinstance(reading, NodeSilent))

    def state(self, name: str) -> dict[str, Any]:
        """The whole state of one node."""
        node = self._nodes[name]
        return {**node.fixed, "usage": dict(node.usage), "allocations": dict(node.allocations)}

    def close(self) -> None:
        """Close the file of allocations."""
        if self._allocations is not None:
            self._allocations.close()

    # -- AdmittingSource

    def room(self, node: str) -> Room:
        """What the node has and who has it."""
        given = self._nodes[node]
        return Room(given.fixed.get("status", "up"), given.fixed.get("inventory", {}), given.usage, given.allocations)

    def build(self, node: str, instance: str, allocation: AllocationJson) -> FullState | StatePatch:
        """Give the instance this allocation, in place of the one that it may have."""
        return self._change(node, instance, allocation)

    def end(self, node: str, instance: str) -> FullState | StatePatch:
        """Take away what the instance has."""
        return self._change(node, instance, None)

    def keep(self) -> None:
        """Store what was built and ended since the last call, if there is where. Raises ``SourceUnavailableError``."""
        unkept, self._unkept = self._unkept, []
        undo, self._undo = self._undo, []
        if self._allocations is None or not unkept:
            return
        try:
            self._allocations.keep(unkept)
        except OSError as error:
            for node, instance, allocation in reversed(undo):
                put(self._nodes[node], instance, allocation)
                if allocation is not None:
                    self._nodes[node].ordered.add(instance)
            raise SourceUnavailableError(self._name, f"allocations can't be stored: {error}") from error

    # -- what tests do to nodes

    def set_status(self, name: str, status: str) -> None:
        """An operator does it."""
        self._nodes[name].fixed["status"] = status
        self._told.append(StatePatch(name, {"status": status}))

    def kill(self, name: str) -> None:
        """The machine loses its power: nothing is heard of it, and no order is answered."""
        self._nodes[name].silent = True
        self._told.append(NodeSilent(name))

    def revive(self, name: str) -> None:
        """It is back, with all its instances."""
        self._nodes[name].silent = False
        self._told.append(FullState(name, self.state(name)))

    # -- inside

    def _change(self, name: str, instance: str, allocation: AllocationJson | None) -> FullState | StatePatch:
        node = self._nodes[name]
        before = node.allocations.get(instance)
        used = dict(node.usage)
        put(node, instance, allocation)
        if allocation is None:
            node.ordered.discard(instance)
        else:
            node.ordered.add(instance)
        self._unkept.append(AllocationChange(name, instance, allocation))
        self._undo.append(AllocationChange(name, instance, before))
        usage = {resource: amount for resource, amount in node.usage.items() if used.get(resource) != amount}
        patch: dict[str, Any] = {"usage": usage} if usage else {}
        if allocation is None:
            return StatePatch(name, {**patch, "allocations": {instance: None}})
        try:
            return StatePatch(name, {**patch, "allocations": {instance: diff_patch(before or {}, allocation)}})
        except InexpressibleError:  # hints that hold a null
            return FullState(name, self.state(name))

    def _take_over(self) -> None:
        if self._allocations is None:
            return
        for name, instances in self._allocations.open().items():
            if name in self._nodes:
                for instance, allocation in instances.items():
                    self._make_room(self._nodes[name], instance, allocation)
                    put(self._nodes[name], instance, allocation)
                    self._nodes[name].ordered.add(instance)

    def _make_room(self, node: StaticNode, instance: str, allocation: AllocationJson) -> None:
        """What is given is given."""


def put(node: StaticNode, instance: str, allocation: AllocationJson | None) -> None:
    """Replace what an instance has on a node; usage follows."""
    before = node.allocations.pop(instance, None)
    if before is not None:
        _count(node, before["resources"].items(), -1)
    if allocation is not None:
        node.allocations[instance] = allocation
        _count(node, allocation["resources"].items(), 1)


def _count(node: StaticNode, resources: Iterable[tuple[str, int]], sign: int) -> None:
    for name, amount in resources:
        node.usage[name] = node.usage.get(name, 0) + sign * amount


def _given(state: Mapping[str, Any]) -> StaticNode:
    fixed = {name: value for name, value in state.items() if name not in {"usage", "allocations"}}
    usage = {**dict.fromkeys(state.get("inventory", {}), 0), **state.get("usage", {})}
    return StaticNode(fixed, usage, dict(state.get("allocations", {})))

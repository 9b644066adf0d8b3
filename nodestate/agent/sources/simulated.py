"""A simulated fleet with a seed. Two fleets with the same seed have the same nodes and the same changes."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from nodestate.agent.allocation_file import AllocationFile, AllocationJson
from nodestate.agent.sources import Reading, StatePatch
from nodestate.agent.sources.static_fleet import StaticFleet, StaticNode, put

RACK_NODES_COUNT: Final = 40
ZONE_RACKS_COUNT: Final = 25
START_TASKS_COUNT: Final = 5
"""Average number of tasks on a node at the start. The average stays near this number later."""
GROUPS_COUNT: Final = 200
MAX_STEP_S: Final = 1.0
"""Longest time for which one poll simulates changes. If the last poll was longer ago, the rest is skipped."""
CHURN: Final = 0.4
"""Share of the changes that start or end a task. All other changes only change metrics."""

_COMMON_TRAITS: Final = ["HW_CPU_X86_AESNI", "HW_CPU_X86_AVX2", "HW_CPU_X86_SSE42", "STORAGE_DISK_SSD"]


@dataclass(frozen=True, slots=True)
class _Model:
    """A hardware model of simulated nodes."""

    weight: int
    """Share of the nodes that are of this model, in percent."""
    inventory: Mapping[str, Mapping[str, float]]
    """Its resources, as in a node's state."""
    traits: Sequence[str]
    """Its traits."""


_MODELS: Final = (
    _Model(
        60,
        {
            "VCPU": {"total": 64, "reserved": 2, "allocation_ratio": 4.0},
            "MEMORY_MB": {"total": 262_144, "reserved": 4_096},
            "DISK_GB": {"total": 3_600},
        },
        _COMMON_TRAITS,
    ),
    _Model(
        25,
        {
            "VCPU": {"total": 128, "reserved": 4, "allocation_ratio": 2.0},
            "MEMORY_MB": {"total": 524_288, "reserved": 8_192},
            "DISK_GB": {"total": 7_200},
        },
        [*_COMMON_TRAITS, "HW_CPU_X86_AVX512F", "HW_CPU_HYPERTHREADING"],
    ),
    _Model(
        15,
        {
            "VCPU": {"total": 96, "reserved": 4, "allocation_ratio": 1.0},
            "MEMORY_MB": {"total": 786_432, "reserved": 16_384},
            "DISK_GB": {"total": 7_200},
            "CUSTOM_GPU": {"total": 8},
        },
        [*_COMMON_TRAITS, "HW_CPU_X86_AVX512F", "HW_GPU_API_VULKAN", "CUSTOM_GPU_A100"],
    ),
)
_FLAVOURS: Final = (
    (40, {"VCPU": 2, "MEMORY_MB": 4_096, "DISK_GB": 40}),
    (30, {"VCPU": 4, "MEMORY_MB": 8_192, "DISK_GB": 80}),
    (20, {"VCPU": 8, "MEMORY_MB": 32_768, "DISK_GB": 160}),
    (6, {"VCPU": 16, "MEMORY_MB": 65_536, "DISK_GB": 320}),
    (4, {"VCPU": 12, "MEMORY_MB": 98_304, "DISK_GB": 200, "CUSTOM_GPU": 1}),
)


class SimulatedFleet(StaticFleet):
    """A ``StaticFleet`` whose nodes change by themselves: tasks start and end, and metrics change.

    A task is an instance that no order built. The usage of a node is always the sum of its allocations, and a task
    starts only if the node has room for it. Instances that an order built never end by themselves. If such instances of
    an earlier incarnation do not fit at the start, tasks are removed to make room.

    The cost of a poll grows with the number of changes, not with the number of nodes.

    Args:
        count: number of nodes.
        seed: decides on everything that happens.
        changes_per_s: changes per second in the whole fleet.
        prefix: first part of the nodes' names.
        every_s: seconds between two polls.
        allocations: stores instances that orders built; None if they are lost with the agent.
    """

    def __init__(
        self,
        count: int,
        *,
        seed: int = 0,
        changes_per_s: float = 10.0,
        prefix: str = "compute-",
        every_s: float = 0.05,
        allocations: AllocationFile | None = None,
    ) -> None:
        assert count > 0
        self._rng = random.Random(f"nodestate fleet {seed}")
        """Random numbers, which decide on everything that happens."""
        self._changes_per_s = changes_per_s
        """Changes per second in the whole fleet."""
        self._polled_at: float | None = None
        """When the fleet was last polled, in monotonic seconds; None before the first poll."""
        self._due = 0.0
        """Number of changes that are due. The fraction that a poll cannot use is kept for the next poll."""
        digits = max(4, len(str(count - 1)))
        super().__init__(
            {f"{prefix}{number:0{digits}}": self._make(number) for number in range(count)},
            name=fleet_name(prefix, seed),
            every_s=every_s,
            allocations=allocations,
        )
        for node in self._nodes.values():
            for _ in range(self._rng.randint(START_TASKS_COUNT - 2, START_TASKS_COUNT + 2)):
                self._start(node)

    def poll(self, now: float) -> Iterator[Reading]:
        """Yield every node's full state at the first call, and one patch for each change afterwards."""
        yield from super().poll(now)
        if self._polled_at is None:
            self._polled_at = now
            return
        self._due += min(MAX_STEP_S, now - self._polled_at) * self._changes_per_s
        self._polled_at = now
        happened, self._due = math.floor(self._due), self._due % 1.0
        for _ in range(happened):
            name = self._rng.choice(self._names)
            if not self._nodes[name].silent:
                yield self._happen(name)

    def state(self, name: str) -> dict[str, Any]:
        """Return the full state of one node."""
        return {**super().state(name), "metrics": self._metrics(self._nodes[name])}

    # -- inside

    def _make(self, number: int) -> dict[str, Any]:
        """Return the state of a new node. ``number`` decides on its rack and zone."""
        model = self._rng.choices(_MODELS, [model.weight for model in _MODELS])[0]
        rack = number // RACK_NODES_COUNT
        zone = f"az{rack // ZONE_RACKS_COUNT + 1}"
        return {
            "status": "up",
            "zone": zone,
            "inventory": model.inventory,
            "traits": list(model.traits),
            "aggregates": [f"rack-{rack}", zone],
            "namespaces": {"nova": {"hypervisor_type": "QEMU", "service": "nova-compute"}},
        }

    def _happen(self, name: str) -> StatePatch:
        """Make one change on a node. Returns the patch."""
        node = self._nodes[name]
        if self._rng.random() < CHURN:
            # The more tasks a node has, the more likely it is that one of them ends. So the number of tasks, and the
            # size of the state, stay near the average.
            tasks = [task for task in node.allocations if task not in node.ordered]
            ends = self._rng.random() < len(tasks) / (2 * START_TASKS_COUNT)
            touched = self._end_one(node, self._rng.choice(tasks)) if ends else self._start(node)
            if touched:
                return StatePatch(name, touched)
        return StatePatch(name, {"metrics": self._metrics(node)})

    def _start(self, node: StaticNode) -> dict[str, Any]:
        """Start a task of a random size. Returns the patch, which is empty if the task does not fit."""
        resources = self._rng.choices([resources for _, resources in _FLAVOURS], [weight for weight, _ in _FLAVOURS])[0]
        if not _fits(node, resources):
            return {}
        bits = f"{self._rng.getrandbits(128):032x}"
        task = f"{bits[:8]}-{bits[8:12]}-{bits[12:16]}-{bits[16:20]}-{bits[20:]}"
        if (
            task in node.ordered
        ):  # a fleet that starts again makes the same tasks again, and an operator adopted this one
            return {}
        allocation: AllocationJson = {"resources": dict(resources)}
        if self._rng.random() < 0.3:
            allocation["group"] = f"group-{self._rng.randrange(GROUPS_COUNT)}"
            allocation["hints"] = {
                "group_policy": self._rng.choice(["anti-affinity", "soft-anti-affinity", "affinity"])
            }
        put(node, task, allocation)
        return {"allocations": {task: allocation}, "usage": {name: node.usage[name] for name in resources}}

    def _end_one(self, node: StaticNode, task: str) -> dict[str, Any]:
        """End a task. Returns the patch."""
        resources = node.allocations[task]["resources"]
        put(node, task, None)
        return {"allocations": {task: None}, "usage": {name: node.usage[name] for name in resources}}

    def _make_room(self, node: StaticNode, instance: str, allocation: AllocationJson) -> None:
        tasks = [task for task in node.allocations if task not in node.ordered and task != instance]
        while tasks and not _fits(node, allocation["resources"]):
            put(node, tasks.pop(), None)

    def _metrics(self, node: StaticNode) -> dict[str, float]:
        rng, memory = self._rng, node.fixed["inventory"]["MEMORY_MB"]["total"]
        return {
            "cpu.percent": round(rng.uniform(0.0, 100.0), 1),
            "memory.percent": round(100.0 * node.usage["MEMORY_MB"] / memory, 1),
            "network.mbps": round(rng.expovariate(1 / 400.0), 1),
            "power.watts": round(rng.gauss(350.0, 40.0), 1),
        }


def fleet_name(prefix: str, seed: int) -> str:
    """Return the name of a fleet, from which the names of its files on this machine are made."""
    return f"{prefix}fleet-{seed}"


def _capacity(inventory: Mapping[str, float]) -> int:
    return int((inventory["total"] - inventory.get("reserved", 0)) * inventory.get("allocation_ratio", 1.0))


def _fits(node: StaticNode, resources: Mapping[str, int]) -> bool:
    """True if the node has these resources left."""
    inventory = node.fixed["inventory"]
    return all(
        name in inventory and node.usage[name] + amount <= _capacity(inventory[name])
        for name, amount in resources.items()
    )

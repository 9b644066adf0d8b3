"""A fleet that does not exist: seeded, so that the same fleet does the same things."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from nodestate.agent.sources import Part, Reading, Whole

RACK_NODES_COUNT: Final = 40
ZONE_RACKS_COUNT: Final = 25
START_TASKS_COUNT: Final = 5
"""Tasks on a node at the start, on average; later starts and ends keep near it."""
GROUPS_COUNT: Final = 200
MAX_STEP_S: Final = 1.0
"""A fleet that was not polled for longer does not make up for all that would have happened."""
CHURN: Final = 0.4
"""Share of changes that start or end a task; the others measure."""

_COMMON_TRAITS: Final = ["HW_CPU_X86_AESNI", "HW_CPU_X86_AVX2", "HW_CPU_X86_SSE42", "STORAGE_DISK_SSD"]


@dataclass(frozen=True, slots=True)
class _Model:
    """A kind of machine that is bought by the rack."""

    weight: int
    inventory: Mapping[str, Mapping[str, float]]
    traits: Sequence[str]


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


@dataclass(slots=True)
class _Node:
    model: _Model
    usage: dict[str, int]
    allocations: dict[str, dict[str, Any]] = field(default_factory=dict)


class SimulatedFleet:
    """A ``StateSource`` of ``count`` nodes on which ``changes_per_s`` things happen in all: tasks start and end with
    their allocations, and metrics move. Usage is always the sum of the allocations, and within capacity.

    A poll costs what changed, not what there is. ``admit`` and ``end`` are what a hypervisor would do when it is
    told to: the answer is final, and the change comes with the next poll.
    """

    def __init__(
        self,
        count: int,
        *,
        seed: int = 0,
        changes_per_s: float = 10.0,
        prefix: str = "compute-",
        every_s: float = 0.05,
    ) -> None:
        assert count > 0
        self._rng = random.Random(f"nodestate fleet {seed}")
        self._name = f"{prefix}fleet-{seed}"
        self._every_s = every_s
        self._changes_per_s = changes_per_s
        self._polled_at: float | None = None
        self._due = 0.0
        digits = max(4, len(str(count - 1)))
        self._nodes = {f"{prefix}{number:0{digits}}": self._make() for number in range(count)}
        self._names = list(self._nodes)
        self._places = {name: self._place(number) for number, name in enumerate(self._names)}
        self._ordered: list[Part] = []
        for node in self._nodes.values():
            for _ in range(self._rng.randint(START_TASKS_COUNT - 2, START_TASKS_COUNT + 2)):
                self._start(node)

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

    def poll(self, now: float) -> Iterator[Reading]:
        """Every state at the first call; afterwards the patches of what happened since."""
        if self._polled_at is None:
            self._polled_at = now
            self._ordered.clear()
            for name in self._names:
                yield Whole(name, self.state(name))
            return
        self._due += min(MAX_STEP_S, now - self._polled_at) * self._changes_per_s
        self._polled_at = now
        happened, self._due = math.floor(self._due), self._due % 1.0
        ordered, self._ordered = self._ordered, []
        yield from ordered
        for _ in range(happened):
            yield self._happen()

    def state(self, name: str) -> dict[str, Any]:
        """The whole state of one node."""
        node = self._nodes[name]
        zone, rack = self._places[name]
        return {
            "status": "up",
            "zone": zone,
            "inventory": node.model.inventory,
            "usage": dict(node.usage),
            "traits": list(node.model.traits),
            "aggregates": [rack, zone],
            "allocations": dict(node.allocations),
            "metrics": self._metrics(node),
            "namespaces": {"nova": {"hypervisor_type": "QEMU", "service": "nova-compute"}},
        }

    def admit(
        self,
        name: str,
        consumer: str,
        resources: Mapping[str, int],
        *,
        group: str | None = None,
        hints: Mapping[str, Any] | None = None,
    ) -> bool:
        """Begin a task on a node, if it fits and is not there yet. The last word on overcommit."""
        node = self._nodes[name]
        if consumer in node.allocations or not _fits(node, resources):
            return False
        allocation: dict[str, Any] = {"resources": dict(resources)}
        if group is not None:
            allocation["group"] = group
        if hints:
            allocation["hints"] = dict(hints)
        self._ordered.append(Part(name, _take(node, consumer, allocation)))
        return True

    def end(self, name: str, consumer: str) -> bool:
        """End a task; False if it is not there."""
        node = self._nodes[name]
        if consumer not in node.allocations:
            return False
        self._ordered.append(Part(name, _give_back(node, consumer)))
        return True

    def close(self) -> None:
        """Nothing to give back."""

    # -- inside

    def _make(self) -> _Node:
        model = self._rng.choices(_MODELS, [model.weight for model in _MODELS])[0]
        return _Node(model, dict.fromkeys(model.inventory, 0))

    def _place(self, number: int) -> tuple[str, str]:
        rack = number // RACK_NODES_COUNT
        return f"az{rack // ZONE_RACKS_COUNT + 1}", f"rack-{rack}"

    def _happen(self) -> Part:
        name = self._rng.choice(self._names)
        node = self._nodes[name]
        if self._rng.random() < CHURN:
            # The fuller, the likelier an end: tasks stay around their average, and states around their size.
            ends = self._rng.random() < len(node.allocations) / (2 * START_TASKS_COUNT)
            patch = _give_back(node, self._rng.choice(list(node.allocations))) if ends else self._start(node)
            if patch is not None:
                return Part(name, patch)
        return Part(name, {"metrics": self._metrics(node)})

    def _start(self, node: _Node) -> dict[str, Any] | None:
        resources = self._rng.choices([resources for _, resources in _FLAVOURS], [weight for weight, _ in _FLAVOURS])[0]
        if not _fits(node, resources):
            return None
        bits = f"{self._rng.getrandbits(128):032x}"
        consumer = f"{bits[:8]}-{bits[8:12]}-{bits[12:16]}-{bits[16:20]}-{bits[20:]}"
        allocation: dict[str, Any] = {"resources": dict(resources)}
        if self._rng.random() < 0.3:
            allocation["group"] = f"group-{self._rng.randrange(GROUPS_COUNT)}"
            allocation["hints"] = {
                "group_policy": self._rng.choice(["anti-affinity", "soft-anti-affinity", "affinity"])
            }
        return _take(node, consumer, allocation)

    def _metrics(self, node: _Node) -> dict[str, float]:
        rng, memory = self._rng, node.model.inventory["MEMORY_MB"]["total"]
        return {
            "cpu.percent": round(rng.uniform(0.0, 100.0), 1),
            "memory.percent": round(100.0 * node.usage["MEMORY_MB"] / memory, 1),
            "network.mbps": round(rng.expovariate(1 / 400.0), 1),
            "power.watts": round(rng.gauss(350.0, 40.0), 1),
        }


def _capacity(inventory: Mapping[str, float]) -> int:
    return int((inventory["total"] - inventory.get("reserved", 0)) * inventory.get("allocation_ratio", 1.0))


def _fits(node: _Node, resources: Mapping[str, int]) -> bool:
    inventory = node.model.inventory
    return all(
        name in inventory and node.usage[name] + amount <= _capacity(inventory[name])
        for name, amount in resources.items()
    )


def _take(node: _Node, consumer: str, allocation: dict[str, Any]) -> dict[str, Any]:
    node.allocations[consumer] = allocation
    return {"allocations": {consumer: allocation}, "usage": _count(node, allocation["resources"], 1)}


def _give_back(node: _Node, consumer: str) -> dict[str, Any]:
    allocation = node.allocations.pop(consumer)
    return {"allocations": {consumer: None}, "usage": _count(node, allocation["resources"], -1)}


def _count(node: _Node, resources: Mapping[str, int], sign: int) -> dict[str, int]:
    for name, amount in resources.items():
        node.usage[name] += sign * amount
    return {name: node.usage[name] for name in resources}

"""A seeded fleet for schedulers, the requests of its tenants, and a plain search for the best node of a request.

Nodes are of three kinds and have a given mean usage. Requests are drawn by weight from flavours that are typical of
clouds; some belong to anti-affinity groups, whose members come one after the other.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from bench.workload import SeededFleet
from nodestate.scheduling.request import InstanceGroup, Request

TENANTS_COUNT: Final = 3
"""Instances in the state of a node. They are fewer than its usage would need, to keep states small."""
GROUP_SIZE: Final = 4
GROUP_SHARE: Final = 0.1
"""Share of requests that start a group or belong to one."""
WEIGHED: Final = ("VCPU", "MEMORY_MB", "DISK_GB")
"""Resource classes that the default weighers use."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of node."""

    capacity: Mapping[str, int]
    """Amounts by resource class, after allocation ratios: a node has a quarter of its VCPUs, with a ratio of 4."""
    traits: tuple[str, ...]


PLAIN: Final = Kind({"VCPU": 256, "MEMORY_MB": 262_144, "DISK_GB": 3_600}, ("HW_CPU_X86_AVX2",))
LARGE: Final = Kind({"VCPU": 512, "MEMORY_MB": 1_048_576, "DISK_GB": 7_200}, ("HW_CPU_X86_AVX2", "HW_CPU_X86_AVX512F"))
SPECIAL: Final = Kind(
    {"VCPU": 256, "MEMORY_MB": 524_288, "DISK_GB": 14_400}, ("HW_CPU_X86_AVX2", "HW_NIC_SRIOV", "STORAGE_DISK_SSD")
)
KINDS: Final = (*[PLAIN] * 7, *[LARGE] * 2, SPECIAL)
VCPU_RATIO: Final = 4.0


class Hosts(SeededFleet):
    """A fleet with a mean usage of ``full`` (0 to 1). The usage of a node is random and changes with every event."""

    def __init__(self, seed: int, nodes: int, full: float, *, state_bytes: int = 1_024) -> None:
        self.full = full
        super().__init__(seed, nodes, state_bytes=state_bytes)

    def kind(self, number: int) -> Kind:
        """Return the kind of a node."""
        return KINDS[self._draw(number, -1) % len(KINDS)]

    def usage(self, number: int) -> dict[str, int]:
        """Return the usage of a node as of its last event."""
        return self._usage(number, self.generations[number])

    def state(self, number: int, generation: int) -> dict[str, Any]:
        """Return the state of a node at a generation."""
        kind = self.kind(number)
        ratios = {name: VCPU_RATIO if name == "VCPU" else 1.0 for name in kind.capacity}
        return {
            **super().state(number, generation),
            "inventory": {
                name: {"total": int(amount / ratios[name]), "reserved": 0, "allocation_ratio": ratios[name]}
                for name, amount in kind.capacity.items()
            },
            "traits": list(kind.traits),
            "allocations": {
                f"{self._draw(number, vm):032x}": {"resources": {"VCPU": 4, "MEMORY_MB": 8_192, "DISK_GB": 40}}
                for vm in range(TENANTS_COUNT)
            },
        }

    def _usage(self, number: int, generation: int) -> dict[str, int]:
        width = 0.9 * min(self.full, 1.0 - self.full)
        share = self.full + width * (self._draw(number, generation) / 2**63 - 1.0)
        return {name: int(amount * share) for name, amount in self.kind(number).capacity.items()}

    def _patch(self, number: int, generation: int) -> dict[str, Any]:
        return {"usage": self._usage(number, generation), "metrics": self._measured(number, generation)}


# -- requests ------------------------------------------------------------------------------------


class Flavour(NamedTuple):
    """A size of instance that many tenants request."""

    weight: int
    """How many of a hundred requests have it."""
    vcpus: int
    memory_mb: int
    disk_gb: int
    traits: tuple[str, ...] = ()

    @property
    def resources(self) -> dict[str, int]:
        """Amounts by resource class."""
        return {"VCPU": self.vcpus, "MEMORY_MB": self.memory_mb, "DISK_GB": self.disk_gb}


FLAVOURS: Final = (
    Flavour(30, 1, 1_024, 10),
    Flavour(25, 2, 2_048, 20),
    Flavour(18, 2, 4_096, 20),
    Flavour(12, 4, 8_192, 40),
    Flavour(4, 8, 16_384, 80),
    Flavour(2, 16, 65_536, 160),
    Flavour(4, 4, 8_192, 40, ("HW_CPU_X86_AVX512F",)),
    Flavour(3, 8, 32_768, 80, ("HW_NIC_SRIOV",)),
    Flavour(2, 2, 4_096, 200, ("STORAGE_DISK_SSD", "HW_CPU_X86_AVX2")),
)


class RequestStream:
    """An endless stream of requests for one instance each. ``name`` makes the names of its groups unique."""

    def __init__(self, seed: int | str, name: str = "") -> None:
        self._random = random.Random(f"wants {seed} {name}")
        self._name = name or f"{seed}"
        self._groups = 0
        self._unseen = 0
        self._stream = self._drawn()

    def take(self, count: int) -> list[Request]:
        """Return the next ``count`` requests."""
        return [next(self._stream) for _ in range(count)]

    def unseen(self) -> Request:
        """Return a request with resources that no earlier request had."""
        self._unseen += 1
        flavour = self._flavour()
        resources = flavour.resources | {"MEMORY_MB": flavour.memory_mb + self._unseen}
        return Request(resources=resources, required_traits=flavour.traits)

    def _flavour(self) -> Flavour:
        return self._random.choices(FLAVOURS, [flavour.weight for flavour in FLAVOURS])[0]

    def _drawn(self) -> Iterator[Request]:
        open_groups: list[Request] = []
        while True:
            if self._random.random() >= GROUP_SHARE:
                flavour = self._flavour()
                yield Request(resources=flavour.resources, required_traits=flavour.traits)
                continue
            if not open_groups:
                self._groups += 1
                group = InstanceGroup(name=f"group-{self._name}-{self._groups}", policy="anti-affinity")
                flavour = self._flavour()
                open_groups = [
                    Request(resources=flavour.resources, required_traits=flavour.traits, group=group)
                    for _ in range(GROUP_SIZE)
                ]
            yield open_groups.pop()


# -- the plain search -----------------------------------------------------------------------------


def fits(hosts: Hosts, number: int, request: Request) -> bool:
    """Return whether a node has the traits and the room for a request, as of its last event and without claims."""
    kind, usage = hosts.kind(number), hosts.usage(number)
    return set(request.required_traits) <= set(kind.traits) and all(
        kind.capacity[name] - usage[name] >= amount for name, amount in request.resources.items()
    )


def worth(hosts: Hosts, number: int, request: Request) -> float:
    """Return the weight that the default weighers give a node: the sum of its free shares after the request."""
    kind, usage = hosts.kind(number), hosts.usage(number)
    return math.fsum(
        (kind.capacity[name] - usage[name] - request.resources[name]) / kind.capacity[name] for name in WEIGHED
    )


def best_worth(hosts: Hosts, request: Request) -> float:
    """Return the largest weight of the nodes that fit, or minus infinity if no node fits."""
    return max((worth(hosts, n, request) for n in range(len(hosts)) if fits(hosts, n, request)), default=-math.inf)

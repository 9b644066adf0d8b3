"""A seeded fleet: the events that its agents send, and the states that views must show.

Every state is a pure function of (seed, node, generation), computed here without nodestate's fold. So the expected
content of a view follows from one generation per node, for a fleet of any size.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
import xxhash

from nodestate.model import Version
from nodestate.model.partitioning import bucket_of
from nodestate.view.view import View

INCARNATION: Final = 1_763_787_600
ALLOCATION_EVERY: Final = 10
"""Every tenth change of a node replaces one VM by another; the other changes affect usage and metrics only."""
CLASSES: Final = {"VCPU": (64, 2), "MEMORY_MB": (262_144, 4_096), "DISK_GB": (3_600, 0)}
TRAITS: Final = ("HW_CPU_X86_AVX2", "HW_CPU_X86_AVX512F", "HW_NIC_SRIOV", "COMPUTE_VOLUME_ATTACH_WITH_TAG")
METRIC_BYTES: Final = 5 + 9  # the key "m000", a double
VM: Final = {
    "resources": {"VCPU": 4, "MEMORY_MB": 8_192},
    "group": "web",
    "hints": {"group_policy": "anti-affinity"},
}
LASTING_VMS_COUNT: Final = 2

_encode = msgspec.msgpack.Encoder().encode


class WrongResultError(Exception):
    """Raised when a run had a wrong result, so that its figures would mean nothing."""


def require(claim: bool, otherwise: str) -> None:
    """Raise ``WrongResultError`` unless the claim holds."""
    if not claim:
        raise WrongResultError(otherwise)


class SeededFleet:
    """``nodes`` nodes with states of about ``state_bytes``, whose changes are events of about ``change_bytes``.

    ``report`` and ``change`` return a node's next event and note that it was sent. Sizes cannot fall below the size of
    the required fields (docs/reference/wire.md): about 700 bytes for a state and 190 bytes for a change.
    """

    def __init__(self, seed: int, nodes: int, *, state_bytes: int = 1_024, change_bytes: int = 200) -> None:
        self.seed = seed
        self.names = [f"compute-{number:07d}" for number in range(nodes)]
        # The generation of each node's last event.
        self.generations = array("Q", [0]) * nodes
        # Names of metrics that bring changes to their size.
        self._metrics: tuple[str, ...] = ()
        # Length of the text that brings states to their size.
        self._pad_bytes = 0
        shortest = len(_encode(self._event(0, "change", 2, {"patch": self._patch(0, 2)})))
        self._metrics = tuple(f"m{n:03d}" for n in range(max(0, change_bytes - shortest) // METRIC_BYTES))
        self._pad_bytes = max(0, state_bytes - len(self.body(0, 1)))

    def __len__(self) -> int:
        return len(self.names)

    # -- events of the agents ---------------------------------------------------------------------

    def report(self, number: int) -> bytes:
        """Return a node's next event as a report of its whole state."""
        self.generations[number] += 1
        generation = self.generations[number]
        return _encode(self._event(number, "report", generation, {"state": self.state(number, generation)}))

    def change(self, number: int) -> bytes:
        """Return a node's next event as a change."""
        self.generations[number] += 1
        generation = self.generations[number]
        return _encode(self._event(number, "change", generation, {"patch": self._patch(number, generation)}))

    # -- expected states -----------------------------------------------------------------------

    def version(self, number: int) -> Version:
        """Return the version of a node's last event."""
        return Version(INCARNATION, self.generations[number])

    def state(self, number: int, generation: int) -> dict[str, Any]:
        """Return the state of a node at a generation."""
        lasting = {f"{self._draw(number, vm):032x}": VM for vm in range(LASTING_VMS_COUNT)}
        return {
            "status": "up",
            "zone": f"az{number % 3}",
            "inventory": {
                name: {"total": total, "reserved": reserved, "allocation_ratio": 1.5}
                for name, (total, reserved) in CLASSES.items()
            },
            "usage": self._usage(number, generation),
            "traits": list(TRAITS),
            "aggregates": [f"rack-{number // 40}"],
            "allocations": {**lasting, self._passing_vm(number, generation): VM},
            "metrics": self._measured(number, generation),
            "namespaces": {"nova": {"hypervisor_type": "QEMU", "pad": "x" * self._pad_bytes}},
        }

    def body(self, number: int, generation: int) -> bytes:
        """Return the state of a node at a generation as msgpack."""
        return _encode(self.state(number, generation))

    # -- inside ---------------------------------------------------------------------------------

    def _draw(self, number: int, generation: int) -> int:
        """Return 64 pseudo-random bits."""
        return xxhash.xxh3_64_intdigest(f"{self.seed}/{number}/{generation}".encode())

    def _usage(self, number: int, generation: int) -> dict[str, int]:
        bits = self._draw(number, generation)
        return {"VCPU": bits % 64, "MEMORY_MB": (bits >> 8) % 262_144, "DISK_GB": (bits >> 32) % 3_600}

    def _measured(self, number: int, generation: int) -> dict[str, float]:
        bits = self._draw(number, generation)
        return {"cpu.percent": bits % 1_000 / 10} | {
            name: (bits >> at % 48) % 10_000 / 100 for at, name in enumerate(self._metrics)
        }

    def _passing_vm(self, number: int, generation: int) -> str:
        return f"{self._draw(number, ~(generation // ALLOCATION_EVERY)):032x}"

    def _patch(self, number: int, generation: int) -> dict[str, Any]:
        patch: dict[str, Any] = {
            "usage": self._usage(number, generation),
            "metrics": self._measured(number, generation),
        }
        if generation % ALLOCATION_EVERY == 0:
            gone, came = self._passing_vm(number, generation - 1), self._passing_vm(number, generation)
            patch["allocations"] = {gone: None, came: VM}
        return patch

    def _event(self, number: int, kind: str, generation: int, content: dict[str, Any]) -> dict[str, Any]:
        return {
            "v": 1,
            "kind": kind,
            "node": self.names[number],
            "incarnation": INCARNATION,
            "generation": generation,
            "reported_at": INCARNATION + generation / 8,
            **content,
        }


def buckets_of(fleet: SeededFleet) -> list[int]:
    """Return the bucket of each node of a fleet."""
    return [bucket_of(name) for name in fleet.names]


def require_equal(view: View, fleet: SeededFleet, numbers: Sequence[int]) -> None:
    """Raise ``WrongResultError`` unless the view shows these nodes as their last events left them."""
    for number in numbers:
        name, version = fleet.names[number], fleet.version(number)
        record = view.nodes.record(name)
        require(record is not None, f"{name} is not in the view of {view.design}")
        assert record is not None
        require(record.version == version, f"{view.design} shows {name} at {record.version}, the agent is at {version}")
        state = fleet.state(number, version.generation)
        require(record.state() == state, f"{view.design} shows {name} with a state that its agent did not send")


def require_whole(view: View, fleet: SeededFleet) -> None:
    """Raise ``WrongResultError`` unless the view is complete and fresh and shows exactly the nodes of the fleet."""
    shown = sum(1 for _ in view.nodes.records())
    require(shown == len(fleet), f"{view.design} shows {shown} nodes of {len(fleet)}")
    require(not view.stale, f"the view of {view.design} has {len(view.stale)} stale nodes")
    require(not view.incomplete, f"the view of {view.design} is incomplete: {sorted(view.incomplete)[:4]}")
    require_equal(view, fleet, range(len(fleet)))


def view_digest(view: View) -> int:
    """Return a number that is equal for two views if they show the same states, in any order of nodes."""
    return sum(_record_digests(view)) % 2**64


def _record_digests(view: View) -> Iterator[int]:
    for record in view.nodes.records():
        stamp = f"{record.name} {record.incarnation}.{record.generation} ".encode()
        yield xxhash.xxh3_64_intdigest(stamp + record.body)

"""This machine, as the operating system reports it. Its usage is measured, because processes are not allocations."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import psutil

from nodestate.agent.sources import FullState, Reading
from nodestate.model import MAX_NODE_NAME_CHARS, NODE_NAME_CHARACTERS

MIB: Final = 1024**2
GIB: Final = 1024**3
MEMORY_STEP_MB: Final = 64
"""Used memory is rounded to multiples of this. Smaller changes are noise, and each change would cost a message."""

_TRAITS: Final = {
    "aes": "HW_CPU_X86_AESNI",
    "avx2": "HW_CPU_X86_AVX2",
    "avx512f": "HW_CPU_X86_AVX512F",
    "sse4_2": "HW_CPU_X86_SSE42",
    "svm": "HW_CPU_X86_SVM",
    "vmx": "HW_CPU_X86_VMX",
}


def clean_name(name: str) -> str:
    """Make a valid node name from a host's name.

    Characters that a node name can't have become ``-``, and a name that is too long is cut off.
    """
    return re.sub(f"[^{NODE_NAME_CHARACTERS}]", "-", name)[:MAX_NODE_NAME_CHARS] or "host"


class HostSource:
    """A ``StateSource`` of one node: this machine.

    Args:
        name: the node's name; empty for the name of this machine.
        zone: the zone to report.
        path: a path on the disk to report.
        every_s: seconds between two polls.
    """

    def __init__(self, *, name: str = "", zone: str = "", path: str = "/", every_s: float = 5.0) -> None:
        self._name = clean_name(name or socket.gethostname())
        """The node's name."""
        self._zone = zone
        """The zone to report."""
        self._path = path
        """A path on the disk to report."""
        self._every_s = every_s
        """Seconds between two polls."""
        self._traits = _cpu_traits()
        """Traits of the processor."""
        psutil.cpu_percent()  # measures the time since its last call, so the first result has no meaning

    @property
    def name(self) -> str:
        """The node's name."""
        return self._name

    @property
    def every_s(self) -> float:
        """Seconds between two polls."""
        return self._every_s

    def nodes(self) -> Sequence[str]:
        """Return the node's name."""
        return (self._name,)

    def poll(self, now: float) -> Iterable[Reading]:  # noqa: ARG002 - the machine is read as of now
        """Yield the machine's full state."""
        yield FullState(self._name, self.state())

    def state(self) -> dict[str, Any]:
        """Return the state of this machine at this moment."""
        memory = psutil.virtual_memory()
        disk = psutil.disk_usage(self._path)
        cpus = psutil.cpu_count() or 1
        load_1m = psutil.getloadavg()[0]
        used_mb = round((memory.total - memory.available) / MIB / MEMORY_STEP_MB) * MEMORY_STEP_MB
        return {
            "status": "up",
            "zone": self._zone,
            "inventory": {
                "VCPU": {"total": cpus},
                "MEMORY_MB": {"total": memory.total // MIB},
                "DISK_GB": {"total": disk.total // GIB},
            },
            "usage": {"VCPU": min(cpus, round(load_1m)), "MEMORY_MB": used_mb, "DISK_GB": disk.used // GIB},
            "traits": self._traits,
            "metrics": {
                "cpu.percent": psutil.cpu_percent(),
                "load.1m": round(load_1m, 2),
                "memory.percent": memory.percent,
                "disk.percent": disk.percent,
            },
        }

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


def _cpu_traits() -> list[str]:
    """Return the traits of the processor, sorted; none if the operating system does not tell its features."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return []
    line = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    flags = set(line.group(1).split()) if line else set()
    return sorted(trait for flag, trait in _TRAITS.items() if flag in flags)

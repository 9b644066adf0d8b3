"""A hypervisor, through libvirt: its domains are allocations. Needs ``pip install nodestate[libvirt]``."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import Any

from nodestate.agent.sources import Reading, Whole
from nodestate.agent.sources.host import GIB, clean_name
from nodestate.errors import ConfigError, SourceUnavailableError

KIB_PER_MIB = 1024


class LibvirtSource:
    """A ``StateSource`` of one node: the hypervisor at ``uri``.

    A domain that runs or is paused takes its virtual CPUs and its memory limit; disk is what storage pools say.
    A lost connection is opened again at the next poll.
    """

    def __init__(self, uri: str = "qemu:///system", *, name: str = "", zone: str = "", every_s: float = 5.0) -> None:
        self._libvirt = _import_libvirt()
        self._uri = uri
        self._zone = zone
        self._every_s = every_s
        self._connection: Any = None
        self._name = clean_name(name) if name else ""
        # It prints each error to stderr otherwise, beside raising it.
        self._libvirt.registerErrorHandler(lambda _context, _error: None, None)

    @property
    def name(self) -> str:
        """The node's name: the hypervisor's host, where none was given."""
        if not self._name:
            try:
                self._name = clean_name(self._connected().getHostname())
            except self._libvirt.libvirtError as error:
                raise SourceUnavailableError(self._uri, str(error)) from error
        return self._name

    @property
    def every_s(self) -> float:
        """How often to poll."""
        return self._every_s

    def nodes(self) -> Sequence[str]:
        """The hypervisor."""
        return (self.name,)

    def poll(self, now: float) -> Iterable[Reading]:  # noqa: ARG002 - the hypervisor is as it is now
        """The hypervisor's whole state. Raises ``SourceUnavailableError``."""
        yield Whole(self.name, self.state())

    def state(self) -> dict[str, Any]:
        """The state of the hypervisor at this moment. Raises ``SourceUnavailableError``."""
        try:
            return self._read(self._connected())
        except self._libvirt.libvirtError as error:
            self.close()
            raise SourceUnavailableError(self._uri, str(error)) from error

    def close(self) -> None:
        """Close the connection; the next poll opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connected(self) -> Any:
        if self._connection is None:
            self._connection = self._libvirt.openReadOnly(self._uri)
        return self._connection

    def _read(self, connection: Any) -> dict[str, Any]:
        model, memory_mb, cpus, *_ = connection.getInfo()
        active = connection.listAllDomains(self._libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
        allocations: dict[str, Any] = {}
        usage = {"VCPU": 0, "MEMORY_MB": 0}
        for domain in active:
            _, limit_kib, _, vcpus, _ = domain.info()
            resources = {"VCPU": vcpus, "MEMORY_MB": limit_kib // KIB_PER_MIB}
            allocations[domain.UUIDString()] = {"resources": resources}
            for resource, amount in resources.items():
                usage[resource] += amount
        inventory = {"VCPU": {"total": cpus}, "MEMORY_MB": {"total": memory_mb}}
        pools = [pool.info() for pool in connection.listAllStoragePools()]
        if pools:
            inventory["DISK_GB"] = {"total": sum(capacity for _, capacity, _, _ in pools) // GIB}
            usage["DISK_GB"] = sum(allocated for _, _, allocated, _ in pools) // GIB
        return {
            "status": "up",
            "zone": self._zone,
            "inventory": inventory,
            "usage": usage,
            "allocations": allocations,
            "metrics": {"domains.active": float(len(active))},
            "namespaces": {"libvirt": {"type": connection.getType(), "cpu_model": model}},
        }


def _import_libvirt() -> Any:
    try:
        return importlib.import_module("libvirt")
    except ImportError as error:
        raise ConfigError(
            f"reading libvirt needs its Python binding ({error}): pip install nodestate[libvirt], which compiles "
            "against libvirt's headers (Debian: libvirt-dev, gcc, pkg-config)"
        ) from error

"""A hypervisor, read through libvirt. Its domains are allocations. Needs ``pip install nodestate[libvirt]``."""

from __future__ import annotations

import importlib
import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final
from xml.etree import ElementTree as ET

from nodestate.agent.sources import FullState, NodeResources, Reading
from nodestate.agent.sources.host import GIB, clean_name
from nodestate.errors import ConfigError, OrderFailedError, SourceUnavailableError

KIB_PER_MIB = 1024
"""libvirt counts memory in KiB."""
METADATA: Final = "urn:nodestate:allocation"
"""The XML namespace under which a domain's ``<metadata>`` holds the allocation that an order asked for."""
PREFIX: Final = "nodestate"
"""The prefix of that namespace in XML."""
OWN_CLASSES: Final = ("VCPU", "MEMORY_MB")
"""Resource classes whose amounts libvirt itself reports for a domain."""

ET.register_namespace(PREFIX, METADATA)


class LibvirtSource:
    """A ``StateSource`` and ``AdmittingSource`` of one node: the hypervisor at ``uri``.

    A domain that runs or is paused uses its virtual CPUs and its memory limit. The disk usage is the usage of the
    storage pools. A lost connection is opened again at the next poll. The connection is read-only until the first order
    comes.

    An order defines and starts a domain with the instance's name. The domain has CPUs and memory and nothing else;
    other tools attach disks and networks. libvirt stores the order in the domain's metadata, so the agent needs no file
    of its own. A domain that an order built keeps its allocation while it is shut off. Other ordered amounts, such as
    ``DISK_GB``, count in addition to the usage of the pools. While the domain runs, an order can change its hints, but
    not its amounts, because libvirt fixes them at the start. Domains that no order built are reported, but never
    changed or ended.

    Args:
        uri: libvirt's address of the hypervisor.
        name: the node's name; empty for the name of the hypervisor's host.
        zone: the zone to report.
        every_s: seconds between two polls.
    """

    def __init__(self, uri: str = "qemu:///system", *, name: str = "", zone: str = "", every_s: float = 5.0) -> None:
        self._libvirt = _import_libvirt()
        """libvirt's Python module."""
        self._uri = uri
        """libvirt's address of the hypervisor."""
        self._zone = zone
        """The zone to report."""
        self._every_s = every_s
        """Seconds between two polls."""
        self._connection: Any = None
        """The open connection; None if there is none."""
        self._writes = False
        """True if the connection may change domains."""
        self._name = clean_name(name) if name else ""
        """The node's name; empty until the hypervisor has been asked for the name of its host."""
        # Otherwise libvirt prints each error to stderr, in addition to raising it.
        self._libvirt.registerErrorHandler(lambda _context, _error: None, None)

    @property
    def name(self) -> str:
        """The node's name. Raises ``SourceUnavailableError`` if none was given and the hypervisor cannot be asked."""
        if not self._name:
            try:
                self._name = clean_name(self._connected().getHostname())
            except self._libvirt.libvirtError as error:
                raise SourceUnavailableError(self._uri, str(error)) from error
        return self._name

    @property
    def every_s(self) -> float:
        """Seconds between two polls."""
        return self._every_s

    def nodes(self) -> Sequence[str]:
        """Return the node's name."""
        return (self.name,)

    def poll(self, now: float) -> Iterable[Reading]:  # noqa: ARG002 - the hypervisor is read as of now
        """Yield the hypervisor's full state. Raises ``SourceUnavailableError``."""
        yield FullState(self.name, self.state())

    def state(self) -> dict[str, Any]:
        """Return the state of the hypervisor at this moment. Raises ``SourceUnavailableError`` if it cannot be read."""
        try:
            return self._read(self._connected())
        except self._libvirt.libvirtError as error:
            self.close()
            raise SourceUnavailableError(self._uri, str(error)) from error

    def close(self) -> None:
        """Close the connection. The next poll opens another one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # -- AdmittingSource

    def resources_of(self, node: str) -> NodeResources:  # noqa: ARG002 - there is one node
        """Return the hypervisor's present resources and allocations. Raises ``SourceUnavailableError``."""
        state = self.state()
        return NodeResources(state["status"], state["inventory"], state["usage"], state["allocations"])

    def build(self, node: str, instance: str, allocation: dict[str, Any]) -> FullState:
        """Give the instance this allocation.

        If the instance has no domain, defines and starts one. If its domain is shut off, defines the domain again. If
        its domain runs, replaces the stored order, which must have the same amounts.

        Raises:
            OrderFailedError: if libvirt cannot do this, if the amounts of a running domain would change, or if no order
                built the domain.
        """
        resources = allocation["resources"]
        with self._failures_as_refusals():
            connection = self._writable()
            domain, there = self._find(connection, instance)
            if domain is None:
                if min(resources.get(name, 0) for name in OWN_CLASSES) < 1:
                    raise OrderFailedError(self._uri, "start a domain without VCPU and MEMORY_MB")
                self._start(connection, instance, allocation)
            elif domain.isActive() and resources != there["resources"]:
                raise OrderFailedError(self._uri, "change the amounts of a domain that runs")
            elif domain.isActive():
                scope = self._libvirt.VIR_DOMAIN_AFFECT_CONFIG | self._libvirt.VIR_DOMAIN_AFFECT_LIVE
                element = self._libvirt.VIR_DOMAIN_METADATA_ELEMENT
                domain.setMetadata(element, _text(_metadata("order", instance, allocation)), PREFIX, METADATA, scope)
            else:
                connection.defineXML(_text(_domain(connection, instance, allocation, domain.UUIDString())))
        return FullState(node, self.state())

    def end(self, node: str, instance: str) -> FullState:
        """Stop the instance's domain and delete its definition. Raises ``OrderFailedError`` if libvirt can't."""
        with self._failures_as_refusals():
            domain, _ = self._find(self._writable(), instance)
            if domain is not None:
                if domain.isActive():
                    domain.destroy()
                domain.undefine()
        return FullState(node, self.state())

    def save(self) -> None:
        """Do nothing: libvirt has stored each definition already."""

    # -- inside

    def _connected(self) -> Any:
        """Return the open connection, or open one."""
        if self._connection is None:
            opens = self._libvirt.open if self._writes else self._libvirt.openReadOnly
            self._connection = opens(self._uri)
        return self._connection

    def _writable(self) -> Any:
        """Return a connection that may change domains, from now on the only one."""
        if not self._writes:
            connection = self._libvirt.open(self._uri)
            self.close()
            self._connection, self._writes = connection, True
        return self._connected()

    @contextmanager
    def _failures_as_refusals(self) -> Iterator[None]:
        """Raise ``OrderFailedError`` instead of libvirt's errors."""
        try:
            yield
        except self._libvirt.libvirtError as error:
            raise OrderFailedError(self._uri, str(error)) from error

    def _find(self, connection: Any, instance: str) -> tuple[Any, dict[str, Any]]:
        """Return the domain of an instance, and its allocation. The domain is None if the instance has none.

        Raises ``OrderFailedError`` if no order built the domain.
        """
        for domain in connection.listAllDomains():
            name, allocation = self._allocation(domain)
            if name == instance:
                if self._order_of(domain) is None:
                    raise OrderFailedError(self._uri, "change a domain that no order built")
                return domain, allocation
        return None, {}

    def _start(self, connection: Any, instance: str, allocation: dict[str, Any]) -> None:
        """Define and start a domain. If it cannot be started, remove the definition and raise libvirt's error."""
        try:
            identity = str(uuid.UUID(instance))
        except ValueError:
            identity = str(uuid.uuid4())
        domain = connection.defineXML(_text(_domain(connection, instance, allocation, identity)))
        try:
            domain.create()
        except self._libvirt.libvirtError:
            with suppress(self._libvirt.libvirtError):
                domain.undefine()
            raise

    def _read(self, connection: Any) -> dict[str, Any]:
        """Return the state of the hypervisor, as events have it. Raises libvirt's errors."""
        model, memory_mb, cpus, *_ = connection.getInfo()
        inventory = {"VCPU": {"total": cpus}, "MEMORY_MB": {"total": memory_mb}}
        usage = {"VCPU": 0, "MEMORY_MB": 0}
        pools = [pool.info() for pool in connection.listAllStoragePools()]
        if pools:
            inventory["DISK_GB"] = {"total": sum(capacity for _, capacity, _, _ in pools) // GIB}
            usage["DISK_GB"] = sum(allocated for _, _, allocated, _ in pools) // GIB
        domains = connection.listAllDomains()
        active = [domain for domain in domains if domain.isActive()]
        allocations: dict[str, Any] = {}
        for domain in domains:
            if not domain.isActive() and self._order_of(domain) is None:
                continue
            instance, allocation = self._allocation(domain)
            allocations[instance] = allocation
            for resource, amount in allocation["resources"].items():
                usage[resource] = usage.get(resource, 0) + amount
        return {
            "status": "up",
            "zone": self._zone,
            "inventory": inventory,
            "usage": usage,
            "allocations": allocations,
            "metrics": {"domains.active": float(len(active))},
            "namespaces": {"libvirt": {"type": connection.getType(), "cpu_model": model}},
        }

    def _allocation(self, domain: Any) -> tuple[str, dict[str, Any]]:
        """Return the instance of a domain, and its allocation with the CPUs and memory that libvirt reports."""
        _, limit_kib, _, vcpus, _ = domain.info()
        resources = {"VCPU": vcpus, "MEMORY_MB": limit_kib // KIB_PER_MIB}
        asked = self._order_of(domain)
        if asked is None:
            return domain.UUIDString(), {"resources": resources}
        allocation = asked["allocation"]
        return asked["instance"], {**allocation, "resources": {**allocation["resources"], **resources}}

    def _order_of(self, domain: Any) -> dict[str, Any] | None:
        """Return the order in a domain's metadata; None if no order built the domain."""
        try:
            element = domain.metadata(self._libvirt.VIR_DOMAIN_METADATA_ELEMENT, METADATA)
        except self._libvirt.libvirtError as error:
            if error.get_error_code() == self._libvirt.VIR_ERR_NO_DOMAIN_METADATA:
                return None
            raise
        asked: dict[str, Any] = json.loads(ET.fromstring(element).text or "")  # noqa: S314 - this class wrote it
        return asked


def _domain(connection: Any, instance: str, allocation: dict[str, Any], identity: str) -> ET.Element:
    """Return the definition of a domain for an order, of a type that the hypervisor can run."""
    kind, architecture = _guest(connection)
    domain = ET.Element("domain", type=kind)
    ET.SubElement(domain, "name").text = instance
    ET.SubElement(domain, "uuid").text = identity
    ET.SubElement(domain, "metadata").append(_metadata(f"{{{METADATA}}}order", instance, allocation))
    ET.SubElement(domain, "memory", unit="KiB").text = str(allocation["resources"]["MEMORY_MB"] * KIB_PER_MIB)
    ET.SubElement(domain, "vcpu").text = str(allocation["resources"]["VCPU"])
    ET.SubElement(ET.SubElement(domain, "os"), "type", arch=architecture).text = "hvm"
    return domain


def _guest(connection: Any) -> tuple[str, str]:
    """Choose the type and the architecture of a new domain that the hypervisor supports.

    The architecture is the host's, if possible, and the type is KVM, if possible. Otherwise the first ones are chosen.
    Raises ``OrderFailedError`` if the hypervisor supports none.
    """
    capabilities = ET.fromstring(connection.getCapabilities())  # noqa: S314 - libvirt wrote it
    host = capabilities.findtext("host/cpu/arch")
    guests = [guest for guest in capabilities.iter("guest") if guest.findtext("os_type") == "hvm"]
    for architecture in sorted(
        (arch for guest in guests for arch in guest.iter("arch")), key=lambda a: a.get("name") != host
    ):
        kinds = [str(kind.get("type")) for kind in architecture.iter("domain")]
        if kinds:
            return "kvm" if "kvm" in kinds else kinds[0], str(architecture.get("name"))
    raise OrderFailedError(connection.getURI(), "run any virtual machine")


def _metadata(tag: str, instance: str, allocation: dict[str, Any]) -> ET.Element:
    """Return the metadata element of an allocation, as JSON in ASCII, because XML can't carry every character.

    ``tag`` is the element's name: with the namespace, unless libvirt adds the namespace.
    """
    element = ET.Element(tag)
    element.text = json.dumps({"instance": instance, "allocation": allocation})
    return element


def _text(element: ET.Element) -> str:
    return ET.tostring(element, encoding="unicode")


def _import_libvirt() -> Any:
    try:
        return importlib.import_module("libvirt")
    except ImportError as error:
        raise ConfigError(
            f"reading libvirt needs its Python binding ({error}): run pip install nodestate[libvirt], which compiles "
            "against libvirt's headers (Debian: libvirt-dev, gcc, pkg-config)"
        ) from error

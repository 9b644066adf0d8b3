"""Host states made of nodes: one pristine state for each node, and a copy for each request.

    entry --first request for the node--> pristine HostState --each request--> a copy of its own

Nova's filters write into a host state, and ``consume_from_request`` changes NUMA topologies and PCI pools in place. So
a pristine state is never handed out. A copy shares everything that is not changed, and decodes NUMA and PCI when a
filter looks at them. This module imports Nova.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

import netaddr
from nova import objects
from nova.objects import pci_device_pool
from nova.pci import stats as pci_stats
from nova.scheduler import host_manager
from oslo_serialization import jsonutils

from nodestate.integrations.nova.cell_nodes import NodeEntry
from nodestate.integrations.nova.row_form import COMPUTE_COLUMNS, LAST_SEEN, time_of

SHARED_TOPOLOGIES_COUNT: Final = 4_096
SHARED_SPECS_COUNT: Final = 1_024
_STATS_FIELD: Final = objects.ComputeNode.fields["stats"]
_ABSENT: Final = object()
_SERVICE_DEFAULTS: Final = {
    "report_count": 0,
    "disabled_reason": None,
    "last_seen_up": None,
    "updated_at": None,
    "deleted_at": None,
    "deleted": False,
}
"""Fields of a service that a state does not carry, or leaves out if they are null."""


@functools.lru_cache(maxsize=SHARED_TOPOLOGIES_COUNT)
def _topology(text: str) -> Any:
    """Decode a NUMA topology; equal texts share one object, which is never changed."""
    return objects.NUMATopology.obj_from_db_obj(text)


@functools.lru_cache(maxsize=SHARED_SPECS_COUNT)
def _specs(text: str) -> tuple[Any, ...]:
    return tuple(objects.HVSpec.from_list(spec) for spec in jsonutils.loads(text))


class ComputeRow:
    """A compute node as ``HostState._update_from_compute_node`` reads it, at a tenth of the cost of Nova's object.

    NUMA topology and PCI pools are None, because ``NodestateHostState`` decodes them later.
    """

    numa_topology = None
    pci_device_pools = None

    def __init__(self, uuid: str, columns: Mapping[str, Any]) -> None:
        for name in COMPUTE_COLUMNS:
            if name not in ("numa_topology", "pci_stats", "supported_instances"):
                setattr(self, name, columns.get(name))
        self.uuid = uuid
        self.host_ip = netaddr.IPAddress(columns["host_ip"]) if "host_ip" in columns else None
        self.updated_at = time_of(columns.get("updated_at"))
        self.supported_hv_specs = _specs(columns["supported_instances"]) if columns.get("supported_instances") else None
        stats = columns.get("stats")
        self.stats = _STATS_FIELD.coerce(self, "stats", jsonutils.loads(stats)) if stats else None

    def __contains__(self, name: str) -> bool:
        return hasattr(self, name)


class ServiceFields(host_manager.ReadOnlyDict):  # type: ignore[misc]  # Nova has no types
    """The fields of a service. Unlike its base, it keeps the dict that it is given."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.data = fields


class NodestateHostState(host_manager.HostState):  # type: ignore[misc]  # Nova has no types
    """A host state that decodes expensive parts when they are needed, and copies them before it changes them."""

    # The texts of the columns; None if they are null. The pristine state has them, and each copy the same.
    numa_text: str | None = None
    pci_text: str | None = None
    # The state that this is a copy of; None in a pristine state.
    pristine: NodestateHostState | None = None
    # Makes the instances, when they are first needed.
    make_instances: Callable[[], dict[str, Any]] = dict

    @property
    def numa_topology(self) -> Any:
        """The NUMA topology; None if the host has none."""
        held = self.__dict__.get("_numa", _ABSENT)
        if held is _ABSENT:
            held = self.__dict__["_numa"] = _topology(self.numa_text) if self.numa_text else None
        return held

    @numa_topology.setter
    def numa_topology(self, value: Any) -> None:
        self.__dict__["_numa"] = value

    @property
    def pci_stats(self) -> Any:
        """The PCI pools. Those of a pristine state are shared by its copies, because weighers look at each host's."""
        held = self.__dict__.get("_pci", _ABSENT)
        if held is _ABSENT:
            if self.pristine is not None:
                held = self.pristine.pci_stats
            else:
                pools = pci_device_pool.from_pci_stats(self.pci_text) if self.pci_text is not None else None
                held = pci_stats.PciDeviceStats(self.numa_topology, stats=pools)
            self.__dict__["_pci"] = held
        return held

    @pci_stats.setter
    def pci_stats(self, value: Any) -> None:
        self.__dict__["_pci"] = value

    @property
    def instances(self) -> dict[str, Any]:
        """The instances of the host by uuid, as objects that load their fields when these are needed."""
        held: dict[str, Any] | None = self.__dict__.get("_instances")
        if held is None:
            held = self.__dict__["_instances"] = self.make_instances()
        return held

    @instances.setter
    def instances(self, value: dict[str, Any]) -> None:
        self.__dict__["_instances"] = value

    def _locked_consume_from_request(self, spec_obj: Any) -> None:
        if self.pristine is not None:
            memo: dict[int, Any] = {}
            self.numa_topology = copy.deepcopy(self.numa_topology, memo)
            self.pci_stats = copy.deepcopy(self.pci_stats, memo)
            self.pristine = None
        super()._locked_consume_from_request(spec_obj)


def pristine_state(entry: NodeEntry) -> NodestateHostState:
    """Return the pristine state of a node; made at the first call. Raises ``CorruptItemError``."""
    if entry.pristine is not None:
        made: NodestateHostState = entry.pristine
        return made
    part = entry.nova.part
    columns = part.compute or {}
    state = NodestateHostState(columns.get("host"), columns.get("hypervisor_hostname"), part.cell)
    if "free_disk_gb" in columns:  # else the compute service has not reported usage, and Nova sets nothing
        state._update_from_compute_node(ComputeRow(entry.record.name, columns))  # noqa: SLF001 - Nova's own code
        state.numa_text, state.pci_text = columns.get("numa_topology"), columns.get("pci_stats")
        del state.__dict__["_numa"], state.__dict__["_pci"]  # Nova's code set them without the texts
    state.__dict__.pop("_instances", None)
    if part.service is not None:
        # A base of each copy's service: a row as ``dict(Service)`` has it.
        state.service = {**_SERVICE_DEFAULTS, **part.service, "created_at": time_of(part.service.get("created_at"))}
    entry.pristine = state
    return state


def copy_for_request(entry: NodeEntry, seen: datetime) -> NodestateHostState:
    """Return a state that one request may change. The caller sets its aggregates and instances.

    Args:
        entry: the node, whose host has a service.
        seen: when the mirror last read that all services but the silent ones report.

    Raises ``CorruptItemError``.
    """
    pristine = pristine_state(entry)
    state = NodestateHostState.__new__(NodestateHostState)
    state.__dict__.update(pristine.__dict__)
    state.pristine = pristine
    state.limits = {}
    state.allocation_candidates = []
    service = entry.nova.part.service or {}
    last_seen = time_of(service[LAST_SEEN]) if LAST_SEEN in service else seen
    state.service = ServiceFields({**pristine.service, "last_seen_up": last_seen, "updated_at": last_seen})
    return state

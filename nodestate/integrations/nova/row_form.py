"""The form in which Nova's rows travel: ``namespaces.nova`` of a node's state.

This is the only module that knows columns of Nova's tables. It needs no Nova.

A node of nodestate is one compute node of Nova, named by its uuid: a pair of host and hypervisor_hostname may be longer
than a name, have other characters, and occur in two cells. Columns that are null are left out, because a merge patch
cannot set a null. Columns with JSON stay text for the same reason, and because most readers never decode them.

A mirror has a node of its own, which holds no compute node and no inventory. So Nova's host manager never serves it,
and nodestate's scheduler never places an instance on it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from nodestate.errors import CorruptItemError
from nodestate.model import NodeRecord

FORM_VERSION: Final = 1
"""Version of this form, the field ``v`` of ``namespaces.nova``."""
MIRROR_PREFIX: Final = "nova-mirror:"
"""First characters of the name of a mirror's own node. A uuid has no colon."""
MAX_HOST_CHARS: Final = 120
"""Longest part of a mirror's host name in the name of its node."""

COMPUTE_COLUMNS: Final[Mapping[str, type]] = {
    "host": str,
    "hypervisor_hostname": str,
    "vcpus": int,
    "memory_mb": int,
    "local_gb": int,
    "vcpus_used": int,
    "memory_mb_used": int,
    "local_gb_used": int,
    "hypervisor_type": str,
    "hypervisor_version": int,
    "free_ram_mb": int,
    "free_disk_gb": int,
    "cpu_info": str,
    "disk_available_least": int,
    "host_ip": str,
    "supported_instances": str,
    "metrics": str,
    "pci_stats": str,
    "stats": str,
    "numa_topology": str,
    "ram_allocation_ratio": float,
    "cpu_allocation_ratio": float,
    "disk_allocation_ratio": float,
    "updated_at": datetime,
}
"""The columns of ``compute_nodes`` that a HostState is made of, with the type of each."""
SERVICE_COLUMNS: Final[Mapping[str, type]] = {
    "id": int,
    "uuid": str,
    "host": str,
    "binary": str,
    "topic": str,
    "disabled": bool,
    "disabled_reason": str,
    "forced_down": bool,
    "version": int,
    "created_at": datetime,
}
"""The columns of ``services`` that a report of the service does not change."""
LAST_SEEN: Final = "last_seen_up"
"""The column of ``services`` that each report changes. A state has it only while the service is silent."""
RATIOS: Final = ("cpu_allocation_ratio", "ram_allocation_ratio", "disk_allocation_ratio")
"""Columns of ``compute_nodes`` in which null and 0 stand for Nova's settings."""
RESOURCES: Final = (
    ("VCPU", "vcpus", "vcpus_used", "cpu_allocation_ratio"),
    ("MEMORY_MB", "memory_mb", "memory_mb_used", "ram_allocation_ratio"),
    ("DISK_GB", "local_gb", "local_gb_used", "disk_allocation_ratio"),
)
"""By resource class, the columns with its total, its usage and its allocation ratio."""

Row = Mapping[str, Any]
"""A row of a table, by column."""


class MirrorPart(msgspec.Struct, frozen=True):
    """The numbers that a mirror publishes of itself, in the state of its own node."""

    nodes: int = 0
    """Number of compute nodes of the cell that the mirror publishes."""
    polls: int = 0
    """Polls since the mirror started. Each poll changes it, so each successful poll is a sign of life."""


class NovaPart(msgspec.Struct, frozen=True, gc=False):
    """Nova's part of a node's state."""

    v: int = 0
    """``FORM_VERSION``; 0 if the node has no part of Nova's."""
    cell: str = ""
    """The uuid of the cell mapping."""
    compute: dict[str, Any] | None = None
    """The row of ``compute_nodes``; None in the state of a mirror."""
    service: dict[str, Any] | None = None
    """The row of the nova-compute service; None if the host has none."""
    host_nodes: int = 1
    """Number of compute nodes on the host; more than 1 with ironic."""
    mirror: MirrorPart | None = None
    """None in the state of a compute node."""


class _Namespaces(msgspec.Struct, frozen=True, gc=False):
    nova: NovaPart = NovaPart()


class _Rest(msgspec.Struct, gc=False):
    """The fields of a record's ``rest`` that Nova needs. Others are skipped without decoding."""

    allocations: dict[str, msgspec.Raw] = {}
    namespaces: _Namespaces = _Namespaces()


class NovaNode(msgspec.Struct, frozen=True, gc=False):
    """A node's state as Nova needs it."""

    part: NovaPart
    """Nova's part of the state."""
    instances: tuple[str, ...]
    """The uuids of the instances on the node."""


_decode = msgspec.msgpack.Decoder(_Rest).decode
_is_uuid = re.compile("[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}").fullmatch


def is_compute_name(name: str) -> bool:
    """Return whether a node's name can be that of a compute node. A cell may have nodes that Nova does not know."""
    return _is_uuid(name) is not None


def nova_node(record: NodeRecord) -> NovaNode:
    """Decode Nova's part of a record.

    Raises ``CorruptItemError`` if it does not have this form, or has a later version of it.
    """
    try:
        rest = _decode(record.rest)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise CorruptItemError(f"node {record.name}: namespaces.nova cannot be read: {str(error)!a}") from None
    part = rest.namespaces.nova
    if part.v != FORM_VERSION:
        raise CorruptItemError(
            f"node {record.name}: namespaces.nova has version {part.v} and this program reads {FORM_VERSION}: "
            "install the same version of nodestate beside mirrors and schedulers"
        )
    return NovaNode(part, tuple(rest.allocations))


# -- from rows to states --------------------------------------------------------------------------


def mirror_name(cell: str, host: str) -> str:
    """Return the name of the own node of the mirror of a Nova cell on a host."""
    return f"{MIRROR_PREFIX}{cell}:{re.sub('[^A-Za-z0-9._-]', '_', host)[:MAX_HOST_CHARS]}"


def compute_columns(row: Row, ratios: Mapping[str, float]) -> dict[str, Any]:
    """Return the carried columns of a row of ``compute_nodes``.

    ``ratios`` has by column the value that Nova uses if the row has null or 0.
    """
    columns = _carried(row, COMPUTE_COLUMNS)
    for name in RATIOS:
        columns[name] = columns.get(name) or ratios[name]
    return columns


def service_columns(row: Row, *, is_silent: bool) -> dict[str, Any]:
    """Return the carried columns of a row of ``services``. ``is_silent``: it has not reported recently."""
    columns = _carried(row, SERVICE_COLUMNS)
    seen = row.get(LAST_SEEN) or row.get("created_at")
    if is_silent and seen is not None:
        columns[LAST_SEEN] = _plain(seen)
    return columns


def allocation(row: Row) -> dict[str, Any]:
    """Return the allocation of a row of ``instances``."""
    disk_gb = (row.get("root_gb") or 0) + (row.get("ephemeral_gb") or 0)
    return {"resources": {"VCPU": row.get("vcpus") or 0, "MEMORY_MB": row.get("memory_mb") or 0, "DISK_GB": disk_gb}}


def node_state(
    cell: str,
    compute: Mapping[str, Any],
    service: Mapping[str, Any] | None,
    allocations: Mapping[str, Mapping[str, Any]],
    host_nodes: int = 1,
) -> dict[str, Any]:
    """Return the state of a compute node, from carried columns and allocations by instance.

    ``host_nodes`` is the number of compute nodes on its host.

    The fields beside ``namespaces`` let nodestate's scheduler and its checks understand the node, too.
    """
    nova: dict[str, Any] = {"v": FORM_VERSION, "cell": cell, "compute": dict(compute)}
    if service is not None:
        nova["service"] = dict(service)
    if host_nodes > 1:
        nova["host_nodes"] = host_nodes
    inventory, usage = {}, {}
    for name, total, used, ratio in RESOURCES:
        inventory[name] = {"total": max(0, compute.get(total, 0)), "allocation_ratio": compute[ratio]}
        usage[name] = max(0, compute.get(used, 0))
    return {
        "status": _status(service),
        "inventory": inventory,
        "usage": usage,
        "allocations": {uuid: dict(one) for uuid, one in allocations.items()},
        "namespaces": {"nova": nova},
    }


def mirror_state(cell: str, mirror: MirrorPart) -> dict[str, Any]:
    """Return the state of a mirror's own node. It has no inventory, so no request fits on it."""
    nova = {"v": FORM_VERSION, "cell": cell, "mirror": msgspec.to_builtins(mirror)}
    return {"status": "maintenance", "namespaces": {"nova": nova}}


def mirror_patch(mirror: MirrorPart) -> dict[str, Any]:
    """Return the patch of the state of a mirror's own node after a poll."""
    return {"namespaces": {"nova": {"mirror": msgspec.to_builtins(mirror)}}}


def _status(service: Mapping[str, Any] | None) -> str:
    if service is None or service.get("forced_down") or LAST_SEEN in service:
        return "down"
    return "maintenance" if service.get("disabled") else "up"


def _carried(row: Row, names: Mapping[str, type]) -> dict[str, Any]:
    return {name: _plain(value) for name in names if (value := row.get(name)) is not None}


def _plain(value: Any) -> Any:
    """Return a column's value as JSON can carry it."""
    if isinstance(value, datetime):
        return (value if value.tzinfo is not None else value.replace(tzinfo=UTC)).isoformat()
    return value


# -- from states to rows --------------------------------------------------------------------------


def is_silent(part: NovaPart) -> bool:
    """Return whether the node's service has stopped reporting, and no operator disabled it or forced it down."""
    service = part.service
    return (
        service is not None and LAST_SEEN in service and not service.get("disabled") and not service.get("forced_down")
    )


def time_of(text: str | None) -> datetime | None:
    """Return the time of a carried column; None if the column was null."""
    return datetime.fromisoformat(text) if text else None

"""Comparison of host states from nodestate with host states that Nova makes from its database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

ATTRIBUTES: Final = (
    "host",
    "nodename",
    "uuid",
    "_lock_name",
    "total_usable_ram_mb",
    "total_usable_disk_gb",
    "disk_mb_used",
    "free_ram_mb",
    "free_disk_mb",
    "vcpus_total",
    "vcpus_used",
    "pci_stats",
    "numa_topology",
    "num_instances",
    "num_io_ops",
    "failed_builds",
    "host_ip",
    "hypervisor_type",
    "hypervisor_version",
    "hypervisor_hostname",
    "cpu_info",
    "supported_instances",
    "limits",
    "metrics",
    "aggregates",
    "instances",
    "ram_allocation_ratio",
    "cpu_allocation_ratio",
    "disk_allocation_ratio",
    "cell_uuid",
    "updated",
    "allocation_candidates",
    "service",
    "stats",
)
"""All attributes of a HostState. ``stats`` is missing in both if the compute node has not reported usage."""
VOLATILE_SERVICE_FIELDS: Final = ("report_count", "last_seen_up", "updated_at")
"""Fields of a service that each of its reports changes. Tests compare whether the service is up instead."""
SHOWN_CHARS: Final = 120
_UNSET: Final = "(unset)"


class HostDifference(NamedTuple):
    """One host that nodestate and the database show differently."""

    kind: str
    """``missing`` or ``redundant`` in nodestate; ``older`` or ``newer`` in nodestate; or ``other``."""
    host: str
    node: str
    """The hypervisor's host name."""
    detail: str
    """Seconds for ``older`` and ``newer``; for ``other``, the attributes with both values."""


def compare_host_states(ours: Iterable[Any], theirs: Iterable[Any]) -> list[HostDifference]:
    """Compare the host states of one request.

    Args:
        ours: host states from nodestate.
        theirs: host states from the database.
    """
    found = []
    a = {(state.host, state.nodename): state for state in ours}
    b = {(state.host, state.nodename): state for state in theirs}
    for host, node in sorted(a.keys() | b.keys()):
        x, y = a.get((host, node)), b.get((host, node))
        if x is None or y is None:
            found.append(HostDifference("missing" if x is None else "redundant", host, node, ""))
        elif x.updated != y.updated:
            found.append(_compare_times(host, node, x.updated, y.updated))
        elif different := different_attributes(x, y):
            found.append(HostDifference("other", host, node, "; ".join(different)))
    return found


def _compare_times(host: str, node: str, ours: datetime | None, theirs: datetime | None) -> HostDifference:
    """Return the difference between two host states that were made of different versions of a row.

    A time is None if the row has not changed since it was inserted, or if no usage was reported. A row never loses its
    time, so the row without one is a new one of the same host, or the row as nodestate had it before.
    """
    if ours is None or theirs is None:
        return HostDifference("older", host, node, "another row" if theirs is None else "the row as it was inserted")
    behind_s = (theirs - ours).total_seconds()
    return HostDifference("older" if behind_s > 0 else "newer", host, node, f"{abs(behind_s):.0f} s")


def count_by_kind(found: Iterable[HostDifference]) -> Counter[str]:
    """Return the number of differences by kind."""
    return Counter(difference.kind for difference in found)


def different_attributes(x: Any, y: Any) -> list[str]:
    """Return a text for each attribute in which two host states differ, also in type."""
    texts = []
    for name in ATTRIBUTES:
        p, q = comparable(name, getattr(x, name, _UNSET)), comparable(name, getattr(y, name, _UNSET))
        if p != q or type(p) is not type(q):
            texts.append(f"{name}: {str(p)[:SHOWN_CHARS]} instead of {str(q)[:SHOWN_CHARS]}")
    return texts


def comparable(name: str, value: Any) -> Any:
    """Return the value of an attribute in a form in which equal values are equal."""
    if name == "instances":
        return sorted(value)
    if name == "aggregates":
        return sorted(one.uuid for one in value)
    if name == "service" and isinstance(value, Mapping):
        return {key: one for key, one in value.items() if key not in VOLATILE_SERVICE_FIELDS}
    return _plain(value)


def _plain(value: Any) -> Any:
    if hasattr(value, "obj_to_primitive"):
        return _ordered(value.obj_to_primitive())
    if hasattr(value, "pools") and hasattr(value, "dev_filter"):  # Nova's PciDeviceStats
        specs = [vars(spec) for spec in value.dev_filter.specs]
        return {"pools": _plain(value.pools), "numa": _plain(value.numa_topology), "specs": _plain(specs)}
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value


def _ordered(value: Any) -> Any:
    """Order the lists of a primitive that were sets, and leave out which fields were set last."""
    if isinstance(value, dict):
        return {key: _ordered(one) for key, one in value.items() if key != "nova_object.changes"}
    if isinstance(value, (list, tuple, set)):
        items = [_ordered(one) for one in value]
        return sorted(items) if all(isinstance(one, (int, str)) for one in items) else items
    return value

"""Details of one node, as a scheduler sees it: amounts with claims, allocations, and the conditions of the node."""

from __future__ import annotations

from typing import Any

import msgspec

from nodestate.errors import NotFoundError
from nodestate.scheduling.capacity import ClassCapacity
from nodestate.scheduling.fleet import Fleet
from nodestate.scheduling.session import Session


class NodeDetails(msgspec.Struct, frozen=True):
    """One node in full."""

    node: str
    """The node's name."""
    status: str
    """``up``, ``draining``, ``maintenance`` or ``down``."""
    is_open: bool
    """True if the node may get instances now."""
    zone: str
    """The zone; empty if it has none."""
    incarnation: int
    """The life of the agent that reported the state."""
    generation: int
    """The number of the event within that life."""
    reported_at: float
    """When the agent sent it, in seconds since 1970 by the agent's clock."""
    last_seen_s: float | None
    """Seconds since the last sign of life; None if none is known."""
    clock_ahead_s: float
    """Seconds by which the agent's clock is ahead of this machine's at least; 0 if it is not known to be ahead."""
    classes: dict[str, ClassCapacity]
    """By resource class, its amounts. ``free`` may be negative, and counts on closed nodes, too."""
    traits: list[str]
    """The traits."""
    aggregates: list[str]
    """The aggregates."""
    taints: list[str]
    """The taints."""
    allocations: dict[str, dict[str, Any]]
    """By instance, its allocation with resources, group and hints."""
    claims: dict[str, str | None]
    """The claimed instances without an allocation, each with its group."""
    cordon: dict[str, Any] | None
    """The cordon, with ``by``, ``at`` and ``why``; None if the node is not cordoned."""
    conditions: list[str]
    """The conditions that hold: ``cordoned``, ``stale``, ``incomplete``, ``damaged``,
    ``exceeds-ceilings``, ``left``, ``same-name`` (two agents report the node) and ``claims-unsure``.
    """
    namespaces: dict[str, Any]
    """The namespaces of the state."""


def node_details(session: Session, node: str) -> NodeDetails:
    """Return one node in full, from a fresh view and the claims on the node.

    Raises ``NotFoundError`` if the node is unknown, and ``StaleViewError`` if no view is fresh enough.
    """
    session.refresh()
    fleet = session.fleet
    row = fleet.rows.get(node)
    view = session.refresher.reader.read(
        max_age=session.refresher.max_age, node_max_age=session.refresher.responsive_bound_s, on_stale="flag"
    )
    record = view.nodes.record(node)
    if row is None or record is None or record.gone:
        raise NotFoundError("node", f"no node {node} is known; 'nodestate view' lists them")
    session.claim_table.read_records([node])
    is_damaged = row in fleet.reports.damaged
    state = {} if is_damaged or not record.live else dict(record.state())
    namespaces = state.get("namespaces") or {}
    own = namespaces.get("nodestate")
    own = own if isinstance(own, dict) else {}
    outstanding = fleet.claim_overlay.outstanding.get(row)
    allocations = dict(state.get("allocations") or {})
    claims = dict(outstanding.tenants) if outstanding is not None else {}
    for instance in allocations:
        claims.pop(instance, None)
    cordon = own.get("cordon")
    age_s = view.node_age(node)
    conditions = {
        "cordoned": cordon is not None,
        "stale": node in view.stale,
        "incomplete": record.incomplete,
        "damaged": is_damaged,
        "exceeds-ceilings": row in fleet.limits.exceeding,
        "left": "left_at" in own,
        "same-name": "same_name" in own,
        "claims-unsure": node in session.claim_table.unsure_nodes(),
    }
    return NodeDetails(
        node,
        record.status,
        bool(fleet.usable[row]),
        state.get("zone", ""),
        record.incarnation,
        record.generation,
        record.reported_at,
        age_s if age_s != float("inf") else None,
        max(0.0, record.reported_at - session.clock.time()),
        _classes(session.fleet, row),
        list(state.get("traits") or ()),
        list(state.get("aggregates") or ()),
        list(state.get("taints") or ()),
        allocations,
        {
            name: group
            for name, group in (outstanding.tenants if outstanding else {}).items()
            if name not in allocations
        },
        cordon if isinstance(cordon, dict) else None,
        [name for name, holds in conditions.items() if holds],
        dict(namespaces),
    )


def _classes(fleet: Fleet, row: int) -> dict[str, ClassCapacity]:
    """Return the amounts of a row by resource class, without classes that the node does not have."""
    found = {}
    for name, (totals, usages) in fleet.amounts.items():
        total, used, free = int(totals[row]), int(usages[row]), int(fleet.free[name][row])
        if total or used or free:
            found[name] = ClassCapacity(total, used, total - used - free, free)
    return found

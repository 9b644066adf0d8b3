"""Checks of one node: the findings about the agents, as they concern this node alone.

The functions that return a fact about a record are also used by ``agent_checks``, which sums them up over all nodes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

from nodestate.agent.name_conflicts import PRESENCE_HEARTBEATS_COUNT
from nodestate.config import Config
from nodestate.errors import CorruptItemError
from nodestate.findings.finding import Finding, found
from nodestate.model import NodeRecord
from nodestate.model.inventory_ceilings import InventoryCeilings
from nodestate.text import count_text, span_text
from nodestate.view.documents import capacity_and_usage
from nodestate.view.view import View

SKEW_S: Final = 2.0
"""A node whose clock is more than this number of seconds ahead is named in a finding."""
EXPIRED_S: Final = 600.0
"""Seconds for which a node that refused an order as expired is named in a finding."""
RECENT_PRESENCES_COUNT: Final = 3
"""Two agents of one node are a finding until the second one has sent no presence for this number of intervals."""
UNRESPONSIVE_HEARTBEATS: Final = 3
"""A node that gave no sign of life for this number of heartbeats is named in a finding."""


def examine_node(config: Config, view: View, node: str, now: float) -> Iterator[Finding]:
    """Examine one node. A node that is not in the view has no findings.

    Args:
        config: settings of the cell.
        view: a view that was read with signs of life.
        node: the node's name, which is the subject of its findings.
        now: this machine's time, in seconds since 1970.
    """
    record = view.nodes.record(node)
    if record is None or not record.live:
        return
    age_s = view.node_age(node)
    if age_s > unresponsive_after_s(config):
        since = f"for {span_text(age_s)}" if math.isfinite(age_s) else "so far"
        yield found("agents-unresponsive", node, f"it gave no sign of life {since}", "check that its agent runs")
    if record.incomplete:
        advice = f"check that its agent runs, or ask for a report with 'nodestate resync {node}'"
        yield found("nodes-incomplete", node, "it has a newer state than the stored one", advice)
    if record.reported_at - now > SKEW_S:
        says = f"its clock is {record.reported_at - now:.0f} s ahead of this machine's"
        yield found("clock-ahead", node, says)
    if refused_as_expired(record, now):
        yield found("orders-expired", node, "it refused an order as expired")
    yield from examine_name(config, record, now)
    if record.status == "down" and (count := allocations_count(record)):
        says = f"it is down or left with {count_text(count, 'instance')}"
        yield found("leaving-with-instances", node, says, f"run 'nodestate evacuate {node}', or start its agent again")
    ceilings = InventoryCeilings(config.inventory_ceilings)
    for resource, (capacity, _) in capacity_and_usage(record).items():
        if resource in ceilings.classes and capacity > ceilings.of(node, resource):
            says = f"it reports {capacity:,} of {resource}, {ceilings.of(node, resource):,} are allowed"
            yield found("inventory-over-ceiling", node, says)


def examine_name(config: Config, record: NodeRecord, now: float) -> Iterator[Finding]:
    """Examine whether two agents report a node. ``now`` is this machine's time, in seconds since 1970."""
    if b"same_name" not in record.rest:  # decodes only the few states that may name two agents
        return
    recent_s = RECENT_PRESENCES_COUNT * PRESENCE_HEARTBEATS_COUNT * config.heartbeat_s
    same_name = map_in(record, "same_name")
    hosts, at = same_name.get("hosts"), same_name.get("at")
    if isinstance(hosts, list) and len(hosts) == 2 and isinstance(at, int | float) and now - at < recent_s:
        yield found(
            "node-name-conflict",
            record.name,
            f"two agents report {record.name}: one on {hosts[0]}, whose state is shown, and one on {hosts[1]}, "
            "which was told to stop reporting",
            "stop one of the two agents, or give its node another name and restart it",
        )


def unresponsive_after_s(config: Config) -> float:
    """Return the seconds without a sign of life after which a node is named in a finding."""
    return UNRESPONSIVE_HEARTBEATS * config.heartbeat_s + 2


def allocations_count(record: NodeRecord) -> int:
    """Return the number of instances that a node hosts; 0 if its stored state is damaged."""
    if b"allocations" not in record.rest:  # decodes only the states that may have some
        return 0
    try:
        allocations = record.state().get("allocations")
    except CorruptItemError:
        return 0
    return len(allocations) if isinstance(allocations, dict) else 0


def refused_as_expired(record: NodeRecord, now: float) -> bool:
    """Return whether a node's state lists an order that was refused as expired, less than ``EXPIRED_S`` ago."""
    if b"expired" not in record.rest:  # decodes only the few states that may list one
        return False
    for one in map_in(record, "refused").values():
        if isinstance(one, dict) and one.get("reason") == "expired":
            at = one.get("at")
            if isinstance(at, int | float) and now - at < EXPIRED_S:
                return True
    return False


def map_in(record: NodeRecord, field: str) -> dict[str, Any]:
    """Return one field of ``namespaces.nodestate`` in a node's state, if it is a map; otherwise an empty map.

    The map is also empty if the stored state is damaged.
    """
    try:
        inside: Any = record.state()
    except CorruptItemError:
        return {}
    for name in ("namespaces", "nodestate", field):
        inside = inside.get(name) if isinstance(inside, dict) else None
    return inside if isinstance(inside, dict) else {}

"""Checks of the agents, from the nodes of a view: signs of life, clocks, names and inventories."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from nodestate.agent.incarnation import files_ahead, state_directory
from nodestate.config import Config
from nodestate.errors import ConfigError
from nodestate.findings.finding import Finding, found, well
from nodestate.findings.node_checks import (
    SKEW_S,
    allocations_count,
    examine_name,
    refused_as_expired,
    unresponsive_after_s,
)
from nodestate.model.inventory_ceilings import InventoryCeilings
from nodestate.text import count_text, span_text
from nodestate.view.view import View


def examine_agents(config: Config, view: View) -> Iterator[Finding]:
    """Examine signs of life and clocks of all nodes of a view."""
    now = time.time()
    yield from examine_incarnations(config, now)
    if all(partition.table is None for partition in view.partitions):
        yield found("cell-unreadable", "agents", "not known, because no partition can be read", "see the lines above")
        return
    ages = {name: view.node_age(name) for name in view.nodes}
    silent = sorted(name for name, age in ages.items() if age > unresponsive_after_s(config))
    if silent:
        longest = max(silent, key=ages.__getitem__)
        since = f"for {span_text(ages[longest])}" if math.isfinite(ages[longest]) else "so far"
        of_all = f"{len(silent):,} of {count_text(len(ages), 'node')}"
        says = f"{of_all} gave no sign of life, for example {longest} {since}"
        advice = "check that their agents run; schedulers do not place instances on nodes without a sign of life"
        yield found("agents-unresponsive", "agents", says, advice)
    else:
        says = f"{count_text(len(ages), 'node')}, all with a recent sign of life"
        yield well("agents", says if ages else "no node has reported yet")
    yield from examine_clocks(view, now)
    yield from examine_names(config, view, now)
    yield from examine_leaving(view)
    yield from examine_inventories(config, view)


def examine_incarnations(config: Config, now: float) -> Iterator[Finding]:
    """Examine the incarnations that agents of this machine have stored. ``now`` is in seconds since 1970."""
    try:
        directory = state_directory(config)
    except ConfigError:  # this user has no state directory, so no agent of this user has stored an incarnation
        return
    for path, incarnation in files_ahead(directory, now):
        says = (
            f"{path} says {incarnation}, {span_text(incarnation - now)} ahead of this machine's clock: the agent once "
        )
        yield found(
            "incarnation-ahead",
            "agents",
            says + "began with a clock that was ahead, and consumers refuse its events",
            f"if this machine's clock is right now, stop the agent, delete {path}, and start it again",
        )


def examine_clocks(view: View, now: float) -> Iterator[Finding]:
    """Examine the clocks of all nodes of a view. ``now`` is this machine's time, in seconds since 1970."""
    ahead = {name: view.nodes[name].reported_at - now for name in view.nodes}
    fast = sorted(name for name, seconds in ahead.items() if seconds > SKEW_S)
    if fast:
        worst = max(fast, key=lambda name: ahead[name])
        clocks = count_text(len(fast), "node has a clock", "nodes have clocks")
        says = f"{clocks} ahead of this machine's, {worst} by {ahead[worst]:.0f} s"
        yield found(
            "clock-ahead",
            "agents",
            says,
            "correct the time of these nodes (NTP): schedulers allow for the difference, but consumers refuse events "
            "of a clock that is too far ahead",
        )
    expired = sorted(record.name for record in view.nodes.records() if record.live and refused_as_expired(record, now))
    if expired:
        of_all = f"{len(expired):,} of {count_text(len(ahead), 'node')}"
        says = f"{of_all} refused orders as expired, for example {expired[0]}"
        yield found(
            "orders-expired",
            "agents",
            says,
            "compare the time of a scheduler's machine and of these nodes (NTP): schedulers measure and allow for the "
            "difference, at the cost of one more order; if all nodes are named, the scheduler's own clock is wrong",
        )


def examine_names(config: Config, view: View, now: float) -> Iterator[Finding]:
    """Examine whether two agents report the same node. ``now`` is this machine's time, in seconds since 1970."""
    for record in view.nodes.records():
        if record.live:
            yield from examine_name(config, record, now)


def examine_leaving(view: View) -> Iterator[Finding]:
    """Name nodes that are down although they have instances: they left, or their agents say that they are down."""
    hosting = {}
    for record in view.nodes.records():
        if record.live and record.status == "down" and (count := allocations_count(record)):
            hosting[record.name] = count
    if hosting:
        most = max(sorted(hosting), key=hosting.__getitem__)
        yield found(
            "leaving-with-instances",
            "agents",
            f"{count_text(len(hosting), 'node is', 'nodes are')} down or left with "
            f"{count_text(sum(hosting.values()), 'instance')}, for example {most} with {hosting[most]:,}",
            f"run 'nodestate evacuate {most}', or start its agent again",
        )


def examine_inventories(config: Config, view: View) -> Iterator[Finding]:
    """Examine whether nodes report a larger capacity than the setting ``inventory_ceilings`` allows."""
    ceilings = InventoryCeilings(config.inventory_ceilings)
    columns = view.columns
    excess: dict[str, str] = {}
    for resource in ceilings.classes:
        for node, capacity in zip(columns.names, columns.capacity.get(resource, ()), strict=False):
            if capacity > ceilings.of(node, resource):
                excess[node] = f"{int(capacity):,} of {resource}, {ceilings.of(node, resource):,} are allowed"
    if excess:
        node = min(excess)
        of_all = f"{len(excess):,} of {count_text(len(view.nodes), 'node')}"
        says = f"{of_all} report more than inventory_ceilings allows and get no instances, for example {node}: "
        advice = (
            "find out whether the agents of these nodes were changed; if a node really has as much, raise its ceiling "
            f"in inventory_ceilings, as in {node}/CLASS=N"
        )
        yield found("inventory-over-ceiling", "agents", says + excess[node], advice)

"""Filters: may an instance of this request go to this node?

Each filter is a pure function of a fleet, rows and a request. It returns a flag for each of ``rows``, or one flag for
all of them. A filter judges each row by itself, and reads nothing but the fleet and the request. Its result for a row
therefore holds until the row, or the members of the request's group, change; only those rows are judged again.
Installed packages add filters by the entry point ``nodestate.filters`` (docs/how-to/extend-the-scheduler.md).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nodestate.scheduling.fleet import Flags, Fleet, RowIndex, count_of
from nodestate.scheduling.request import Request

Filter = Callable[[Fleet, RowIndex, Request], Flags | bool]
"""A filter's function."""


def status(fleet: Fleet, rows: RowIndex, _request: Request) -> Flags | bool:
    """The node is up and within the bounds of the view, and no newer state of it must be read before it is claimed."""
    return fleet.usable[rows]


def resources(fleet: Fleet, rows: RowIndex, request: Request) -> Flags | bool:
    """The node has enough of every resource class: capacity less usage and claims."""
    fits: Flags | bool = True
    for name, amount in request.resources.items():
        if name not in fleet.free:
            return False
        fits = fits & (fleet.free[name][rows] >= amount)
    return fits


def required_traits(fleet: Fleet, rows: RowIndex, request: Request) -> Flags | bool:
    """The node has all required traits."""
    return fleet.traits.have_all(request.required_traits, rows) if request.required_traits else True


def any_traits(fleet: Fleet, rows: RowIndex, request: Request) -> Flags | bool:
    """The node has at least one of the traits."""
    return fleet.traits.have_any(request.any_traits, rows) if request.any_traits else True


def forbidden_traits(fleet: Fleet, rows: RowIndex, request: Request) -> Flags | bool:
    """The node has none of the forbidden traits."""
    if not request.forbidden_traits:
        return True
    found = fleet.traits.have_any(request.forbidden_traits, rows)
    return not found if isinstance(found, bool) else ~found


def zone(fleet: Fleet, rows: RowIndex, request: Request) -> Flags | bool:
    """The node is in the requested availability zone."""
    if not request.zone:
        return True
    return np.equal(fleet.zone[rows], fleet.zones.get(request.zone, -1))


def aggregates(fleet: Fleet, rows: RowIndex, request: Request) -> Flags | bool:
    """The node is in at least one of the aggregates."""
    return fleet.aggregates.have_any(request.aggregates, rows) if request.aggregates else True


def force_nodes(fleet: Fleet, rows: RowIndex, request: Request) -> Flags | bool:
    """The node is among the nodes that the request allows."""
    if not request.force_nodes:
        return True
    return _among(fleet, rows, [fleet.rows[name] for name in request.force_nodes if name in fleet.rows])


def ignore_nodes(fleet: Fleet, rows: RowIndex, request: Request) -> Flags | bool:
    """The node is not among the nodes that the request rules out."""
    if not request.ignore_nodes:
        return True
    return ~_among(fleet, rows, [fleet.rows[name] for name in request.ignore_nodes if name in fleet.rows])


def same_host(fleet: Fleet, rows: RowIndex, request: Request) -> Flags | bool:
    """At least one of the named instances is on the node, as in Nova."""
    if not request.same_host:
        return True
    return _among(fleet, rows, [row for instance in request.same_host for row in fleet.instances.rows_with(instance)])


def different_host(fleet: Fleet, rows: RowIndex, request: Request) -> Flags | bool:
    """None of the named instances is on the node."""
    if not request.different_host:
        return True
    return ~_among(
        fleet, rows, [row for instance in request.different_host for row in fleet.instances.rows_with(instance)]
    )


def group(fleet: Fleet, rows: RowIndex, request: Request) -> Flags | bool:
    """The group's policy allows one more member on the node. Affinity: its members are on the node, or it has none.
    Anti-affinity: fewer than ``max_per_node`` members are on the node.
    """
    if request.group is None or request.group.policy.startswith("soft-"):
        return True
    members = fleet.groups.get(request.group.name)
    if not members:
        return True
    if request.group.policy == "affinity":
        return _among(fleet, rows, list(members))
    return ~_among(fleet, rows, [row for row, count in members.items() if count >= request.group.max_per_node])


def _among(fleet: Fleet, rows: RowIndex, these: list[int]) -> Flags:
    """For each of ``rows`` whether it is in ``these``."""
    if isinstance(rows, slice):
        flags = np.zeros(len(fleet), np.bool_)
        flags[these] = True
        return flags[rows]
    return np.isin(rows, these) if count_of(rows) != 1 else np.array([int(rows[0]) in these], np.bool_)


FILTERS: dict[str, Filter] = {
    filter_.__name__: filter_
    for filter_ in (
        force_nodes,
        ignore_nodes,
        status,
        resources,
        required_traits,
        any_traits,
        forbidden_traits,
        zone,
        aggregates,
        same_host,
        different_host,
        group,
    )
}
"""The filters of nodestate, in the order in which they are applied. The nodes that a request names come first: later
filters then see only these nodes, so the first filter that leaves none is the one that refused a forced node. Cheap
filters come next.
"""

"""Filters: which nodes may get an instance of a request?

Each filter is a pure function of a fleet, of some rows of the fleet, and of a request. It returns one flag for each
row, or a single flag for all rows: True if the row's node may get the instance. The arguments of all filters are the
same:

    fleet: The nodes, one row for each.
    rows: The rows to judge: the slice of all rows, or an array of row numbers.
    request: The request whose instance is to be placed.

A filter reads nothing but these arguments, and it judges each row without regard to other rows. So the result for a
row stays valid until that row changes, and a ranking filters only changed rows again. The two exceptions are the filter
``group`` with the policy ``affinity`` and the filter ``spread``: their results depend on the rows of all members. All
rows are then filtered again.

Installed packages can add filters by the entry point ``nodestate.filters`` (docs/how-to/extend-the-scheduler.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from nodestate.model import MAX_AMOUNT
from nodestate.scheduling.fleet import Flags, Fleet, RowIndex, count_of
from nodestate.scheduling.request import Request, parts_of

Filter = Callable[[Fleet, RowIndex, Request], Flags | bool]
"""The type of a filter: a function of a fleet, rows and a request that returns a flag for each row or for all rows."""


def status(fleet: Fleet, rows: RowIndex, _request: Request) -> Flags | bool:
    """Return for each row whether the node may be claimed now (``Fleet.usable``).

    The node must be up, it must not report more than ``inventory_ceilings`` allows, and the view must not have left it
    out as stale or incomplete. Also, the fleet's state of the node must not be older than the version that the node's
    claim record requires (``seen``).
    """
    return fleet.usable[rows]


def resources(fleet: Fleet, rows: RowIndex, request: Request) -> Flags | bool:
    """Return for each row whether the node has enough of each requested resource class free, after usage and claims."""
    fits: Flags | bool = True
    for name, amount in request.resources.items():
        if name not in fleet.free:
            return False
        fits = fits & (fleet.free[name][rows] >= amount)
    return fits


def units(fleet: Fleet, rows: RowIndex, request: Request) -> Flags | bool:
    """Return for each row whether the node gives the requested amounts to one instance.

    Each amount must be between ``min_unit`` and ``max_unit`` of its resource class, and a multiple of ``step_size``.
    """
    allowed: Flags | bool = True
    for amounts in parts_of(request):
        allowed = allowed & fleet.units.allow(amounts, rows)
    return allowed


def taints(fleet: Fleet, rows: RowIndex, request: Request) -> Flags | bool:
    """Return for each row whether all taints of the node are among ``tolerations``."""
    return fleet.taints.have_no_other(request.tolerations, rows)


def required_traits(fleet: Fleet, rows: RowIndex, request: Request) -> Flags | bool:
    """Return for each row whether the node has all of ``required_traits``."""
    return fleet.traits.have_all(request.required_traits, rows) if request.required_traits else True


def any_traits(fleet: Fleet, rows: RowIndex, request: Request) -> Flags | bool:
    """Return for each row whether the node has at least one of ``any_traits``; True if that field is empty."""
    return fleet.traits.have_any(request.any_traits, rows) if request.any_traits else True


def forbidden_traits(fleet: Fleet, rows: RowIndex, request: Request) -> Flags | bool:
    """Return for each row whether the node has none of ``forbidden_traits``."""
    return fleet.traits.have_none(request.forbidden_traits, rows)


def zone(fleet: Fleet, rows: RowIndex, request: Request) -> Flags | bool:
    """Return for each row whether the node is in the requested availability zone; True if none is requested."""
    if not request.zone:
        return True
    return np.equal(fleet.zone[rows], fleet.zones.get(request.zone, -1))


def aggregates(fleet: Fleet, rows: RowIndex, request: Request) -> Flags | bool:
    """Return for each row whether the node is in one of the requested aggregates; True if none is requested."""
    return fleet.aggregates.have_any(request.aggregates, rows) if request.aggregates else True


def aggregates_all(fleet: Fleet, rows: RowIndex, request: Request) -> Flags | bool:
    """Return for each row whether the node is in all of ``aggregates_all``."""
    return fleet.aggregates.have_all(request.aggregates_all, rows) if request.aggregates_all else True


def aggregates_none(fleet: Fleet, rows: RowIndex, request: Request) -> Flags | bool:
    """Return for each row whether the node is in none of ``aggregates_none``."""
    return fleet.aggregates.have_none(request.aggregates_none, rows)


def force_nodes(fleet: Fleet, rows: RowIndex, request: Request) -> Flags | bool:
    """Return for each row whether the node is one of ``force_nodes``; True if that field is empty."""
    if not request.force_nodes:
        return True
    return _among(fleet, rows, [fleet.rows[name] for name in request.force_nodes if name in fleet.rows])


def ignore_nodes(fleet: Fleet, rows: RowIndex, request: Request) -> Flags | bool:
    """Return for each row whether the node is none of ``ignore_nodes``."""
    if not request.ignore_nodes:
        return True
    return ~_among(fleet, rows, [fleet.rows[name] for name in request.ignore_nodes if name in fleet.rows])


def same_host(fleet: Fleet, rows: RowIndex, request: Request) -> Flags | bool:
    """Return for each row whether at least one of the instances in ``same_host`` is on the node, as in Nova.

    True if that field is empty.
    """
    if not request.same_host:
        return True
    return _among(fleet, rows, [row for instance in request.same_host for row in fleet.rows_hosting(instance)])


def different_host(fleet: Fleet, rows: RowIndex, request: Request) -> Flags | bool:
    """Return for each row whether none of the instances in ``different_host`` is on the node."""
    if not request.different_host:
        return True
    return ~_among(
        fleet, rows, [row for instance in request.different_host for row in fleet.instances.rows_with(instance)]
    )


def group(fleet: Fleet, rows: RowIndex, request: Request) -> Flags | bool:
    """Return for each row whether the group's policy allows one more member on the node.

    With ``affinity``, the node must have a member, unless the group has no members at all. With ``anti-affinity``, the
    node must have fewer than ``max_per_node`` members. A soft policy allows all nodes, and so does a request without a
    group.
    """
    if request.group is None or request.group.policy.startswith("soft-"):
        return True
    members = fleet.groups.get(request.group.name)
    if not members:
        return True
    if request.group.policy == "affinity":
        return _among(fleet, rows, list(members))
    return ~_among(fleet, rows, [row for row, count in members.items() if count >= request.group.max_per_node])


def spread(fleet: Fleet, rows: RowIndex, request: Request) -> Flags | bool:
    """Return for each row whether ``Request.spread`` allows one more member of the group in the node's domains.

    Each domain of the node (its zone, or its aggregates) may then have at most ``max_skew`` members more than the
    domain with the fewest members. A node without a domain does not pass. A domain counts if a node in it is up and in
    the view, and has the traits, taints, zone, aggregates and name that the request allows. A full domain counts, too.
    """
    if request.spread is None or request.group is None:
        return True
    allowed = spread_domain_flags(fleet, request)
    members = fleet.groups.get(request.group.name, {})
    if request.spread.by == "zone":
        zones = fleet.zone[fleet.all]
        counts = np.zeros(len(fleet.zones), np.int64)
        for row, count in members.items():
            counts[zones[row]] += count
        zones_present = np.unique(zones[allowed])
        fewest = int(counts[zones_present[zones_present != fleet.zones[""]]].min(initial=MAX_AMOUNT))
        passes: Flags = counts + 1 - fewest <= request.spread.max_skew
        passes[fleet.zones[""]] = False
        return np.asarray(passes[fleet.zone[rows]])
    words = request.aggregates or fleet.aggregates.words_on(np.ones(len(fleet), np.bool_))
    inside = fleet.aggregates.have_any(words, rows)
    if isinstance(inside, bool):
        return inside
    by_word = fleet.aggregates.count_by_word(members)
    present = set(words).intersection(fleet.aggregates.words_on(allowed))
    fewest = min((by_word.get(word, 0) for word in present), default=MAX_AMOUNT)
    full = [word for word in words if by_word.get(word, 0) + 1 - fewest > request.spread.max_skew]
    return inside & fleet.aggregates.have_none(full, rows)


def spread_domain_flags(fleet: Fleet, request: Request) -> Flags:
    """Return for each row whether the zone and the aggregates of its node count as domains of a spread."""
    allowed: Flags = fleet.in_service[fleet.all]
    for filter_ in _FOR_DOMAINS:
        allowed = np.logical_and(allowed, filter_(fleet, fleet.all, request))
    return allowed


def _among(fleet: Fleet, rows: RowIndex, these: list[int]) -> Flags:
    """Return an array that says for each of ``rows`` whether the row is one of the row numbers in ``these``."""
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
        taints,
        units,
        resources,
        required_traits,
        any_traits,
        forbidden_traits,
        zone,
        aggregates,
        aggregates_all,
        aggregates_none,
        same_host,
        different_host,
        group,
        spread,
    )
}
"""The filters of nodestate by name, in the order in which they are applied.

An explanation of a selection says which filter left no node. So the filters for the nodes that a request names come
first: the next filter that leaves no node is then the filter that refused the named nodes. Cheap filters come next.
"""

_FOR_DOMAINS: tuple[Filter, ...] = (
    force_nodes,
    ignore_nodes,
    taints,
    required_traits,
    any_traits,
    forbidden_traits,
    zone,
    aggregates,
    aggregates_all,
    aggregates_none,
)
"""The filters that a node must pass for its zone and its aggregates to count as domains of a spread."""


def active_filters(request: Request, filters: Mapping[str, Filter]) -> list[tuple[str, Filter]]:
    """Return the filters that can exclude a node for a request, each with its name.

    A filter of nodestate that has the name of a field of the request passes every node if the request does not set the
    field, so it need not be called.

    Args:
        request: The request.
        filters: All filters, by name.
    """
    return [
        (name, filter_)
        for name, filter_ in filters.items()
        if FILTERS.get(name) is not filter_ or getattr(request, name, True)
    ]

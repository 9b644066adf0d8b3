"""Weighers: how good is each node for an instance of a request, from 0 (worst) to 1 (best)?

Each weigher is a pure function of a fleet, of some rows of the fleet, and of a request. It returns one weight for each
row, or a single weight for all rows. The arguments of all weighers are the same:

    fleet: The nodes, one row for each.
    rows: The rows to weigh: the slice of all rows, or an array of row numbers.
    request: The request whose instance is to be placed.

The score of a node is the sum of multiplier times weight over all weighers. A negative multiplier reverses a weigher.

A weigher judges each row by itself, as a filter does. It may also read which resource classes the fleet has. Nova
instead scales each weight over all nodes that passed the filters, so one unusual node changes the weights of all other
nodes. Nodestate does not scale weights, so a row is weighed again only if that row changed.

Installed packages can add weighers by the entry point ``nodestate.weighers`` (docs/how-to/extend-the-scheduler.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from nodestate.scheduling.fleet import Fleet, RowAmounts, RowIndex, Scores, count_of
from nodestate.scheduling.request import Request


class Weigher(NamedTuple):
    """A weigher: its function, its multiplier, and the requests for which it is called."""

    weigh: Callable[[Fleet, RowIndex, Request], Scores | float]
    """The function. It returns a weight from 0 to 1 for each row, or a single weight for all rows."""
    multiplier: float = 1.0
    """The multiplier, unless ``Request.weights`` names another one. A weigher whose multiplier is 0 is not called."""
    needs: str = ""
    """The name of a field of ``Request``: the weigher is called only for requests that set this field. If empty, the
    weigher is called for all requests.
    """
    by_group: bool = False
    """Whether the weight of a row depends on the group's members on other rows. If True, all rows are weighed again for
    every selection, because a change of one row changes the weights of other rows.
    """


def cpu(fleet: Fleet, rows: RowIndex, request: Request) -> Scores | float:
    """Weigh nodes by the share of their VCPU capacity that would still be free with the instance on the node."""
    return _free_share(fleet, rows, request, "VCPU")


def ram(fleet: Fleet, rows: RowIndex, request: Request) -> Scores | float:
    """Weigh nodes by the share of their MEMORY_MB capacity that would still be free with the instance on the node."""
    return _free_share(fleet, rows, request, "MEMORY_MB")


def disk(fleet: Fleet, rows: RowIndex, request: Request) -> Scores | float:
    """Weigh nodes by the share of their DISK_GB capacity that would still be free with the instance on the node."""
    return _free_share(fleet, rows, request, "DISK_GB")


def pack(fleet: Fleet, rows: RowIndex, request: Request) -> Scores | float:
    """Weigh nodes by how full they would be with the instance: 1 if nothing of the requested classes would be free.

    The weight is the mean over the requested resource classes. With a high multiplier, the selector chooses the node on
    which the instance fits best, and so fills one node after the other.
    """
    shares = [
        1.0 - _left_share(fleet.free[name][rows] - amount, fleet.amounts[name][0][rows])
        for name, amount in request.resources.items()
        if name in fleet.free
    ]
    return sum(shares, start=0.0) / max(1, len(shares))


def balance(fleet: Fleet, rows: RowIndex, request: Request) -> Scores | float:
    """Weigh nodes by how evenly they would be used: 1 if the same share of each requested class would be free.

    The weight is 1 minus the difference between the largest and the smallest free share. If fewer than two classes are
    requested, it is 0 for all nodes.
    """
    left = [
        _left_share(fleet.free[name][rows] - amount, fleet.amounts[name][0][rows])
        for name, amount in request.resources.items()
        if name in fleet.free
    ]
    return 1.0 - np.ptp(np.stack(left), axis=0) if len(left) > 1 else 0.0


def spare(fleet: Fleet, rows: RowIndex, request: Request) -> Scores | float:
    """Weigh nodes by how few free custom resources, such as GPUs, would be left unused by the instance.

    Only custom resource classes that the request does not name are considered. The weight is 1 if the node has none of
    these classes free, and 0 if it has all of them free. So an instance that needs no GPU goes to a node without free
    GPUs, and nodes with free GPUs remain for instances that need them.
    """
    wasted = np.zeros(count_of(rows), np.float64)
    rare = [name for name in fleet.amounts if name not in request.resources and name.startswith("CUSTOM_")]
    for name in rare:
        wasted += fleet.free[name][rows] > 0
    return 1.0 - wasted / max(1, len(rare))


def soft_affinity(fleet: Fleet, rows: RowIndex, request: Request) -> Scores | float:
    """Weigh nodes by how many members of a soft-affinity group they have: 0 without members, close to 1 with many.

    The weight is n / (1 + n) for n members. It is 0 for all nodes if the group has another policy.
    """
    if request.group is None or request.group.policy != "soft-affinity":
        return 0.0
    members = _members(fleet, rows, request.group.name)
    return members / (1.0 + members)


def soft_anti_affinity(fleet: Fleet, rows: RowIndex, request: Request) -> Scores | float:
    """Weigh nodes by how few members of a soft-anti-affinity group they have: 1 without members, close to 0 with many.

    The weight is 1 / (1 + n) for n members. It is 0 for all nodes if the group has another policy.
    """
    if request.group is None or request.group.policy != "soft-anti-affinity":
        return 0.0
    return 1.0 / (1.0 + _members(fleet, rows, request.group.name))


def spread(fleet: Fleet, rows: RowIndex, request: Request) -> Scores | float:
    """Weigh nodes by how few members of the group are in their zone, or in their aggregates (``Request.spread_by``).

    The weight is 1 / (1 + n). With ``zone``, n is the number of members in the node's zone. With ``aggregate``, n is
    the sum of the numbers of members in the node's aggregates. The weight is 0 for all nodes if ``spread_by`` is empty.
    """
    if not request.spread_by or request.group is None:
        return 0.0
    members = fleet.groups.get(request.group.name, {})
    if request.spread_by == "zone":
        counts = np.zeros(len(fleet.zones), np.float64)
        for row, count in members.items():
            counts[fleet.zone[row]] += count
        return 1.0 / (1.0 + counts[fleet.zone[rows]])
    crowd = np.zeros(len(fleet), np.float64)
    for word, count in fleet.aggregates.count_by_word(members).items():
        crowd[fleet.aggregates.rows_of(word, len(fleet))] += count
    return 1.0 / (1.0 + crowd[rows])


def _free_share(fleet: Fleet, rows: RowIndex, request: Request, name: str) -> Scores | float:
    """Return for each row the share of a resource class that would be free with the instance; 0 if no node has it."""
    if name not in fleet.free:
        return 0.0
    return _left_share(fleet.free[name][rows] - request.resources.get(name, 0), fleet.amounts[name][0][rows])


def _left_share(left: RowAmounts, capacity: RowAmounts) -> Scores:
    """Return for each row the free amount divided by the capacity; 0 if the amount is negative or the capacity is 0."""
    return np.asarray(np.maximum(left, 0) / np.maximum(capacity, 1), np.float64)


def _members(fleet: Fleet, rows: RowIndex, group: str) -> Scores:
    """Return for each of ``rows`` how many members of a group are on the row."""
    counts = np.zeros(len(fleet), np.float64)
    for row, count in fleet.groups.get(group, {}).items():
        counts[row] = count
    return counts[rows]


WEIGHERS: dict[str, Weigher] = {
    "cpu": Weigher(cpu),
    "ram": Weigher(ram),
    "disk": Weigher(disk),
    "pack": Weigher(pack, 0.0),
    "balance": Weigher(balance, 0.0),
    "spare": Weigher(spare, 0.0),
    "soft_affinity": Weigher(soft_affinity, 2.0, "group"),
    "soft_anti_affinity": Weigher(soft_anti_affinity, 2.0, "group"),
    "spread": Weigher(spread, 4.0, "spread_by", by_group=True),
}
"""The weighers of nodestate, by name."""

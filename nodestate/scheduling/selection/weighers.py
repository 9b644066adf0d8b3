"""Weighers: how good is this node for this request, from 0 to 1?

Each weigher is a pure function of a fleet, rows and a request. A weigher judges each row by itself, as a filter does,
and may also read which resource classes the fleet has. Nova normalizes each weight over the nodes that passed the
filters, so one unusual node changes the weights of all others. Nodestate does not normalize: a row is weighed again
only if it changed. The score of a node is the sum of multiplier times weight over all weighers; a negative multiplier
reverses a weigher. Installed packages add weighers by the entry point ``nodestate.weighers``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from nodestate.scheduling.fleet import Fleet, RowAmounts, RowIndex, Scores, count_of
from nodestate.scheduling.request import Request


class Weigher(NamedTuple):
    """A weigher's function, and when and by which multiplier it counts."""

    weigh: Callable[[Fleet, RowIndex, Request], Scores | float]
    """Returns a weight from 0 to 1 for each row, or one for all."""
    multiplier: float = 1.0
    """The multiplier unless the request names another; a weigher whose multiplier is 0 is not called."""
    needs: str = ""
    """The field of the request that must be set for the weigher to be called; empty if it is always called."""
    by_group: bool = False
    """Whether a row's weight depends on members of the group on other rows; if so, all rows are weighed each time."""


def cpu(fleet: Fleet, rows: RowIndex, request: Request) -> Scores | float:
    """The share of the node's VCPU that would be free with the instance on it."""
    return _free_share(fleet, rows, request, "VCPU")


def ram(fleet: Fleet, rows: RowIndex, request: Request) -> Scores | float:
    """The share of the node's MEMORY_MB that would be free with the instance on it."""
    return _free_share(fleet, rows, request, "MEMORY_MB")


def disk(fleet: Fleet, rows: RowIndex, request: Request) -> Scores | float:
    """The share of the node's DISK_GB that would be free with the instance on it."""
    return _free_share(fleet, rows, request, "DISK_GB")


def pack(fleet: Fleet, rows: RowIndex, request: Request) -> Scores | float:
    """How full the node would be, over the requested classes: high if little would be left over (best fit)."""
    shares = [
        1.0 - _left_share(fleet.free[name][rows] - amount, fleet.amounts[name][0][rows])
        for name, amount in request.resources.items()
        if name in fleet.free
    ]
    return sum(shares, start=0.0) / max(1, len(shares))


def balance(fleet: Fleet, rows: RowIndex, request: Request) -> Scores | float:
    """How evenly the node would be used, over the requested classes: 1 if the same share of each would be left."""
    left = [
        _left_share(fleet.free[name][rows] - amount, fleet.amounts[name][0][rows])
        for name, amount in request.resources.items()
        if name in fleet.free
    ]
    return 1.0 - np.ptp(np.stack(left), axis=0) if len(left) > 1 else 0.0


def spare(fleet: Fleet, rows: RowIndex, request: Request) -> Scores | float:
    """The share of the custom classes, without the requested ones, of which the node has nothing free. An instance that
    needs no GPU so leaves the nodes with free GPUs to instances that do.
    """
    wasted = np.zeros(count_of(rows), np.float64)
    rare = [name for name in fleet.amounts if name not in request.resources and name.startswith("CUSTOM_")]
    for name in rare:
        wasted += fleet.free[name][rows] > 0
    return 1.0 - wasted / max(1, len(rare))


def soft_affinity(fleet: Fleet, rows: RowIndex, request: Request) -> Scores | float:
    """High if many members of a soft-affinity group are on the node."""
    if request.group is None or request.group.policy != "soft-affinity":
        return 0.0
    members = _members(fleet, rows, request.group.name)
    return members / (1.0 + members)


def soft_anti_affinity(fleet: Fleet, rows: RowIndex, request: Request) -> Scores | float:
    """High if few members of a soft-anti-affinity group are on the node."""
    if request.group is None or request.group.policy != "soft-anti-affinity":
        return 0.0
    return 1.0 / (1.0 + _members(fleet, rows, request.group.name))


def spread(fleet: Fleet, rows: RowIndex, request: Request) -> Scores | float:
    """High if few members of the group are in the node's zone, or in its aggregates."""
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
    """The share of a class that would be free with the instance on the node; 0 for a class that no node has."""
    if name not in fleet.free:
        return 0.0
    return _left_share(fleet.free[name][rows] - request.resources.get(name, 0), fleet.amounts[name][0][rows])


def _left_share(left: RowAmounts, capacity: RowAmounts) -> Scores:
    """The amount that is left as a share of the capacity; 0 for a node without capacity."""
    return np.asarray(np.maximum(left, 0) / np.maximum(capacity, 1), np.float64)


def _members(fleet: Fleet, rows: RowIndex, group: str) -> Scores:
    """How many members of a group are on each row."""
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

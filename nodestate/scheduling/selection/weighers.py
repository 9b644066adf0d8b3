"""Weighers: how good is this node for it? Each a small pure function of a fleet's rows and a request, from 0 to 1.

A weigher looks at each row by itself, as a filter does, and at which resource classes there are at all; nothing is
normalized over the nodes that are left, as Nova does it, so one odd node does not change what the others are worth, and a
row is weighed again only when it changed. What a node is worth is the sum of multiplier times weight; a negative
multiplier turns a weigher round. Others come in through the entry points ``nodestate.weighers``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from nodestate.scheduling.fleet import Fleet
from nodestate.scheduling.fleet.row_types import Counts, RowIndex, Scores, count_of
from nodestate.scheduling.request import Request


class Weigher(NamedTuple):
    """A function and the multiplier that it has where a request names none; 0: it is not asked unless one does."""

    weigh: Callable[[Fleet, RowIndex, Request], Scores | float]
    multiplier: float = 1.0
    needs: str = ""
    """The field of a request without which it says nothing."""
    by_group: bool = False
    """Whether it looks at where all of the group are, so that a row can change its weight while nothing on it did."""


def cpu(fleet: Fleet, rows: RowIndex, request: Request) -> Scores | float:
    """The share of VCPU that is free."""
    return _free_share(fleet, rows, request, "VCPU")


def ram(fleet: Fleet, rows: RowIndex, request: Request) -> Scores | float:
    """The share of MEMORY_MB that is free."""
    return _free_share(fleet, rows, request, "MEMORY_MB")


def disk(fleet: Fleet, rows: RowIndex, request: Request) -> Scores | float:
    """The share of DISK_GB that is free."""
    return _free_share(fleet, rows, request, "DISK_GB")


def pack(fleet: Fleet, rows: RowIndex, request: Request) -> Scores | float:
    """How full the node would be, of the classes that are asked for: high where little would be left over (best fit)."""
    shares = [
        1.0 - _left_share(fleet.free[name][rows] - amount, fleet.amounts[name][0][rows])
        for name, amount in request.resources.items()
        if name in fleet.free
    ]
    return sum(shares, start=0.0) / max(1, len(shares))


def balance(fleet: Fleet, rows: RowIndex, request: Request) -> Scores | float:
    """How evenly the node would be used over the classes that are asked for: 1 where all alike."""
    left = [
        _left_share(fleet.free[name][rows] - amount, fleet.amounts[name][0][rows])
        for name, amount in request.resources.items()
        if name in fleet.free
    ]
    return 1.0 - np.ptp(np.stack(left), axis=0) if len(left) > 1 else 0.0


def spare(fleet: Fleet, rows: RowIndex, request: Request) -> Scores | float:
    """High where the node has nothing of classes that are not asked for: so that who needs no GPU leaves them to others."""
    wasted = np.zeros(count_of(rows), np.float64)
    rare = [name for name in fleet.amounts if name not in request.resources and name.startswith("CUSTOM_")]
    for name in rare:
        wasted += fleet.free[name][rows] > 0
    return 1.0 - wasted / max(1, len(rare))


def soft_affinity(fleet: Fleet, rows: RowIndex, request: Request) -> Scores | float:
    """High where many of a soft-affinity group are."""
    if request.group is None or request.group.policy != "soft-affinity":
        return 0.0
    members = _members(fleet, rows, request.group.name)
    return members / (1.0 + members)


def soft_anti_affinity(fleet: Fleet, rows: RowIndex, request: Request) -> Scores | float:
    """High where few of a soft-anti-affinity group are."""
    if request.group is None or request.group.policy != "soft-anti-affinity":
        return 0.0
    return 1.0 / (1.0 + _members(fleet, rows, request.group.name))


def spread(fleet: Fleet, rows: RowIndex, request: Request) -> Scores | float:
    """High in zones, or aggregates, that have few of the group."""
    if not request.spread_by or request.group is None:
        return 0.0
    members = fleet.groups.get(request.group.name, {})
    if request.spread_by == "zone":
        counts = np.zeros(len(fleet.zones), np.float64)
        for row, count in members.items():
            counts[fleet.zone[row]] += count
        return 1.0 / (1.0 + counts[fleet.zone[rows]])
    crowd = np.zeros(len(fleet), np.float64)
    for word, count in fleet.aggregates.counted(members).items():
        crowd[fleet.aggregates.rows_of(word, len(fleet))] += count
    return 1.0 / (1.0 + crowd[rows])


def _free_share(fleet: Fleet, rows: RowIndex, request: Request, name: str) -> Scores | float:
    if name not in fleet.free:
        return 0.0
    return _left_share(fleet.free[name][rows] - request.resources.get(name, 0), fleet.amounts[name][0][rows])


def _left_share(left: Counts, capacity: Counts) -> Scores:
    """0 where there is no capacity."""
    return np.asarray(np.maximum(left, 0) / np.maximum(capacity, 1), np.float64)


def _members(fleet: Fleet, rows: RowIndex, group: str) -> Scores:
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

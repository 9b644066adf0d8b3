"""Capacity: how much room the fleet has, and how many more instances of a request fit.

Both are computed from the columns of the fleet, and nothing is placed or claimed. For a request, each node takes as
many instances as its free amounts and the group's limit allow; the policies of the group and of the spread then limit
the sum. Filters of other packages are asked once: instances that the question adds do not change their answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from nodestate.scheduling.claims import NoHostFound
from nodestate.scheduling.fleet import Flags, Fleet
from nodestate.scheduling.request import Request
from nodestate.scheduling.selection import (
    FILTERS,
    Filter,
    Lack,
    Remaining,
    Selector,
    guarded_filter,
    spread_domain_flags,
)

UNLIMITED_COUNT: Final = 2**40
"""A node counts as unlimited for a request from this number of instances on. The sum over all nodes stays exact."""
MAX_PLACED_COUNT: Final = 1_000
"""Most instances that are placed one after the other, if no formula gives their number."""

Counts = npt.NDArray[np.int64]
"""A number for each row."""


class ClassCapacity(msgspec.Struct, frozen=True):
    """One resource class of some nodes. All amounts are in the unit of the class."""

    total: int
    """The capacity: (total - reserved) x allocation_ratio, summed over the nodes."""
    used: int
    """The usage that the nodes report."""
    claimed: int
    """The claims of schedulers that no report of the nodes includes."""
    free: int
    """The free amounts of the open nodes. Overused and closed nodes count as 0, so this may be less than the rest."""


class CapacityPart(msgspec.Struct, frozen=True):
    """Some nodes of the fleet: all of them, or the nodes of one zone or aggregate."""

    nodes: int
    """Number of nodes."""
    open_nodes: int
    """Number of nodes that may get instances now: up, not cordoned, not stale, and with known claims."""
    classes: dict[str, ClassCapacity]
    """By resource class, the sums over the nodes."""


class FleetCapacity(msgspec.Struct, frozen=True):
    """The capacity of a fleet."""

    whole: CapacityPart
    """All nodes."""
    zones: dict[str, CapacityPart]
    """By zone, its nodes. Nodes without a zone stand under the empty name."""
    aggregates: dict[str, CapacityPart]
    """By aggregate, its nodes. A node may be in several aggregates, or in none."""


@dataclass(frozen=True, slots=True)
class RequestFit:
    """How many more instances of a request fit."""

    fits: int | None
    """The largest ``count`` with which the request would get a node for each instance; None if there is no limit."""
    is_minimum: bool
    """True if more may fit: counting stopped at ``MAX_PLACED_COUNT``."""
    nodes: int
    """Number of nodes that can take at least one instance now."""
    remaining: tuple[Remaining, ...]
    """How many nodes each filter leaves for the next instance, after all that fit; empty if there is no limit."""
    reason: str
    """Why the next instance does not fit, for people; empty if there is no limit."""


# -- the whole fleet --------------------------------------------------------------------------------


def capacity_of(fleet: Fleet) -> FleetCapacity:
    """Return the capacity of all nodes that the last view has, also by zone and by aggregate."""
    rows = fleet.all
    there = fleet.is_there
    is_open = there & fleet.usable[rows]
    names = list(fleet.amounts)
    amounts = np.zeros((len(fleet), 2 + 4 * len(names)), np.int64)
    amounts[:, 0], amounts[:, 1] = there, is_open
    for number, name in enumerate(names):
        capacity, used = fleet.amounts[name][:, rows]
        free = fleet.free[name][rows]
        columns = (capacity, used, capacity - used - free, np.where(is_open, np.maximum(free, 0), 0))
        amounts[:, 2 + 4 * number : 6 + 4 * number] = np.stack(columns, axis=1)
    amounts[~there] = 0
    zone_numbers = {number: zone for zone, number in fleet.zones.items()}
    by_zone = np.zeros((len(zone_numbers), amounts.shape[1]), np.int64)
    np.add.at(by_zone, fleet.zone[rows], amounts)
    words, at_rows, at_words = fleet.aggregates.memberships(len(fleet))
    by_word = np.zeros((len(words), amounts.shape[1]), np.int64)
    np.add.at(by_word, at_words, amounts[at_rows])
    return FleetCapacity(
        _part(names, amounts.sum(axis=0)),
        {zone: _part(names, by_zone[number]) for number, zone in sorted(zone_numbers.items()) if by_zone[number, 0]},
        {word: _part(names, sums) for word, sums in zip(words, by_word, strict=True) if sums[0]},
    )


def _part(names: list[str], sums: npt.NDArray[np.int64]) -> CapacityPart:
    values = sums.tolist()
    classes = {
        name: ClassCapacity(*values[2 + 4 * number : 6 + 4 * number])
        for number, name in enumerate(names)
        if any(values[2 + 4 * number : 6 + 4 * number])
    }
    return CapacityPart(values[0], values[1], classes)


def claimed_by_node(fleet: Fleet) -> dict[str, dict[str, int]]:
    """Return by node and class the claimed amounts that no report of the node includes; only nodes that have some."""
    found = {}
    for row in list(fleet.claim_overlay.outstanding):
        amounts = {}
        for name, (totals, usages) in fleet.amounts.items():
            if claimed := int(totals[row]) - int(usages[row]) - int(fleet.free[name][row]):
                amounts[name] = claimed
        if amounts:
            found[fleet.names[row]] = amounts
    return found


# -- one request ------------------------------------------------------------------------------------


def fit_of(selector: Selector, request: Request) -> RequestFit:
    """Return how many more instances of a request fit, under its filters and its group's policy.

    All of them must get a node together, as with ``count``: members of an affinity group, for example, get one node.
    ``count`` and ``instances`` of the request do not matter.

    Raises ``PolicyError`` if a filter of another package fails.
    """
    fleet = selector.fleet
    contradiction = selector.contradiction(request)
    if contradiction:
        steps = (Remaining("all", len(fleet)), Remaining("group", 0))
        return RequestFit(0, is_minimum=False, nodes=0, remaining=steps, reason=contradiction)
    question = _FitQuestion(selector, request)
    if request.spread is not None and request.spread.by == "aggregate":
        placed, remaining, lacks = selector.fill(request, MAX_PLACED_COUNT)
        is_minimum = placed == MAX_PLACED_COUNT
        reason = "" if is_minimum else question.reason(placed, remaining, lacks)
        return RequestFit(placed, is_minimum, question.nodes, () if is_minimum else remaining, reason)
    taken = question.taken()
    count = int(taken.sum())
    if count >= UNLIMITED_COUNT:
        return RequestFit(None, is_minimum=False, nodes=question.nodes, remaining=(), reason="")
    remaining, lacks = question.after(taken)
    return RequestFit(count, False, question.nodes, remaining, question.reason(count, remaining, lacks))


class _FitQuestion:
    """The question how many instances of one request fit, on the present fleet.

    ``nodes``: the number of nodes that can take at least one instance.
    """

    def __init__(self, selector: Selector, request: Request) -> None:
        self._selector = selector
        self._fleet = fleet = selector.fleet
        self._request = request
        group = request.group
        self._members = np.zeros(len(fleet), np.int64)  # by row, the members of the request's group
        for row, count in fleet.groups.get(group.name, {}).items() if group is not None else ():
            self._members[row] = count
        changing = {FILTERS[name] for name in ("resources", "group", "spread")}
        self._flags: dict[str, Flags] = {}  # by filter whose answers stay the same, its answers
        self._changing: dict[str, Filter] = {}  # the other filters, by name
        for name, filter_ in selector.policies.filters.items():
            if filter_ in changing:
                self._changing[name] = filter_
            else:
                passed = guarded_filter(name, filter_)(fleet, fleet.all, request)
                self._flags[name] = np.broadcast_to(np.asarray(passed, np.bool_), (len(fleet),))
        self._room = self._room_by_row()  # by row, how many instances the node takes by itself
        self.nodes = int(np.count_nonzero(self._room * self._spread_flags(self._members)))

    def taken(self) -> Counts:
        """Return for each row how many instances it takes if as many as possible are placed."""
        group, room = self._request.group, self._room
        if group is not None and group.policy == "affinity":
            return _only_largest(room)
        if self._request.spread is not None:
            return self._limited_by_spread(room, self._request.spread.max_skew)
        return room

    def after(self, taken: Counts) -> tuple[tuple[Remaining, ...], tuple[Lack, ...]]:
        """Return what each filter leaves after the rows have taken these numbers of instances, and the lacks."""
        fleet, resources = self._fleet, self._request.resources
        left: Flags = np.ones(len(fleet), np.bool_)
        found = [Remaining("all", len(fleet))]
        lacks: tuple[Lack, ...] = ()
        for name in self._selector.policies.filters:
            filter_ = self._changing.get(name)
            if filter_ is FILTERS["resources"] and left.any():
                most = {one: int(np.max(self._free(one, taken)[left])) for one in resources}
                lacks = tuple(Lack(one, n, max(0, most[one])) for one, n in resources.items() if most[one] < n)
            left = left & (self._flags[name] if filter_ is None else self._changed(filter_, taken))
            found.append(Remaining(name, int(left.sum())))
        return tuple(found), lacks

    def reason(self, count: int, remaining: tuple[Remaining, ...], lacks: tuple[Lack, ...]) -> str:
        """Return why the next instance does not fit after ``count`` were placed."""
        unknown = self._selector.unknown(self._request) if not count else ""
        return str(NoHostFound(remaining, unknown, lacks=lacks, known=len(self._fleet)))

    # -- inside

    def _room_by_row(self) -> Counts:
        fleet, request = self._fleet, self._request
        room = np.full(len(fleet), UNLIMITED_COUNT, np.int64)
        if FILTERS["resources"] in self._changing.values():
            for name, amount in request.resources.items():
                room = np.minimum(room, np.maximum(self._free(name), 0) // amount)
        if FILTERS["group"] in self._changing.values() and request.group is not None:
            if request.group.policy == "anti-affinity":
                room = np.minimum(room, np.maximum(request.group.max_per_node - self._members, 0))
            room = np.where(self._changed(FILTERS["group"], np.zeros_like(room)), room, 0)
        for flags in self._flags.values():
            room = np.where(flags, room, 0)
        return room

    def _free(self, name: str, taken: Counts | None = None) -> Counts:
        """Return the free amount of a resource class by row, after the rows have taken some instances."""
        free = self._fleet.free.get(name)
        if free is None:
            return np.zeros(len(self._fleet), np.int64)
        now = free[self._fleet.all]
        return now if taken is None else now - taken * self._request.resources[name]

    def _changed(self, filter_: Filter, taken: Counts) -> Flags:
        """Return the answers of a filter after the rows have taken some instances."""
        request, group = self._request, self._request.group
        every: Flags = np.ones(len(self._fleet), np.bool_)
        if filter_ is FILTERS["resources"]:
            for name, amount in request.resources.items():
                every &= self._free(name, taken) >= amount
                if name not in self._fleet.free:
                    every[:] = False
            return every
        members = self._members + taken
        if filter_ is FILTERS["spread"]:
            return self._spread_flags(members)
        if group is None or group.policy.startswith("soft-") or not members.any():
            return every
        if group.policy == "affinity":  # all that fit are together on one node
            return (taken if taken.any() else members) > 0
        return members < group.max_per_node

    def _spread_flags(self, members: Counts) -> Flags:
        """Return for each row whether the spread over zones allows one more member there."""
        spread, zones = self._request.spread, self._zones
        if spread is None or spread.by != "zone" or FILTERS["spread"] not in self._changing.values():
            return np.ones(len(self._fleet), np.bool_)
        counts = self._by_zone(members)
        fewest = min((counts[zone] for zone in self._present_zones), default=UNLIMITED_COUNT)
        flags: Flags = (counts[zones] + 1 - fewest <= spread.max_skew) & (zones != self._fleet.zones[""])
        return flags

    @property
    def _zones(self) -> npt.NDArray[np.int32]:
        return self._fleet.zone[self._fleet.all]

    @property
    def _present_zones(self) -> list[int]:
        """The zones that count for the spread."""
        zones = np.unique(self._zones[spread_domain_flags(self._fleet, self._request)])
        return [int(zone) for zone in zones if zone != self._fleet.zones[""]]

    def _by_zone(self, counts: Counts) -> Counts:
        sums = np.zeros(len(self._fleet.zones), np.int64)
        np.add.at(sums, self._zones, counts)
        return sums

    def _limited_by_spread(self, room: Counts, max_skew: int) -> Counts:
        """Return how many instances each row takes under a spread over zones.

        The zone with the fewest members may always get one more. So instances can be placed until one zone is full; the
        number of its members then bounds all others, each of which gets ``max_skew`` members more at most.
        """
        members, rooms = self._by_zone(self._members), self._by_zone(room)
        fewest = min((int(members[zone] + rooms[zone]) for zone in self._present_zones), default=0)
        quota = np.clip(fewest + max_skew - members, 0, rooms)
        quota[self._fleet.zones[""]] = 0
        taken = np.zeros_like(room)
        for zone in np.flatnonzero(quota):
            rows = np.flatnonzero(self._zones == zone)
            before = np.cumsum(room[rows]) - room[rows]
            taken[rows] = np.clip(quota[zone] - before, 0, room[rows])
        return taken


def _only_largest(room: Counts) -> Counts:
    """Return the room of the row with the most, and 0 for all others."""
    taken = np.zeros_like(room)
    if len(room):
        best = int(np.argmax(room))
        taken[best] = room[best]
    return taken

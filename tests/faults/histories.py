"""Replay the histories of agents and judge them: what did each node have at each moment?

It uses a simple fold of its own: for each node the states in the order in which its agent authored them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

from nodestate.model import merge_patch


class Moment(NamedTuple):
    """A state of a node that its agent authored at ``at`` (seconds since 1970)."""

    node: str
    at: float
    state: Mapping[str, Any]


class Histories:
    """Every moment of every node, from the history files of their agents.

    ``claim_outlives_order_s``: the claim of an order lives for this many seconds after the deadline of the order.
    """

    def __init__(self, files: list[Path], claim_outlives_order_s: float) -> None:
        self._slack_s = claim_outlives_order_s
        self.moments: list[Moment] = []
        """All moments, in the order of each agent's history."""
        self.last: dict[str, Mapping[str, Any]] = {}
        """The last state of each node."""
        self.orders = 0
        """How many orders the agents got."""
        self.late: list[str] = []
        """Allocations that were made after their claim had expired."""
        for file in files:
            self._read(file)

    def _read(self, file: Path) -> None:
        states: dict[str, dict[str, Any]] = {}
        versions: dict[str, tuple[int, int]] = {}
        deadlines: dict[tuple[str, str], float] = {}
        with file.open("rb") as stream:
            for entry in msgpack.Unpacker(stream, raw=False):
                if "order" in entry:
                    order = msgpack.unpackb(entry["order"])
                    self.orders += 1
                    if order["kind"] == "build":
                        deadlines[order["node"], order["instance"]] = order["deadline"]
                    continue
                event = msgpack.unpackb(entry["event"])
                node, version = event["node"], (event["incarnation"], event["generation"])
                if event["kind"] not in ("report", "change") or version <= versions.get(node, (0, 0)):
                    continue  # a heartbeat, or an event that was sent again
                before = states.get(node, {}).get("allocations", {})
                if event["kind"] == "report":
                    states[node] = event["state"]
                else:
                    incarnation, generation = versions[node]
                    assert version == (incarnation, generation + 1), f"{node} left out a generation before {version}"
                    states[node] = merge_patch(_copied(states[node]), event["patch"])
                versions[node] = version
                moment = Moment(node, event["reported_at"], _copied(states[node]))
                self.moments.append(moment)
                self.last[node] = moment.state
                if event["kind"] == "change":
                    self._note_late(moment, before, deadlines)

    def _note_late(self, moment: Moment, before: Mapping[str, Any], deadlines: Mapping[tuple[str, str], float]) -> None:
        for instance in moment.state.get("allocations", {}).keys() - before.keys():
            deadline = deadlines.get((moment.node, instance))
            if deadline is None:
                self.late.append(f"{moment.node} has {instance}, which no scheduler ordered")
            elif moment.at > deadline + self._slack_s:  # an agent that was frozen in between accepted the order before
                self.late.append(
                    f"{moment.node} has {instance} {moment.at - deadline:.1f} s after its order's deadline"
                )

    def overcommitted(self) -> Iterator[str]:
        """Yield moments in which a node had more than its room, or more of a group than the group's policy allows
        (I8).
        """
        for node, _, state in self.moments:
            had = Counter[str]()
            groups = Counter[str]()
            for allocation in state.get("allocations", {}).values():
                had.update(allocation["resources"])
                if allocation.get("hints", {}).get("group_policy") == "anti-affinity":
                    groups[allocation["group"]] += 1
            for name, amount in had.items():
                inventory = state["inventory"][name]
                capacity = (inventory["total"] - inventory.get("reserved", 0)) * inventory.get("allocation_ratio", 1.0)
                if amount > capacity:
                    yield f"{node} has {amount} of {name}, of {capacity:g}"
                if amount != state["usage"].get(name, 0):
                    yield f"{node} has {amount} of {name} and reports {state['usage'].get(name, 0)}"
            yield from (f"{node} has {count} of group {group}" for group, count in groups.items() if count > 1)

    def half_placed(self) -> Iterator[str]:
        """Yield reservations of which in the end some members are there and others not, and which were never
        complete (I9).
        """
        gangs: dict[str, dict[str, Mapping[str, Any]]] = {}
        for state in self.last.values():
            for instance, allocation in state.get("allocations", {}).items():
                if reservation := allocation.get("hints", {}).get("reservation"):
                    gangs.setdefault(reservation, {})[instance] = allocation["hints"]
        for reservation, members in gangs.items():
            wanted = next(iter(members.values()))["members"]
            if len(members) < wanted and not any(hints.get("placed") for hints in members.values()):
                yield f"{reservation}: {sorted(members)} of {wanted}"

    def doubled(self) -> Iterator[str]:
        """Yield instances that are on two nodes in the end."""
        where = Counter(instance for state in self.last.values() for instance in state.get("allocations", {}))
        yield from (instance for instance, count in where.items() if count > 1)

    def fullest(self, name: str) -> float:
        """Return the largest share of a resource class that was taken at any moment."""
        taken: dict[str, int] = {}
        room: dict[str, int] = {}
        most = 0.0
        for node, _, state in sorted(self.moments, key=lambda moment: moment.at):
            taken[node] = state.get("usage", {}).get(name, 0)
            room[node] = state["inventory"][name]["total"]
            most = max(most, sum(taken.values()) / sum(room.values()))
        return most


def _copied(state: Any) -> Any:
    if isinstance(state, dict):
        return {name: _copied(value) for name, value in state.items()}
    return state

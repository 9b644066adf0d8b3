"""Nodes, views and fleets for tests. Views are made of tables, as a reader makes them, but without a reader."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgpack

from nodestate.model import NodeRecord, fold, parse_event
from nodestate.scheduling.fleet import Fleet
from nodestate.scheduling.request import Request, parse
from nodestate.scheduling.selection import Selector
from nodestate.scheduling.selection.plugins import own
from nodestate.testing import ManualClock
from nodestate.view.columns import ColumnStore
from nodestate.view.follower import PartitionState
from nodestate.view.table import Table
from nodestate.view.view import View
from tests.tables import advanced, table_of


def node(name: str, generation: int = 1, state: Mapping[str, Any] | None = None, **fields: Any) -> NodeRecord:
    """A node as its agent's events make it; a node that left if there is no state at all."""
    event = {"node": name, "incarnation": 1, "generation": generation, "reported_at": 1.0}
    whole = None if state is None and not fields else {**(state or {}), **fields}
    more = {"kind": "leave"} if whole is None else {"kind": "report", "state": whole}
    record = fold(None, parse_event(msgpack.packb({**event, **more}))).record
    assert record is not None
    return record


def host(
    name: str,
    generation: int = 1,
    *,
    vcpu: int = 8,
    used: int = 0,
    instances: Mapping[str, Any] | None = None,
    **more: Any,
) -> NodeRecord:
    """A node with ``vcpu`` processors, of which ``used`` are in use. ``instances`` maps each instance to its
    allocation, or only to its group.
    """
    allocations = {
        instance: what if isinstance(what, dict) else {"resources": {"VCPU": 1}, "group": what}
        for instance, what in (instances or {}).items()
    }
    state = {"inventory": {"VCPU": {"total": vcpu}}, "usage": {"VCPU": used}, "allocations": allocations}
    return node(name, generation, {**state, **more})


def view_of_tables(tables: Sequence[Table | None], left_out: Collection[str] = ()) -> View:
    """A view of these tables, one for each partition."""
    partitions = tuple(PartitionState(number, table, lost="") for number, table in enumerate(tables))
    return View("journal", partitions, frozenset(), frozenset(left_out), ColumnStore(), ManualClock())


class ChangingPartition:
    """One partition whose nodes change; each ``view`` shares unchanged rows with the one before."""

    def __init__(self, *records: NodeRecord) -> None:
        self.table = table_of(1, 1, list(records))
        self.left_out: frozenset[str] = frozenset()

    def change(self, *records: NodeRecord) -> None:
        """Replace these nodes' states from now on."""
        for record in records:
            slot = self.table.slots.get(record.name, self.table.size)
            self.table = advanced(self.table, self.table.offset + 1, {slot: record})

    @property
    def view(self) -> View:
        """The partition as it is now."""
        return view_of_tables([self.table], self.left_out)


def fleet_of(*records: NodeRecord) -> Fleet:
    """A fleet of these nodes, in rows of their order."""
    fleet = Fleet()
    fleet.advance(ChangingPartition(*records).view)
    return fleet


def selector_of(*records: NodeRecord, seed: int = 1) -> Selector:
    """A selector over a fleet of these nodes."""
    return Selector(fleet_of(*records), own(), seed)


def asked(vcpu: int = 1, **more: Any) -> Request:
    """A request for this number of processors."""
    return parse({"resources": {"VCPU": vcpu}, **more})


def chosen(selector: Selector, request: Request) -> list[str | None]:
    """The nodes chosen for the request's instances."""
    return [choice.node for choice in selector.choices(request)]

"""The nodes of a view in few columns, for clients that follow the whole fleet.

Each node has a number, which an event repeats instead of its name. Numbers are given in the order in which nodes
appear, and only to live nodes; that of a node which left is not given again. So a client that holds the lists ``names``
and ``zones`` can apply each change to them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from nodestate.model import NodeRecord
from nodestate.view.documents import capacity_and_usage, zone_of

STATUS_LETTERS: Final = {"up": "u", "draining": "d", "maintenance": "m", "down": "x"}
GONE: Final = "-"
"""The letter of a number whose node is gone."""
UNKNOWN_LOAD: Final = -1
MAX_LOAD: Final = 999
MIN_GONE_COUNT: Final = 1_000
"""All nodes get new numbers if more numbers than this, and more than half of them, are of nodes that are gone."""


class NodesEvent(msgspec.Struct, omit_defaults=True):
    """Nodes that changed, as columns. Fields at their defaults are left out."""

    whole: Annotated[
        bool, Meta(description="True if this replaces all nodes: the client clears its lists of names and zones first.")
    ] = False
    names: Annotated[
        list[str],
        Meta(description="Names to append to the client's list; the place in the list is a node's number."),
    ] = []
    zones: Annotated[list[str], Meta(description="Zones to append to the client's list of zones.")] = []
    numbers: Annotated[
        list[int],
        Meta(description="Numbers of the nodes of the next three fields; left out if whole: all numbers in order."),
    ] = []
    status: Annotated[
        str,
        Meta(
            description="One letter for each node: u up, d draining, m maintenance, x down, - gone; in upper case if "
            "a newer version of the node is known to exist."
        ),
    ] = ""
    zone: Annotated[list[int], Meta(description="For each node the place of its zone in the list of zones.")] = []
    load: Annotated[
        list[int],
        Meta(
            description="For each node the usage of its fullest resource class in percent of the capacity, at most "
            "999; -1 if it has no capacity."
        ),
    ] = []


class NodeBoard:
    """The columns of all nodes, kept up to date by the changes of views. Belongs to the event loop."""

    def __init__(self) -> None:
        self._number_of: dict[str, int] = {}
        self._names: list[str] = []
        self._zone_number: dict[str, int] = {}
        self._status: list[str] = []
        self._zone: list[int] = []
        self._load: list[int] = []

    @property
    def is_sparse(self) -> bool:
        """True if most numbers are of nodes that are gone, so a new board should take its place."""
        gone = len(self._names) - len(self._number_of)
        return gone > MIN_GONE_COUNT and gone > len(self._number_of)

    def apply(self, records: Iterable[NodeRecord], vanished: Iterable[str] = ()) -> NodesEvent | None:
        """Apply changed records and names of nodes that vanished. Returns the event; None if it has no nodes."""
        event = NodesEvent(names=[], zones=[], numbers=[], zone=[], load=[])
        letters: list[str] = []
        for record in records:
            if record.live:
                letters.append(self._put(record, event))
            elif record.name in self._number_of:
                letters.append(self._remove(record.name, event))
        letters += [self._remove(name, event) for name in vanished if name in self._number_of]
        event.status = "".join(letters)
        return event if letters else None

    def picture(self) -> NodesEvent:
        """Return the event with all nodes."""
        return NodesEvent(
            whole=True,
            names=self._names.copy(),
            zones=list(self._zone_number),
            status="".join(self._status),
            zone=self._zone.copy(),
            load=self._load.copy(),
        )

    def _put(self, record: NodeRecord, event: NodesEvent) -> str:
        """Set the row of a live node, and append it to the event. Returns its letter."""
        zone_name = zone_of(record)
        zone = self._zone_number.get(zone_name)
        if zone is None:
            zone = self._zone_number[zone_name] = len(self._zone_number)
            event.zones.append(zone_name)
        letter, load = STATUS_LETTERS[record.status], _load_of(record)
        if record.incomplete:
            letter = letter.upper()
        number = self._number_of.get(record.name)
        if number is None:
            number = self._number_of[record.name] = len(self._names)
            self._names.append(record.name)
            self._status.append(letter)
            self._zone.append(zone)
            self._load.append(load)
            event.names.append(record.name)
        else:
            self._status[number], self._zone[number], self._load[number] = letter, zone, load
        event.numbers.append(number)
        event.zone.append(zone)
        event.load.append(load)
        return letter

    def _remove(self, name: str, event: NodesEvent) -> str:
        """Remove a node, and append that to the event. Returns the letter of nodes that are gone."""
        number = self._number_of.pop(name)
        self._names[number] = ""
        self._status[number], self._zone[number], self._load[number] = GONE, 0, UNKNOWN_LOAD
        event.numbers.append(number)
        event.zone.append(0)
        event.load.append(UNKNOWN_LOAD)
        return GONE


def _load_of(record: NodeRecord) -> int:
    """Return the usage of a node's fullest class in percent; ``UNKNOWN_LOAD`` if it has no capacity."""
    loads = [usage * 100 // capacity for capacity, usage in capacity_and_usage(record).values() if capacity > 0]
    return min(max(loads), MAX_LOAD) if loads else UNKNOWN_LOAD

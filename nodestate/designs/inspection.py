"""Inspection of a cell: for each design a view, the seconds that reading it took, and the heads of its partitions."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from nodestate.config import Config
from nodestate.designs import DESIGNS
from nodestate.designs.connections import configured, open_stores
from nodestate.designs.control import Control, record_from_settings
from nodestate.designs.control_auth import control_auth
from nodestate.designs.control_store import ControlStore, Copy, newest
from nodestate.designs.reader import Reader
from nodestate.designs.stored_design import StoredDesign, display_names, parse_stored_design
from nodestate.errors import NodestateError
from nodestate.ports import Clock, Item, Store, StoreRole, SystemClock
from nodestate.store import keys
from nodestate.store.head import NEVER_HEARD, Head, read_head
from nodestate.store.liveness import latest_write
from nodestate.store.round_trips import Stores, run
from nodestate.store.signed_values import ValueAuth
from nodestate.view.view import View

NOTHING_STORED: Final = "nothing is stored"


class HeadStatus(NamedTuple):
    """The head of one partition, as far as commands show it."""

    epoch: int
    """Which life of the store the head belongs to."""
    term: int
    """Number of the ownership; it rises at every takeover."""
    owner: str
    """Name of the consumer that owns the partition, with a random part after "/"."""
    next: int
    """Offset of the next commit."""
    behind_s: float
    """Seconds from the moment at which the owner was last caught up with its queue to its last renewal."""
    complete: bool
    """True if the owner knows all nodes of the partition."""
    age_s: float
    """Seconds since the owner's last renewal, by the store's clock; infinite if that is not known."""
    refused: int
    """How many refused messages the owner holds, because the dead-letter queue has not taken them."""
    copies: int = 1
    """Number of replicas that are in sync, this one included."""

    @property
    def member(self) -> str:
        """The owner without the random part, which differs after each start of the process."""
        return self.owner.partition("/")[0]


class DesignStatus(NamedTuple):
    """One design of a cell."""

    name: str
    """Name for people: ``snapshot``, or ``snapshot@16`` if designs of several numbers of partitions are shown."""
    view: View
    """A view of all nodes, of any age."""
    refresh_s: float
    """Seconds that it took to refresh the view."""
    heads: Sequence[HeadStatus | str]
    """By partition, its head, or a text that says why there is none."""


def read_control(config: Config, designs: Iterable[str] = ()) -> Control:
    """Return the newest control record of the cell, or the record that the settings describe if none is stored.

    Args:
        config: Settings of the cell.
        designs: Look in the stores of these designs only; empty: in all stores that the settings name.
    """
    return newest(read_copies(config, designs)) or record_from_settings(config, 0.0)


def read_copies(config: Config, designs: Iterable[str] = ()) -> list[Copy]:
    """Return the copies of the control record in the stores; empty if the settings name no store. Args as above."""
    places = [parse_stored_design(name, config.partitions).design for name in designs] or configured(config)
    if not places:
        return []
    clock = SystemClock()
    auth = control_auth(config, clock)
    stores = open_stores(config, clock, places)
    try:
        return ControlStore(config.cell, stores, clock, auth).read()
    finally:
        stores.close()


def selected_designs(config: Config, designs: str | None) -> list[StoredDesign]:
    """Return the designs that an option ``--design NAMES`` names, or all designs that are written if it was not given.

    Args:
        config: Settings of the cell.
        designs: Names separated by commas. ``snapshot@16`` is the snapshot design in 16 partitions. ``snapshot`` is the
            snapshot design in the number of partitions that readers use.
    """
    if not designs:
        return list(read_control(config).writes)
    names = [name.strip() for name in designs.split(",") if name.strip()]
    control = read_control(config, names)
    return [parse_stored_design(name, control.reads.partitions) for name in names]


class CellInspector:
    """Reads several designs of a cell over the same connections. Close it after use.

    Args:
        config: settings of the cell.
        designs: the designs to read.
        values: checks and counts the values that are read; None to check them as the settings say.
        stores: connections to use; None to open them. ``close`` closes them.
        clock: the clock of the readers; None for the machine's clock.
    """

    def __init__(
        self,
        config: Config,
        designs: Sequence[StoredDesign],
        values: ValueAuth | None = None,
        *,
        stores: Stores | None = None,
        clock: Clock | None = None,
    ) -> None:
        # Settings of the cell.
        self._config = config
        clock = clock or SystemClock()
        # Connections to the stores of all these designs.
        self._stores = stores or open_stores(config, clock, [stored.design for stored in designs], values=values)
        # A reader of each design.
        self._readers = {
            stored: Reader(config, design=str(stored), stores=self._stores, clock=clock)
            for stored in dict.fromkeys(designs)
        }
        # Name for people of each design.
        self._names = display_names(self._readers)

    def followed_view(self) -> View:
        """Return a view of any age, with signs of life, as a scheduler reads it: of either replica of a partition."""
        reader = Reader(self._config, stores=self._stores)
        return reader.read(max_age=math.inf, node_max_age=math.inf, on_stale="flag")

    def views(self) -> dict[str, View]:
        """Return a view of each design, of any age, by the name of the design."""
        return {name: view for name, view, _ in self.timed_views()}

    def timed_views(self, *, node_max_age: float | None = None) -> list[tuple[str, View, float]]:
        """Return for each design its name, a view of any age, and the seconds that it took to refresh the view."""
        looks = []
        for stored, reader in self._readers.items():
            started = time.perf_counter()
            view = reader.read(max_age=math.inf, node_max_age=node_max_age, on_stale="flag")
            looks.append((self._names[stored], view, time.perf_counter() - started))
        return looks

    def inspect(self, *, node_max_age: float | None = None) -> list[DesignStatus]:
        """Return the status of each design: its view and the heads of its partitions."""
        looks = self.timed_views(node_max_age=node_max_age)
        return [
            DesignStatus(name, view, seconds, self._heads(stored))
            for stored, (name, view, seconds) in zip(self._readers, looks, strict=True)
        ]

    def close(self) -> None:
        """Close the connections."""
        self._stores.close()

    def _heads(self, stored: StoredDesign) -> list[HeadStatus | str]:
        cell, letter, where = self._config.cell, DESIGNS[stored.design].letter, DESIGNS[stored.design].store_role
        numbers = range(stored.partitions)
        work = {
            p: (self._stores.of(p, where), read_head(keys.prefix(cell, stored.partitions, p, letter), None))
            for p in numbers
        }
        found = run(work)
        now = time.monotonic()
        return [head_status(found[number], work[number][0], now) for number in numbers]


def replica_pairs(statuses: Sequence[DesignStatus]) -> list[tuple[DesignStatus, DesignStatus]]:
    """Return the designs of which both replicas were inspected: the status of the first one and of the other one."""
    by_name = {status.name: status for status in statuses}
    pairs = []
    for name, status in by_name.items():
        base, at, partitions = name.partition("@")
        design = DESIGNS[base]
        if design.partner and design.store_role is StoreRole.STORE:
            other = by_name.get(f"{design.partner}{at}{partitions}")
            pairs += [(status, other)] if other is not None else []
    return pairs


def out_of_sync(first: DesignStatus, other: DesignStatus) -> dict[int, str]:
    """Return the partitions of which not both replicas are in sync, each with the reason."""
    found = {}
    for number, heads in enumerate(zip(first.heads, other.heads, strict=True)):
        named = zip((first.name, other.name), heads, strict=True)
        absent = [f"{name}: {head}" for name, head in named if isinstance(head, str)]
        alone = [head.copies == 1 for head in heads if isinstance(head, HeadStatus)]
        if absent:
            found[number] = absent[0]
        elif all(alone):
            found[number] = "each replica says that the other one is not in sync"
        elif any(alone):
            found[number] = f"{(other if alone[0] else first).name} is not in sync"
    return found


def head_status(found: tuple[Head, Item] | NodestateError | None, store: Store, now: float) -> HeadStatus | str:
    """Return the status of a head that was just read from a store, or why there is none.

    ``now``: the present, in monotonic seconds.
    """
    if found is None:
        return NOTHING_STORED
    if isinstance(found, NodestateError):
        return str(found)
    head, item = found
    age_s = math.inf if item.ttl_s is None else float(head.lease_s - item.ttl_s)
    age_s = max(age_s, now - latest_write(head.written_ms, store, now))
    behind_s = head.behind_ms / 1000 if head.behind_ms < NEVER_HEARD else math.inf
    return HeadStatus(
        head.epoch, head.term, head.owner, head.next, behind_s, head.vouched, age_s, head.refused, head.copies
    )

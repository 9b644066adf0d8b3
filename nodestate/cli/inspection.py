"""Looking at a cell as a whole: of each design a view, how long reading it took, and the heads behind it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from nodestate.config import Config
from nodestate.designs import DESIGNS
from nodestate.designs.connections import configured, open_stores
from nodestate.designs.control import Control, first
from nodestate.designs.control_store import ControlStore, newest
from nodestate.designs.reader import Reader
from nodestate.designs.stored_design import StoredDesign, display_names, parse_stored_design
from nodestate.errors import NodestateError
from nodestate.ports import Item, SystemClock
from nodestate.store import keys
from nodestate.store.head import Head, read_head
from nodestate.store.round_trips import run
from nodestate.view.view import View

NOTHING_STORED: Final = "nothing is stored"


class HeadStatus(NamedTuple):
    """What one partition's head says. ``age_s`` counts from its last renewal, in the whole seconds of the store's clock;
    ``behind_s`` is how long before that its owner was caught up.
    """

    epoch: int
    term: int
    owner: str
    next: int
    behind_s: float
    vouched: bool
    age_s: float

    @property
    def member(self) -> str:
        """The owner without the random part that tells its lives apart."""
        return self.owner.partition("/")[0]


class DesignStatus(NamedTuple):
    """One design: what to call it, its view, seconds that refreshing took, and by partition its head or why there is none."""

    name: str
    view: View
    refresh_s: float
    heads: Sequence[HeadStatus | str]


def read_control(config: Config, designs: Iterable[str] = ()) -> Control:
    """The cell's control record, as the places of these designs have it (of none: all that the settings name); or what the
    settings say where there is none.
    """
    places = [parse_stored_design(name, config.partitions).design for name in designs] or configured(config)
    if not places:
        return first(config, 0.0)
    stores = open_stores(config, SystemClock(), places)
    try:
        control = newest(ControlStore(config.cell, stores).read())
    finally:
        stores.close()
    return control or first(config, 0.0)


def selected_designs(config: Config, designs: str | None) -> list[StoredDesign]:
    """What names by comma mean: ``snapshot@16``, or ``snapshot`` of the layout that is read. Without names, all that is written."""
    if not designs:
        return list(read_control(config).writes)
    names = [name.strip() for name in designs.split(",") if name.strip()]
    control = read_control(config, names)
    return [parse_stored_design(name, control.reads.partitions) for name in names]


class CellInspector:
    """Reads several designs of a cell over the same connections."""

    def __init__(self, config: Config, every: Sequence[StoredDesign]) -> None:
        self._config = config
        clock = SystemClock()
        self._stores = open_stores(config, clock, [kept.design for kept in every])
        self._readers = {
            kept: Reader(config, design=str(kept), stores=self._stores, clock=clock) for kept in dict.fromkeys(every)
        }
        self._names = display_names(self._readers)

    def views(self) -> dict[str, View]:
        """A view of each design, by what to call it, whatever its age."""
        return {name: view for name, view, _ in self.timed()}

    def timed(self, *, node_max_age: float | None = None) -> list[tuple[str, View, float]]:
        """What to call each design, a view of it, and the seconds that refreshing it took."""
        looks = []
        for kept, reader in self._readers.items():
            started = time.perf_counter()
            view = reader.read(max_age=math.inf, node_max_age=node_max_age, on_stale="flag")
            looks.append((self._names[kept], view, time.perf_counter() - started))
        return looks

    def look(self, *, node_max_age: float | None = None) -> list[DesignStatus]:
        """Views and heads of each design."""
        looks = self.timed(node_max_age=node_max_age)
        return [
            DesignStatus(name, view, seconds, self._heads(kept))
            for kept, (name, view, seconds) in zip(self._readers, looks, strict=True)
        ]

    def close(self) -> None:
        """Close the connections."""
        self._stores.close()

    def _heads(self, kept: StoredDesign) -> list[HeadStatus | str]:
        cell, letter, where = self._config.cell, DESIGNS[kept.design].letter, DESIGNS[kept.design].where
        numbers = range(kept.partitions)
        work = {
            p: (self._stores.of(p, where), read_head(keys.prefix(cell, kept.partitions, p, letter), None))
            for p in numbers
        }
        found = run(work)
        return [_head_status(found[number]) for number in numbers]


def _head_status(found: tuple[Head, Item] | NodestateError | None) -> HeadStatus | str:
    if found is None:
        return NOTHING_STORED
    if isinstance(found, NodestateError):
        return str(found)
    head, item = found
    age_s = math.inf if item.ttl_s is None else float(head.lease_s - item.ttl_s)
    return HeadStatus(head.epoch, head.term, head.owner, head.next, head.behind_ms / 1000, head.vouched, age_s)

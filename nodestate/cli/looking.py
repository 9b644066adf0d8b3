"""Looking at a cell as a whole: of each design a view, how long reading it took, and the heads behind it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from nodestate import keys
from nodestate.config import Config
from nodestate.designs import DESIGNS
from nodestate.designs.places import ControlPlaces, newest
from nodestate.errors import NodestateError
from nodestate.head import Head, read_head
from nodestate.lockstep import run
from nodestate.opening import configured, open_stores
from nodestate.ports import Item, SystemClock
from nodestate.reader import Reader
from nodestate.view import View

NOTHING_STORED: Final = "nothing is stored"


class HeadLook(NamedTuple):
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


class DesignLook(NamedTuple):
    """One design: its view, seconds that refreshing took, and by partition its head or why there is none."""

    design: str
    view: View
    refresh_s: float
    heads: Sequence[HeadLook | str]


def written(config: Config) -> tuple[str, ...]:
    """The designs that the control record says are written, or the settings where there is none."""
    places = configured(config)
    if not places:
        return config.designs
    stores = open_stores(config, SystemClock(), places)
    try:
        control = newest(ControlPlaces(config.cell, stores).read())
    finally:
        stores.close()
    return control.writes if control is not None else config.designs


class Lookout:
    """Reads several designs of a cell over the same connections."""

    def __init__(self, config: Config, designs: Sequence[str]) -> None:
        self._config = config
        clock = SystemClock()
        self._stores = open_stores(config, clock, designs)
        self._readers = [Reader(config, design=design, stores=self._stores, clock=clock) for design in designs]

    def views(self) -> list[View]:
        """A view of each design, whatever its age."""
        return [view for view, _ in self.timed()]

    def timed(self, *, node_max_age: float | None = None) -> list[tuple[View, float]]:
        """A view of each design, and the seconds that refreshing it took."""
        looks = []
        for reader in self._readers:
            started = time.perf_counter()
            view = reader.read(max_age=math.inf, node_max_age=node_max_age, on_stale="flag")
            looks.append((view, time.perf_counter() - started))
        return looks

    def look(self, *, node_max_age: float | None = None) -> list[DesignLook]:
        """Views and heads of each design."""
        looks = self.timed(node_max_age=node_max_age)
        return [DesignLook(view.design, view, seconds, self._heads(view.design)) for view, seconds in looks]

    def close(self) -> None:
        """Close the connections."""
        self._stores.close()

    def _heads(self, design: str) -> list[HeadLook | str]:
        cell, letter, where = self._config.cell, DESIGNS[design].letter, DESIGNS[design].where
        partitions = self._config.partitions
        numbers = range(partitions)
        work = {
            p: (self._stores.of(p, where), read_head(keys.prefix(cell, partitions, p, letter), None)) for p in numbers
        }
        found = run(work)
        return [_head_look(found[number]) for number in numbers]


def _head_look(found: tuple[Head, Item] | NodestateError | None) -> HeadLook | str:
    if found is None:
        return NOTHING_STORED
    if isinstance(found, NodestateError):
        return str(found)
    head, item = found
    age_s = math.inf if item.ttl_s is None else float(head.lease_s - item.ttl_s)
    return HeadLook(head.epoch, head.term, head.owner, head.next, head.behind_ms / 1000, head.vouched, age_s)

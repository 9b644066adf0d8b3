"""One stored value is mutated while a cell has no consumer; a consumer takes over, and the cell becomes right again."""

from __future__ import annotations

import functools
from random import Random
from typing import Final

from nodestate.store.memory import StoredItem
from nodestate.store.round_trips import Stores
from nodestate.testing import ManualClock, MemoryServer, MemoryStore
from tests.fuzz.mutation import mutated_item
from tests.fuzz.two_partitions import TwoPartitionCell

DESIGNS: Final = (("journal", "snapshot"), ("snapshot",), ("journal",))


@functools.cache
def _stored(designs: tuple[str, ...]) -> tuple[dict[str, StoredItem], float]:
    """The items of a cell whose consumer has gone, and the seconds that it ran."""
    clock = ManualClock()
    server, began = MemoryServer(clock=clock), clock.monotonic()
    TwoPartitionCell(designs, Stores([MemoryStore(server)]), clock).fill()
    return dict(server._entries), clock.monotonic() - began


def run(data: Random) -> bool:
    """Mutate one value of partition 0."""
    designs = data.choice(DESIGNS)
    entries, passed_s = _stored(designs)
    clock = ManualClock()
    clock.advance(passed_s)
    server = MemoryServer(clock=clock)
    server._entries.update(entries)
    server._last_cas = max(one.cas for one in entries.values()) + 1
    key = data.choice(sorted(key for key in entries if ":2.0:" in key))
    raw, reached = mutated_item(data, entries[key].value)
    server._entries[key] = StoredItem(raw, server._last_cas, entries[key].expires_at)
    cell = TwoPartitionCell(designs, Stores([MemoryStore(server)]), clock)
    cell.take_over()
    cell.heal()
    return reached

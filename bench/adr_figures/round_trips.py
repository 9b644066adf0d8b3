"""Figures of docs/adr/0009: requests to all partitions side by side, and one partition after the other."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence

from bench.adr_figures.frozen_cell import CHANGED, FrozenCell
from bench.adr_figures.measurement import (
    NODES,
    SEED,
    Result,
    table,
)
from bench.workload import require
from harness.servers import MemcachedServer
from nodestate.designs import DESIGNS
from nodestate.ports import Item, Key, Store, SystemClock, Write, WriteResult
from nodestate.store import keys
from nodestate.store.memcached import open_stores
from nodestate.store.round_trips import Stores, run, run_one
from nodestate.view.follower import Follower


class _RoundTripCounter:
    """A ``ports.Store`` around another that counts the round trips."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self.calls = 0
        self.name = inner.name

    @property
    def max_value_bytes(self) -> int:
        return self._inner.max_value_bytes

    def fetch(self, keys: Sequence[Key], *, values_only: bool = False) -> dict[Key, Item]:
        self.calls += 1
        return self._inner.fetch(keys, values_only=values_only)

    def write(self, writes: Sequence[Write]) -> list[WriteResult]:
        self.calls += 1
        return self._inner.write(writes)

    def server_time_at(self, moment: float) -> float | None:
        return self._inner.server_time_at(moment)

    def close(self) -> None:
        self._inner.close()


def lockstep() -> Result:
    """Measure docs/adr/0009: the same steps of 16 partitions, side by side and one partition after the other."""
    with MemcachedServer(memory_mb=1_024) as server:
        cell = FrozenCell(16, NODES, server.url)
        rng = random.Random(SEED)
        cell.change(rng.choices(range(NODES), k=2 * NODES))  # so that there is an index, and more than it
        rows = []
        for design in DESIGNS:
            counting = [_RoundTripCounter(store) for store in open_stores(cell.config)]
            stores = Stores(counting)
            for what, changed in (("cold", None), ("idle", 0), (f"{CHANGED} changed", CHANGED)):
                row: Result = {"refresh": f"{design}, {what}"}
                for form, refresh in (("side by side", _side_by_side), ("in turn", _in_turn)):
                    followers = _followers(cell, design, stores)
                    if changed is not None:
                        _side_by_side(stores, followers)
                    times, calls = [], 0
                    for _ in range(10):
                        if changed is None:
                            followers = _followers(cell, design, stores)
                        elif changed:
                            cell.change(rng.sample(range(NODES), changed))
                        counting[0].calls = 0
                        begin = time.perf_counter()
                        refresh(stores, followers)
                        times.append(time.perf_counter() - begin)
                        calls = counting[0].calls
                    row[f"{form}: round trips"] = calls
                    row[f"{form}, ms"] = statistics.median(times) * 1e3
                rows.append(row)
            stores.close()
        cell.close()
    return {"refresh": table("A refresh of 16 partitions, 10,000 nodes, on one memcached of the same machine", rows)}


def _followers(cell: FrozenCell, design: str, stores: Stores) -> list[Follower]:
    name, count = cell.config.cell, cell.config.partitions
    prefixes = [keys.prefix(name, count, p, DESIGNS[design].letter) for p in range(count)]
    return [
        Follower(p, prefix, DESIGNS[design].reader(prefix), stores.of(p), SystemClock())
        for p, prefix in enumerate(prefixes)
    ]


def _side_by_side(stores: Stores, followers: Sequence[Follower]) -> None:
    states = run({f.state.partition: (stores.of(f.state.partition), f.refresh(with_life=False)) for f in followers})
    require(not any(isinstance(state, Exception) for state in states.values()), "a refresh failed")


def _in_turn(stores: Stores, followers: Sequence[Follower]) -> None:
    for follower in followers:
        run_one(stores.of(follower.state.partition), follower.refresh(with_life=False))

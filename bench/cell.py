"""A cell for measuring readers: a memcached of its own, and one consumer that commits when it is told to.

The consumer is the real one, fed through a broker in memory and in this process, so that a round's changes are
committed when ``commit`` returns and nothing else runs while a reader is timed.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Self

from bench.scenario import Settings, Tell
from bench.workload import Fleet, by_partition, require
from nodestate import keys
from nodestate.config import Config, load
from nodestate.consumers.loop import Consumer
from nodestate.designs import DESIGNS
from nodestate.head import Head, read_head
from nodestate.lockstep import Stores, run_one
from nodestate.memcached import MemcachedStore, ServerStats, open_stores
from nodestate.ports import Put, Store, SystemClock, Write
from nodestate.testing import MemoryBroker
from tests.services.servers import MemcachedServer

CELL: Final = "bench"
MAX_AGE_S: Final = 3_600.0
LOAD_EVENTS: Final = 2_000
PATIENCE_S: Final = 60.0
MEMORY_SHARE: Final = 10
"""Memory for the cell, in multiples of the bytes of all states: both designs' copies, the bench's own, and slabs."""


def memcached_for(state_bytes: int) -> MemcachedServer:
    """A memcached that needs to evict nothing; a benchmark of one that does would be another benchmark."""
    return MemcachedServer(memory_mb=128 + MEMORY_SHARE * state_bytes // 1_000_000)


def require_nothing_lost(address: str) -> str:
    """Raise ``WrongResultError`` if memcached gave up anything; returns what was shown."""
    stats = _stats(address)
    require(stats.evictions == 0, f"memcached evicted {stats.evictions} items: it was given too little memory")
    require(stats.out_of_memory == 0, f"memcached refused {stats.out_of_memory} writes")
    return "memcached evicted and refused nothing"


def memcached_version(address: str) -> str:
    """What the server says that it is."""
    return _stats(address).version


def _stats(address: str) -> ServerStats:
    store = MemcachedStore(address, timeout_s=PATIENCE_S)
    try:
        return store.stats()
    finally:
        store.close()


def config_for(store: str, designs: Sequence[str], settings: Settings, **others: Any) -> Config:
    """The defaults, but for agents: the fleet has said all it will say, so its owner need not wait to vouch for it."""
    return load(
        {
            "store": store,
            "cell": CELL,
            "designs": tuple(designs),
            "read_design": designs[0],
            "batch_events": settings.batch_events,
            "prefetch": settings.prefetch,
            "resync_jitter_s": 0.0,
            "heartbeat_s": 0.05,
            **others,
        },
        environ={},
        file=os.devnull,
    )


class Cell:
    """One design over one fleet. A context manager; ``load`` first. ``seen_through`` may wrap the consumer's store."""

    def __init__(
        self,
        fleet: Fleet,
        design: str,
        memcached: MemcachedServer,
        settings: Settings,
        seen_through: Callable[[Store], Store] = lambda store: store,
    ) -> None:
        self.fleet = fleet
        self.design = design
        self.address = memcached.address
        self.config = config_for(memcached.url, [design], settings)
        self._partitions = by_partition(fleet, self.config.partitions)
        self._broker = MemoryBroker(self.config.partitions)
        self._sink = self._broker.sink()
        self._stores = Stores([seen_through(store) for store in open_stores(self.config)])
        self._consumer = Consumer(
            self.config,
            self._broker.source(range(self.config.partitions)),
            self._stores,
            self._broker,
            SystemClock(),
            random.Random(fleet.seed),
            "bench",
        )

    # -- writing --------------------------------------------------------------------------------

    def load(self, tell: Tell) -> None:
        """Commit a report of every node; returns when the owner vouches for all partitions."""
        for at in range(0, len(self.fleet), LOAD_EVENTS):
            tell(f"{self.design}: reports of {len(self.fleet):,} nodes", at / len(self.fleet))
            numbers = range(at, min(at + LOAD_EVENTS, len(self.fleet)))
            self.commit((number, self.fleet.report(number)) for number in numbers)
        tell(f"{self.design}: until the owner vouches", 1.0)
        self._step_until(lambda: all(held.vouched for held in self._consumer.held.values()))

    def change(self, numbers: Iterable[int]) -> float:
        """Commit a change of each of these nodes; returns the seconds that the consumer took."""
        return self.commit((number, self.fleet.change(number)) for number in numbers)

    def commit(self, events: Iterable[tuple[int, bytes]]) -> float:
        """Commit events of nodes; returns the seconds that the consumer took."""
        before = self._folded()
        came = 0
        for number, event in events:
            self._sink.publish(self._partitions[number], event, _require_confirmed)
            came += 1
        self._sink.flush(0.0)
        self._sink.resyncs(0.0)
        began = time.perf_counter()
        self._step_until(lambda: self._folded() == before + came and not self._under_way())
        return time.perf_counter() - began

    def repair(self) -> None:
        """Ask for a repair as a reader does that missed something: the journal answers with a fresh checkpoint."""
        before = self.heads()
        for prefix, partition in self._prefixes():
            self._stores.of(partition).write([Write(Put.ADD, keys.repair(prefix), b"bench")])
        self._step_until(lambda: all(now.next > then.next for now, then in zip(self.heads(), before, strict=True)))

    def _step_until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            require(time.monotonic() < deadline, f"the consumer did not get there: {self._consumer.stats}")
            if not self._consumer.step():
                time.sleep(0.001)

    def _folded(self) -> int:
        counts = self._consumer.stats.counts
        refused = {outcome: count for outcome, count in counts.by_outcome.items() if count and outcome != "applied"}
        require(not refused and not counts.dead_letters, f"events were refused: {refused} {counts.dead_letters}")
        return counts.by_outcome["applied"]

    def _under_way(self) -> bool:
        return any(held.pending or held.backlog for held in self._consumer.held.values())

    # -- what is stored -------------------------------------------------------------------------

    def _prefixes(self) -> list[tuple[str, int]]:
        letter = DESIGNS[self.design].letter
        return [(keys.prefix(self.config.cell, p, letter), p) for p in range(self.config.partitions)]

    def heads(self) -> list[Head]:
        """The head of each partition, as stored."""
        found = [run_one(self._stores.of(p), read_head(prefix, None)) for prefix, p in self._prefixes()]
        assert all(found), "a partition has no head"
        return [one[0] for one in found if one]

    def head_keys(self) -> list[str]:
        """The keys that every refresh of a reader asks for."""
        pairs = zip(self._prefixes(), self.heads(), strict=True)
        return [key for (prefix, _), head in pairs for key in (keys.epoch(prefix), keys.head(prefix, head.epoch))]

    def close(self) -> None:
        """Give the connections back."""
        self._consumer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _require_confirmed(done: bool) -> None:
    require(done, "the broker lost an event")

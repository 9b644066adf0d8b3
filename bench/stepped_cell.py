"""A cell for measuring readers: an environment, and one consumer that works only when the benchmark steps it.

The consumer is the real one, in this process, fed through a broker in memory. So the changes of a round are committed
when ``commit`` returns, and nothing else runs while a reader is timed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from typing import Final, Self

from bench.environments import PATIENCE_S, Environment, config_for
from bench.scenario import ReportProgress, Settings
from bench.workload import SeededFleet, buckets_of, require
from nodestate.auth import event_auth
from nodestate.config import Config
from nodestate.consumers.loop import Consumer
from nodestate.designs import DESIGNS
from nodestate.designs.connections import open_database, open_memcached
from nodestate.designs.control import record_from_settings
from nodestate.designs.control_store import ControlStore
from nodestate.ports import Put, Store, StoreRole, SystemClock, Write
from nodestate.store import keys
from nodestate.store.head import Head, read_head
from nodestate.store.round_trips import Stores, run_one
from nodestate.testing import MemoryBroker

MAX_AGE_S: Final = 3_600.0
"""Age that readers of benchmarks accept: the owner renews its lease only when it is stepped."""
LOAD_EVENTS: Final = 2_000
"""Reports that are committed at once while the fleet is loaded."""


class SteppedCell:
    """One design with one fleet. A context manager; call ``load`` first.

    ``wrap_store`` may wrap the store that the consumer writes to. ``config`` are other settings than the environment's.
    If they require signatures, events are signed before the clock starts.
    """

    def __init__(
        self,
        fleet: SeededFleet,
        environment: Environment,
        settings: Settings,
        wrap_store: Callable[[Store], Store] = lambda store: store,
        config: Config | None = None,
    ) -> None:
        self.fleet = fleet
        self.environment = environment
        self.label = environment.label
        [self.design] = environment.designs
        self.config = config or config_for(environment, settings)
        self._auth = event_auth(self.config).events
        self._where = DESIGNS[self.design].store_role
        self._buckets = buckets_of(fleet)
        self._broker = MemoryBroker(self.config.partitions)
        self._sink = self._broker.sink()
        self._stores = (
            Stores((), wrap_store(open_database(self.config)))
            if self._where is StoreRole.SQL
            else Stores([wrap_store(store) for store in open_memcached(self.config, self.config.store, SystemClock())])
        )
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

    def load(self, report_progress: ReportProgress) -> None:
        """Commit a report of every node; return when the owner has declared all partitions complete."""
        for at in range(0, len(self.fleet), LOAD_EVENTS):
            report_progress(f"{self.label}: reports of {len(self.fleet):,} nodes", at / len(self.fleet))
            numbers = range(at, min(at + LOAD_EVENTS, len(self.fleet)))
            self.commit((number, self.fleet.report(number)) for number in numbers)
        report_progress(f"{self.label}: waiting for complete partitions", 1.0)
        self.step_until(lambda: all(owned.complete for owned in self._consumer.owned.values()))

    def change(self, numbers: Iterable[int]) -> float:
        """Commit a change of each of these nodes; return the seconds that the consumer took."""
        return self.commit((number, self.fleet.change(number)) for number in numbers)

    def commit(self, events: Iterable[tuple[int, bytes]]) -> float:
        """Commit events, each with the number of its node; return the seconds that the consumer took."""
        before = self._folded()
        count = 0
        for number, event in events:
            signed = self._auth.sign(self.fleet.names[number], event)
            self._sink.publish(self._buckets[number], signed, _require_confirmed)
            count += 1
        self._sink.flush(0.0)
        self._sink.resyncs(0.0)
        began = time.perf_counter()
        self.step_until(lambda: self._folded() == before + count and not self._under_way())
        return time.perf_counter() - began

    def repair(self) -> None:
        """Request a repair of every partition, as a reader does that misses an item.

        The journal answers with a new checkpoint, the snapshot with a new index. (A database would begin a new epoch.)
        """
        before = self.heads()
        for prefix, partition in self._prefixes():
            self._store_of(partition).write([Write(Put.ADD, keys.repair(prefix), b"bench")])
        self.step_until(lambda: all(now.next > then.next for now, then in zip(self.heads(), before, strict=True)))

    def write_control_record(self) -> None:
        """Write the control record to all stores, as the first consumer of a cell does."""
        record = record_from_settings(self.config, time.time())
        copies = ControlStore(self.config.cell, self._stores)
        require(copies.begin(record, copies.read()), "the cell has a control record already")
        copies.put_back(record, copies.read())

    def step_until(self, done: Callable[[], bool]) -> None:
        """Step the consumer until ``done`` returns True. Raises ``WrongResultError`` after ``PATIENCE_S`` seconds."""
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            require(
                time.monotonic() < deadline,
                f"the consumer did not finish within {PATIENCE_S:g} s: {self._consumer.stats}",
            )
            if not self._consumer.step():
                time.sleep(0.001)

    def _folded(self) -> int:
        counts = self._consumer.stats.counts
        refused = {outcome: count for outcome, count in counts.by_outcome.items() if count and outcome != "applied"}
        require(not refused and not counts.dead_letters, f"events were refused: {refused} {counts.dead_letters}")
        return counts.by_outcome["applied"]

    def _under_way(self) -> bool:
        return any(held.pending or held.backlog for held in self._consumer.owned.values())

    # -- the stored heads -------------------------------------------------------------------------

    def _prefixes(self) -> list[tuple[str, int]]:
        letter, cell, partitions = DESIGNS[self.design].letter, self.config.cell, self.config.partitions
        return [(keys.prefix(cell, partitions, p, letter), p) for p in range(partitions)]

    def _store_of(self, partition: int) -> Store:
        return self._stores.of(partition, self._where)

    def heads(self) -> list[Head]:
        """Return the head of each partition, as it is stored."""
        found = [run_one(self._store_of(p), read_head(prefix, None)) for prefix, p in self._prefixes()]
        assert all(found), "a partition has no head"
        return [one[0] for one in found if one]

    def head_keys(self) -> list[str]:
        """Return the keys that a reader fetches in every refresh."""
        pairs = zip(self._prefixes(), self.heads(), strict=True)
        return [key for (prefix, _), head in pairs for key in (keys.epoch(prefix), keys.head(prefix, head.epoch))]

    def close(self) -> None:
        """Close the consumer and its connections."""
        self._consumer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _require_confirmed(done: bool) -> None:
    require(done, "the broker lost an event")

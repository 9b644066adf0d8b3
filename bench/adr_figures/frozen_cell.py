"""A cell whose clock stands still, for figures of partitions and of round trips."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Final

from bench.adr_figures.measurement import (
    SEED,
)
from bench.workload import SeededFleet, buckets_of, require
from nodestate.config import Config
from nodestate.consumers.loop import Consumer
from nodestate.ports import ClaimStore, Put, Write
from nodestate.store import keys
from nodestate.store.breaker import guarded
from nodestate.store.memcached import open_stores
from nodestate.testing import ManualClock, MemoryBroker

CHANGED: Final = 100


def _timed_by_writes(store: ClaimStore) -> ClaimStore:
    """Let times to live and times of writing count from each write: the consumer's clock stands still, and the
    server's does not.
    """
    write, time_at = store.write, store.server_time_at
    store.write = lambda writes: write([one._replace(as_of=None) for one in writes])  # type: ignore[method-assign]  # of this object alone
    store.server_time_at = lambda moment: time_at(time.monotonic())  # type: ignore[method-assign]  # noqa: ARG005  of this object alone
    return store


class FrozenCell:
    """A consumer that owns every partition of a cell on a real memcached.

    The queue is in memory and the clock stands still, so the consumer does nothing but the work that is asked for.
    """

    def __init__(self, partitions: int, nodes: int, store_url: str) -> None:
        self.config = Config(store=store_url, partitions=partitions, cell=f"bench{partitions}", lease_s=10_000.0)
        self.clock = ManualClock()
        self.fleet = SeededFleet(SEED, nodes)
        self.buckets = buckets_of(self.fleet)
        self.broker = MemoryBroker(partitions, prefetch=65_535)
        self.sink = self.broker.sink()
        self._stores = guarded([_timed_by_writes(store) for store in open_stores(self.config)], self.clock)
        source = self.broker.source(range(partitions))
        self.consumer = Consumer(
            self.config, source, self._stores, self.broker, self.clock, random.Random(SEED), "bench"
        )
        self.consumer.step()
        for number in range(nodes):
            self.send(number, self.fleet.report(number))
        self.drain()
        self.clock.advance(self.config.settle_s)
        for _ in range(3):  # a watermark message out, the message back, and the write that records it
            self.clock.advance(self.config.renew_s)
            self.consumer.step()

    def send(self, number: int, event: bytes) -> None:
        """Put an event of one node into the queue."""
        self.sink.publish(self.buckets[number], event, lambda _: None)

    def drain(self) -> None:
        """Step the consumer until every event is written and acknowledged."""
        stats = self.consumer.stats
        while (
            any(queue.messages for queue in self.broker.layouts[self.config.partitions]) or stats.acked < stats.received
        ):
            self.consumer.step()
        require(not stats.store_errors, "the store failed")

    def change(self, numbers: Sequence[int]) -> float:
        """Change each of these nodes; return the seconds of processor time that the consumer took."""
        for number in numbers:
            self.send(number, self.fleet.change(number))
        begin = time.process_time()
        self.drain()
        return time.process_time() - begin

    def checkpoint(self) -> None:
        """Make every journal write a checkpoint, by the repair request that a reader writes when an item is missing."""
        for partition in range(self.config.partitions):
            key = keys.repair(keys.prefix(self.config.cell, self.config.partitions, partition, keys.JOURNAL))
            self._stores.of(partition).write([Write(Put.ADD, key)])
        repairs = self.consumer.stats.repairs
        self.renew()
        self.consumer.step()  # the watermark message comes back
        self.consumer.step()  # the consumer is idle now and writes the repair
        require(self.consumer.stats.repairs == repairs + self.config.partitions, "no checkpoint was asked for")
        require(not any(held.wants_repair for held in self.consumer.owned.values()), "no checkpoint was written")

    def renew(self) -> None:
        """Advance the clock until all leases are due, and let the consumer renew them."""
        self.clock.advance(self.config.renew_s)
        self.consumer.step()

    def close(self) -> None:
        """Close the consumer and its connections."""
        self.consumer.close()

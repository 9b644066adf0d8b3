"""Figures of docs/adr/0012: what the number of partitions costs."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from typing import Final

from bench.adr_figures.frozen_cell import CHANGED, FrozenCell
from bench.adr_figures.measurement import (
    NODES,
    SEED,
    Result,
    median_ms,
    table,
)
from bench.workload import require_whole
from harness.servers import MemcachedServer
from nodestate.config import Config
from nodestate.designs.reader import Reader
from nodestate.model import partitioning

PARTITION_COUNTS: Final = (1, 4, 8, 16, 64, 256)


def partitions() -> Result:
    """Measure docs/adr/0012: what the number of partitions costs, with 10,000 nodes on a real memcached."""
    rng = random.Random(SEED)
    numbered = [f"compute-{number:07d}" for number in range(100_000)]
    drawn = [f"host-{rng.getrandbits(48):012x}" for _ in range(100_000)]
    balance = [
        {
            "partitions": count,
            **{
                f"{nodes:,} {what}": _imbalance(names[:nodes], count)
                for what, names in (("numbered", numbered), ("random", drawn))
                for nodes in (1_000, 10_000, 100_000)
            },
        }
        for count in PARTITION_COUNTS
    ]
    with MemcachedServer(memory_mb=1_024) as server:
        rows = [_with_partitions(count, server.url) for count in PARTITION_COUNTS]
    return {
        "balance": table("Nodes in the largest partition, as a multiple of the mean, by names", balance),
        "cost": table(
            "10,000 nodes of 1 KB, one owner of all, both designs written: processor time without memcached's", rows
        ),
    }


def _imbalance(names: Sequence[str], count: int) -> float:
    sizes = [0] * count
    for name in names:
        sizes[partitioning.partition_of(name, count)] += 1
    return max(sizes) * count / len(names)


def _with_partitions(count: int, store_url: str) -> Result:
    cell = FrozenCell(count, NODES, store_url)
    rng = random.Random(SEED)
    row: Result = {"partitions": count}
    batches = [cell.change([rng.randrange(NODES) for _ in range(2_000)]) for _ in range(5)]
    row["apply, µs an event"] = statistics.median(batches) / 2_000 * 1e6
    row["renew all, ms"] = median_ms(cell.renew, 15)
    for design in ("snapshot", "journal"):
        with Reader(cell.config, design=design) as reader:
            require_whole(reader.read(max_age=60, on_stale="flag"), cell.fleet)
            row[f"{design}: idle, ms"] = median_ms(lambda reader=reader: reader.read(max_age=60), 30)  # type: ignore[misc]  # a lambda's default has no type
            times = []
            for _ in range(20):
                cell.change(rng.sample(range(NODES), CHANGED))
                begin = time.process_time()
                reader.read(max_age=60)
                times.append(time.process_time() - begin)
            row[f"{design}: {CHANGED} changed, ms"] = statistics.median(times) * 1e3
    cell.checkpoint()
    for design in ("snapshot", "journal"):
        row[f"{design}: cold, ms"] = median_ms(lambda design=design: _cold(cell.config, design), 5)  # type: ignore[misc]  # a lambda's default has no type
    cell.close()
    return row


def _cold(config: Config, design: str) -> None:
    with Reader(config, design=design) as reader:
        reader.read(max_age=60)

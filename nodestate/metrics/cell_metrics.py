"""Samples of a whole cell: its partitions, its queues, its nodes and their capacity."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from nodestate.broker import QueueDepth
from nodestate.designs.inspection import DesignStatus, HeadStatus
from nodestate.metrics.metric_table import Sample
from nodestate.metrics.node_page import ClaimedAmounts
from nodestate.model import STATUSES
from nodestate.view.columns import NOT_THERE
from nodestate.view.documents import zone_of
from nodestate.view.view import View

UNRESPONSIVE_HEARTBEATS: Final = 3
"""A node that gave no sign of life for this number of heartbeats is unresponsive."""


def cell_samples(
    view: View,
    designs: Sequence[DesignStatus],
    queues: Sequence[QueueDepth],
    heartbeat_s: float,
    claimed: ClaimedAmounts | None = None,
) -> list[Sample]:
    """Return the samples of a cell.

    Args:
        view: a view of all nodes, with their signs of life.
        designs: the designs that consumers write, as an inspection found them.
        queues: the queues of the partitions, as the broker reports them.
        heartbeat_s: the setting of the cell.
        claimed: the claims on the nodes; None if they are not known.
    """
    samples = [sample for design in designs for sample in partition_samples(design)]
    for queue in queues:
        if queue.partition is not None and not queue.missing:
            labels = (str(queue.partition),)
            samples.append(Sample("queue_ready_messages", queue.ready, labels))
            if queue.consumers is not None:
                samples.append(Sample("queue_consumers", queue.consumers, labels))
    samples += node_samples(view, heartbeat_s, claimed)
    return samples


def partition_samples(design: DesignStatus) -> Iterator[Sample]:
    """Yield the samples of the partitions of one design."""
    for partition, head in zip(design.view.partitions, design.heads, strict=True):
        labels = (design.name, str(partition.partition))
        behind_s, age_s, complete = math.inf, math.inf, False
        if isinstance(head, HeadStatus):
            behind_s, age_s, complete = head.behind_s, head.age_s, head.complete and not partition.lost
        incomplete = partition.table.incomplete if partition.table is not None else ()
        yield Sample("partition_behind_seconds", behind_s, labels)
        yield Sample("partition_head_age_seconds", age_s, labels)
        yield Sample("partition_complete", int(complete), labels)
        yield Sample("partition_incomplete_nodes", len(incomplete), labels)


def node_samples(view: View, heartbeat_s: float, claimed: ClaimedAmounts | None = None) -> Iterator[Sample]:
    """Yield the samples of the nodes of a view. Those of capacity count the nodes that are up."""
    bound_s = UNRESPONSIVE_HEARTBEATS * heartbeat_s
    columns = view.columns
    records = (view.nodes.record(name) for name in columns.names)
    zones = [zone_of(record) if record is not None else "" for record in records]
    counts: Counter[tuple[str, str]] = Counter()
    rows_up: dict[str, list[int]] = {}
    for row, code in enumerate(columns.status.tolist()):
        if code != NOT_THERE:
            counts[STATUSES[code], zones[row]] += 1
            if STATUSES[code] == "up":
                rows_up.setdefault(zones[row], []).append(row)
    for labels, count in counts.items():
        yield Sample("nodes", count, labels)
    yield Sample("nodes_unresponsive", sum(1 for name in view.nodes if view.node_age(name) > bound_s))
    for zone, rows in rows_up.items():
        at_rows = np.array(rows)
        for name in columns.capacity:
            yield Sample("capacity_total", int(columns.capacity[name][at_rows].sum()), (name, zone))
            yield Sample("capacity_used", int(columns.usage[name][at_rows].sum()), (name, zone))
            if claimed is not None:
                on_nodes = (claimed[node] for node in (columns.names[row] for row in rows) if node in claimed)
                yield Sample("capacity_claimed", sum(amounts.get(name, 0) for amounts in on_nodes), (name, zone))

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
MAX_ZONES_COUNT: Final = 1_000
"""Most zones with samples of their own."""
OTHER_ZONES: Final = "(others)"
"""The zone in the samples of all other zones."""


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
    """Yield the samples of the nodes of a view. Those of capacity count the nodes that are up.

    A zone has samples only of the classes that its nodes have. With a sample for each pair, 5,000 nodes with a zone and
    a class of their own would fill the memory. Zones after the first ``MAX_ZONES_COUNT`` count as ``OTHER_ZONES``,
    because Prometheus keeps each name that it was ever given.
    """
    bound_s = UNRESPONSIVE_HEARTBEATS * heartbeat_s
    columns = view.columns
    zones = _zones(view, columns.names)
    for (code, zone), count in Counter(zip(columns.status.tolist(), zones, strict=True)).items():
        if code != NOT_THERE:
            yield Sample("nodes", count, (STATUSES[code], zone))
    yield Sample("nodes_unresponsive", sum(1 for name in view.nodes if view.node_age(name) > bound_s))
    is_up = columns.status == STATUSES.index("up")
    held = _claimed_by_zone(claimed, columns.names, zones, is_up)
    for name, capacity in columns.capacity.items():
        usage = columns.usage[name]
        rows = np.flatnonzero(is_up & ((capacity != 0) | (usage != 0)))
        totals: Counter[str] = Counter()
        used: Counter[str] = Counter()
        for row, total, amount in zip(rows.tolist(), capacity[rows].tolist(), usage[rows].tolist(), strict=True):
            totals[zones[row]] += total
            used[zones[row]] += amount
        for zone, total in totals.items():
            yield Sample("capacity_total", total, (name, zone))
            yield Sample("capacity_used", used[zone], (name, zone))
            if claimed is not None:
                yield Sample("capacity_claimed", held[name, zone], (name, zone))


def _zones(view: View, names: Sequence[str]) -> list[str]:
    """Return the zone of each node, as samples name it."""
    found: list[str] = []
    known: set[str] = set()
    for name in names:
        record = view.nodes.record(name)
        zone = zone_of(record) if record is not None else ""
        if zone not in known and len(known) >= MAX_ZONES_COUNT:
            zone = OTHER_ZONES
        known.add(zone)
        found.append(zone)
    return found


def _claimed_by_zone(
    claimed: ClaimedAmounts | None, names: Sequence[str], zones: Sequence[str], is_up: np.ndarray
) -> Counter[tuple[str, str]]:
    """Return the claimed amounts on nodes that are up, by resource class and zone."""
    held: Counter[tuple[str, str]] = Counter()
    for name, zone, counts in zip(names, zones, is_up, strict=True) if claimed else ():
        if counts:
            for resource, amount in (claimed or {}).get(name, {}).items():
                held[resource, zone] += amount
    return held

"""Messages in the queue of a partition: an owner folds them, or refuses them with a reason, and goes on."""

from __future__ import annotations

import math
from random import Random
from typing import Any, Final

import msgpack

from nodestate.consumers.handover_messages import HANDOVER
from nodestate.consumers.partition import OwnedPartition
from nodestate.consumers.statistics import EventCounts
from nodestate.consumers.watermarks import Watermarks
from nodestate.ports import ACTIVATION, QUEUE_BEGAN, Delivery
from tests.fuzz.mutation import TEXTS, mutated, mutated_bytes, odd_value

NOW_S: Final = 1_763_787_600
WATERMARKS: Final = Watermarks(b"the owner's key!")
STATE: Final[dict[str, Any]] = {
    "status": "up",
    "zone": "az1",
    "inventory": {"VCPU": {"total": 64, "reserved": 2, "allocation_ratio": 16.0}, "DISK_GB": {"total": 3_600}},
    "usage": {"VCPU": 12},
    "traits": ["HW_CPU_X86_AVX2"],
    "aggregates": ["rack-7"],
    "allocations": {"i-1": {"resources": {"VCPU": 4}, "group": "web", "hints": {"order": "0199c1f2a3b4-0123456789ab"}}},
    "metrics": {"cpu.percent": 12.5},
    "namespaces": {"nova": {"numa": [1, 2]}},
}
HEAD: Final = {"v": 1, "node": "n1", "incarnation": NOW_S, "reported_at": float(NOW_S)}
EVENTS: Final[tuple[dict[str, Any], ...]] = (
    {**HEAD, "kind": "report", "generation": 2, "state": STATE},
    {**HEAD, "kind": "change", "generation": 2, "patch": {"usage": {"VCPU": 16}, "metrics": {"load": None}}},
    {**HEAD, "kind": "change", "generation": 2, "patch": {"zone": "az2", "allocations": {"i-1": None}}},
    {**HEAD, "kind": "heartbeat", "generation": 3},
    {**HEAD, "kind": "leave", "generation": 2},
)
FIRST: Final = msgpack.packb({**HEAD, "kind": "report", "generation": 1, "state": STATE})
HONEST: Final = tuple(
    msgpack.packb({**HEAD, "kind": "report", "generation": n, "node": "honest", "state": {"usage": {"VCPU": n}}})
    for n in (1, 2)
)
"""Reports of another node, before and between the hostile messages."""


def run(data: Random) -> bool:
    """Fold two messages into a partition that knows two nodes."""
    partition, counts = OwnedPartition(0, {}, 0.0), EventCounts()
    bodies = [FIRST, HONEST[0], _message(data), HONEST[1], _message(data)]
    partition.backlog += [Delivery(0, body, n, 1) for n, body in enumerate(bodies)]
    taken: list[Delivery] = []
    refused = 0
    while partition.backlog:
        pending = partition.take_batch(float(NOW_S), 1, 500_000, WATERMARKS, counts)
        taken += pending.deliveries
        refused += len(pending.bad)
        assert all(error.reason and str(error) for _, error in pending.bad)
    assert [delivery.body for delivery in taken] == bodies, "each message is taken once"
    assert partition.watermark_at == -math.inf, "no message of another sender is a watermark"
    assert [record.name for record in partition.records] == list(partition.slots)
    for record in partition.records:
        assert record.gone or not record.live or isinstance(record.state(), dict)
    assert partition.records[partition.slots["honest"]].state() == {"usage": {"VCPU": 2}}, "another node is damaged"
    return counts.dead_letters.get("undecodable", 0) == 0


def _message(data: Random) -> bytes:
    kind = data.randrange(10)
    if kind == 0:
        return mutated_bytes(data, msgpack.packb(data.choice(EVENTS)))
    if kind == 1:
        events = [msgpack.packb(mutated(data, data.choice(EVENTS))) for _ in range(2)]
        return HANDOVER + msgpack.packb(mutated(data, events) if data.random() < 0.5 else events)
    if kind == 2:
        return ACTIVATION + data.choice((b"owner 1e300", b"1e300 " + data.randbytes(32), b"nan", data.randbytes(8)))
    if kind == 3:
        return data.choice((QUEUE_BEGAN, ACTIVATION, mutated_bytes(data, WATERMARKS.message(0, 12.5)) + b"x"))
    event = data.choice(EVENTS)
    inside = next((name for name in ("state", "patch") if name in event), "")
    event = {**event, inside: mutated(data, event[inside])} if inside and kind < 8 else mutated(data, event)
    if isinstance(event, dict) and data.random() < 0.2:
        event = {**event, data.choice(TEXTS): odd_value(data)}
    return bytes(msgpack.packb(event))

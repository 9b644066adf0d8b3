"""Folding the backlog of a partition: a refused event is a dead letter, and its node is still known to have a newer
version.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from nodestate.consumers.handover_messages import HANDOVER
from nodestate.consumers.partition import OwnedPartition
from nodestate.consumers.pending_work import MAX_DEAD_LETTER_BYTES, Pending
from nodestate.consumers.statistics import EventCounts
from nodestate.consumers.watermarks import Watermarks
from nodestate.model import MAX_CLOCK_AHEAD_S, parse_event
from nodestate.model.partitioning import partition_of
from nodestate.ports import ACTIVATION, QUEUE_BEGAN, Delivery

PARTITIONS = 2
NODE = next(name for name in map("node-{}".format, range(9)) if partition_of(name, PARTITIONS) == 0)
NOW_S = 1_763_787_600
ROOM_BYTES = 10_000
WATERMARKS = Watermarks(b"the owner's key")


def event(kind: str, generation: int, incarnation: int = NOW_S, reported_at: float = NOW_S, **more: Any) -> bytes:
    fields = {"kind": kind, "node": NODE, "incarnation": incarnation, "generation": generation}
    return msgspec.msgpack.encode({**fields, "reported_at": reported_at, **more})


@pytest.fixture
def partition() -> OwnedPartition:
    """A partition that knows one node, at generation 1."""
    partition = OwnedPartition(0, {}, 0.0)
    assert take(partition, event("report", 1, state={"zone": "good"})).bad == []
    return partition


def take(partition: OwnedPartition, body: bytes, wall: float = NOW_S) -> Pending:
    partition.backlog.append(Delivery(0, body, 1, 1))
    return partition.take_batch(wall, PARTITIONS, ROOM_BYTES, WATERMARKS, EventCounts())


REFUSED = {
    "a wrong state": event("report", 2, state={"usage": {"VCPU": -1}}),
    "a wrong patch": event("change", 2, patch={"usage": {"VCPU": -1}}),
    "a state over the item limit": event(
        "report", 2, state={"inventory": {f"CUSTOM_{n:03}" + "X" * 90: {"total": 1} for n in range(60)}}
    ),
    "an event over the item limit": event(
        "change", 2, patch={"metrics": {"m" * 250 + str(n): None for n in range(50)}}
    ),
    "a clock that is off": event("change", 2, reported_at=NOW_S + 2 * MAX_CLOCK_AHEAD_S, patch={"zone": "later"}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_event_marks_the_previous_state_as_not_the_newest(partition: OwnedPartition, case: str) -> None:
    """I5: the event was published and confirmed, so a reader must not take the older state for the newest one."""
    pending = take(partition, REFUSED[case])
    [record] = partition.records
    assert [delivery.body for delivery, _ in pending.bad] == [REFUSED[case]]
    assert (record.version.generation, record.wanted.generation) == (1, 2)
    assert record.state() == {"zone": "good"}
    assert partition.incomplete == {NODE}
    # Readers of the journal fold an event as well, which has only the version of the refused one.
    [journaled] = map(parse_event, pending.batch.events)
    assert journaled.version == record.wanted

    assert take(partition, event("report", 3, state={"zone": "better"})).bad == []
    assert partition.incomplete == set()


FORGED = {
    "with the owner's name, as earlier versions sent it": ACTIVATION + b"owner 1e300",
    "with another key": Watermarks(b"a forger's key").message(0, 1e300),
    "for another partition": WATERMARKS.message(1, 1e300),
    "with another time": WATERMARKS.message(0, 12.5).replace(b"12.5", b"1e300"),
    "with a time that is no number": WATERMARKS.message(0, 12.5).replace(b"12.5", b"nan"),
    "with a code that is not ASCII": ACTIVATION + b"1e300 " + "é".encode() * 32,
    "without a code": ACTIVATION + b"1e300",
}


@pytest.mark.parametrize("body", FORGED.values(), ids=FORGED)
def test_a_forged_watermark_message_is_ignored_and_counted(partition: OwnedPartition, body: bytes) -> None:
    """I5: it must not date the partition or a sign of life, whatever else is in the queue."""
    counts = EventCounts()
    partition.backlog += [Delivery(0, one, 1, 1) for one in (WATERMARKS.message(0, 5.0), body, event("heartbeat", 1))]
    pending = partition.take_batch(NOW_S, PARTITIONS, ROOM_BYTES, WATERMARKS, counts)
    assert (pending.caught_up_at, partition.heard_at, counts.foreign_watermarks) == (5.0, [5.0], 1)


def test_markers_of_other_kinds_are_no_foreign_watermarks(partition: OwnedPartition) -> None:
    counts = EventCounts()
    partition.backlog += [Delivery(0, one, 1, 1) for one in (ACTIVATION, QUEUE_BEGAN)]
    partition.backlog.append(Delivery(0, HANDOVER + b"\x90", 1, 1))
    partition.take_batch(NOW_S, PARTITIONS, ROOM_BYTES, WATERMARKS, counts)
    assert counts.foreign_watermarks == 0


def test_a_message_that_was_cut_is_refused_whatever_it_begins_with(partition: OwnedPartition) -> None:
    """Its beginning may look like a whole event, or like a marker."""
    for body in (event("change", 2, patch={"zone": "new"}), ACTIVATION, b""):
        partition.backlog.append(Delivery(0, body, 1, 1, cut_from=8_000_000))
        pending = partition.take_batch(NOW_S, PARTITIONS, ROOM_BYTES, WATERMARKS, EventCounts())
        [(delivery, error)] = pending.bad
        assert (delivery.body, error.reason) == (body, "too-large")
        assert "8,000,000 bytes" in error.detail
        assert pending.unconfirmed_designs == set()


def test_only_the_beginning_of_a_large_refused_message_is_kept(partition: OwnedPartition) -> None:
    """A consumer holds up to ``prefetch`` refused messages while the dead-letter queue takes none."""
    body = event("heartbeat", 1, node="a b", more="x" * 100_000)
    pending = take(partition, body)
    [(delivery, error)] = pending.bad
    assert (delivery.body, delivery.cut_from) == (body[:MAX_DEAD_LETTER_BYTES], len(body))
    assert error.reason == "bad-name"
    assert pending.deliveries == [delivery], "it is acknowledged once it is a dead letter, not before"


def test_a_consumer_whose_own_clock_is_wrong_marks_nodes_incomplete(partition: OwnedPartition) -> None:
    """It refuses every event for its clock, and must not hide that newer versions exist."""
    pending = take(partition, event("heartbeat", 2), wall=NOW_S - 3 * MAX_CLOCK_AHEAD_S)
    assert [error.reason for _, error in pending.bad] == ["clock"]
    assert partition.incomplete == {NODE}


@pytest.mark.parametrize(
    "body",
    [
        event("report", 1, incarnation=NOW_S + 2 * int(MAX_CLOCK_AHEAD_S), state={"zone": "from the future"}),
        msgspec.msgpack.encode({"kind": "heartbeat", "node": NODE, "incarnation": NOW_S, "generation": "2"}),
        b"no event at all",
    ],
)
def test_an_event_with_an_unknown_future_incarnation_or_no_version_leaves_its_node_unchanged(
    partition: OwnedPartition, body: bytes
) -> None:
    """An incarnation from the future would win over all later ones, and an unreadable event names no node."""
    assert len(take(partition, body).bad) == 1
    assert partition.incomplete == set()
    assert partition.records[0].wanted == partition.records[0].version


def handover(*events: bytes) -> bytes:
    return HANDOVER + msgspec.msgpack.encode(events)


@pytest.mark.parametrize("count", [1, 122, 2_000])
def test_a_handover_that_does_not_fit_into_a_commit_is_a_dead_letter(partition: OwnedPartition, count: int) -> None:
    """It would otherwise be tried again for ever, and no later event of its partition would be stored."""
    state = {"metrics": {"m" * 250 + str(n): 1.0 for n in range(50)}} if count == 1 else {}
    body = handover(*[event("report", number + 2, state=state) for number in range(count)])
    partition.backlog.append(Delivery(0, event("report", 2, state={"zone": "before"}), 1, 1))
    pending = take(partition, body)
    if pending.batch.events:  # the handover waits for the next batch
        assert partition.records[0].state() == {"zone": "before"}
        pending = partition.take_batch(NOW_S, PARTITIONS, ROOM_BYTES, WATERMARKS, EventCounts())
    assert [(delivery.body, error.reason) for delivery, error in pending.bad] == [
        (body[:MAX_DEAD_LETTER_BYTES], "too-large")
    ]
    assert pending.batch.events == ()
    assert take(partition, event("report", 9_000, state={"zone": "good"})).bad == []


def test_an_event_of_a_handover_from_the_future_is_a_dead_letter_and_the_others_count(
    partition: OwnedPartition,
) -> None:
    """Its incarnation would win over all later lives of the agent, as that of any other event."""
    future = NOW_S + 2 * int(MAX_CLOCK_AHEAD_S)
    body = handover(
        event("report", 1, incarnation=future, state={"zone": "from the future"}),
        event("report", 2, state={"zone": "handed over"}),
    )
    pending = take(partition, body)
    assert [(delivery.body, error.reason) for delivery, error in pending.bad] == [(body, "clock")]
    assert (partition.records[0].incarnation, partition.records[0].state()) == (NOW_S, {"zone": "handed over"})

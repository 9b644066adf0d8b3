"""The contract of Source, Sink and ResyncSender, as tests: subclass a contract and define its fixture ``broker``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Protocol

import pytest

from harness.waiting import PATIENCE_S, wait_until
from nodestate.errors import BrokerUnavailableError
from nodestate.ports import (
    ACTIVATION,
    QUEUE_BEGAN,
    AgentInbox,
    Delivery,
    RefusedDelivery,
    Resync,
    ResyncSender,
    Sink,
    Source,
)

PARTITIONS = 4
OTHER = 3
"""Another layout of the same cell."""
QUIET_S = 0.3
STANDBY_S = 0.2


class AgentConnection(Sink, AgentInbox, Protocol):
    """An agent's connection: it publishes events and reads resync requests."""


class Broker(Protocol):
    """A broker with ``PARTITIONS`` queues, empty at the beginning. The test closes its connections."""

    def source(self, partitions: Sequence[int], standby: Sequence[int] = (), layout: int = PARTITIONS) -> Source:
        """A new consumer; it subscribes its standby partitions after ``STANDBY_S``."""

    def delete(self, layout: int) -> bool:
        """Delete a layout's queues. Returns False if one has a consumer."""

    def found(self) -> list[int]:
        """The layouts that have queues."""

    def set_aside(self, layout: int, used: int) -> int:
        """Unbind a layout's queues unless one has a consumer. Returns the number of messages in them."""

    def sink(self) -> AgentConnection:
        """A new publisher."""

    def resync_sender(self) -> ResyncSender:
        """A new sender of resync requests."""

    def dead_letters(self) -> list[tuple[int, bytes, str, str]]:
        """Partition, body, reason and detail of each dead letter, oldest first."""

    def restart(self) -> None:
        """Stop and start the broker; confirmed events survive."""

    def lose_queue(self, partition: int) -> None:
        """Delete a partition's queue with the messages in it."""


class BrokerBench:
    """Sources and sinks of one test, with waits that suffice for real brokers."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self._open = ExitStack()

    def source(
        self, partitions: Sequence[int] = range(PARTITIONS), standby: Sequence[int] = (), layout: int = PARTITIONS
    ) -> Source:
        source = self.broker.source(partitions, standby, layout)
        self._open.callback(source.close)
        source.receive(0, 0)  # connects it, so that it takes its place among the consumers
        return source

    def sink(self) -> AgentConnection:
        sink = self.broker.sink()
        self._open.callback(sink.close)
        sink.resyncs(0)
        return sink

    def publish(self, bodies: dict[int, list[bytes]]) -> None:
        """Publish bodies by bucket, and wait for all confirms."""
        sink = self.sink()
        confirms: list[bool] = []
        for bucket, its_bodies in bodies.items():
            for body in its_bodies:
                sink.publish(bucket, body, confirms.append)
        sink.flush(PATIENCE_S)
        assert confirms == [True] * sum(map(len, bodies.values()))

    def take(self, source: Source, count: int) -> list[Delivery]:
        """Receive exactly ``count`` events. Marker messages are acked and skipped."""
        events: list[Delivery] = []
        deadline = time.monotonic() + PATIENCE_S
        while len(events) < count:
            assert time.monotonic() < deadline, f"{len(events)} of {count} events came"
            events += self._events(source, count - len(events), 0.05)
        return events

    def assert_quiet(self, source: Source) -> None:
        """Assert that no event arrives within ``QUIET_S``."""
        deadline = time.monotonic() + QUIET_S
        while time.monotonic() < deadline:
            assert self._events(source, 10, 0.05) == []

    def active_partitions(self, source: Source) -> set[int]:
        """The partitions from which any message arrives within ``QUIET_S``."""
        partitions: set[int] = set()
        deadline = time.monotonic() + QUIET_S
        while time.monotonic() < deadline:
            deliveries = source.receive(100, 0.05)
            source.ack(deliveries)
            partitions.update(delivery.partition for delivery in deliveries)
        return partitions

    def close(self) -> None:
        self._open.close()

    def _events(self, source: Source, limit: int, timeout_s: float) -> list[Delivery]:
        deliveries = source.receive(limit, timeout_s)
        assert len(deliveries) <= limit
        source.ack([delivery for delivery in deliveries if delivery.body.startswith(ACTIVATION)])
        return [delivery for delivery in deliveries if not delivery.body.startswith(ACTIVATION)]


def eventually(look: Callable[[], bool]) -> None:
    """Wait until ``look`` returns True."""
    wait_until(look, "what the test waits for did not happen")


def _is_over(source: Source) -> bool:
    """Receive once. Returns True if that ended the session; the next call would begin another."""
    try:
        source.receive(10, 0.05)
    except BrokerUnavailableError:
        return True
    return False


def _first_bodies(source: Source, partitions: int) -> dict[int, list[bytes]]:
    """Receive, and ack, until each of the partitions has had a message. Returns all bodies by partition."""
    bodies: dict[int, list[bytes]] = {}

    def received() -> bool:
        deliveries = source.receive(100, 0.05)
        source.ack(deliveries)
        for delivery in deliveries:
            bodies.setdefault(delivery.partition, []).append(delivery.body)
        return len(bodies) == partitions

    eventually(received)
    return bodies


class BrokerContract:
    """The contract of every broker. Subclasses define the fixture ``broker``."""

    @pytest.fixture
    def bench(self, broker: Broker) -> Iterator[BrokerBench]:
        bench = BrokerBench(broker)
        yield bench
        bench.close()

    def test_confirmed_events_arrive_in_order_within_each_partition(self, bench: BrokerBench) -> None:
        sent = {partition: [b"%d/%d" % (partition, number) for number in range(200)] for partition in range(3)}
        source = bench.source()
        bench.publish(sent)
        came = bench.take(source, 600)
        for partition, bodies in sent.items():
            assert [delivery.body for delivery in came if delivery.partition == partition] == bodies
        assert not any(delivery.redelivered for delivery in came)
        bench.assert_quiet(source)

    def test_events_wait_for_their_consumer(self, bench: BrokerBench) -> None:
        bench.publish({1: [b"early"], 2: [b"elsewhere"]})
        [event] = bench.take(bench.source([1, 3]), 1)
        assert (event.partition, event.body) == (1, b"early")

    @pytest.mark.parametrize("size", [1, 200_000])
    def test_bodies_arrive_unchanged(self, bench: BrokerBench, size: int) -> None:
        body = (bytes(range(256)) * (size // 256 + 1))[-size:]
        bench.publish({0: [body]})
        assert [event.body for event in bench.take(bench.source(), 1)] == [body]

    def test_receive_returns_at_most_its_limit(self, bench: BrokerBench) -> None:
        bench.publish({0: [b"%d" % number for number in range(10)]})
        source = bench.source()
        first = bench.take(source, 3)  # checks the limit
        rest = bench.take(source, 7)
        assert [event.body for event in first + rest] == [b"%d" % number for number in range(10)]

    def test_acked_events_are_gone(self, bench: BrokerBench) -> None:
        bench.publish({0: [b"1", b"2"], 1: [b"3"]})
        source = bench.source()
        source.ack(bench.take(source, 3))
        source.close()
        bench.assert_quiet(bench.source())

    def test_unacked_events_are_redelivered_in_order_before_new_ones(self, bench: BrokerBench) -> None:
        """Changes build on each other: after a crash they must arrive in the same order."""
        bench.publish({0: [b"%d" % number for number in range(6)]})
        source = bench.source()
        events = bench.take(source, 5)
        source.ack(events[:2])
        source.close()
        bench.publish({0: [b"new"]})
        again = bench.take(bench.source(), 5)
        assert [event.body for event in again] == [b"2", b"3", b"4", b"5", b"new"]
        assert [event.redelivered for event in again[:3]] == [True] * 3
        assert not again[-1].redelivered

    def test_events_may_be_acked_in_any_order(self, bench: BrokerBench) -> None:
        """Partitions are acked when their designs are written, and the events of one partition in several batches."""
        bench.publish({0: [b"a", b"b", b"c"], 1: [b"d"]})
        source = bench.source()
        events = {event.body: event for event in bench.take(source, 4)}
        for body in (b"d", b"c", b"a"):
            source.ack([events[body]])
        source.ack([])
        source.ack([events[b"b"]])
        source.close()
        bench.assert_quiet(bench.source())

    def test_an_ack_of_an_older_session_is_ignored(self, bench: BrokerBench) -> None:
        """Its tags may refer to other events now, and acking these would lose them."""
        bench.publish({0: [b"1", b"2"]})
        source = bench.source()
        old = bench.take(source, 2)
        source.close()
        source.ack(old)
        again = bench.take(source, 2)
        assert [event.body for event in again] == [b"1", b"2"]
        assert {event.session for event in old}.isdisjoint({event.session for event in again})
        source.ack(old)
        source.close()
        source.ack(again)
        assert [event.body for event in bench.take(bench.source(), 2)] == [b"1", b"2"]

    def test_a_dead_letter_is_kept_with_its_reason_and_not_acked(self, bench: BrokerBench) -> None:
        bench.publish({2: [b"bad"]})
        source = bench.source()
        [event] = bench.take(source, 1)
        assert source.dead_letter([RefusedDelivery(event, "bad_type", "usage.VCPU: want a number")]) == 1
        eventually(lambda: bench.broker.dead_letters() == [(2, b"bad", "bad_type", "usage.VCPU: want a number")])
        source.close()
        assert [again.body for again in bench.take(bench.source(), 1)] == [b"bad"]

    def test_dead_letters_that_are_published_together_keep_their_sequence(self, bench: BrokerBench) -> None:
        bodies = [b"bad %d" % number for number in range(10)]
        bench.publish({2: bodies})
        source = bench.source()
        refused = [RefusedDelivery(one, "bad_type", "") for one in bench.take(source, len(bodies))]
        assert source.dead_letter(refused) == len(bodies)
        eventually(lambda: [letter[1] for letter in bench.broker.dead_letters()] == bodies)

    def test_a_consumer_of_empty_queues_gets_an_activation_message_from_each(self, bench: BrokerBench) -> None:
        """Otherwise an owner would not know of its partition before the first event."""
        assert bench.active_partitions(bench.source([0, 2])) == {0, 2}

    def test_a_marker_message_arrives_behind_all_waiting_events(self, bench: BrokerBench) -> None:
        """So its arrival proves that the consumer has received all events before it."""
        source = bench.source()
        bench.publish({0: [b"1", b"2"]})
        source.send_marker(0, b"marker")
        bench.publish({0: [b"3"]})
        assert [event.body for event in bench.take(source, 4)] == [b"1", b"2", b"marker", b"3"]

    def test_an_event_goes_into_one_queue_of_each_layout(self, bench: BrokerBench) -> None:
        """It is confirmed once, when it is in all of them: publishers do not know the layouts."""
        source, other = bench.source(), bench.source(range(OTHER), layout=OTHER)
        bench.publish({7: [b"1", b"2"], 238: [b"3"]})
        for each, partitions in ((source, {3: [b"1", b"2"], 2: [b"3"]}), (other, {1: [b"1", b"2", b"3"]})):
            came = bench.take(each, 3)
            found = {p: [event.body for event in came if event.partition == p] for p in partitions}
            assert found == partitions
            each.ack(came)
            bench.assert_quiet(each)

    def test_a_new_layout_gets_events_from_its_first_consumer_on(self, bench: BrokerBench) -> None:
        """So a new layout lacks exactly the events that were published before."""
        sink = bench.sink()
        sink.publish(0, b"before", lambda _ok: None)
        sink.flush(PATIENCE_S)
        other = bench.source(range(OTHER), layout=OTHER)
        sink.publish(0, b"after", lambda _ok: None)
        sink.flush(PATIENCE_S)
        assert [event.body for event in bench.take(other, 1)] == [b"after"]
        assert [event.body for event in bench.take(bench.source(), 2)] == [b"before", b"after"]

    def test_redelivered_events_and_marker_messages_stay_in_their_layout(self, bench: BrokerBench) -> None:
        """Otherwise layouts would get old events behind newer ones, and each other's watermark messages."""
        source, other = bench.source(), bench.source(range(OTHER), layout=OTHER)
        bench.publish({0: [b"1"]})
        bench.take(source, 1)
        source.close()
        source.send_marker(0, b"marker")
        assert sorted(event.body for event in bench.take(source, 2)) == [b"1", b"marker"]
        other.ack(bench.take(other, 1))
        bench.assert_quiet(other)

    def test_a_layout_without_consumers_is_deleted(self, bench: BrokerBench) -> None:
        """Its events are deleted with it, and the other layouts keep theirs.

        A later consumer of it begins with no events.
        """
        bench.source().close()
        other = bench.source(range(OTHER), layout=OTHER)
        bench.publish({0: [b"1"]})
        other.close()
        eventually(lambda: bench.broker.delete(OTHER))
        assert bench.broker.delete(OTHER), "deleting it twice is no error"
        bench.publish({0: [b"2"]})
        bench.assert_quiet(bench.source(range(OTHER), layout=OTHER))
        assert [event.body for event in bench.take(bench.source(), 2)] == [b"1", b"2"]

    def test_layouts_that_have_queues_are_found(self, bench: BrokerBench) -> None:
        """Whichever process declared them, and whatever the settings say."""
        bench.source()
        assert bench.broker.found() == [PARTITIONS]
        other = bench.source(range(OTHER), layout=OTHER)
        assert bench.broker.found() == [OTHER, PARTITIONS]
        other.close()
        eventually(lambda: bench.broker.delete(OTHER))
        assert bench.broker.found() == [PARTITIONS]

    def test_a_resync_reaches_all_connected_sinks(self, bench: BrokerBench) -> None:
        first, second = bench.sink(), bench.sink()
        request = Resync(nodes=("n1", "n2"), partitions=(3,), layout=4, jitter_s=1.5, census="box")
        bench.broker.resync_sender().request_resync(request)
        bench.broker.resync_sender().request_resync(Resync())
        for sink in (first, second):
            came: list[Resync] = []
            deadline = time.monotonic() + PATIENCE_S
            while len(came) < 2 and time.monotonic() < deadline:
                came += sink.resyncs(0.05)
            assert came == [request, Resync()]
            assert sink.resyncs(0) == []
        assert bench.sink().resyncs(0.05) == []


class SingleActiveContract(BrokerContract):
    """The contract of brokers that give a queue to one consumer at a time, and let another take over."""

    def test_one_consumer_at_a_time_gets_events(self, bench: BrokerBench) -> None:
        first, second = bench.source(), bench.source()
        assert bench.active_partitions(first) == set(range(PARTITIONS))
        bench.publish({0: [b"1"], 1: [b"2"]})
        bench.assert_quiet(second)
        assert {event.body for event in bench.take(first, 2)} == {b"1", b"2"}

    def test_a_layout_with_a_consumer_is_not_deleted(self, bench: BrokerBench) -> None:
        """Not even in part."""
        other = bench.source([2], layout=OTHER)
        assert not bench.broker.delete(OTHER)
        bench.publish({2: [b"1"]})
        assert [event.body for event in bench.take(other, 1)] == [b"1"]

    def test_a_layout_that_was_set_aside_is_found_while_messages_wait_in_it(self, bench: BrokerBench) -> None:
        """It gets no more events until a consumer takes from it again. If it is empty, it is deleted."""
        source, other = bench.source(), bench.source([OTHER - 1], layout=OTHER)
        other.ack(other.receive(10, QUIET_S))
        bench.publish({0: [b"1"]})
        assert bench.broker.set_aside(OTHER, PARTITIONS) == 0
        other.close()
        eventually(lambda: bench.broker.set_aside(OTHER, PARTITIONS) > 0)
        assert bench.broker.found() == [OTHER, PARTITIONS]
        bench.publish({0: [b"2"]})
        other = bench.source(range(OTHER), layout=OTHER)
        bench.publish({0: [b"3"]})
        assert [event.body for event in bench.take(other, 2)] == [b"1", b"3"]
        assert [event.body for event in bench.take(source, 3)] == [b"1", b"2", b"3"]

    def test_the_next_consumer_takes_over_where_the_last_one_left(self, bench: BrokerBench) -> None:
        first, second, third = bench.source(), bench.source(), bench.source()
        bench.publish({0: [b"%d" % number for number in range(4)]})
        events = bench.take(first, 3)
        first.ack(events[:1])
        first.close()
        again = bench.take(second, 3)
        assert [event.body for event in again] == [b"1", b"2", b"3"]
        assert again[0].redelivered
        bench.assert_quiet(third)

    def test_consumer_that_takes_over_empty_queues_gets_an_activation_message(self, bench: BrokerBench) -> None:
        first, second = bench.source(), bench.source()
        assert bench.active_partitions(first) == set(range(PARTITIONS))
        assert bench.active_partitions(second) == set()
        first.close()
        activated: set[int] = set()

        def all_activated() -> bool:
            activated.update(bench.active_partitions(second))
            return activated == set(range(PARTITIONS))

        eventually(all_activated)

    def test_standby_consumes_partitions_without_another_consumer(self, bench: BrokerBench) -> None:
        """Each member first takes its own partitions, so two members that start together share the work."""
        first, second = bench.source([0, 1], [2, 3]), bench.source([2, 3], [0, 1])
        assert bench.active_partitions(first) == {0, 1}
        assert bench.active_partitions(second) == {2, 3}
        bench.publish({2: [b"1"]})
        bench.assert_quiet(first)
        second.close()
        assert [event.body for event in bench.take(first, 1)] == [b"1"]

    def test_the_first_message_of_a_queue_that_replaces_a_deleted_one_says_so(self, bench: BrokerBench) -> None:
        """Otherwise the owner would vouch for events that are lost, and a standby too."""
        active, standby = bench.source([0, 1]), bench.source([0, 1])
        bench.active_partitions(active)
        bench.publish({0: [b"lost"]})
        bench.broker.lose_queue(0)
        for source in (standby, active):
            eventually(lambda source=source: _is_over(source))  # type: ignore[misc]  # mypy does not infer its type
        taken = _first_bodies(standby, 2)
        assert taken[0][0] == QUEUE_BEGAN
        assert QUEUE_BEGAN not in taken[1]

    def test_confirmed_events_survive_an_outage(self, bench: BrokerBench) -> None:
        source, sink = bench.source(), bench.sink()
        bench.publish({0: [b"1", b"2"], 1: [b"3"]})
        before = bench.take(source, 3)
        source.ack(before[:1])
        bench.broker.restart()
        with pytest.raises(BrokerUnavailableError):
            bench.assert_quiet(source)
        acked = before[0].body
        again = bench.take(source, 2)
        assert sorted(event.body for event in again) == sorted({b"1", b"2", b"3"} - {acked})
        assert all(event.session > before[0].session for event in again)

        confirms: list[bool] = []
        for _ in range(3):  # the sink may notice the broken connection only when it sends
            try:
                sink.publish(3, b"after", confirms.append)
                sink.flush(PATIENCE_S)
            except BrokerUnavailableError:
                continue
            break
        assert confirms[-1]
        assert bench.take(source, 1)[0].body == b"after"

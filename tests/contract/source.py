"""What every Source, Sink and ResyncSender promises, as tests: subclass a contract and give it a ``broker``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Protocol

import pytest

from nodestate.errors import BrokerUnavailableError
from nodestate.ports import ACTIVATION, Delivery, Resync, ResyncSender, Sink, Source

PARTITIONS = 4
OTHER = 3
"""Another layout of the same cell."""
PATIENCE_S = 10.0
QUIET_S = 0.3
STANDBY_S = 0.2


class Broker(Protocol):
    """A broker with ``PARTITIONS`` queues, empty at the beginning; the test closes what it gets."""

    def source(self, partitions: Sequence[int], standby: Sequence[int] = (), layout: int = PARTITIONS) -> Source:
        """A consumer of its own; standby after ``STANDBY_S``."""

    def delete(self, layout: int) -> bool:
        """Delete a layout's queues; False where somebody consumes from them."""

    def sink(self) -> Sink:
        """A publisher of its own."""

    def resync_sender(self) -> ResyncSender:
        """A sender of resync requests."""

    def dead_letters(self) -> list[tuple[int, bytes, str, str]]:
        """Partition, body, reason and detail of each, the oldest first."""

    def restart(self) -> None:
        """Stop and start; what was confirmed survives."""


class Bench:
    """Sources and sinks of one test, with the patience that real brokers need."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self._open = ExitStack()

    def source(
        self, partitions: Sequence[int] = range(PARTITIONS), standby: Sequence[int] = (), layout: int = PARTITIONS
    ) -> Source:
        source = self.broker.source(partitions, standby, layout)
        self._open.callback(source.close)
        source.receive(0, 0)  # connected, and so in its place in the order of consumers
        return source

    def sink(self) -> Sink:
        sink = self.broker.sink()
        self._open.callback(sink.close)
        sink.resyncs(0)
        return sink

    def publish(self, bodies: dict[int, list[bytes]]) -> None:
        """Publish, by bucket, and wait for all confirms."""
        sink = self.sink()
        told: list[bool] = []
        for bucket, its_bodies in bodies.items():
            for body in its_bodies:
                sink.publish(bucket, body, told.append)
        sink.flush(PATIENCE_S)
        assert told == [True] * sum(map(len, bodies.values()))

    def take(self, source: Source, count: int) -> list[Delivery]:
        """Exactly ``count`` events; marker messages are acked and passed over."""
        events: list[Delivery] = []
        deadline = time.monotonic() + PATIENCE_S
        while len(events) < count:
            assert time.monotonic() < deadline, f"{len(events)} of {count} events came"
            events += self._events(source, count - len(events), 0.05)
        return events

    def assert_quiet(self, source: Source) -> None:
        """No event comes."""
        deadline = time.monotonic() + QUIET_S
        while time.monotonic() < deadline:
            assert self._events(source, 10, 0.05) == []

    def told_active(self, source: Source) -> set[int]:
        """The partitions that anything comes from within ``QUIET_S``."""
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
    """Wait until it is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class BrokerContract:
    """Subclasses give the fixture ``broker``."""

    @pytest.fixture
    def bench(self, broker: Broker) -> Iterator[Bench]:
        bench = Bench(broker)
        yield bench
        bench.close()

    def test_confirmed_events_come_in_order_in_each_partition(self, bench: Bench) -> None:
        sent = {partition: [b"%d/%d" % (partition, number) for number in range(200)] for partition in range(3)}
        source = bench.source()
        bench.publish(sent)
        came = bench.take(source, 600)
        for partition, bodies in sent.items():
            assert [delivery.body for delivery in came if delivery.partition == partition] == bodies
        assert not any(delivery.redelivered for delivery in came)
        bench.assert_quiet(source)

    def test_events_wait_for_their_consumer(self, bench: Bench) -> None:
        bench.publish({1: [b"early"], 2: [b"elsewhere"]})
        [event] = bench.take(bench.source([1, 3]), 1)
        assert (event.partition, event.body) == (1, b"early")

    @pytest.mark.parametrize("size", [1, 200_000])
    def test_bodies_are_opaque(self, bench: Bench, size: int) -> None:
        body = (bytes(range(256)) * (size // 256 + 1))[-size:]
        bench.publish({0: [body]})
        assert [event.body for event in bench.take(bench.source(), 1)] == [body]

    def test_no_more_than_the_limit_comes(self, bench: Bench) -> None:
        bench.publish({0: [b"%d" % number for number in range(10)]})
        source = bench.source()
        first = bench.take(source, 3)  # checks the limit
        rest = bench.take(source, 7)
        assert [event.body for event in first + rest] == [b"%d" % number for number in range(10)]

    def test_what_was_acked_is_gone(self, bench: Bench) -> None:
        bench.publish({0: [b"1", b"2"], 1: [b"3"]})
        source = bench.source()
        source.ack(bench.take(source, 3))
        source.close()
        bench.assert_quiet(bench.source())

    def test_what_was_not_acked_comes_again_in_order_before_what_is_new(self, bench: Bench) -> None:
        """Changes build on each other: after a crash they must come in the same order."""
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

    def test_acks_may_come_in_any_order(self, bench: Bench) -> None:
        """Partitions are acked as their designs are written, events of one in several batches."""
        bench.publish({0: [b"a", b"b", b"c"], 1: [b"d"]})
        source = bench.source()
        events = {event.body: event for event in bench.take(source, 4)}
        for body in (b"d", b"c", b"a"):
            source.ack([events[body]])
        source.ack([])
        source.ack([events[b"b"]])
        source.close()
        bench.assert_quiet(bench.source())

    def test_an_ack_of_an_older_session_is_passed_over(self, bench: Bench) -> None:
        """Its tags may be those of other events now: acking these would lose them."""
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

    def test_a_dead_letter_is_kept_with_its_reason_and_is_no_ack(self, bench: Bench) -> None:
        bench.publish({2: [b"bad"]})
        source = bench.source()
        [event] = bench.take(source, 1)
        source.dead_letter(event, "bad_type", "usage.VCPU: want a number")
        eventually(lambda: bench.broker.dead_letters() == [(2, b"bad", "bad_type", "usage.VCPU: want a number")])
        source.close()
        assert [again.body for again in bench.take(bench.source(), 1)] == [b"bad"]

    def test_a_consumer_of_empty_queues_is_told_that_they_are_its_own(self, bench: Bench) -> None:
        """By an empty message: otherwise an owner would not know of its partition before the first event."""
        assert bench.told_active(bench.source([0, 2])) == {0, 2}

    def test_a_marker_message_arrives_behind_everything_that_waits(self, bench: Bench) -> None:
        """So its coming proves that the consumer has seen all that was there before."""
        source = bench.source()
        bench.publish({0: [b"1", b"2"]})
        source.send_marker(0, b"probe")
        bench.publish({0: [b"3"]})
        assert [event.body for event in bench.take(source, 4)] == [b"1", b"2", b"probe", b"3"]

    def test_an_event_goes_into_one_queue_of_each_layout(self, bench: Bench) -> None:
        """And is confirmed once, when it is in all of them: whoever publishes knows of no layout."""
        source, other = bench.source(), bench.source(range(OTHER), layout=OTHER)
        bench.publish({7: [b"1", b"2"], 238: [b"3"]})
        for each, partitions in ((source, {3: [b"1", b"2"], 2: [b"3"]}), (other, {1: [b"1", b"2", b"3"]})):
            came = bench.take(each, 3)
            found = {p: [event.body for event in came if event.partition == p] for p in partitions}
            assert found == partitions
            each.ack(came)
            bench.assert_quiet(each)

    def test_a_layout_gets_what_is_published_after_its_first_consumer_came(self, bench: Bench) -> None:
        """So what a new layout lacks is what was there before, and nothing else."""
        sink = bench.sink()
        sink.publish(0, b"before", lambda _ok: None)
        sink.flush(PATIENCE_S)
        other = bench.source(range(OTHER), layout=OTHER)
        sink.publish(0, b"after", lambda _ok: None)
        sink.flush(PATIENCE_S)
        assert [event.body for event in bench.take(other, 1)] == [b"after"]
        assert [event.body for event in bench.take(bench.source(), 2)] == [b"before", b"after"]

    def test_what_comes_again_or_is_a_consumer_s_own_stays_in_its_layout(self, bench: Bench) -> None:
        """Or layouts would see old events behind newer ones, and each other's probes."""
        source, other = bench.source(), bench.source(range(OTHER), layout=OTHER)
        bench.publish({0: [b"1"]})
        bench.take(source, 1)
        source.close()
        source.send_marker(0, b"probe")
        assert sorted(event.body for event in bench.take(source, 2)) == [b"1", b"probe"]
        other.ack(bench.take(other, 1))
        bench.assert_quiet(other)

    def test_a_layout_is_deleted_when_nobody_consumes_it(self, bench: Bench) -> None:
        """With what waits there; the other layouts don't notice. Whoever consumes it again begins with nothing."""
        bench.source().close()
        other = bench.source(range(OTHER), layout=OTHER)
        bench.publish({0: [b"1"]})
        other.close()
        eventually(lambda: bench.broker.delete(OTHER))
        assert bench.broker.delete(OTHER), "twice is once"
        bench.publish({0: [b"2"]})
        bench.assert_quiet(bench.source(range(OTHER), layout=OTHER))
        assert [event.body for event in bench.take(bench.source(), 2)] == [b"1", b"2"]

    def test_a_resync_reaches_all_sinks_that_are_connected(self, bench: Bench) -> None:
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
    """Of brokers that give a queue to one consumer at a time, and let another take over."""

    def test_one_consumer_at_a_time(self, bench: Bench) -> None:
        first, second = bench.source(), bench.source()
        assert bench.told_active(first) == set(range(PARTITIONS))
        bench.publish({0: [b"1"], 1: [b"2"]})
        bench.assert_quiet(second)
        assert {event.body for event in bench.take(first, 2)} == {b"1", b"2"}

    def test_a_layout_that_is_consumed_is_not_deleted(self, bench: Bench) -> None:
        """Nor is a part of it."""
        other = bench.source([2], layout=OTHER)
        assert not bench.broker.delete(OTHER)
        bench.publish({2: [b"1"]})
        assert [event.body for event in bench.take(other, 1)] == [b"1"]

    def test_the_next_consumer_takes_over_where_the_one_before_left(self, bench: Bench) -> None:
        first, second, third = bench.source(), bench.source(), bench.source()
        bench.publish({0: [b"%d" % number for number in range(4)]})
        events = bench.take(first, 3)
        first.ack(events[:1])
        first.close()
        again = bench.take(second, 3)
        assert [event.body for event in again] == [b"1", b"2", b"3"]
        assert again[0].redelivered
        bench.assert_quiet(third)

    def test_who_takes_over_empty_queues_is_told(self, bench: Bench) -> None:
        first, second = bench.source(), bench.source()
        assert bench.told_active(first) == set(range(PARTITIONS))
        assert bench.told_active(second) == set()
        first.close()
        told: set[int] = set()

        def all_told() -> bool:
            told.update(bench.told_active(second))
            return told == set(range(PARTITIONS))

        eventually(all_told)

    def test_standby_partitions_are_taken_where_nobody_is(self, bench: Bench) -> None:
        """Each member has its own partitions first; so two that start together share the work."""
        first, second = bench.source([0, 1], [2, 3]), bench.source([2, 3], [0, 1])
        assert bench.told_active(first) == {0, 1}
        assert bench.told_active(second) == {2, 3}
        bench.publish({2: [b"1"]})
        bench.assert_quiet(first)
        second.close()
        assert [event.body for event in bench.take(first, 1)] == [b"1"]

    def test_after_an_outage_everything_confirmed_is_still_there(self, bench: Bench) -> None:
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

        told: list[bool] = []
        for _ in range(3):  # the break may show only when something is sent
            try:
                sink.publish(3, b"after", told.append)
                sink.flush(PATIENCE_S)
            except BrokerUnavailableError:
                continue
            break
        assert told[-1]
        assert bench.take(source, 1)[0].body == b"after"

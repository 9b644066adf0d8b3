"""The contract of brokers over MemoryBroker, memory:// and RabbitMQ; then the faults of MemoryBroker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import msgspec
import pytest

from harness.servers import RabbitServer
from harness.waiting import wait_until
from nodestate.broker import KombuLayouts, KombuResyncSender, KombuSink, KombuSource, Topology, read_dead_letters
from nodestate.broker.connector import one_off_session
from nodestate.broker.rabbitmq.session import RabbitSession
from nodestate.config import Config
from nodestate.errors import BrokerUnavailableError, UnconfirmedError
from nodestate.ports import ACTIVATION, Resync, ResyncSender, Sink, Source, SystemClock
from nodestate.testing import ManualClock, MemoryBroker
from tests.contract.source import PARTITIONS, STANDBY_S, BrokerContract, SingleActiveContract


class InMemory:
    """A ``MemoryBroker`` behind ``contract.source.Broker``."""

    def __init__(self) -> None:
        self._broker = MemoryBroker(PARTITIONS)
        self.source, self.sink, self.delete = self._broker.source, self._broker.sink, self._broker.delete
        self.lose_queue = self._broker.lose_queue
        self.found, self.set_aside = self._broker.found, self._broker.set_aside

    def resync_sender(self) -> ResyncSender:
        return self._broker

    def dead_letters(self) -> list[tuple[int, bytes, str, str]]:
        return [(letter.partition, letter.body, letter.reason, letter.detail) for letter in self._broker.dead_letters]

    def restart(self) -> None:
        self._broker.stop()
        self._broker.start()


class TestMemoryBroker(SingleActiveContract):
    @pytest.fixture
    def broker(self) -> InMemory:
        return InMemory()


class OverKombu:
    """Any broker that kombu reaches, behind ``contract.source.Broker``."""

    def __init__(self, config: Config, server: RabbitServer | None = None) -> None:
        self._config = config
        self._server = server
        self._open = ExitStack()

    def source(self, partitions: Sequence[int], standby: Sequence[int] = (), layout: int = PARTITIONS) -> Source:
        return KombuSource(self._of(layout), partitions, standby)

    def delete(self, layout: int) -> bool:
        # memory:// cannot count consumers: there the caller must know that there are none.
        return KombuLayouts(self._config, 1, 1, SystemClock()).delete(layout, unseen=self._server is None)

    def found(self) -> list[int]:
        layouts, found = KombuLayouts(self._config, 1, 1, SystemClock()), list[list[int]]()

        def is_found() -> bool:
            found.extend([one] if (one := layouts.found()) is not None else [])
            return bool(found)

        wait_until(is_found, "the search does not end")
        return found[0]

    def set_aside(self, layout: int, used: int) -> int:
        return KombuLayouts(self._config, 1, 1, SystemClock()).set_aside(layout, used)

    def _of(self, layout: int) -> Config:
        return msgspec.structs.replace(self._config, partitions=layout)

    def sink(self) -> Sink:
        return KombuSink(self._config)

    def resync_sender(self) -> ResyncSender:
        sender = KombuResyncSender(self._config)
        self._open.callback(sender.close)
        return sender

    def dead_letters(self) -> list[tuple[int, bytes, str, str]]:
        letters = read_dead_letters(self._config, 100)
        return [(letter.partition or 0, letter.body, letter.reason, letter.detail) for letter in letters]

    def restart(self) -> None:
        assert self._server is not None
        self._server.restart()

    def lose_queue(self, partition: int) -> None:
        with one_off_session(self._config, "test") as session:
            assert isinstance(session, RabbitSession)
            session.connection.control.queue_delete(Topology.of(self._config).queue(partition))

    def close(self) -> None:
        self._open.close()


class TestKombuMemory(BrokerContract):
    @pytest.fixture
    def broker(self, cell: str) -> Iterator[OverKombu]:
        broker = OverKombu(Config(broker="memory://", cell=cell, partitions=PARTITIONS, standby_s=STANDBY_S))
        yield broker
        broker.close()


@pytest.mark.service
class TestRabbit(SingleActiveContract):
    @pytest.fixture
    def broker(self, rabbit: RabbitServer, cell: str) -> Iterator[OverKombu]:
        config = Config(broker=rabbit.url, cell=cell, partitions=PARTITIONS, standby_s=STANDBY_S)
        broker = OverKombu(config, rabbit)
        yield broker
        broker.close()


# -- faults on demand -----------------------------------------------------------------------------


def _bodies(source: Source, limit: int = 100) -> list[bytes]:
    """The bodies that arrive now, without marker messages."""
    deliveries = source.receive(limit, 0)
    source.ack([delivery for delivery in deliveries if delivery.body.startswith(ACTIVATION)])
    return [delivery.body for delivery in deliveries if not delivery.body.startswith(ACTIVATION)]


def _ignore_confirm(_confirmed: bool) -> None:
    """For publishes whose confirm does not matter to the test."""


def _filled(bodies: Sequence[bytes]) -> MemoryBroker:
    broker = MemoryBroker(1)
    sink = broker.sink()
    for body in bodies:
        sink.publish(0, body, _ignore_confirm)
    sink.close()
    return broker


def test_waiting_messages_can_be_duplicated_swapped_and_dropped() -> None:
    broker = _filled([b"1", b"2", b"3"])
    broker.duplicate(0, 1)
    assert broker.queued(0) == [b"1", b"2", b"2", b"3"]
    broker.swap(0, 0, 3)
    assert broker.queued(0) == [b"3", b"2", b"2", b"1"]
    assert broker.drop(0) == b"3"
    assert _bodies(broker.source([0])) == [b"2", b"2", b"1"]


def test_messages_of_a_crashed_consumer_go_to_the_next_one_in_order() -> None:
    broker = _filled([b"1", b"2", b"3"])
    first, second = broker.source([0]), broker.source([0])
    assert _bodies(first, 2) == [b"1", b"2"]
    first.crash()
    assert broker.active(0) is second
    assert _bodies(second) == [b"1", b"2", b"3"]
    with pytest.raises(AssertionError):
        first.receive(1, 0)


def test_a_disconnected_consumer_does_not_know_that_another_took_over() -> None:
    """The zombie of the fault table: it still holds its batch, and writes."""
    broker = _filled([b"1"])
    zombie, heir = broker.source([0]), broker.source([0])
    deliveries = zombie.receive(10, 0)
    zombie.disconnect()
    assert _bodies(heir) == [b"1"]
    with pytest.raises(BrokerUnavailableError):
        zombie.ack(deliveries)
    assert _bodies(zombie) == []
    heir.close()
    assert _bodies(zombie) == [b"1"]


def test_at_most_the_prefetch_is_unacked() -> None:
    broker = MemoryBroker(1, prefetch=2)
    sink = broker.sink()
    for body in (b"1", b"2", b"3"):
        sink.publish(0, body, _ignore_confirm)
    source = broker.source([0])
    deliveries = source.receive(10, 0)
    assert [delivery.body for delivery in deliveries] == [b"1", b"2"]
    assert source.receive(10, 0) == []
    source.ack(deliveries[:1])
    assert [delivery.body for delivery in source.receive(10, 0)] == [b"3"]


@pytest.mark.parametrize("lose", [True, False])
def test_an_unconfirmed_event_is_lost_or_kept_as_the_test_says(lose: bool) -> None:
    """A publisher without a confirm cannot know which, and reports the event as lost, once."""
    broker = MemoryBroker(1)
    sink = broker.sink()
    confirms: list[tuple[bytes, bool]] = []
    sink.publish(0, b"1", lambda ok: confirms.append((b"1", ok)))
    sink.flush(0)
    broker.confirming = False
    sink.publish(0, b"2", lambda ok: confirms.append((b"2", ok)))
    with pytest.raises(UnconfirmedError) as caught:
        sink.flush(3.0)
    assert (caught.value.count, caught.value.timeout_s) == (1, 3.0)
    broker.stop(lose_unconfirmed=lose)
    with pytest.raises(BrokerUnavailableError):
        sink.publish(0, b"3", lambda ok: confirms.append((b"3", ok)))
    assert confirms == [(b"1", True), (b"2", False)]
    broker.start()
    assert _bodies(broker.source([0])) == ([b"1"] if lose else [b"1", b"2"])
    sink.publish(0, b"4", _ignore_confirm)
    assert confirms == [(b"1", True), (b"2", False)]


def test_a_stopped_broker_refuses_calls_until_it_starts() -> None:
    broker = MemoryBroker(1)
    broker.stop()
    source, sink = broker.source([0]), broker.sink()
    for call in (lambda: source.receive(1, 0), lambda: sink.resyncs(0), lambda: broker.request_resync(Resync())):
        with pytest.raises(BrokerUnavailableError):
            call()
    broker.start()
    assert _bodies(source) == []
    broker.request_resync(Resync())
    assert sink.resyncs(0) == []  # it was not yet connected


def test_waiting_sleeps_on_the_brokers_clock() -> None:
    clock = ManualClock()
    broker = MemoryBroker(1, clock=clock)
    source = broker.source([0])
    _bodies(source)
    start = clock.monotonic()
    assert source.receive(1, 0.5) == []
    assert broker.sink().resyncs(0.25) == []
    assert clock.monotonic() - start == 0.75


def test_census_answers_are_kept() -> None:
    broker = MemoryBroker(1)
    broker.sink().answer_census("box", "n", b"1")
    assert broker.census == {"box": [b"1"]}

"""The broker adapter: tests over RabbitMQ, Redis and memory://, then tests of promises that only RabbitMQ keeps."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import amqp
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.proxies import TcpProxy
from harness.servers import RabbitServer, free_ports
from harness.waiting import PATIENCE_S, wait_until
from nodestate.agent.publisher import Publisher
from nodestate.broker import (
    KombuCourier,
    KombuLayouts,
    KombuResyncSender,
    KombuSink,
    KombuSource,
    QueueDepth,
    Topology,
    collect_census,
    connect_check,
    queue_depths,
    read_dead_letters,
)
from nodestate.broker.confirm_watch import FIRST_PATIENCE_S
from nodestate.broker.connector import open_session
from nodestate.broker.rabbitmq.connection import RabbitConnection
from nodestate.broker.rabbitmq.delivery_tracking import Confirms, Unacked
from nodestate.broker.rabbitmq.messages import confirming_channel, event_message, publish
from nodestate.broker.rabbitmq.publish_connection import PublishConnection
from nodestate.broker.rabbitmq.queues import RabbitQueues
from nodestate.broker.rabbitmq.session import RabbitSession
from nodestate.broker.topology import DEAD_QUEUE_MAX_BYTES
from nodestate.broker.virtual.session import VirtualSession
from nodestate.config import Config
from nodestate.errors import BrokerUnavailableError, ConfigError, DeadLetterError, UnconfirmedError
from nodestate.findings.broker_checks import _examine_nodes, _examine_queues, examine_broker
from nodestate.model import Heartbeat, NodeRecord, Version, fold, parse_event
from nodestate.model.orders import Answer, End, Order
from nodestate.ports import ACTIVATION, QUEUE_BEGAN, Delivery, RefusedDelivery, Resync, Sink, Source, SystemClock
from nodestate.testing import ManualClock

Opened = Callable[..., Any]


# -- confirms and acks, without a broker ----------------------------------------------------------


def test_a_multiple_confirm_settles_each_earlier_publish_once() -> None:
    confirms, done = Confirms(), []
    for number in range(1, 6):
        confirms.sent(lambda ok, number=number: done.append((number, ok)))  # type: ignore[misc]
    confirms.settle(4, False, True)
    confirms.settle(3, True, True)
    confirms.settle(4, True, True)
    confirms.settle(5, False, False)
    assert done == [(4, True), (1, True), (2, True), (3, True), (5, False)]
    assert len(confirms) == 0


def test_a_multiple_confirm_of_tag_zero_settles_all_publishes() -> None:
    confirms, done = Confirms(), []
    for _ in range(3):
        confirms.sent(done.append)
    confirms.settle(0, True, False)
    assert done == [False, False, False]


@given(st.lists(st.tuples(st.integers(1, 40), st.booleans(), st.booleans())), st.integers(0, 40))
def test_every_publish_is_settled_exactly_once_for_any_sequence_of_confirms(
    answers: list[tuple[int, bool, bool]], sent: int
) -> None:
    confirms, done = Confirms(), [0] * (sent + 1)
    for number in range(1, sent + 1):
        confirms.sent(lambda _ok, number=number: done.__setitem__(number, done[number] + 1))  # type: ignore[misc]
    for tag, multiple, ok in answers:
        confirms.settle(tag, multiple, ok)
    confirms.lose()
    confirms.lose()
    assert done[1:] == [1] * sent


@given(st.permutations(range(1, 13)), st.lists(st.integers(1, 4)))
def test_an_ack_never_covers_an_unacked_delivery(order: list[int], sizes: list[int]) -> None:
    """And no tag is acked twice, at which RabbitMQ would close the channel."""
    unacked = Unacked()
    asked: set[int] = set()
    held = set(range(1, 13))  # tags that the broker waits for
    for size in [*sizes, 12]:
        tags, order = order[:size], order[size:]
        asked.update(tags)
        upto, singly = unacked.ack([*tags, *tags])
        if upto is not None:
            assert upto in held
            held = {tag for tag in held if tag > upto}
        for tag in singly:
            held.remove(tag)
        assert held == set(range(1, 13)) - asked


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=30), st.lists(st.integers(1, 30)))
def test_exactly_the_returned_publishes_are_reported_as_refused(
    publishes: list[tuple[int, bool]], acks: list[int]
) -> None:
    """In any order of acks, and if several publishes have the same body."""
    confirms, done = Confirms(), dict[int, bool]()
    for number, (body, _) in enumerate(publishes):
        confirms.sent(lambda ok, number=number: done.__setitem__(number, ok), b"%d" % body)  # type: ignore[misc]
    bodies_back = {body for body, back in publishes if back}
    refused = {number for number, (body, _) in enumerate(publishes) if body in bodies_back}  # one queue for each body
    for number in sorted(refused):
        confirms.returned(b"%d" % publishes[number][0])
    for tag in acks:
        confirms.settle(tag, True, True)
    confirms.settle(0, True, True)
    assert done == {number: number not in refused for number in range(len(publishes))}


def test_acks_in_order_need_one_frame() -> None:
    unacked = Unacked()
    assert unacked.ack(range(1, 2001)) == (2000, [])
    assert unacked.ack(range(2001, 2003)) == (2002, [])


# -- the contract ---------------------------------------------------------------------------------


@pytest.fixture(
    params=[
        "memory",
        pytest.param("rabbit", marks=pytest.mark.service),
        pytest.param("redis", marks=pytest.mark.service),
    ]
)
def config(request: pytest.FixtureRequest, cell: str) -> Config:
    """A cell of two partitions at each kind of broker."""
    if request.param == "memory":
        url = "memory://"
    elif request.param == "rabbit":
        url = request.getfixturevalue("rabbit").url
    else:
        url = request.getfixturevalue("redis_url")
    return Config(broker=url, cell=cell, partitions=2, standby_s=0.3)


@pytest.fixture
def rabbit_config(rabbit: RabbitServer, cell: str) -> Config:
    return Config(broker=rabbit.url, cell=cell, partitions=2, standby_s=0.3)


def _receive(source: Source, count: int, *, activations: bool = False) -> list[Delivery]:
    """Receive ``count`` messages. Activation messages are skipped unless ``activations`` is True."""
    deliveries: list[Delivery] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(deliveries) < count and time.monotonic() < deadline:
        deliveries += [one for one in source.receive(1000, 0.05) if activations or not one.body.startswith(ACTIVATION)]
    assert len(deliveries) == count, deliveries
    return deliveries


def _publish(sink: Sink, *bodies: bytes, partition: int = 0) -> list[bool]:
    done: list[bool] = []
    for body in bodies:
        sink.publish(partition, body, done.append)
    sink.flush(PATIENCE_S)
    return done


def _becomes_unavailable(call: Callable[[], object]) -> BrokerUnavailableError:
    """Repeat a call until it raises BrokerUnavailableError."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            call()
        except BrokerUnavailableError as error:
            return error
    pytest.fail("the broker was available all the time")


def _numbered(start: int, stop: int) -> list[bytes]:
    return [b"event %d" % number for number in range(start, stop)]


def _bodies(deliveries: list[Delivery], partition: int = 0) -> list[bytes]:
    return [delivery.body for delivery in deliveries if delivery.partition == partition]


def test_published_events_are_confirmed_and_delivered_in_order(config: Config, opened: Opened) -> None:
    source, sink = opened(KombuSource(config, [0, 1])), opened(KombuSink(config))
    done: list[bool] = []
    for number in range(200):
        sink.publish(number % 2, b"%d" % number, done.append)
    sink.flush(PATIENCE_S)
    assert done == [True] * 200
    deliveries = _receive(source, 200)
    assert _bodies(deliveries, 0) == [b"%d" % number for number in range(0, 200, 2)]
    assert _bodies(deliveries, 1) == [b"%d" % number for number in range(1, 200, 2)]


def test_events_published_before_any_consumer_existed_are_kept(config: Config, opened: Opened) -> None:
    """The publisher declares the queues as well."""
    _publish(opened(KombuSink(config)), b"early")
    assert _bodies(_receive(opened(KombuSource(config, [0, 1])), 1)) == [b"early"]


def test_a_consumer_gets_one_activation_message_from_each_of_its_partitions(config: Config, opened: Opened) -> None:
    source = opened(KombuSource(config, [0, 1]))
    activations = _receive(source, 2, activations=True)
    assert sorted(message.partition for message in activations) == [0, 1]
    assert {message.body for message in activations} == {QUEUE_BEGAN}, "the queues are new"
    source.ack(activations)
    assert source.receive(10, 0.1) == []
    source.send_marker(1)
    [message] = _receive(source, 1, activations=True)
    assert (message.partition, message.body) == (1, ACTIVATION)


def test_unacked_events_are_redelivered_in_order_in_a_new_session(config: Config, opened: Opened) -> None:
    source, sink = opened(KombuSource(config, [0])), opened(KombuSink(config))
    _publish(sink, *_numbered(0, 10))
    first = _receive(source, 10)
    source.ack(first[:4])
    source.close()
    _publish(sink, *_numbered(10, 12))
    again = _receive(source, 8)
    assert _bodies(again) == _numbered(4, 12)
    assert [delivery.redelivered for delivery in again] == [True] * 6 + [False] * 2
    assert {delivery.session for delivery in again} == {first[0].session + 1}


def test_acked_events_are_not_redelivered(config: Config, opened: Opened) -> None:
    source, sink = opened(KombuSource(config, [0])), opened(KombuSink(config))
    _publish(sink, *_numbered(0, 10))
    source.ack(_receive(source, 10))
    source.close()
    assert [one for one in source.receive(100, 0.5) if not one.body.startswith(ACTIVATION)] == []


def test_acks_of_an_older_session_are_ignored(config: Config, opened: Opened) -> None:
    """Their tags would refer to other messages now."""
    source, sink = opened(KombuSource(config, [0])), opened(KombuSink(config))
    _publish(sink, *_numbered(0, 5))
    old = _receive(source, 5)
    source.close()
    _receive(source, 5)
    source.ack(old)
    source.close()
    assert _bodies(_receive(source, 5)) == _numbered(0, 5)


def test_acks_out_of_order_ack_no_other_events(config: Config, opened: Opened) -> None:
    source, sink = opened(KombuSource(config, [0])), opened(KombuSink(config))
    source.ack(_receive(source, 1, activations=True))
    _publish(sink, *_numbered(0, 6))
    deliveries = _receive(source, 6)
    source.ack([deliveries[5], deliveries[0], deliveries[2]])
    source.close()
    assert _bodies(_receive(source, 3)) == [b"event 1", b"event 3", b"event 4"]


def test_receive_returns_at_most_its_limit_and_keeps_the_rest(config: Config, opened: Opened) -> None:
    source, sink = opened(KombuSource(config, [0])), opened(KombuSink(config))
    source.ack(_receive(source, 1, activations=True))
    _publish(sink, *_numbered(0, 25))
    sizes, bodies = [], []
    while len(bodies) < 25:
        deliveries = source.receive(10, 0.5)
        sizes.append(len(deliveries))
        bodies += _bodies(deliveries)
    assert sizes == [10, 10, 5]
    assert bodies == _numbered(0, 25)


def test_a_consumer_holds_at_most_its_prefetch_of_unacked_messages(config: Config, cell: str, opened: Opened) -> None:
    narrow = Config(broker=config.broker, cell=cell, partitions=2, prefetch=5, standby_s=PATIENCE_S)
    source, sink = opened(KombuSource(narrow, [0])), opened(KombuSink(narrow))
    source.ack(_receive(source, 1, activations=True))
    _publish(sink, *_numbered(0, 12))
    bodies = []
    for expected in (5, 5, 2):
        deliveries = source.receive(100, 0.3)
        assert len(deliveries) == expected
        bodies += _bodies(deliveries)
        source.ack(deliveries)
    assert bodies == _numbered(0, 12)


def test_a_marker_message_arrives_behind_all_waiting_events(config: Config, opened: Opened) -> None:
    """So a consumer that receives its watermark message knows that it has received all earlier events."""
    source, sink = opened(KombuSource(config, [0])), opened(KombuSink(config))
    source.ack(_receive(source, 1, activations=True))
    _publish(sink, *_numbered(0, 50))
    source.send_marker(0, b"marker")
    assert _bodies(_receive(source, 51)) == [*_numbered(0, 50), b"marker"]


def test_a_dead_letter_has_the_body_and_the_reason(config: Config, opened: Opened) -> None:
    source, sink = opened(KombuSource(config, [0, 1])), opened(KombuSink(config))
    _publish(sink, b"\xff not an event", partition=1)
    [delivery] = _receive(source, 1)
    before = int(time.time())
    source.dead_letter([RefusedDelivery(delivery, "undecodable", "byte 0: " + "x" * 5_000)])
    [letter] = read_dead_letters(config, 10)
    assert (letter.body, letter.reason, letter.partition) == (b"\xff not an event", "undecodable", 1)
    assert letter.detail.startswith("byte 0: xxx")
    assert len(letter.detail) == 1_000
    assert before <= letter.at <= time.time()
    assert read_dead_letters(config, 10) == [letter]  # reading removes nothing


def test_dead_lettering_a_message_does_not_ack_it(config: Config, opened: Opened) -> None:
    """The consumer loop acks after the batch: a crash in between leaves two dead letters, never none."""
    source, sink = opened(KombuSource(config, [0])), opened(KombuSink(config))
    _publish(sink, b"bad")
    [delivery] = _receive(source, 1)
    source.dead_letter([RefusedDelivery(delivery, "wrong-type", "")])
    source.close()
    assert _bodies(_receive(source, 1)) == [b"bad"]


def test_a_resync_reaches_every_connected_agent(config: Config, opened: Opened) -> None:
    sinks = [opened(KombuSink(config)) for _ in range(3)]
    deaf = opened(KombuSink(config, control=False))
    for sink in (*sinks, deaf):
        sink.resyncs(0)  # connects
    sender = opened(KombuResyncSender(config))
    asked = [Resync(nodes=("a", "b"), jitter_s=2.5), Resync(partitions=(1,))]
    for resync in asked:
        sender.request_resync(resync)
    for sink in sinks:
        got: list[Resync] = []
        while len(got) < 2:
            more = sink.resyncs(5.0)
            assert more, "a resync is missing"
            got += more
        assert got == asked
        assert sink.resyncs(0) == []
    assert deaf.resyncs(0.1) == []


def test_a_resync_without_connected_agents_is_lost(config: Config, opened: Opened) -> None:
    opened(KombuResyncSender(config)).request_resync(Resync())
    sink = opened(KombuSink(config))
    assert sink.resyncs(0.2) == []


def test_a_census_collects_the_newest_version_of_each_node_that_answers(config: Config, opened: Opened) -> None:
    agents = [opened(KombuSink(config)) for _ in range(2)]
    for agent in agents:
        agent.resyncs(0)
    import msgspec  # noqa: PLC0415 - only here

    def answer(sink: KombuSink, number: int) -> None:
        [resync] = sink.resyncs(5.0)
        assert resync.nodes == ("n0", "n1")
        for generation in (3, 4 + number):
            event = Heartbeat(node=f"n{number}", incarnation=5, generation=generation, reported_at=1.0)
            sink.answer_census(resync.census, event.node, msgspec.msgpack.encode(event))
        sink.answer_census(resync.census, "n", b"nonsense")

    threads = [threading.Thread(target=answer, args=(agent, number)) for number, agent in enumerate(agents)]
    for thread in threads:
        thread.start()
    census = collect_census(config, Resync(nodes=("n0", "n1")), 1.0)
    for thread in threads:
        thread.join()
    assert census == {"n0": Version(5, 4), "n1": Version(5, 5)}


def test_an_answer_to_a_finished_census_has_no_effect(config: Config, opened: Opened) -> None:
    sink = opened(KombuSink(config))
    sink.answer_census("nodestate.box.gone", "n", b"late")
    assert _publish(sink, b"still here") == [True]


def test_the_doctor_sees_the_server_and_the_waiting_messages(config: Config, opened: Opened) -> None:
    facts = connect_check(config)
    assert facts.product.lower() in {"memory", "rabbitmq", "redis"}
    assert facts.fails_over == (facts.product == "RabbitMQ")
    _publish(opened(KombuSink(config)), b"one", b"two", partition=1)
    depths = {depth.partition: depth for depth in queue_depths(config)}
    assert {partition: depth.ready for partition, depth in depths.items()} == {0: 1, 1: 3, None: 0}, (
        "each new queue has a message that says so"
    )
    assert depths[1].queue == f"nodestate.{config.cell}.{config.partitions}.1"
    if facts.fails_over:
        _receive(opened(KombuSource(config, [1])), 2)
        assert [depth.consumers for depth in queue_depths(config)] == [0, 1, 0]


def test_a_closed_sink_connects_again(config: Config, opened: Opened) -> None:
    sink = opened(KombuSink(config))
    assert _publish(sink, b"one") == [True]
    sink.close()
    assert _publish(sink, b"two") == [True]
    assert _bodies(_receive(opened(KombuSource(config, [0])), 2)) == [b"one", b"two"]


@pytest.mark.parametrize("body", [b"", b"\x00", bytes(range(256)) * 1_000])
def test_bodies_of_all_sizes_arrive_unchanged(config: Config, opened: Opened, body: bytes) -> None:
    """RabbitMQ splits bodies above its frame size; Redis carries text only."""
    source, sink = opened(KombuSource(config, [0])), opened(KombuSink(config))
    source.ack(_receive(source, 1, activations=True))
    _publish(sink, body)
    [delivery] = _receive(source, 1, activations=True)
    assert type(delivery.body) is bytes
    assert delivery.body == body


# -- memory:// ------------------------------------------------------------------------------------


def test_memory_serves_a_publisher_and_a_consumer_in_two_threads(cell: str, opened: Opened) -> None:
    """The demo is one process. The consumer reconnects now and then; no event is lost or out of order."""
    config = Config(cell=cell, partitions=3, prefetch=500)
    source, sink = opened(KombuSource(config, [0, 1, 2])), opened(KombuSink(config))
    total = 6_000

    def publish() -> None:
        for number in range(total):
            sink.publish(number % 3, b"%d" % number, lambda _ok: None)

    publisher = threading.Thread(target=publish)
    publisher.start()
    rng, seen = random.Random(5), {0: -3, 1: -2, 2: -1}
    deadline = time.monotonic() + PATIENCE_S
    while min(seen.values()) < total - 3 and time.monotonic() < deadline:
        deliveries = source.receive(200, 0.01)
        for delivery in deliveries:
            if not delivery.body.startswith(ACTIVATION) and int(delivery.body) > seen[delivery.partition]:
                assert int(delivery.body) == seen[delivery.partition] + 3
                seen[delivery.partition] += 3
        if rng.random() < 0.1:
            source.close()
        else:
            source.ack(deliveries)
    publisher.join()
    assert seen == {0: total - 3, 1: total - 2, 2: total - 1}


def test_closed_memory_sinks_leave_no_queues_behind(cell: str, opened: Opened) -> None:
    """kombu keeps the bindings of a deleted queue, so that each broadcast would fill the queue again."""
    config = Config(cell=cell, partitions=1)
    sender, keeper = opened(KombuResyncSender(config)), opened(KombuSink(config))
    keeper.resyncs(0)
    session = open_session(config, "test")
    assert isinstance(session, VirtualSession)
    channel = session.connection.channel
    before = set(channel.queues)
    for _ in range(5):
        sink = KombuSink(config)
        sink.resyncs(0)
        sink.close()
        sender.request_resync(Resync())
    assert set(channel.queues) == before
    session.close()
    assert len(keeper.resyncs(1.0)) == 5


def test_standby_partitions_are_not_consumed_if_the_broker_does_not_fail_over(cell: str, opened: Opened) -> None:
    config, clock = Config(cell=cell, partitions=2), ManualClock()
    source = opened(KombuSource(config, [0], [1], clock))
    clock.advance(2 * config.standby_s)
    assert {delivery.partition for _ in range(3) for delivery in source.receive(10, 0.05)} == {0}


# -- wrong settings, absent brokers ----------------------------------------------------------------


@pytest.mark.parametrize("url", ["carrier-pigeon://loft", "memory", "amqp://guest:secret@127.0.0.1:notaport//"])
def test_a_malformed_url_raises_config_error(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        connect_check(Config(broker=url))
    assert "secret" not in str(caught.value)


def test_an_absent_broker_is_unavailable_and_its_password_stays_secret() -> None:
    [port] = free_ports(1)
    config = Config(broker=f"amqp://guest:secret@127.0.0.1:{port}//", broker_timeout_s=1.0)
    source, sink = KombuSource(config, [0]), KombuSink(config)
    calls: list[Callable[[], object]] = [
        lambda: source.receive(1, 0.1),
        lambda: sink.publish(0, b"", pytest.fail),
        lambda: sink.resyncs(0),
        lambda: KombuResyncSender(config).request_resync(Resync()),
        lambda: connect_check(config),
        lambda: collect_census(config, Resync(), 0.1),
    ]
    for call in calls:
        with pytest.raises(BrokerUnavailableError) as caught:
            call()
        assert "secret" not in str(caught.value)
    source.ack([Delivery(0, b"", 1, 1)])
    sink.flush(0.1)
    source.close()
    sink.close()


# -- RabbitMQ -------------------------------------------------------------------------------------


def _cut(thing: KombuSource | KombuSink) -> None:
    """Cut the connection between it and the broker, so that the broker notices."""
    _connection(thing).socket.shutdown(socket.SHUT_RDWR)


def _connection(thing: KombuSource | KombuSink) -> RabbitConnection:
    """Its connection to RabbitMQ."""
    connection = thing._sessions.current.connection  # type: ignore[union-attr]  # sessions of RabbitMQ have one
    assert isinstance(connection, RabbitConnection)
    return connection


def _rabbit_session(config: Config, *, layout: bool = False) -> RabbitSession:
    """A session of the test's own."""
    session = open_session(config, "test", layout=layout)
    assert isinstance(session, RabbitSession)
    return session


@pytest.mark.service
def test_wrong_credentials_raise_broker_unavailable_with_the_reason(rabbit: RabbitServer) -> None:
    config = Config(broker=rabbit.url.replace("guest:guest", "guest:secret"))
    with pytest.raises(BrokerUnavailableError, match="refuses the login: check the user and the password") as caught:
        connect_check(config)
    assert "secret" not in str(caught.value)


@pytest.mark.service
def test_the_first_url_that_answers_is_used(rabbit: RabbitServer, cell: str) -> None:
    [port] = free_ports(1)
    config = Config(broker=f"amqp://guest:guest@127.0.0.1:{port}//;{rabbit.url}", cell=cell)
    assert connect_check(config).product == "RabbitMQ"


@pytest.mark.service
def test_queues_of_another_type_raise_config_error(rabbit_config: Config) -> None:
    connect_check(rabbit_config)
    other = Config(broker=rabbit_config.broker, cell=rabbit_config.cell, partitions=2, queue_type="quorum")
    with pytest.raises(ConfigError, match="queue_type"):
        KombuSource(other, [0]).receive(1, 0.1)


@pytest.mark.service
def test_quorum_queues_confirm_and_deliver_in_order(rabbit: RabbitServer, cell: str, opened: Opened) -> None:
    """They refuse global QoS and auto-delete."""
    config = Config(broker=rabbit.url, cell=cell, partitions=2, queue_type="quorum")
    test_published_events_are_confirmed_and_delivered_in_order(config, opened)


@pytest.mark.service
def test_at_most_the_confirm_window_is_unconfirmed(rabbit: RabbitServer, cell: str, opened: Opened) -> None:
    config = Config(broker=rabbit.url, cell=cell, partitions=2, confirm_window=7)
    sink = opened(KombuSink(config))
    open_, most, done = 0, 0, []

    def on_done(ok: bool) -> None:
        nonlocal open_
        open_ -= 1
        done.append(ok)

    for number in range(500):
        sink.publish(number % 2, b"x", on_done)
        open_ += 1
        most = max(most, open_)
    sink.flush(PATIENCE_S)
    assert done == [True] * 500
    assert most == 7


@pytest.mark.service
def test_a_refused_message_is_reported_as_lost(rabbit_config: Config) -> None:
    """A queue at its limit refuses messages: the connection stays, and only the refused messages are lost."""
    connection = _rabbit_session(rabbit_config).connection
    name = f"{Topology.of(rabbit_config).exchange}.small"
    arguments = {"x-max-length": 3, "x-overflow": "reject-publish"}
    connection.control.queue_declare(name, durable=True, auto_delete=False, arguments=arguments)
    confirms, done = Confirms(), []
    channel, message = confirming_channel(connection, confirms.settle, confirms.returned), event_message()
    for number in range(10):
        publish(channel, "", name, b"x", message)
        confirms.sent(lambda ok, number=number: done.append((number, ok)))  # type: ignore[misc]
        while len(done) <= number:
            assert connection.pump(5.0)
    assert [ok for _, ok in done] == [True] * 3 + [False] * 7
    connection.control.queue_delete(name)
    connection.close()


@pytest.mark.service
def test_a_session_in_which_the_broker_goes_on_to_refuse_events_is_replaced(
    rabbit_config: Config, opened: Opened
) -> None:
    """After the death of a node, a cluster refuses events in one session for ever, and takes them in another.

    ``tests/faults/test_broker_cluster.py`` has such a cluster. Here the test itself reports refusals to the session.
    """
    clock = ManualClock()
    sink = opened(KombuSink(rabbit_config, clock=clock))
    assert _publish(sink, b"x") == [True]
    session = sink._sessions.current
    session._on_settled(1_000, False, False)
    assert _publish(sink, b"x") == [True]
    assert sink._sessions.current is session, "one refusal is no reason"
    clock.advance(FIRST_PATIENCE_S)
    assert _publish(sink, b"x") == [True]
    assert sink._sessions.current is not session


@pytest.mark.service
def test_a_lost_connection_reports_every_unconfirmed_publish_exactly_once(
    rabbit: RabbitServer, rabbit_config: Config, opened: Opened
) -> None:
    sink = opened(KombuSink(rabbit_config))
    assert _publish(sink, b"first") == [True]
    done: list[bool] = []
    rabbit.pause()  # so that it confirms nothing
    try:
        for _ in range(20):
            sink.publish(0, b"x", done.append)
        assert done == []
        _cut(sink)
    finally:
        rabbit.resume()
    _becomes_unavailable(lambda: sink.publish(0, b"refused", pytest.fail))
    assert done == [False] * 20
    assert _publish(sink, b"after") == [True]
    assert done == [False] * 20


@pytest.mark.service
def test_an_idle_connection_that_broke_is_replaced_without_an_error(rabbit_config: Config, opened: Opened) -> None:
    sink = opened(KombuSink(rabbit_config))
    _publish(sink, b"one")
    _cut(sink)
    assert _publish(sink, b"two") == [True]


@pytest.mark.service
def test_an_event_for_a_deleted_queue_fails_alone(rabbit_config: Config, opened: Opened) -> None:
    """RabbitMQ confirms even events that no queue takes; only ``mandatory`` reveals them. The next consumer that
    connects declares the queue again.
    """
    sink = opened(KombuSink(rabbit_config))
    _publish(sink, b"one")
    session = _rabbit_session(rabbit_config)
    session.connection.control.queue_delete(Topology.of(rabbit_config).queue(0))
    session.close()
    connection = sink._sessions.current
    done: list[tuple[int, bool]] = []
    for number in range(100):
        sink.publish(number % 2, b"%d" % number, lambda ok, number=number: done.append((number, ok)))
    sink.flush(PATIENCE_S)
    assert sorted(done) == [(number, number % 2 == 1) for number in range(100)]
    assert sink._sessions.current is connection
    source = opened(KombuSource(rabbit_config, [0]))
    source.receive(0, 0)
    assert _publish(sink, b"three") == [True]
    assert _bodies(_receive(source, 1)) == [b"three"]


@pytest.mark.service
def test_one_consumer_at_a_time_gets_a_partition(rabbit_config: Config, opened: Opened) -> None:
    first, second = (opened(KombuSource(rabbit_config, [0])) for _ in range(2))
    _receive(first, 1, activations=True)
    for _ in range(5):
        second.receive(10, 0.1)
    _publish(opened(KombuSink(rabbit_config)), *_numbered(0, 50))
    assert [delivery.body for delivery in second.receive(100, 0.3)] == []
    assert _bodies(_receive(first, 50)) == _numbered(0, 50)


@pytest.mark.service
def test_the_next_consumer_gets_the_unacked_events_of_the_last_one_in_order(
    rabbit_config: Config, opened: Opened
) -> None:
    first, second = (opened(KombuSource(rabbit_config, [0])) for _ in range(2))
    sink = opened(KombuSink(rabbit_config))
    _receive(first, 1, activations=True)
    second.receive(10, 0.1)
    _publish(sink, *_numbered(0, 30))
    taken = _receive(first, 30)
    first.ack(taken[:10])
    time.sleep(0.2)
    _cut(first)
    _publish(sink, *_numbered(30, 40))
    came = _receive(second, 30)
    assert _bodies(came) == _numbered(10, 40)
    assert all(delivery.redelivered for delivery in came[:20])
    with pytest.raises(BrokerUnavailableError):
        first.receive(10, 0.1)
    assert [delivery.body for delivery in first.receive(10, 0.2)] == []  # it reconnected, behind the other consumer
    first.ack(taken)


@pytest.mark.service
def test_the_next_consumer_of_an_idle_partition_gets_an_activation_message(
    rabbit_config: Config, opened: Opened
) -> None:
    """RabbitMQ does not tell the next consumer. Without an activation message an idle partition would have no owner
    until its next event.
    """
    first, second = (opened(KombuSource(rabbit_config, [0])) for _ in range(2))
    first.ack(_receive(first, 1, activations=True))
    second.receive(10, 0.1)
    time.sleep(0.2)
    first.ack(first.receive(10, 0.1))  # the second's own activation message went to the first
    first.close()
    [message] = _receive(second, 1, activations=True)
    assert message.body == ACTIVATION


@pytest.mark.service
def test_activation_messages_do_not_pile_up_behind_a_stalled_consumer(rabbit_config: Config, opened: Opened) -> None:
    first, second = (opened(KombuSource(rabbit_config, [0])) for _ in range(2))
    narrow = Config(broker=rabbit_config.broker, cell=rabbit_config.cell, partitions=2, prefetch=1)
    first = opened(KombuSource(narrow, [0]))
    _receive(first, 1, activations=True)
    for _ in range(30):
        second.receive(10, 0.1)
    assert queue_depths(rabbit_config)[0].ready <= 2


@pytest.mark.service
def test_standby_partitions_are_subscribed_after_standby_s(rabbit_config: Config, opened: Opened) -> None:
    clock = ManualClock()
    source = opened(KombuSource(rabbit_config, [0], [0, 1], clock))
    _receive(source, 1, activations=True)
    source.receive(10, 0.1)
    assert [depth.consumers for depth in queue_depths(rabbit_config)[:2]] == [1, 0]
    clock.advance(rabbit_config.standby_s)
    [message] = _receive(source, 1, activations=True)
    assert message.partition == 1
    assert [depth.consumers for depth in queue_depths(rabbit_config)[:2]] == [1, 1]


@pytest.mark.service
def test_a_stalled_consumer_loses_its_partition(rabbit: RabbitServer, cell: str, opened: Opened) -> None:
    """It may be paused, swapped out or cut off: its heartbeats stop, and its partition goes to the next consumer."""
    config = Config(broker=rabbit.url, cell=cell, partitions=1, broker_heartbeat_s=1)
    first, second = (opened(KombuSource(config, [0])) for _ in range(2))
    _receive(first, 1, activations=True)
    second.receive(10, 0.1)
    _publish(opened(KombuSink(config)), b"one")
    _receive(first, 1)
    assert _bodies(_receive(second, 1)) == [b"one"]
    with pytest.raises(BrokerUnavailableError):
        first.receive(10, 0.1)


@pytest.mark.service
def test_a_frozen_broker_is_reported_as_unavailable(rabbit: RabbitServer, cell: str, opened: Opened) -> None:
    """It accepts connections and answers nothing. Only missing heartbeats and confirms reveal it."""
    config = Config(
        broker=rabbit.url, cell=cell, partitions=1, broker_heartbeat_s=2, broker_timeout_s=1.0, confirm_window=50
    )
    source, sink = opened(KombuSource(config, [0])), opened(KombuSink(config))
    _receive(source, 1, activations=True)
    _publish(sink, b"one")
    _receive(source, 1)
    done: list[bool] = []
    rabbit.pause()
    try:
        _becomes_unavailable(lambda: source.receive(10, 0.1))
        _becomes_unavailable(lambda: sink.publish(0, b"x", done.append))
        assert done == [False] * 50
        with pytest.raises(BrokerUnavailableError):
            source.receive(10, 0.1)  # it cannot connect either, and raises in time
    finally:
        rabbit.resume()


@pytest.mark.service
@pytest.mark.parametrize("end", [pytest.param("stop", marks=pytest.mark.thorough), "kill"])
def test_a_broker_that_ends_under_a_publisher_keeps_every_confirmed_event(
    rabbit: RabbitServer, cell: str, opened: Opened, end: str
) -> None:
    """I6, and the newest state arrives, although the broker dies and restarts."""
    config = Config(broker=rabbit.url, cell=cell, partitions=1, broker_timeout_s=2.0)
    sink, confirmed = opened(KombuSink(config)), []

    class Noting:
        """The sink, with a list of all confirmed events."""

        def publish(self, partition: int, body: bytes, on_done: Callable[[bool], None]) -> None:
            def note(ok: bool) -> None:
                if ok:
                    confirmed.append(body)
                on_done(ok)

            sink.publish(partition, body, note)

        def __getattr__(self, name: str) -> Any:
            return getattr(sink, name)

    publisher = Publisher(config, "compute-1", sink=Noting(), incarnation=1_763_787_600)  # type: ignore[arg-type]
    publisher.report({"inventory": {"VCPU": {"total": 8}}})
    stopped, number, back_at = False, 0, 0.0

    def outage() -> None:
        time.sleep(0.5)
        getattr(rabbit, end)()
        time.sleep(0.5)
        rabbit.start()

    thread = threading.Thread(target=outage)
    thread.start()
    while not stopped:
        number += 1
        publisher.change({"metrics": {"number": float(number)}})
        time.sleep(0.001)
        if not thread.is_alive():
            back_at = back_at or time.monotonic()
            stopped = time.monotonic() - back_at > 0.5
    thread.join()
    publisher.flush(PATIENCE_S)
    source = opened(KombuSource(config, [0]))
    received: set[bytes] = set()
    record: NodeRecord | None = None
    while not (record is not None and record.version == publisher.version):
        deliveries = [one for one in source.receive(1000, 0.5) if not one.body.startswith(ACTIVATION)]
        assert deliveries, "the newest state did not arrive"
        for delivery in deliveries:
            received.add(delivery.body)
            record = fold(record, parse_event(delivery.body)).record
        source.ack(deliveries)
    assert record.state()["metrics"] == {"number": float(number)}
    assert not record.incomplete
    assert len(confirmed) > 100
    assert [body for body in confirmed if body not in received] == []


@pytest.mark.service
def test_a_consumer_reconnects_to_a_restarted_broker(rabbit: RabbitServer, cell: str, opened: Opened) -> None:
    config = Config(broker=rabbit.url, cell=cell, partitions=1, broker_timeout_s=2.0)
    source = opened(KombuSource(config, [0]))
    sender = opened(KombuResyncSender(config))
    sender.request_resync(Resync())
    _publish(opened(KombuSink(config)), *_numbered(0, 3))
    session = _receive(source, 3)[0].session
    rabbit.restart()
    with pytest.raises(BrokerUnavailableError):
        source.receive(10, 1.0)
    again = _receive(source, 3)
    assert _bodies(again) == _numbered(0, 3)
    assert again[0].session == session + 1
    sender.request_resync(Resync())  # its connection broke at the restart, so it opens another


@pytest.mark.service
def test_flush_reports_the_number_of_unconfirmed_events(rabbit_config: Config, opened: Opened) -> None:
    sink = opened(KombuSink(rabbit_config))
    _publish(sink, b"first")
    # Before they are published: a broker on a busy machine may confirm the first while the third is under way.
    connection = _connection(sink)
    connection.has_input = lambda _timeout_s: False  # type: ignore[method-assign]
    for _ in range(3):
        sink.publish(0, b"x", lambda _ok: None)
    with pytest.raises(UnconfirmedError) as caught:
        sink.flush(0.05)
    assert caught.value.count == 3
    del connection.has_input


def test_a_failing_publish_connection_delays_deliveries_little() -> None:
    """Regression: while the first connection was alive and no second one could be opened, each marker message waited
    for another timeout.
    """
    clock, config = ManualClock(), Config(broker="amqp://127.0.0.1:1")
    tries: list[float] = []

    def hangs() -> NoReturn:
        tries.append(clock.monotonic())
        clock.advance(config.broker_timeout_s)
        raise BrokerUnavailableError(config.broker, "timed out")

    publisher = PublishConnection(config, hangs, clock)
    began = clock.monotonic()
    for _ in range(120):
        for partition in range(16):
            publisher.send_marker(partition, ACTIVATION)
        clock.advance(1.0)
    assert 2 < len(tries) < 12
    assert clock.monotonic() - began < 120 + 12 * config.broker_timeout_s


class _AnsweringChannel:
    """A channel whose broker answers all publishes in one way: it confirms them, refuses them, or is silent."""

    def __init__(self, answer: str) -> None:
        self.events: dict[str, set[Callable[..., None]]] = defaultdict(set)
        """The functions to call, by the name of the answer."""
        self.queues: list[str] = []
        """The routing keys of the publishes that were confirmed."""
        self._answer = answer
        self._count = 0

    def confirm_select(self) -> None:
        """Do nothing: every publish is answered."""

    def send_method(self, _method: object, _format: str, arguments: tuple[object, ...], _message: object) -> None:
        self._count += 1
        if self._answer == "basic_ack":
            self.queues.append(str(arguments[2]))
        for call in self.events[self._answer]:
            call(self._count, False)


class _AnsweringConnection:
    """A connection of a process to a broker that answers all publishes in one way."""

    errors = RabbitConnection.errors
    blocked = ""
    url = "amqp://127.0.0.1:1"

    def __init__(self, answer: str) -> None:
        self.opened = _AnsweringChannel(answer)
        self.dropped = False

    def channel(self) -> _AnsweringChannel:
        return self.opened

    def drain(self) -> None:
        """Do nothing: answers came at once."""

    def pump(self, _timeout_s: float) -> bool:
        return False

    def drop(self) -> None:
        self.dropped = True


@pytest.mark.parametrize("answer", ["basic_nack", "nothing"])
@pytest.mark.parametrize("publishes", ["marker messages", "dead letters"])
def test_a_consumer_whose_messages_are_never_confirmed_connects_again(answer: str, publishes: str) -> None:
    """A channel that was opened before a quorum queue has a new leader refuses all messages for this queue for ever.

    A node that was cut off from the other nodes of its cluster confirms nothing. Without marker messages the partitions
    of the consumer would age.
    """
    clock, config = ManualClock(), Config(broker=_AnsweringConnection.url)
    connections = [_AnsweringConnection(answer), _AnsweringConnection("basic_ack")]
    waiting = list(connections)
    publisher = PublishConnection(config, lambda: waiting.pop(0), clock)  # type: ignore[arg-type,return-value]  # a double
    for _ in range(4 * int(FIRST_PATIENCE_S)):
        if publishes == "marker messages":
            publisher.send_marker(0, ACTIVATION)
        else:
            with suppress(DeadLetterError):
                publisher.dead_letter([(b"bad", {})])
        clock.advance(0.5)
    assert [connection.dropped for connection in connections] == [True, False]
    assert len(connections[1].opened.queues) > 1


@pytest.mark.service
def test_a_queue_that_gains_a_consumer_before_its_deletion_stays(rabbit_config: Config) -> None:
    """The broker itself decides last whether the queue has a consumer."""
    topology = Topology.of(rabbit_config)
    source, session = KombuSource(rabbit_config, [0, 1], [], SystemClock()), _rabbit_session(rabbit_config, layout=True)
    try:
        source.receive(1, 0.1)
        assert not session.queues.delete(topology)
    finally:
        source.close()
        session.close()
    assert KombuLayouts(rabbit_config, 1, 1, SystemClock()).delete(2)


@pytest.mark.service
def test_a_layout_of_quorum_queues_is_deleted(rabbit_config: Config) -> None:
    """RabbitMQ accepts no conditions when it deletes such a queue."""
    config = msgspec.structs.replace(rabbit_config, queue_type="quorum")
    open_session(config, "test", layout=True).close()
    assert KombuLayouts(config, 1, 1, SystemClock()).delete(2)
    assert [depth.missing for depth in queue_depths(config)[:2]] == [True, True]


@pytest.mark.service
@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_queues_without_consumers_are_set_aside(rabbit_config: Config, queue_type: str) -> None:
    """They get no more events.

    They stay if messages wait in one of them, or if one has a consumer.
    """
    config = msgspec.structs.replace(rabbit_config, queue_type=queue_type)
    layouts = KombuLayouts(config, 1, 1, SystemClock())
    sink, confirmed = KombuSink(config, control=False), list[bool]()
    sink.publish(1, b"before", confirmed.append)  # declares the layout of the settings
    sink.flush(PATIENCE_S)
    other = _rabbit_session(config)
    other.connection.channel().basic_consume(Topology.of(config).queue(0), callback=lambda _message: None)
    assert layouts.set_aside(2, 3) == 0
    other.close()
    assert [depth.ready for depth in queue_depths(config)[:2]] == [1, 2], "a new queue says so in its first message"
    assert layouts.set_aside(2, 3) == 1, "only the event stays"
    sink.publish(1, b"after", confirmed.append)
    sink.flush(PATIENCE_S)
    sink.close()
    assert confirmed == [True, True]
    assert [(depth.missing, depth.ready) for depth in queue_depths(config)[:2]] == [(False, 0), (False, 1)]
    assert sum(depth.ready for depth in queue_depths(msgspec.structs.replace(config, partitions=3))[:3]) == 3 + 1


def test_the_first_member_to_leave_a_layout_deletes_no_queue(config: Config) -> None:
    """Regression (I6): a transport that cannot count consumers reported none, and the queues were deleted. Events that
    were published then reached no queue with a consumer.
    """
    layouts, other = KombuLayouts(config, 1, 1, SystemClock()), msgspec.structs.replace(config, partitions=3)
    source, sink, confirmed = layouts.open(2), KombuSink(config, control=False), list[bool]()
    source.receive(10, 0.1)
    open_session(other, "test", layout=True).close()
    assert not layouts.delete(2)
    sink.publish(1, b"event", confirmed.append)
    sink.flush(PATIENCE_S)
    bodies: list[bytes] = []
    deadline = time.monotonic() + PATIENCE_S
    while b"event" not in bodies and time.monotonic() < deadline:
        bodies += [delivery.body for delivery in source.receive(10, 0.1)]
    assert b"event" in bodies
    source.close()
    sink.close()
    assert layouts.delete(2, unseen=not layouts.sees_consumers)


class _PassiveChannel:
    """A channel of a user that may not declare anything, at a broker with or without the cell."""

    def __init__(self, *, complete: bool) -> None:
        self._complete = complete

    def exchange_declare(self, *_: object, passive: bool = False, **__: object) -> None:
        self._answer(passive)

    def queue_declare(self, queue: str, *, passive: bool = False, **_: object) -> Any:
        self._answer(passive)
        return amqp.protocol.queue_declare_ok_t(queue, 0, 0)

    def _answer(self, passive: bool) -> None:
        if not passive:
            raise amqp.AccessRefused("refused")
        if not self._complete:
            raise amqp.NotFound("missing")


class _PassiveConnection:
    """The part of a connection that ``RabbitQueues`` uses."""

    broker, user = "amqp://broker", "node-n1"

    def __init__(self, *, complete: bool) -> None:
        self.control = _PassiveChannel(complete=complete)

    def pump(self, _timeout_s: float) -> bool:
        return False


def test_a_user_that_may_not_declare_connects_to_a_complete_cell_and_names_the_remedy_for_another() -> None:
    topology = Topology.of(Config(cell="c1", partitions=2))
    complete: Any = _PassiveConnection(complete=True)
    RabbitQueues(complete).declare(topology, layout=False, mark_began=True)
    missing: Any = _PassiveConnection(complete=False)
    with pytest.raises(BrokerUnavailableError, match="user 'node-n1' may not declare them: start 'nodestate consume'"):
        RabbitQueues(missing).declare(topology, layout=False, mark_began=True)


# -- what an operator deletes ---------------------------------------------------------------------


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Consumers and agents declare and bind everything again ten times a second."""
    for module in ("rabbitmq.consumer", "virtual.consumer"):
        monkeypatch.setattr(f"nodestate.broker.{module}.REDECLARE_S", 0.1)
    monkeypatch.setattr("nodestate.broker.sink.REBIND_S", 0.1)


@pytest.mark.service
@pytest.mark.usefixtures("often")
def test_events_orders_and_resync_requests_flow_again_after_their_exchange_was_deleted(
    rabbit_config: Config, opened: Opened
) -> None:
    topology = Topology.of(rabbit_config)
    source, sink = opened(KombuSource(rabbit_config, [0, 1])), opened(KombuSink(rabbit_config))
    courier, sender = opened(KombuCourier(rabbit_config)), opened(KombuResyncSender(rabbit_config))
    sink.listen_for(["n"])
    admin = opened(_rabbit_session(rabbit_config))
    _publish(sink, b"before")
    for exchange, _ in topology.exchanges:
        admin.connection.control.exchange_delete(exchange)
        confirmed: list[bool] = []
        orders: list[Order] = []
        resyncs: list[Resync] = []
        answers_to = courier.reply_to

        def all_flow(
            confirmed: list[bool] = confirmed, orders: list[Order] = orders, resyncs: list[Resync] = resyncs
        ) -> bool:
            with suppress(BrokerUnavailableError, UnconfirmedError):
                sink.publish(0, b"after", confirmed.append)
                sink.flush(1.0)
            with suppress(BrokerUnavailableError):
                courier.send([End(id="i", instance="v", node="n", reply_to=courier.reply_to)], 60.0)
                courier.answers(0.05)
            with suppress(BrokerUnavailableError):
                sender.request_resync(Resync())
            with suppress(BrokerUnavailableError):
                resyncs += sink.resyncs(0.05)
                orders += sink.orders()
            source.ack(source.receive(100, 0.05))
            return bool(orders and resyncs and any(confirmed))

        wait_until(all_flow, f"exchange {exchange} is not declared and bound again")
        if exchange != topology.node_orders:
            assert courier.reply_to == answers_to


@pytest.mark.service
def test_a_scheduler_tells_by_its_queue_for_answers_that_an_order_went_with_its_connection(
    rabbit_config: Config, opened: Opened
) -> None:
    courier, admin = opened(KombuCourier(rabbit_config)), opened(_rabbit_session(rabbit_config))
    answers_to = courier.reply_to
    admin.connection.control.exchange_delete(Topology.of(rabbit_config).node_orders)
    courier.send([End(id="i", instance="v", node="n", reply_to=answers_to)], 60.0)
    wait_until(lambda: courier.reply_to != answers_to, "the courier keeps the connection")


@pytest.mark.service
@pytest.mark.thorough
def test_answers_arrive_again_after_their_exchange_was_deleted(rabbit: RabbitServer, cell: str, opened: Opened) -> None:
    """A scheduler that hears nothing for broker_timeout_s binds its queue again."""
    config = Config(broker=rabbit.url, cell=cell, partitions=2, broker_timeout_s=2.0)
    courier, sink, admin = opened(KombuCourier(config)), opened(KombuSink(config)), opened(_rabbit_session(config))
    sink.listen_for(["n"])
    assert courier.reply_to
    admin.connection.control.exchange_delete(Topology.of(config).answers)

    def answered() -> bool:
        with suppress(BrokerUnavailableError):
            courier.send([End(id="i", instance="v", node="n", reply_to=courier.reply_to)], 60.0)
        with suppress(BrokerUnavailableError):
            sink.resyncs(0.05)
            for order in sink.orders():
                sink.answer(order.reply_to, Answer(id=order.id, node="n", instance="v", incarnation=5, generation=1))
        with suppress(BrokerUnavailableError):
            return any(not answer.refused for answer in courier.answers(0.05))
        return False

    wait_until(answered, "answers do not arrive again")


@pytest.mark.service
@pytest.mark.parametrize("lost", ["queue", "exchange", "room"])
def test_markers_flow_while_the_dead_letter_queue_is_deleted_or_full(
    rabbit_config: Config, opened: Opened, lost: str
) -> None:
    """Without marker messages every partition of the member would age. The queue is declared again."""
    dead = Topology.of(rabbit_config).dead
    source = opened(KombuSource(rabbit_config, [0]))
    _publish(opened(KombuSink(rabbit_config)), b"bad")
    [delivery] = _receive(source, 1)
    channel = opened(_rabbit_session(rabbit_config)).connection.control
    if lost == "exchange":
        channel.exchange_delete(dead)
    else:
        channel.queue_delete(dead)
    if lost == "room":
        channel.queue_declare(
            dead, durable=True, auto_delete=False, arguments={"x-max-length": 0, "x-overflow": "reject-publish"}
        )
        channel.queue_bind(dead, dead, "dead")
    with pytest.raises(DeadLetterError, match=r"full" if lost == "room" else r"declared again"):
        source.dead_letter([RefusedDelivery(delivery, "wrong-type", "")])
    source.send_marker(0, b"marker")
    assert _bodies(_receive(source, 1)) == [b"marker"]
    if lost == "room":
        channel.queue_delete(dead)
        with pytest.raises(DeadLetterError):
            source.dead_letter([RefusedDelivery(delivery, "wrong-type", "")])
    source.dead_letter([RefusedDelivery(delivery, "wrong-type", "")])
    assert [letter.body for letter in read_dead_letters(rabbit_config, 10)] == [b"bad"]


@pytest.mark.service
@pytest.mark.parametrize("waiting", [False, True])
def test_a_courier_replaces_a_connection_that_leads_nowhere(
    rabbit: RabbitServer, cell: str, opened: Opened, waiting: bool
) -> None:
    """A load balancer forgot the connection while the scheduler was idle, or while it waited for answers."""
    with TcpProxy(("127.0.0.1", rabbit.port)) as proxy:
        url = f"amqp://guest:guest@127.0.0.1:{proxy.port}//"
        opened(_rabbit_session(Config(broker=rabbit.url, cell=cell, partitions=2)))  # declares the cell, without haste
        courier = opened(KombuCourier(Config(broker=url, cell=cell, partitions=2, broker_timeout_s=0.3)))

        def reply_to() -> str:
            """The queue for answers; empty if the connection took longer than its short time-out."""
            try:
                return courier.reply_to
            except BrokerUnavailableError:
                return ""

        wait_until(reply_to, "the courier does not connect")
        before = reply_to()
        proxy.swallow()
        if waiting:
            _becomes_unavailable(lambda: courier.answers(0.05))
        wait_until(lambda: reply_to() not in ("", before), "the courier keeps the connection")
        assert courier.answers(0.0) == []


@pytest.mark.service
@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_the_dead_letter_queue_has_the_type_of_the_settings_and_a_bound(
    rabbit_config: Config, opened: Opened, queue_type: str
) -> None:
    """An existing one of another type or without a bound stays: it may hold letters."""
    config = msgspec.structs.replace(rabbit_config, queue_type=queue_type)
    channel = opened(_rabbit_session(config)).connection.control
    bound = {"x-max-length-bytes": DEAD_QUEUE_MAX_BYTES}
    arguments = {"x-queue-type": "quorum", **bound} if queue_type == "quorum" else bound
    channel.queue_declare(Topology.of(config).dead, durable=True, auto_delete=False, arguments=arguments)
    channel.queue_delete(Topology.of(config).dead)
    channel.queue_declare(Topology.of(config).dead, durable=True, auto_delete=False)
    assert _publish(opened(KombuSink(config)), b"one") == [True]


@pytest.mark.service
def test_a_dead_letter_queue_that_another_version_declares_at_the_same_time_is_left_as_it_is(
    rabbit_config: Config, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: the process whose declaration came second ended with a ``ConfigError``."""
    session, topology = opened(_rabbit_session(rabbit_config)), Topology.of(rabbit_config)
    session.connection.control.queue_delete(topology.dead)
    session.connection.control.queue_declare(topology.dead, durable=True, auto_delete=False)
    monkeypatch.setattr(session.queues, "counts", lambda _queue: None)
    session.queues.declare_shared(topology)
    session.send_checked("", topology.dead, b"a letter")


@pytest.mark.service
def test_an_alarm_that_comes_in_place_of_an_answer_is_named(
    rabbit_config: Config, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ tells a connection of its alarm only when the connection publishes, and then answers nothing."""
    session = opened(_rabbit_session(rabbit_config))
    connection = session.connection
    monkeypatch.setattr(session.queues, "counts", lambda _queue: connection._on_blocked("alarm"))
    with pytest.raises(BrokerUnavailableError, match="short of memory"):
        session.send_checked("", "no-queue", b"")
    assert not connection.fail_if_blocked
    connection._on_unblocked()


@pytest.mark.service
def test_an_agent_that_the_broker_blocks_names_the_alarm_and_keeps_its_connection(
    rabbit_config: Config, opened: Opened
) -> None:
    """It would otherwise fill its window of unconfirmed events, and then blame a time-out."""
    sink, confirmed = opened(KombuSink(rabbit_config)), list[bool]()
    _publish(sink, b"before")
    session = sink._sessions.current
    sink.publish(0, b"under way", confirmed.append)
    session.connection._on_blocked("low on memory")
    with pytest.raises(UnconfirmedError, match=r"short of memory.*low on memory"):
        sink.flush(0.0)
    with pytest.raises(BrokerUnavailableError, match="short of memory"):
        sink.publish(0, b"refused", confirmed.append)
    opened(KombuResyncSender(rabbit_config)).request_resync(Resync())
    with pytest.raises(BrokerUnavailableError, match="short of memory"):
        sink.resyncs(0.1)
    session.connection._on_unblocked()
    wait_until(lambda: sink.resyncs(0.1) == [Resync()], "the resync request is lost")
    assert _publish(sink, b"after") == [True]
    assert confirmed == [True]
    assert sink._sessions.current is session


@pytest.mark.service
def test_the_doctor_names_each_exchange_that_was_deleted(rabbit_config: Config, opened: Opened) -> None:
    """It looks before it declares them again."""
    assert not [one for one in examine_broker(rabbit_config, [2]) if one.about == "exchanges"], "the cell is new"
    control = opened(_rabbit_session(rabbit_config)).connection.control
    for exchange, _ in Topology.of(rabbit_config).exchanges:
        control.exchange_delete(exchange)
        [finding] = [one for one in examine_broker(rabbit_config, [2]) if one.about == "exchanges"]
        assert finding.level == "FAIL"
        assert exchange in finding.says
    assert not [one for one in examine_broker(rabbit_config, [2]) if one.about == "exchanges"]


@pytest.mark.service
def test_the_doctor_names_nodes_of_a_cluster_that_do_not_answer(rabbit_config: Config) -> None:
    """Regression: it said that the broker is well, and named the URLs of all nodes."""
    url, away = rabbit_config.broker, "amqp://guest:guest@127.0.0.1:1//"

    def levels(urls: list[str], queue_type: str = "classic") -> list[str]:
        config = msgspec.structs.replace(rabbit_config, broker=";".join(urls), queue_type=queue_type)
        return [one.level for one in _examine_nodes(config)]

    assert levels([url]) == []
    assert levels([url, url]) == []
    assert levels([url, away, url]) == ["WARN"]
    assert levels([url, away, away]) == ["WARN"]
    assert levels([url, away, url], "quorum") == ["WARN"]
    assert levels([url, away, away], "quorum") == ["FAIL"], "quorum queues have no majority"


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_the_doctor_misses_no_standby_that_rabbitmq_does_not_count(queue_type: str) -> None:
    """Regression: of quorum queues it said that no consumer takes over, although each one had a consumer that waited.

    RabbitMQ counts only the active consumer of a quorum queue.
    """
    queues = [QueueDepth(number, f"queue {number}", 0, 1) for number in range(2)]
    config = Config(queue_type=queue_type)
    findings = list(_examine_queues(config, "queues", queues, fails_over=True))
    assert [one.level for one in findings] == (["OK", "WARN"] if queue_type == "classic" else ["OK"])


@pytest.mark.service
@pytest.mark.parametrize("arguments", [None, {"x-max-length-bytes": DEAD_QUEUE_MAX_BYTES}])
def test_the_doctor_names_a_dead_letter_queue_that_is_still_classic(
    rabbit_config: Config, opened: Opened, arguments: dict[str, int] | None
) -> None:
    """An earlier version declared it although ``queue_type`` was quorum."""
    dead = Topology.of(rabbit_config).dead
    config = msgspec.structs.replace(rabbit_config, queue_type="quorum")

    def says() -> list[str]:
        return [one.says for one in examine_broker(config, [2]) if one.level == "WARN" and "classic" in one.says]

    channel = opened(_rabbit_session(config)).connection.control
    assert says() == []
    channel.queue_delete(dead)
    channel.queue_declare(dead, durable=True, auto_delete=False, arguments=arguments)
    [finding] = says()
    assert dead in finding
    unbounded = [one.advice for one in examine_broker(config, [2]) if "without a limit" in one.says]
    assert [f"delete_queue {dead}" in advice for advice in unbounded] == ([True] if arguments is None else [])


@pytest.mark.service
def test_the_doctor_names_a_dead_letter_queue_without_a_limit(rabbit_config: Config, opened: Opened) -> None:
    """An earlier version declared it. A queue with another limit is bounded."""
    dead = Topology.of(rabbit_config).dead

    def advice() -> list[str]:
        return [one.advice for one in examine_broker(rabbit_config, [2]) if "without a limit" in one.says]

    channel = opened(_rabbit_session(rabbit_config)).connection.control
    assert advice() == []
    for arguments in ({"x-max-length-bytes": 1_000}, None):
        channel.queue_delete(dead)
        channel.queue_declare(dead, durable=True, auto_delete=False, arguments=arguments)
        assert [f"set_policy --apply-to queues {dead}" in text for text in advice()] == [True] * (arguments is None)

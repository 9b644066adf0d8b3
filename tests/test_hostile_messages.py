"""Messages that cannot be decoded or are too large, at each queue of a cell: they are refused, and all else goes on."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any, Final

import msgspec
import pytest
from amqp import Message, spec
from amqp.exceptions import UnexpectedFrame

from harness.servers import RabbitServer
from harness.waiting import wait_until
from nodestate.broker import KombuCourier, KombuResyncSender, KombuSink, KombuSource, Topology, read_dead_letters
from nodestate.broker.connector import open_session
from nodestate.broker.rabbitmq import consumer as rabbitmq_consumer
from nodestate.broker.rabbitmq.frames import InboundMessage, decoded_headers, frame_handler, routing_key, user_of
from nodestate.broker.rabbitmq.session import RabbitSession
from nodestate.broker.users import node_of
from nodestate.broker.virtual import consumer as virtual_consumer
from nodestate.broker.virtual.session import VirtualSession
from nodestate.config import Config
from nodestate.errors import BadEventError
from nodestate.model.limits import CUT_BODY_BYTES, MAX_BODY_BYTES
from nodestate.model.orders import MAX_ORDER_BYTES, Answer, decode_answer, decode_order, encode
from nodestate.model.presence import Presence, encode_presence
from nodestate.ports import ACTIVATION, Delivery, Resync, Source
from tests.hostile_messages import PROPERTIES, send_raw, with_headers

LARGE: Final = bytes(8 * 1024 * 1024)
DEEP: Final = b"\x91" * 100_000 + b"\xc0"


def order(**fields: Any) -> bytes:
    """An order, whatever its fields are."""
    return msgspec.msgpack.encode({"kind": "end", "id": "o-1", "node": "n1", "instance": "i-1", **fields})


def with_deep_field(message: bytes) -> bytes:
    """The same map with one more field, which an agent does not know."""
    return bytes([message[0] + 1]) + message[1:] + b"\xa4more" + DEEP


RESYNCS: Final = {
    "no UTF-8": b"\x81\xa6census\xa2\xff\xfe",
    "a field nested 100,000 deep": with_deep_field(msgspec.msgpack.encode({"jitter_s": 0.0})),
    "a layout of no partitions": msgspec.msgpack.encode({"layout": 0, "partitions": [0]}),
    "a census of 256 bytes": msgspec.msgpack.encode({"census": "q" * 256}),
    "a census of 254 bytes in UTF-16": msgspec.msgpack.encode({"census": "é" * 127 + "日"}),
    "a jitter of minus one second": msgspec.msgpack.encode({"jitter_s": -1.0}),
    "a jitter that is no number": msgspec.msgpack.encode({"jitter_s": float("nan")}),
}
ORDERS: Final = {
    "no UTF-8": b"\x81\xa2id\xa2\xff\xfe",
    "a field nested 100,000 deep": with_deep_field(order(reply_to="q")),
    "a reply_to of 256 bytes": order(reply_to="q" * 256),
    "a reply_to with a line break": order(reply_to="a\nb"),
    "over 64 KB": order(reply_to="q", more="x" * MAX_ORDER_BYTES),
    "an id over 64 KB": order(reply_to="q", id="x" * MAX_ORDER_BYTES),
}
ANSWERS: Final = {
    "no UTF-8": b"\x81\xa2id\xa2\xff\xfe",
    "a field nested 100,000 deep": with_deep_field(encode(Answer(id="o-1", node="n1", instance="i-1"))),
    "over 64 KB": encode(Answer(id="o-1", node="n1", instance="i-1", detail="x" * 65_000)) + bytes(1_000),
    "an id of 70,000 characters": msgspec.msgpack.encode({"id": "x" * 70_000, "node": "n1", "instance": "i-1"}),
    "a generation below zero": msgspec.msgpack.encode({"id": "o", "node": "n1", "instance": "i", "generation": -1}),
    "a time that is no number": msgspec.msgpack.encode({"id": "o", "node": "n", "instance": "i", "at": float("nan")}),
}


# -- frames, without a broker ---------------------------------------------------------------------


class Connection:
    """The part of py-amqp's connection that the frame handler uses."""

    bytes_recv = 0


def _deliver_frame(key: bytes) -> bytes:
    names = b"\x01e" + bytes([len(key)]) + key
    return struct.pack(">HH", *spec.Basic.Deliver) + b"\x03tag" + struct.pack(">Q", 7) + b"\x01" + names


def _received(key: bytes, properties: bytes, body: bytes, frame_bytes: int = 131_000) -> InboundMessage:
    """The message that arrives in these frames."""
    taken: list[tuple[int, tuple[int, int], bytes, Any]] = []
    take = frame_handler(Connection(), lambda *method: taken.append(method))
    take((1, 1, _deliver_frame(key)))
    take((2, 1, struct.pack(">HHQ", 60, 0, len(body)) + properties))
    take((8, 0, b""))
    for at in range(0, len(body), frame_bytes):
        take((3, 1, body[at : at + frame_bytes]))
    [(channel, signature, arguments, message)] = taken
    assert (channel, signature) == (1, spec.Basic.Deliver)
    assert arguments.endswith(b"\x00\x00"), "neither exchange nor routing key"
    assert isinstance(message, InboundMessage)
    return message


@pytest.mark.parametrize("properties", PROPERTIES.values(), ids=PROPERTIES)
def test_a_message_arrives_whatever_its_properties_and_routing_key_are(properties: bytes) -> None:
    message = _received(b"\xff\xfe", properties, b"body")
    assert (message.body, message.cut_from) == (b"body", 0)
    assert isinstance(decoded_headers(message), dict)
    assert user_of(message) == ""
    assert routing_key(message) == "\ufffd\ufffd"


def test_the_user_of_a_message_is_read_whatever_properties_stand_before_it() -> None:
    """Consumers compare it with the node of the event."""
    properties: dict[str, Any] = {
        "content_type": "x" * 255,
        "content_encoding": "utf-8",
        "application_headers": {"a": {"b": 1}},
        "delivery_mode": 2,
        "priority": 9,
        "correlation_id": "c",
        "reply_to": "r",
        "expiration": "5",
        "message_id": "m",
        "timestamp": 1_763_787_600,
        "type": "t",
    }
    for left_out in ("", *properties):
        given = {name: value for name, value in properties.items() if name != left_out}
        encoded = Message(b"", user_id="node-n1", app_id="a", **given)._serialize_properties()
        assert user_of(_received(b"12", encoded, b"")) == "node-n1"
        for end in range(len(encoded)):
            assert user_of(_received(b"12", encoded[:end], b"")) in ("", "node-n1")
        assert user_of(_received(b"12", Message(b"", **given)._serialize_properties(), b"")) == ""
    assert (node_of("node-n1"), node_of("nodes-rack"), node_of("guest"), node_of("")) == ("n1", "", "", "")


def test_headers_are_decoded_if_they_are_needed() -> None:
    message = _received(b"", with_headers(b"\x06reasonS\x00\x00\x00\x05clock"), b"")
    assert decoded_headers(message) == {"reason": "clock"}
    assert decoded_headers(_received(b"", b"\x00\x00", b"")) == {}


def test_only_the_beginning_of_a_large_body_is_kept() -> None:
    limit = _received(b"", b"\x00\x00", bytes(MAX_BODY_BYTES))
    assert (len(limit.body), limit.cut_from) == (MAX_BODY_BYTES, 0)
    large = _received(b"", b"\x00\x00", b"begins" + LARGE, frame_bytes=3_000)
    assert (len(large.body), large.cut_from) == (CUT_BODY_BYTES, 6 + len(LARGE))
    assert large.body.startswith(b"begins")


def test_a_frame_out_of_order_is_an_error_of_the_connection() -> None:
    take = frame_handler(Connection(), lambda *_: None)
    with pytest.raises(UnexpectedFrame):
        take((3, 1, b"body"))


# -- bodies, without a broker ---------------------------------------------------------------------


@pytest.mark.parametrize("body", ORDERS.values(), ids=ORDERS)
def test_a_malformed_order_is_refused(body: bytes) -> None:
    with pytest.raises(BadEventError):
        decode_order(body)


@pytest.mark.parametrize("body", ANSWERS.values(), ids=ANSWERS)
def test_a_malformed_answer_is_refused(body: bytes) -> None:
    with pytest.raises(BadEventError):
        decode_answer(body)


# -- the virtual transports -----------------------------------------------------------------------


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.service)])
def virtual_config(request: pytest.FixtureRequest, cell: str) -> Config:
    url = "memory://" if request.param == "memory" else request.getfixturevalue("redis_url")
    return Config(broker=url, cell=cell, partitions=2)


def _push(session: VirtualSession, queue: str, envelope: Any) -> None:
    """Put an envelope into a queue, as another program with access to the server can do."""
    channel = session.connection.channel
    if isinstance(envelope, bytes):
        with channel.conn_or_acquire() as client:
            client.lpush(queue, envelope)
    else:
        channel._put(queue, envelope)


SOUND: Final = {"body_encoding": None, "delivery_tag": "1", "delivery_info": {"exchange": "", "routing_key": "q"}}
ENVELOPES: Final[dict[str, Any]] = {
    "an empty map": {},
    "a list": [1],
    "a body that is no base64": {"body": "x", "properties": {**SOUND, "body_encoding": "base64"}},
    "a body of another type": {"body": 7, "properties": SOUND},
    "no delivery tag": {"body": "x", "properties": {"delivery_info": SOUND["delivery_info"]}},
    "a delivery tag that is a list": {"body": "x", "properties": {**SOUND, "delivery_tag": []}},
    "headers that are a list": {"body": "x", "headers": [1], "properties": SOUND},
    "delivery_info without a key": {"body": "x", "properties": {**SOUND, "delivery_info": {}}},
    "an unknown compression": {"body": "x", "headers": {"compression": "rar"}, "properties": SOUND},
}
NO_JSON: Final = (b"{", b"\xff\xfe", b"[" * 100_000, b'{"__type__": "datetime", "__value__": 7}')


def _bodies(source: Source, count: int) -> list[bytes]:
    """Receive and ack messages until ``count`` came that are no markers."""
    deliveries: list[Delivery] = []

    def enough() -> bool:
        new = source.receive(100, 0.05)
        deliveries.extend(one for one in new if not one.body.startswith(ACTIVATION))
        return len(deliveries) >= count

    wait_until(enough, "the messages do not come")
    source.ack(deliveries)
    return [one.body for one in deliveries]


def test_a_malformed_envelope_becomes_a_body_in_the_queue_of_a_partition(
    virtual_config: Config, opened: Callable[[Any], Any]
) -> None:
    """So it becomes a dead letter, like all bytes that are no event. The messages behind it are received."""
    source = opened(KombuSource(virtual_config, [0]))
    source.receive(1, 0)
    session = opened(open_session(virtual_config, "test"))
    queue = Topology.of(virtual_config).queue(0)
    raw = NO_JSON if virtual_config.broker.startswith("redis") else ()
    for envelope in [*ENVELOPES.values(), *raw]:
        _push(session, queue, envelope)
    session.send("", queue, b"honest")
    bodies = _bodies(source, len(ENVELOPES) + len(raw) + 1)
    assert bodies[-1] == b"honest"
    assert [json.loads(body) for body in bodies[: len(ENVELOPES)]] == list(ENVELOPES.values())
    assert bodies[len(ENVELOPES) : -1] == list(raw)


def test_a_malformed_envelope_in_an_agents_queue_is_refused(
    virtual_config: Config, opened: Callable[[Any], Any]
) -> None:
    sink = opened(KombuSink(virtual_config, control=False))
    sink.listen_for(["n1"])
    sink.resyncs(0)
    session = opened(open_session(virtual_config, "test"))
    raw = NO_JSON if virtual_config.broker.startswith("redis") else ()
    for envelope in [*ENVELOPES.values(), *raw]:
        _push(session, sink._order_queue.name, envelope)
    session.send("", sink._order_queue.name, order())
    orders: list[Any] = []

    def comes() -> bool:
        sink.resyncs(0.05)
        orders.extend(sink.orders())
        return bool(orders)

    wait_until(comes, "the honest order does not come")
    assert sink.bad_orders == len(ENVELOPES)


def test_a_large_message_is_cut(virtual_config: Config, opened: Callable[[Any], Any]) -> None:
    source = opened(KombuSource(virtual_config, [0]))
    source.receive(1, 0)
    opened(open_session(virtual_config, "test")).send("", Topology.of(virtual_config).queue(0), LARGE)
    [body] = _bodies(source, 1)
    assert len(body) == CUT_BODY_BYTES


@pytest.fixture(params=["memory", pytest.param("rabbit", marks=pytest.mark.service)])
def any_config(request: pytest.FixtureRequest, cell: str) -> Config:
    url = "memory://" if request.param == "memory" else request.getfixturevalue("rabbit").url
    return Config(broker=url, cell=cell, partitions=2)


def test_a_consumer_receives_few_large_messages_at_a_time(
    any_config: Config, opened: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of 2,000 messages of 256 KB would take 512 MB."""
    limit, size = 10_000, 3_000
    for module in (rabbitmq_consumer, virtual_consumer):
        monkeypatch.setattr(module, "MAX_RECEIVED_BYTES", limit)
    source = opened(KombuSource(any_config, [0]))
    source.receive(1, 0)
    session = opened(open_session(any_config, "test"))
    for _ in range(20):
        session.send("", Topology.of(any_config).queue(0), bytes(size))
    sizes: list[int] = []
    received = 0

    def all_came() -> bool:
        nonlocal received
        new = [one for one in source.receive(100, 0.05) if not one.body.startswith(ACTIVATION)]
        sizes.append(sum(len(one.body) for one in new))
        received += len(new)
        return received == 20

    wait_until(all_came, "the messages do not come")
    assert max(sizes) < limit + size


# -- RabbitMQ -------------------------------------------------------------------------------------


@pytest.fixture
def config(rabbit: RabbitServer, cell: str) -> Config:
    return Config(broker=rabbit.url, cell=cell, partitions=2)


@pytest.fixture
def channel(config: Config, opened: Callable[[Any], Any]) -> Any:
    """A channel of an attacker."""
    session = opened(open_session(config, "attacker", layout=True))
    assert isinstance(session, RabbitSession)
    return session.connection.control


@pytest.mark.service
def test_no_property_of_a_message_breaks_a_consumer(config: Config, channel: Any, opened: Callable[[Any], Any]) -> None:
    """Its session goes on, so it keeps its partitions."""
    source = opened(KombuSource(config, [0]))
    source.receive(1, 0.1)
    for name, properties in PROPERTIES.items():
        send_raw(channel, Topology.of(config).exchange, "0", name.encode(), properties)
    send_raw(channel, Topology.of(config).exchange, "0", LARGE, b"\x00\x00")
    send_raw(channel, Topology.of(config).exchange, "0", b"honest", b"\x00\x00")
    *bodies, large, honest = _bodies(source, len(PROPERTIES) + 2)
    assert [body.decode() for body in bodies] == list(PROPERTIES)
    assert (len(large), honest) == (CUT_BODY_BYTES, b"honest")
    assert source._session_number == 1


@pytest.mark.service
def test_a_consumer_knows_which_messages_came_through_an_exchange(
    config: Config, channel: Any, opened: Callable[[Any], Any]
) -> None:
    source = opened(KombuSource(config, [0]))
    for exchange, key in ((Topology.of(config).exchange, "0"), ("", Topology.of(config).queue(0))):
        send_raw(channel, exchange, key, b"forged", b"\x00\x00")
    routed: list[bool] = []

    def come() -> bool:
        routed.extend(one.routed for one in source.receive(100, 0.05) if one.body == b"forged")
        return len(routed) == 2

    wait_until(come, "the messages do not come")
    assert routed == [True, False]


@pytest.mark.service
def test_no_message_on_the_control_exchange_breaks_an_agent(
    config: Config, channel: Any, opened: Callable[[Any], Any]
) -> None:
    sink = opened(KombuSink(config))
    sink.resyncs(0)
    control = Topology.of(config).control
    for properties in PROPERTIES.values():
        send_raw(channel, control, b"\xff\xfe", b"\xc1", properties)
    for body in [*RESYNCS.values(), LARGE]:
        send_raw(channel, control, "", body, b"\x00\x00")
    opened(KombuResyncSender(config)).request_resync(Resync(nodes=("honest",)))
    resyncs: list[Resync] = []
    session = sink._sessions.current

    def comes() -> bool:
        resyncs.extend(sink.resyncs(0.05))
        return bool(resyncs)

    wait_until(comes, "the honest request does not come")
    assert [one.nodes for one in resyncs] == [("honest",)]
    assert sink.bad_resyncs == len(PROPERTIES) + len(RESYNCS) + 1
    assert sink._sessions.current is session


@pytest.mark.service
def test_no_message_on_the_exchange_for_orders_breaks_an_agent(
    config: Config, channel: Any, opened: Callable[[Any], Any]
) -> None:
    sink, courier = opened(KombuSink(config)), opened(KombuCourier(config))
    sink.listen_for(["n1"])
    sink.resyncs(0)
    orders: list[Any] = []

    def comes() -> bool:
        send_raw(channel, Topology.of(config).orders, "n1", order(id="honest"), b"\x00\x00")
        sink.resyncs(0.05)
        orders.extend(sink.orders())
        return bool(orders)

    wait_until(comes, "the binding is not made")
    orders.clear()
    for properties in PROPERTIES.values():
        send_raw(channel, Topology.of(config).orders, "n1", b"\xc1", properties)
    for body in [*ORDERS.values(), LARGE, order(id="x" * MAX_ORDER_BYTES, reply_to=courier.reply_to)]:
        send_raw(channel, Topology.of(config).orders, "n1", body, b"\x00\x00")
    session = sink._sessions.current
    wait_until(comes, "the honest order does not come")
    assert {one.id for one in orders} == {"honest"}
    assert sink.bad_orders == len(PROPERTIES) + len(ORDERS) + 2
    assert sink._sessions.current is session


@pytest.mark.service
def test_orders_and_answers_whose_routing_key_names_another_node_are_dropped(
    config: Config, channel: Any, opened: Callable[[Any], Any]
) -> None:
    """RabbitMQ limits the routing keys of an agent's user, and not the bodies."""
    topology = Topology.of(config)
    sink, courier = opened(KombuSink(config)), opened(KombuCourier(config))
    queue = courier.reply_to
    sink.listen_for(["n1", "n2"])
    orders: list[Any] = []

    def comes() -> bool:
        send_raw(channel, topology.node_orders, "n2", order(id="foreign"), b"\x00\x00")
        send_raw(channel, topology.node_orders, "n1", order(id="honest"), b"\x00\x00")
        sink.resyncs(0.05)
        orders.extend(sink.orders())
        return bool(orders and sink.bad_orders)

    wait_until(comes, "the orders do not come")
    assert {one.id for one in orders} == {"honest"}
    presence = encode_presence(Presence(node="n1", incarnation=5, generation=7, life="token", host="host-1"))
    send_raw(channel, topology.node_orders, "n2", presence, b"\x00\x00")
    for key, name in (("n2", "foreign"), ("n1", "honest")):
        answer = encode(Answer(id=name, node="n1", instance="i-1"))
        send_raw(channel, topology.answers, f"{topology.answer_token(queue)}.{key}", answer, b"\x00\x00")
    answers: list[Answer] = []

    def answered() -> bool:
        answers.extend(courier.answers(0.05))
        return bool(answers)

    wait_until(answered, "the honest answer does not come")
    assert ([one.id for one in answers], courier.bad_answers) == (["honest"], 1)
    sink.resyncs(0.05)
    assert ({one.id for one in sink.orders()} <= {"honest"}, sink.presences()) == (True, [])


@pytest.mark.service
def test_no_message_in_the_queue_for_answers_breaks_a_scheduler(
    config: Config, channel: Any, opened: Callable[[Any], Any]
) -> None:
    courier = opened(KombuCourier(config))
    queue = courier.reply_to
    for properties in PROPERTIES.values():
        send_raw(channel, "", queue, b"\xc1", properties)
    for body in [*ANSWERS.values(), LARGE]:
        send_raw(channel, "", queue, body, b"\x00\x00")
    answer = Answer(id="o-1", node="n1", instance="i-1")
    send_raw(channel, "", queue, encode(answer), b"\x00\x00")
    answers: list[Answer] = []

    def comes() -> bool:
        answers.extend(courier.answers(0.05))
        return bool(answers)

    wait_until(comes, "the honest answer does not come")
    assert answers == [answer]
    assert courier.reply_to == queue
    assert courier.bad_answers == len(PROPERTIES) + len(ANSWERS) + 1


@pytest.mark.service
def test_every_dead_letter_can_be_read(config: Config, channel: Any) -> None:
    dead = Topology.of(config).dead
    for name, properties in PROPERTIES.items():
        send_raw(channel, "", dead, name.encode(), properties)
    send_raw(channel, "", dead, LARGE, b"\x00\x00")
    wait_until(lambda: channel.queue_declare(dead, passive=True).message_count == len(PROPERTIES) + 1, "no letters")
    letters = read_dead_letters(config, 100)
    assert [letter.body.decode() for letter in letters[:-1]] == list(PROPERTIES)
    assert len(letters[-1].body) == CUT_BODY_BYTES
    assert {letter.at for letter in letters} == {0}
    assert {letter.partition for letter in letters} == {None}


@pytest.mark.service
@pytest.mark.thorough
def test_a_consumer_holds_little_of_many_large_messages(
    config: Config, channel: Any, opened: Callable[[Any], Any]
) -> None:
    """120 messages of 8 MB would take 960 MB."""
    source = opened(KombuSource(config, [0]))
    source.receive(1, 0.1)
    for _ in range(20):
        send_raw(channel, Topology.of(config).exchange, "0", LARGE, b"\x00\x00")
    deliveries: list[Delivery] = []

    def all_came() -> bool:
        deliveries.extend(one for one in source.receive(100, 0.05) if one.cut_from)
        return len(deliveries) == 20

    wait_until(all_came, "the messages do not come")
    assert {one.cut_from for one in deliveries} == {len(LARGE)}
    assert sum(len(one.body) for one in deliveries) == 20 * CUT_BODY_BYTES

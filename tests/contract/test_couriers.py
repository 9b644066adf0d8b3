"""The contract of couriers over MemoryBroker, memory://, Redis and RabbitMQ; then the faults of MemoryBroker."""

from __future__ import annotations

import pytest
from msgspec import structs

from harness.servers import RabbitServer
from harness.waiting import PATIENCE_S, wait_until
from nodestate.broker import KombuCourier, KombuSink
from nodestate.broker.connector import open_session
from nodestate.broker.rabbitmq.session import RabbitSession
from nodestate.broker.topology import Topology
from nodestate.config import Config
from nodestate.errors import BrokerUnavailableError
from nodestate.model.orders import Answer, Order, decode_order, encode
from nodestate.ports import AgentInbox, Courier
from nodestate.testing import ManualClock, MemoryBroker
from tests.contract.courier import (
    CourierContract,
    ListeningSink,
    OrderBench,
    RestartingCourierContract,
    build,
    done,
    take_answers,
)


class InMemory:
    """A ``MemoryBroker`` behind ``contract.courier.OrderBroker``."""

    def __init__(self) -> None:
        self._broker = MemoryBroker(1)
        self.sink, self.courier = self._broker.sink, self._broker.courier

    def restart(self) -> None:
        self._broker.stop()
        self._broker.start()


class TestMemoryBroker(RestartingCourierContract):
    @pytest.fixture
    def broker(self) -> InMemory:
        return InMemory()


class OverKombu:
    """Any broker that kombu reaches, behind ``contract.courier.OrderBroker``."""

    def __init__(self, config: Config, server: RabbitServer | None = None) -> None:
        self._config = config
        self._server = server

    def sink(self) -> ListeningSink:
        return KombuSink(self._config)

    def courier(self) -> Courier:
        return KombuCourier(self._config)

    def restart(self) -> None:
        assert self._server is not None
        self._server.restart()


class TestKombuMemory(CourierContract):
    @pytest.fixture
    def broker(self, cell: str) -> OverKombu:
        return OverKombu(Config(broker="memory://", cell=cell, partitions=1))


@pytest.mark.service
class TestRabbit(RestartingCourierContract):
    @pytest.fixture
    def broker(self, rabbit: RabbitServer, cell: str) -> OverKombu:
        return OverKombu(Config(broker=rabbit.url, cell=cell, partitions=1), rabbit)


# -- Redis ----------------------------------------------------------------------------------------


@pytest.mark.service
def test_redis_carries_orders_and_answers(redis_url: str, cell: str) -> None:
    """The whole contract holds there. Only two tests run, as kombu takes a second to close each connection."""
    bench, contract = OrderBench(OverKombu(Config(broker=redis_url, cell=cell, partitions=1))), CourierContract()
    contract.test_an_order_reaches_its_agent_unchanged_and_the_answer_comes_back(bench)
    bench.close()
    contract.test_an_agent_that_stops_listening_gets_no_more_orders_for_the_node(bench)
    bench.close()


# -- RabbitMQ -------------------------------------------------------------------------------------


@pytest.mark.service
def test_rabbitmq_drops_an_order_that_waited_longer_than_expires_s(rabbit: RabbitServer, cell: str) -> None:
    """So an agent that was stalled for hours finds no hours of orders when it resumes."""
    config = Config(broker=rabbit.url, cell=cell, partitions=1)
    session, courier = open_session(config, "test"), KombuCourier(config)
    assert isinstance(session, RabbitSession)
    channel = session.connection.control
    queue = channel.queue_declare("", exclusive=True).queue
    channel.queue_bind(queue, Topology.of(config).node_orders, "n1")
    courier.send([build(courier, 1)], 3.0)
    courier.send([build(courier, 2)], 600.0)
    wait_until(lambda: session.queues.counts(queue) == (2, 0), "the orders do not arrive")
    wait_until(lambda: session.queues.counts(queue) == (1, 0), "the first order is not dropped")
    fetched = session.queues.fetch(queue)
    assert fetched is not None
    assert b"order-2" in fetched.body
    courier.close()
    session.close()


@pytest.mark.service
def test_an_agent_of_an_earlier_version_gets_orders_and_its_answers_arrive(rabbit: RabbitServer, cell: str) -> None:
    """It knows one exchange for orders, and publishes answers to the queue of the scheduler."""
    config = Config(broker=rabbit.url, cell=cell, partitions=1)
    session, courier = open_session(config, "test"), KombuCourier(config)
    assert isinstance(session, RabbitSession)
    channel = session.connection.control
    queue = channel.queue_declare("", exclusive=True).queue
    channel.queue_bind(queue, Topology.of(config).orders, "n1")
    order = build(courier, 1)
    courier.send([order], PATIENCE_S)
    bodies: list[bytes] = []

    def arrives() -> bool:
        assert courier.answers(0.01) == []
        fetched = session.queues.fetch(queue)
        bodies.extend([fetched.body] if fetched is not None else [])
        return bool(bodies)

    wait_until(arrives, "the order does not arrive")
    assert decode_order(bodies[0]) == order
    session.send("", order.reply_to, encode(done(order)))
    assert take_answers(courier, 1) == [done(order)]
    courier.close()
    session.close()


@pytest.mark.service
def test_a_scheduler_of_an_earlier_version_reaches_an_agent_and_gets_its_answer(
    rabbit: RabbitServer, cell: str
) -> None:
    """It knows one exchange for orders, and waits for answers in a queue that is bound to no exchange."""
    config = Config(broker=rabbit.url, cell=cell, partitions=1)
    session, agent = open_session(config, "test"), KombuSink(config)
    assert isinstance(session, RabbitSession)
    agent.listen_for(["n1"])
    queue = session.connection.control.queue_declare("", exclusive=True).queue
    order = structs.replace(build(None, 1), reply_to=queue)
    orders: list[Order] = []

    def arrives() -> bool:
        session.send(Topology.of(config).orders, "n1", encode(order))
        agent.resyncs(0.05)
        orders.extend(agent.orders())
        return bool(orders)

    wait_until(arrives, "the order does not arrive")
    assert orders[0] == order
    agent.answer(order.reply_to, done(order))
    answers: list[bytes] = []

    def answered() -> bool:
        fetched = session.queues.fetch(queue)
        answers.extend([fetched.body] if fetched is not None else [])
        return bool(answers)

    wait_until(answered, "the answer does not arrive")
    assert answers == [encode(done(order))]
    agent.close()
    session.close()


@pytest.mark.service
def test_a_frozen_broker_does_not_block_a_scheduler(rabbit: RabbitServer, cell: str) -> None:
    config = Config(broker=rabbit.url, cell=cell, partitions=1, broker_timeout_s=3.0)
    courier = KombuCourier(config)
    hints = {"user_data": "x" * 60_000}
    orders = [
        structs.replace(build(courier, number), hints=hints) for number in range(500)
    ]  # more than the sockets take
    rabbit.pause()
    try:
        with pytest.raises(BrokerUnavailableError):
            courier.send(orders, PATIENCE_S)
        with pytest.raises(BrokerUnavailableError):
            _ = courier.reply_to
    finally:
        rabbit.resume()
    courier.send([build(courier, 1, "nobody")], PATIENCE_S)
    assert [answer.refused for answer in take_answers(courier, 1)] == ["no-agent"]
    courier.close()


@pytest.mark.service
def test_events_do_not_wait_until_ten_thousand_nodes_listen(rabbit: RabbitServer, cell: str) -> None:
    """Events do not wait for the bindings, which go through a channel of their own."""
    config = Config(broker=rabbit.url, cell=cell, partitions=1)
    sink, courier = KombuSink(config), KombuCourier(config)
    confirmed: list[bool] = []
    sink.listen_for([f"n{number}" for number in range(10_000)])
    sink.resyncs(0)
    sink.publish(0, b"event", confirmed.append)
    sink.flush(PATIENCE_S)
    assert confirmed == [True]

    answers: list[Answer] = []

    def is_answered() -> bool:
        sink.resyncs(0.05)
        for order in sink.orders():
            sink.answer(order.reply_to, done(order))
        answers.extend(courier.answers(0.0))
        return bool(answers)

    def last_node_listens() -> bool:
        answers.clear()
        courier.send([build(courier, 1, "n9999")], PATIENCE_S)
        wait_until(is_answered, "an order is neither answered nor returned")
        return not answers[0].refused

    wait_until(last_node_listens, "orders do not reach the last of the nodes")
    sink.close()
    courier.close()


# -- faults on demand -----------------------------------------------------------------------------


@pytest.fixture
def held() -> tuple[MemoryBroker, AgentInbox, Courier]:
    """A broker that holds orders and answers for the test, an agent of n1, and a scheduler."""
    broker = MemoryBroker(1, clock=ManualClock())
    sink = broker.sink()
    sink.listen_for(["n1"])
    broker.transit.holding = True
    return broker, sink, broker.courier()


Held = tuple[MemoryBroker, AgentInbox, Courier]


def test_held_orders_arrive_in_the_order_that_the_test_chooses(held: Held) -> None:
    broker, sink, courier = held
    courier.send([build(courier, number) for number in range(3)], 60.0)
    assert sink.orders() == []
    broker.transit.deliver(2)
    broker.transit.deliver()
    assert [order.id for order in sink.orders()] == ["order-2", "order-0"]
    assert [letter.to for letter in broker.transit.under_way] == ["n1"]


def test_held_orders_and_answers_can_be_lost(held: Held) -> None:
    broker, sink, courier = held
    courier.send([build(courier, 1), build(courier, 2)], 60.0)
    assert b"order-1" in broker.transit.lose().body
    broker.transit.deliver()
    [order] = sink.orders()
    sink.answer(order.reply_to, done(order))
    assert courier.answers(0) == []
    assert broker.transit.lose().kind == "answer"
    assert courier.answers(0) == []


def test_an_order_that_is_held_past_its_expiry_is_dropped(held: Held) -> None:
    broker, sink, courier = held
    courier.send([build(courier, 1)], 5.0)
    courier.answers(4.9)
    broker.transit.deliver()
    courier.answers(0.1)
    assert sink.orders() == []


def test_an_answer_may_arrive_after_the_answer_to_a_later_order(held: Held) -> None:
    broker, sink, courier = held
    courier.send([build(courier, 1), build(courier, 2)], 60.0)
    broker.transit.deliver()
    broker.transit.deliver()
    orders = sink.orders()
    for order in orders:
        sink.answer(order.reply_to, done(order))
    broker.transit.deliver(1)
    broker.transit.deliver()
    expected: list[Answer] = [done(orders[1]), done(orders[0])]
    assert courier.answers(0) == expected


def test_messages_under_way_are_lost_when_the_broker_stops(held: Held) -> None:
    broker, sink, courier = held
    courier.send([build(courier, 1)], 60.0)
    broker.stop()
    broker.start()
    assert broker.transit.under_way == []
    with pytest.raises(BrokerUnavailableError):
        courier.answers(0)
    assert sink.orders() == []

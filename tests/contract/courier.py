"""The contract of Courier and AgentInbox, as tests: subclass the contract and define its fixture ``broker``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Protocol

import pytest

from harness.waiting import PATIENCE_S
from nodestate.errors import BadEventError, BrokerUnavailableError
from nodestate.model import Version
from nodestate.model.orders import Answer, Build, End, Order
from nodestate.model.presence import Presence
from nodestate.ports import AgentInbox, Courier, Sink

FOREVER_S = 3_600.0
"""A wait that ends early: one that lasted so long would end by the timeout of the test."""
QUIET_S = 0.1
LOST_S = 2.0
"""An order that has neither arrived nor come back within this time was lost."""
DEADLINE = 2e9


class ListeningSink(Sink, AgentInbox, Protocol):
    """An agent's connection."""

    bad_orders: int


class OrderBroker(Protocol):
    """A broker between schedulers and agents. The test closes its connections."""

    def sink(self) -> ListeningSink:
        """A new connection of an agent."""

    def courier(self) -> Courier:
        """A new connection of a scheduler."""

    def restart(self) -> None:
        """Stop and start the broker; messages under way are lost."""


class OrderBench:
    """Sinks and couriers of one test, with waits that suffice for real brokers."""

    def __init__(self, broker: OrderBroker) -> None:
        self.broker = broker
        self._open = ExitStack()

    def courier(self) -> Courier:
        courier = self.broker.courier()
        self._open.callback(courier.close)
        assert courier.reply_to
        return courier

    def agent(self, *nodes: str) -> ListeningSink:
        """A sink that listens for these nodes, as the broker knows."""
        sink = self.broker.sink()
        self._open.callback(sink.close)
        sink.resyncs(0)
        sink.listen_for(nodes)
        self.wait_until_listened_for(sink, nodes[-1])
        return sink

    def wait_until_listened_for(self, sink: ListeningSink, node: str) -> None:
        """Wait until the broker knows that the sink listens for the node.

        Sends one order at a time, so that none is left.
        """
        courier = self.courier()
        deadline = time.monotonic() + PATIENCE_S
        orders: list[Order] = []
        while not orders:
            assert time.monotonic() < deadline
            courier.send([End(id="who is there", node=node, instance="none")], PATIENCE_S)
            again_at = time.monotonic() + LOST_S
            while not orders and not courier.answers(0.01) and time.monotonic() < again_at:
                sink.resyncs(0.01)
                orders = sink.orders()

    def wait_until_unlistened(self, node: str) -> None:
        """Wait until the broker reports that no agent listens for the node."""
        courier = self.courier()
        deadline = time.monotonic() + PATIENCE_S
        answers: list[Answer] = []
        while not answers:
            assert time.monotonic() < deadline
            courier.send([End(id="who is there", node=node, instance="none")], PATIENCE_S)
            answers = courier.answers(QUIET_S)
        assert {answer.refused for answer in answers} == {"no-agent"}

    def close(self) -> None:
        self._open.close()


def build(courier: Courier | None, number: int, node: str = "n1") -> Build:
    return Build(
        id=f"order-{number}",
        node=node,
        instance=f"vm-{number}",
        reply_to=courier.reply_to if courier is not None else "",
        resources={"VCPU": 4, "MEMORY_MB": 8_192},
        group="web",
        hints={"group_policy": "anti-affinity", "max_per_node": 2},
        deadline=DEADLINE,
    )


def take_orders(sink: ListeningSink, count: int) -> list[Order]:
    """Receive exactly ``count`` orders."""
    orders: list[Order] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(orders) < count:
        assert time.monotonic() < deadline, f"{len(orders)} of {count} orders came"
        sink.resyncs(0.05)
        orders += sink.orders()
    assert len(orders) == count
    return orders


def take_answers(courier: Courier, count: int) -> list[Answer]:
    """Receive exactly ``count`` answers."""
    answers: list[Answer] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(answers) < count:
        assert time.monotonic() < deadline, f"{len(answers)} of {count} answers came"
        answers += courier.answers(0.05)
    assert len(answers) == count
    return answers


def done(order: Order, generation: int = 1) -> Answer:
    return Answer(id=order.id, node=order.node, instance=order.instance, incarnation=5, generation=generation)


class CourierContract:
    """The contract of every broker. Subclasses define the fixture ``broker``."""

    @pytest.fixture
    def bench(self, broker: OrderBroker) -> Iterator[OrderBench]:
        bench = OrderBench(broker)
        yield bench
        bench.close()

    def test_an_order_reaches_its_agent_unchanged_and_the_answer_comes_back(self, bench: OrderBench) -> None:
        courier, agent, other = bench.courier(), bench.agent("n1", "n2"), bench.agent("n3")
        orders = [build(courier, 1), End(id="order-2", node="n2", instance="vm-0", reply_to=courier.reply_to)]
        courier.send(orders, PATIENCE_S)
        assert take_orders(agent, 2) == orders
        refused = Answer(id="order-2", node="n2", instance="vm-0", refused="failed", detail="no such disk")
        agent.answer(orders[0].reply_to, done(orders[0]))
        agent.answer(orders[1].reply_to, refused)
        answers = take_answers(courier, 2)
        assert answers == [done(orders[0]), refused]
        assert [answer.version for answer in answers] == [Version(5, 1), Version(0, 0)]
        other.resyncs(QUIET_S)
        assert other.orders() == []

    def test_a_presence_reaches_all_agents_that_listen_for_its_node(self, bench: OrderBench) -> None:
        one, two, other = bench.agent("n1"), bench.agent("n1"), bench.agent("n2")
        presence = Presence(node="n1", incarnation=5, generation=7, life="token", host="host-1")
        one.announce(presence)
        for sink in (one, two):
            found: list[Presence] = []
            deadline = time.monotonic() + PATIENCE_S
            while not found:
                assert time.monotonic() < deadline, "the presence did not come"
                sink.resyncs(0.05)
                assert [order for order in sink.orders() if order.id != "who is there"] == []
                found = sink.presences()
            assert found == [presence]
        other.resyncs(0.0)
        assert (other.orders(), other.presences(), other.bad_orders) == ([], [], 0)

    def test_an_order_without_a_listening_agent_is_answered_at_once(self, bench: OrderBench) -> None:
        """A scheduler that waited for the deadline would hold its claim in vain."""
        courier = bench.courier()
        bench.agent("n1")
        courier.send([build(courier, 1, "elsewhere")], FOREVER_S)
        [answer] = take_answers(courier, 1)
        assert (answer.id, answer.node, answer.instance, answer.refused) == (
            "order-1",
            "elsewhere",
            "vm-1",
            "no-agent",
        )
        assert answer.version == Version(0, 0)

    def test_thousands_of_orders_reach_their_agents_in_order(self, bench: OrderBench) -> None:
        courier = bench.courier()
        agents = {f"n{number}": bench.agent(f"n{number}") for number in range(3)}
        orders = [build(courier, number, f"n{number % 3}") for number in range(3_000)]
        courier.send(orders, PATIENCE_S)
        for node, agent in agents.items():
            mine = [order for order in orders if order.node == node]
            assert take_orders(agent, 1_000) == mine
            for order in mine:
                agent.answer(order.reply_to, done(order))
        assert {answer.id for answer in take_answers(courier, 3_000)} == {order.id for order in orders}

    def test_answers_go_to_the_courier_that_sent_the_order(self, bench: OrderBench) -> None:
        one, two, agent = bench.courier(), bench.courier(), bench.agent("n1")
        for number, courier in enumerate((one, two)):
            courier.send([build(courier, number)], PATIENCE_S)
        for order in take_orders(agent, 2):
            agent.answer(order.reply_to, done(order))
        assert [[answer.id for answer in take_answers(courier, 1)] for courier in (one, two)] == [
            ["order-0"],
            ["order-1"],
        ]

    def test_waiting_ends_with_the_first_arrival(self, bench: OrderBench) -> None:
        """An order must not wait until the agent's current wait ends, nor its answer until the scheduler's does."""
        courier, agent = bench.courier(), bench.agent("n1")
        assert courier.answers(0.05) == []
        courier.send([build(courier, 1)], PATIENCE_S)
        agent.resyncs(FOREVER_S)
        [order] = agent.orders()
        agent.answer(order.reply_to, done(order))
        assert courier.answers(FOREVER_S) == [done(order)]

    def test_an_agent_gets_orders_for_a_node_that_it_listens_for_later(self, bench: OrderBench) -> None:
        courier, agent = bench.courier(), bench.agent("n1")
        bench.wait_until_unlistened("n2")
        agent.listen_for(["n1", "n2"])
        bench.wait_until_listened_for(agent, "n2")
        courier.send([build(courier, 1), build(courier, 2, "n2")], PATIENCE_S)
        assert [order.id for order in take_orders(agent, 2)] == ["order-1", "order-2"]

    def test_an_agent_that_stops_listening_gets_no_more_orders_for_the_node(self, bench: OrderBench) -> None:
        """The old agent must not answer for a node that moved to another agent."""
        courier, old = bench.courier(), bench.agent("n1", "n2")
        old.stop_listening_for(["n2", "n3"])
        new = bench.agent("n2")
        courier.send([build(courier, 2, "n2"), build(courier, 1)], PATIENCE_S)
        assert [order.id for order in take_orders(old, 1)] == ["order-1"]
        assert [order.id for order in take_orders(new, 1)] == ["order-2"]

    def test_an_agent_gets_orders_again_after_it_reconnects(self, bench: OrderBench) -> None:
        courier, agent = bench.courier(), bench.agent("n1", "n2")
        agent.close()
        bench.wait_until_unlistened("n2")
        agent.resyncs(0)
        bench.wait_until_listened_for(agent, "n2")
        courier.send([build(courier, 1)], PATIENCE_S)
        assert [order.id for order in take_orders(agent, 1)] == ["order-1"]

    def test_a_malformed_order_is_answered_if_it_names_a_queue(self, bench: OrderBench) -> None:
        courier, agent = bench.courier(), bench.agent("n1")
        without_queue = End(id="order-1", node="n1", instance="")
        with_queue = End(id="order-2", node="n1", instance="", reply_to=courier.reply_to)
        courier.send([without_queue, with_queue, build(courier, 3)], PATIENCE_S)
        assert [order.id for order in take_orders(agent, 1)] == ["order-3"]
        [answer] = take_answers(courier, 1)
        assert (answer.id, answer.node, answer.refused) == ("order-2", "n1", "bad-order")
        assert "instance" in answer.detail
        assert agent.bad_orders == 2

    def test_a_too_large_order_is_refused_before_any_order_is_sent(self, bench: OrderBench) -> None:
        courier, agent = bench.courier(), bench.agent("n1")
        huge = Build(id="huge", node="n1", instance="vm", resources={}, hints={"x": "x" * 70_000}, deadline=DEADLINE)
        with pytest.raises(BadEventError, match="too-large"):
            courier.send([build(courier, 1), huge], PATIENCE_S)
        agent.resyncs(QUIET_S)
        assert agent.orders() == []

    def test_an_answer_to_a_closed_courier_has_no_effect(self, bench: OrderBench) -> None:
        gone, courier, agent = bench.courier(), bench.courier(), bench.agent("n1")
        gone.send([build(gone, 1)], PATIENCE_S)
        [late] = take_orders(agent, 1)
        gone.close()
        agent.answer(late.reply_to, done(late))
        courier.send([build(courier, 2)], PATIENCE_S)
        [order] = take_orders(agent, 1)
        agent.answer(order.reply_to, done(order))
        assert take_answers(courier, 1) == [done(order)]
        assert gone.reply_to != late.reply_to
        assert gone.answers(0.05) == []


class RestartingCourierContract(CourierContract):
    """The contract of brokers that can be restarted, and that remove the bindings of agents that stop listening."""

    def test_an_order_for_a_node_that_is_no_longer_listened_for_is_answered(self, bench: OrderBench) -> None:
        agent = bench.agent("n1", "n2")
        agent.stop_listening_for(["n2"])
        bench.wait_until_unlistened("n2")
        bench.wait_until_listened_for(agent, "n1")

    def test_after_an_outage_agents_listen_again_and_answers_use_another_queue(self, bench: OrderBench) -> None:
        """A courier's next call raises once, as its orders may be lost. Reading ``reply_to`` alone does not raise."""
        waiting, idle, agent = bench.courier(), bench.courier(), bench.agent("n1", "n2")
        before = {waiting.reply_to, idle.reply_to}
        bench.broker.restart()
        with pytest.raises(BrokerUnavailableError):
            take_answers(waiting, 1)
        assert len({waiting.reply_to, idle.reply_to} | before) == 4
        for _ in range(2):
            with suppress(BrokerUnavailableError):
                agent.resyncs(0)
        bench.wait_until_listened_for(agent, "n2")
        waiting.send([build(waiting, 1)], PATIENCE_S)
        [order] = take_orders(agent, 1)
        agent.answer(order.reply_to, done(order))
        assert take_answers(waiting, 1) == [done(order)]

"""What every Courier and AgentInbox promise, as tests: subclass the contract and give it a ``post``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Protocol

import pytest

from nodestate.errors import BadEventError, BrokerUnavailableError
from nodestate.model import Version
from nodestate.model.orders import Answer, Build, End, Order
from nodestate.ports import AgentInbox, Courier, Sink

PATIENCE_S = 10.0
QUIET_S = 0.1
LOST_S = 2.0
"""What nobody heard and what did not come back by then was lost."""
DEADLINE = 2e9


class ListeningSink(Sink, AgentInbox, Protocol):
    """What an agent holds."""

    bad_orders: int


class Post(Protocol):
    """A broker between schedulers and agents; the test closes what it gets."""

    def sink(self) -> ListeningSink:
        """An agent's connection, of its own."""

    def courier(self) -> Courier:
        """A scheduler's connection, of its own."""

    def restart(self) -> None:
        """Stop and start; what is under way is lost."""


class Office:
    """Sinks and couriers of one test, with the patience that real brokers need."""

    def __init__(self, post: Post) -> None:
        self.post = post
        self._open = ExitStack()

    def courier(self) -> Courier:
        courier = self.post.courier()
        self._open.callback(courier.close)
        assert courier.reply_to
        return courier

    def agent(self, *nodes: str) -> ListeningSink:
        """A sink that listens for these nodes, known to the broker."""
        sink = self.post.sink()
        self._open.callback(sink.close)
        sink.resyncs(0)
        sink.listen_for(nodes)
        self.until_heard(sink, nodes[-1])
        return sink

    def until_heard(self, sink: ListeningSink, node: str) -> None:
        """Until the broker knows that the sink listens for the node. Asks one order at a time, so that none is left over."""
        courier = self.courier()
        deadline = time.monotonic() + PATIENCE_S
        heard: list[Order] = []
        while not heard:
            assert time.monotonic() < deadline
            courier.send([End(id="who is there", node=node, instance="none")], PATIENCE_S)
            again_at = time.monotonic() + LOST_S
            while not heard and not courier.answers(0.01) and time.monotonic() < again_at:
                sink.resyncs(0.01)
                heard = sink.orders()

    def until_silent(self, node: str) -> None:
        """Until the broker says that nobody listens for the node."""
        courier = self.courier()
        deadline = time.monotonic() + PATIENCE_S
        told: list[Answer] = []
        while not told:
            assert time.monotonic() < deadline
            courier.send([End(id="who is there", node=node, instance="none")], PATIENCE_S)
            told = courier.answers(QUIET_S)
        assert {answer.refused for answer in told} == {"no-agent"}

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
    """Exactly ``count`` orders."""
    orders: list[Order] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(orders) < count:
        assert time.monotonic() < deadline, f"{len(orders)} of {count} orders came"
        sink.resyncs(0.05)
        orders += sink.orders()
    assert len(orders) == count
    return orders


def take_answers(courier: Courier, count: int) -> list[Answer]:
    """Exactly ``count`` answers."""
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
    """Subclasses give the fixture ``post``."""

    @pytest.fixture
    def office(self, post: Post) -> Iterator[Office]:
        office = Office(post)
        yield office
        office.close()

    def test_an_order_reaches_its_nodes_agent_as_it_was_given_and_the_answer_comes_back(self, office: Office) -> None:
        courier, agent, other = office.courier(), office.agent("n1", "n2"), office.agent("n3")
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

    def test_an_order_that_nobody_listens_for_comes_back_at_once(self, office: Office) -> None:
        """Who waited for its deadline would hold its claim for nothing."""
        courier = office.courier()
        office.agent("n1")
        started = time.monotonic()
        courier.send([build(courier, 1, "elsewhere")], 60.0)
        [answer] = take_answers(courier, 1)
        assert (answer.id, answer.node, answer.instance, answer.refused) == (
            "order-1",
            "elsewhere",
            "vm-1",
            "no-agent",
        )
        assert answer.version == Version(0, 0)
        assert time.monotonic() - started < 2.0

    def test_thousands_of_orders_reach_each_their_agent_in_order(self, office: Office) -> None:
        courier = office.courier()
        agents = {f"n{number}": office.agent(f"n{number}") for number in range(3)}
        orders = [build(courier, number, f"n{number % 3}") for number in range(3_000)]
        courier.send(orders, PATIENCE_S)
        for node, agent in agents.items():
            mine = [order for order in orders if order.node == node]
            assert take_orders(agent, 1_000) == mine
            for order in mine:
                agent.answer(order.reply_to, done(order))
        assert {answer.id for answer in take_answers(courier, 3_000)} == {order.id for order in orders}

    def test_answers_go_to_who_asked(self, office: Office) -> None:
        one, two, agent = office.courier(), office.courier(), office.agent("n1")
        for number, courier in enumerate((one, two)):
            courier.send([build(courier, number)], PATIENCE_S)
        for order in take_orders(agent, 2):
            agent.answer(order.reply_to, done(order))
        assert [[answer.id for answer in take_answers(courier, 1)] for courier in (one, two)] == [
            ["order-0"],
            ["order-1"],
        ]

    def test_waiting_ends_with_the_first_that_comes(self, office: Office) -> None:
        """An order must not wait until an agent's step is over, nor its answer for a scheduler's."""
        courier, agent = office.courier(), office.agent("n1")
        assert courier.answers(0.05) == []
        started = time.monotonic()
        courier.send([build(courier, 1)], PATIENCE_S)
        agent.resyncs(PATIENCE_S)
        [order] = agent.orders()
        agent.answer(order.reply_to, done(order))
        assert courier.answers(PATIENCE_S) == [done(order)]
        assert time.monotonic() - started < PATIENCE_S / 2

    def test_who_is_told_later_to_listen_hears_from_then_on(self, office: Office) -> None:
        courier, agent = office.courier(), office.agent("n1")
        office.until_silent("n2")
        agent.listen_for(["n1", "n2"])
        office.until_heard(agent, "n2")
        courier.send([build(courier, 1), build(courier, 2, "n2")], PATIENCE_S)
        assert [order.id for order in take_orders(agent, 2)] == ["order-1", "order-2"]

    def test_who_stops_listening_leaves_its_orders_to_others(self, office: Office) -> None:
        """A node that moved to another agent must not be answered for by the old one."""
        courier, old = office.courier(), office.agent("n1", "n2")
        old.stop_listening_for(["n2", "n3"])
        new = office.agent("n2")
        courier.send([build(courier, 2, "n2"), build(courier, 1)], PATIENCE_S)
        assert [order.id for order in take_orders(old, 1)] == ["order-1"]
        assert [order.id for order in take_orders(new, 1)] == ["order-2"]

    def test_orders_end_with_the_agents_connection_and_come_again_with_the_next(self, office: Office) -> None:
        courier, agent = office.courier(), office.agent("n1", "n2")
        agent.close()
        office.until_silent("n2")
        agent.resyncs(0)
        office.until_heard(agent, "n2")
        courier.send([build(courier, 1)], PATIENCE_S)
        assert [order.id for order in take_orders(agent, 1)] == ["order-1"]

    def test_what_is_no_order_is_answered_where_it_says_to_whom(self, office: Office) -> None:
        courier, agent = office.courier(), office.agent("n1")
        nobodys = End(id="order-1", node="n1", instance="")
        somebodys = End(id="order-2", node="n1", instance="", reply_to=courier.reply_to)
        courier.send([nobodys, somebodys, build(courier, 3)], PATIENCE_S)
        assert [order.id for order in take_orders(agent, 1)] == ["order-3"]
        [answer] = take_answers(courier, 1)
        assert (answer.id, answer.node, answer.refused) == ("order-2", "n1", "bad-order")
        assert "instance" in answer.detail
        assert agent.bad_orders == 2

    def test_an_order_that_is_too_large_is_refused_before_any_is_sent(self, office: Office) -> None:
        courier, agent = office.courier(), office.agent("n1")
        huge = Build(id="huge", node="n1", instance="vm", resources={}, hints={"x": "x" * 70_000}, deadline=DEADLINE)
        with pytest.raises(BadEventError, match="too-large"):
            courier.send([build(courier, 1), huge], PATIENCE_S)
        agent.resyncs(QUIET_S)
        assert agent.orders() == []

    def test_an_answer_to_somebody_who_is_gone_harms_nobody(self, office: Office) -> None:
        gone, courier, agent = office.courier(), office.courier(), office.agent("n1")
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
    """Of brokers that can go away and come back, and that forget who stopped listening."""

    def test_an_order_for_a_node_that_nobody_listens_for_any_more_comes_back(self, office: Office) -> None:
        agent = office.agent("n1", "n2")
        agent.stop_listening_for(["n2"])
        office.until_silent("n2")
        office.until_heard(agent, "n1")

    def test_after_an_outage_agents_listen_again_and_answers_come_to_another_queue(self, office: Office) -> None:
        """A courier is told once, as what it asked may be lost; one that only asks for its queue need not know."""
        told, untold, agent = office.courier(), office.courier(), office.agent("n1", "n2")
        before = {told.reply_to, untold.reply_to}
        office.post.restart()
        with pytest.raises(BrokerUnavailableError):
            take_answers(told, 1)
        assert len({told.reply_to, untold.reply_to} | before) == 4
        for _ in range(2):
            with suppress(BrokerUnavailableError):
                agent.resyncs(0)
        office.until_heard(agent, "n2")
        told.send([build(told, 1)], PATIENCE_S)
        [order] = take_orders(agent, 1)
        agent.answer(order.reply_to, done(order))
        assert take_answers(told, 1) == [done(order)]

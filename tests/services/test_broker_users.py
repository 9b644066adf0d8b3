"""RabbitMQ with one user for each node: a cell with the permissions of the guide, and attempts that they forbid."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import amqp
import msgspec
import pytest

from harness.commands import run_command, start_command
from harness.members import Member
from harness.processes import ModuleProcess
from harness.servers import RabbitServer, ServerMissingError
from harness.waiting import PATIENCE_S, wait_until
from nodestate.broker import KombuCourier, KombuSink, KombuSource
from nodestate.broker.connector import open_session
from nodestate.broker.rabbitmq.session import RabbitSession
from nodestate.broker.topology import Topology
from nodestate.config import Config
from nodestate.designs.reader import Reader
from nodestate.errors import BrokerUnavailableError
from nodestate.model import Heartbeat
from nodestate.model.orders import Answer, End, Order, encode
from nodestate.model.partitioning import bucket_of
from tests.conftest import MemcachedFactory, skip_or_fail
from tests.contract.courier import OrderBench, done, take_answers
from tests.contract.test_couriers import OverKombu

pytestmark = [pytest.mark.service, pytest.mark.thorough]

GUIDE: Final = Path(__file__).parents[2] / "docs/how-to/secure.md"
PASSWORD: Final = "pass/word"  # noqa: S105 - of a broker that ends with the test
NODES: Final = ("left-0000", "right-0000")
PARTITIONS: Final = 2


def commands_of_the_guide(node: str, cell: str) -> list[list[str]]:
    """The commands in the guide's section, for another node and cell."""
    section = GUIDE.read_text(encoding="utf-8").partition("## RabbitMQ with one user for each node")[2]
    blocks = re.findall(r"```sh\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    text = text.replace("cell1", cell).replace("compute-0001", node)
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("rabbitmqctl")]


class Site:
    """A RabbitMQ in which only the users of the guide have rights, for one cell."""

    def __init__(self, server: RabbitServer, cell: str) -> None:
        self.server = server
        self.cell = cell
        self._sessions: list[RabbitSession] = []
        done: list[list[str]] = []
        for node in NODES:
            for words in commands_of_the_guide(node, cell):
                if words not in done:
                    done.append(words)
                    server.control(*words, stdin=f"{PASSWORD}\n" if words[0] == "add_user" else "")

    def url(self, user: str) -> str:
        return f"amqp://{user}:{quote(PASSWORD, safe='')}@{self.server.address}//"

    def config(self, user: str, **settings: Any) -> Config:
        return Config(broker=self.url(user), cell=self.cell, partitions=PARTITIONS, **settings)

    def channel(self, user: str) -> Any:
        """A channel of a program that has the password of a user."""
        session = open_session(self.config(user), "test", declare=False)
        assert isinstance(session, RabbitSession)
        self._sessions.append(session)
        return session.connection.control

    def close_sessions(self) -> None:
        """Close the sessions of all channels."""
        while self._sessions:
            self._sessions.pop().close()


@pytest.fixture(scope="module")
def server() -> Iterator[RabbitServer]:
    try:
        server = RabbitServer()
    except ServerMissingError as error:
        skip_or_fail(error)
    with server:
        yield server


@pytest.fixture(scope="module")
def site(server: RabbitServer) -> Site:
    return Site(server, "users")


@pytest.fixture
def declared(site: Site) -> Iterator[Site]:
    """The cell, as a consumer declares it."""
    source = KombuSource(site.config("consumer"), range(PARTITIONS))
    source.receive(1, 0.0)
    source.close()
    yield site
    site.close_sessions()


# -- what the users are for -----------------------------------------------------------------------


def test_an_agent_that_may_not_declare_the_cell_says_so_until_a_consumer_ran(site: Site) -> None:
    other = Config(broker=site.url("node-left-0000"), cell="users-2", partitions=PARTITIONS)
    with pytest.raises(BrokerUnavailableError, match="user 'node-left-0000' may not declare them: start 'nodestate"):
        KombuSink(other).resyncs(0)


def test_a_cell_runs_with_the_users_of_the_guide(
    site: Site, memcached_factory: MemcachedFactory, tmp_path: Path
) -> None:
    """Members take over from each other, agents report and build, schedulers boot and evacuate, operators look."""
    settings = {
        "NODESTATE_CELL": site.cell,
        "NODESTATE_STORE": memcached_factory().url,
        "NODESTATE_PARTITIONS": str(PARTITIONS),
        "NODESTATE_DESIGNS": "snapshot",
        "NODESTATE_READ_DESIGN": "snapshot",
        "NODESTATE_HEARTBEAT_S": "1",
        "NODESTATE_RENEW_S": "0.3",
        "NODESTATE_STANDBY_S": "0.5",
        "NODESTATE_RESYNC_JITTER_S": "0.2",
    }

    def environment(user: str) -> Mapping[str, str]:
        return {**settings, "NODESTATE_BROKER": site.url(user), "NODESTATE_STATE_DIR": str(tmp_path / user)}

    members = [Member(tmp_path, number, 2, dict(environment("consumer"))) for number in (1, 2)]
    with ExitStack() as stack:
        for member in members:
            stack.callback(member.kill)
            member.start()
            member.wait_for_log("connected")
        members[0].wait_for_log("partition taken over")
        agents: list[ModuleProcess] = []
        for node in NODES:
            prefix = node.removesuffix("0000")
            words = (
                "agent",
                "--source",
                "simulated",
                "--nodes",
                "1",
                "--rate",
                "0",
                "--seed",
                str(len(agents)),
                "--prefix",
                prefix,
            )
            agent = stack.enter_context(start_command(environment(f"node-{node}"), *words))
            stack.callback(agent.kill)
            agents.append(agent)
        config = site.config("nobody", store=settings["NODESTATE_STORE"], designs=("snapshot",), read_design="snapshot")
        reader = stack.enter_context(Reader(config))

        def all_report() -> bool:
            for agent in agents:
                assert agent.poll() is None, agent.communicate()
            view = reader.read(max_age=1e9, on_stale="flag")
            return set(view.nodes) == set(NODES) and not view.incomplete and not view.stale

        wait_until(all_report, "not all agents report")

        def ask(user: str, *words: str) -> Any:
            return json.loads(run_command(environment(user), *words, "--json")[0])

        request = tmp_path / "request.json"
        request.write_text(json.dumps({"instances": ["vm-1"], "resources": {"VCPU": 1}}), encoding="utf-8")
        [booted] = ask("scheduler", "boot", str(request))["instances"]
        assert booted["node"] in NODES
        moved = ask("scheduler", "evacuate", booted["node"])
        [other] = set(NODES) - {booted["node"]}
        assert {one["instance"]: one.get("node") for one in moved["instances"]}["vm-1"] == other
        run_command(environment("operator"), "resync", "--all")
        findings = ask("operator", "doctor")["findings"]
        assert [one for one in findings if one["level"] == "FAIL"] == []
        members[0].kill()
        members[1].wait_for_log("partition taken over")
        wait_until(all_report, "the other member does not take over")
        assert members[1].stop()["dead_letters"] == {}


def test_orders_and_answers_flow_between_an_agent_and_a_scheduler_of_the_guide(declared: Site) -> None:
    class Broker(OverKombu):
        def sink(self) -> Any:
            return KombuSink(declared.config("node-left-0000"))

    bench = OrderBench(Broker(declared.config("scheduler")))
    courier, agent = bench.courier(), bench.agent("left-0000")
    order = End(id="o-1", node="left-0000", instance="vm", reply_to=courier.reply_to)
    courier.send([order], PATIENCE_S)
    orders: list[Order] = []

    def came() -> bool:
        agent.resyncs(0.05)
        orders.extend(agent.orders())
        return bool(orders)

    wait_until(came, "the order does not come")
    agent.answer(order.reply_to, done(order))
    assert take_answers(courier, 1) == [done(order)]
    bench.close()


# -- what they forbid -----------------------------------------------------------------------------


Attempt = Callable[[Any, Topology, str], object]
FORBIDDEN: Final[dict[str, Attempt]] = {
    "declare a queue of the cell": lambda channel, topology, _: channel.queue_declare(
        topology.queue(0), durable=True, auto_delete=False, arguments=topology.queue_arguments
    ),
    "declare an exchange of the cell": lambda channel, topology, _: channel.exchange_declare(
        topology.exchange, "direct", durable=True, auto_delete=False
    ),
    "delete a queue of the cell": lambda channel, topology, _: channel.queue_delete(topology.queue(0)),
    "delete an exchange of the cell": lambda channel, topology, _: channel.exchange_delete(topology.orders),
    "purge a queue of the cell": lambda channel, topology, _: channel.queue_purge(topology.queue(0)),
    "read events": lambda channel, topology, _: channel.basic_consume(topology.queue(0)),
    "fetch events": lambda channel, topology, _: channel.basic_get(topology.queue(0)),
    "read dead letters": lambda channel, topology, _: channel.basic_get(topology.dead),
    "bind events": lambda channel, topology, own: channel.queue_bind(own, topology.exchange, "0"),
    "bind answers": lambda channel, topology, own: channel.queue_bind(own, topology.answers, "#"),
    "bind orders of earlier versions": lambda channel, topology, own: channel.queue_bind(
        own, topology.orders, "right-0000"
    ),
    "bind the orders of another node": lambda channel, topology, own: channel.queue_bind(
        own, topology.node_orders, "right-0000"
    ),
    "bind the orders of all nodes": lambda channel, topology, own: channel.queue_bind(own, topology.node_orders, "#"),
    "bind the orders of all nodes by a star": lambda channel, topology, own: channel.queue_bind(
        own, topology.node_orders, "*"
    ),
    "bind an exchange to orders": lambda channel, topology, _: channel.exchange_bind(
        topology.exchange, topology.node_orders, "#"
    ),
    "give orders to another node": lambda channel, topology, _: _publish(channel, topology.node_orders, "right-0000"),
    "give orders by the exchange of earlier versions": lambda channel, topology, _: _publish(
        channel, topology.orders, "right-0000"
    ),
    "answer in the name of another node": lambda channel, topology, _: _publish(
        channel, topology.answers, f"{'0' * 32}.right-0000"
    ),
    "answer in the name of no node": lambda channel, topology, _: _publish(channel, topology.answers, "0" * 32),
    "publish to a queue": lambda channel, topology, _: _publish(channel, "", topology.queue(0)),
    "ask all agents for reports": lambda channel, topology, _: _publish(channel, topology.control, ""),
    "write dead letters": lambda channel, topology, _: _publish(channel, topology.dead, "dead"),
    "publish as another user": lambda channel, topology, _: _publish(
        channel, topology.exchange, "0", user_id="node-right-0000"
    ),
}


def _publish(channel: Any, exchange: str, key: str, **properties: Any) -> None:
    """Publish, and wait for the broker's opinion."""
    channel.basic_publish(amqp.Message(b"forged", **properties), exchange, key)
    channel.basic_qos(0, 1, False)


def test_a_user_of_a_node_can_do_nothing_that_another_node_or_the_cell_would_notice(declared: Site) -> None:
    topology = Topology.of(declared.config("operator"))
    operator = declared.channel("operator")
    before = {name: operator.queue_declare(name, passive=True).message_count for _, name in topology.queues()}
    for what, attempt in FORBIDDEN.items():
        channel = declared.channel("node-left-0000")
        own = channel.queue_declare("", exclusive=True).queue
        channel.queue_bind(own, topology.node_orders, "left-0000")
        _publish(channel, topology.exchange, "0", user_id="node-left-0000")
        with pytest.raises((amqp.AccessRefused, amqp.PreconditionFailed)) as refused:
            attempt(channel, topology, own)
        if not isinstance(refused.value, amqp.AccessRefused):
            assert what == "publish as another user"
    after = {name: operator.queue_declare(name, passive=True).message_count for _, name in topology.queues()}
    assert sum(after.values()) - sum(before.values()) == len(FORBIDDEN), "only its own events came"
    operator.queue_purge(topology.queue(0))


def test_the_queues_of_other_users_are_locked(declared: Site, opened: Callable[[Any], Any]) -> None:
    """Names of queues of agents and schedulers may be known."""
    topology = Topology.of(declared.config("operator"))
    courier, other = opened(KombuCourier(declared.config("scheduler"))), declared.channel("node-right-0000")
    theirs = other.queue_declare("", exclusive=True).queue
    attempts: list[Callable[[Any, str], object]] = [
        lambda channel, name: channel.basic_get(name),
        lambda channel, name: channel.queue_purge(name),
        lambda channel, name: channel.queue_delete(name),
        lambda channel, name: channel.queue_bind(name, topology.node_orders, "left-0000"),
    ]
    for name in (theirs, courier.reply_to):
        for attempt in attempts:
            channel = declared.channel("node-left-0000")
            with pytest.raises((amqp.AccessRefused, amqp.ResourceLocked)):
                attempt(channel, name)


def test_the_key_of_another_node_in_a_header_gives_it_no_order_and_no_answer(
    declared: Site, opened: Callable[[Any], Any]
) -> None:
    """RabbitMQ 3.10 checks the routing key, and not the further keys of the header CC."""
    topology = Topology.of(declared.config("operator"))
    courier, agent = (
        opened(KombuCourier(declared.config("scheduler"))),
        opened(KombuSink(declared.config("node-right-0000"))),
    )
    agent.listen_for(["right-0000"])
    agent.resyncs(0)
    intruder = declared.channel("node-left-0000")
    for body in (encode(End(id="forged", node="right-0000", instance="vm", reply_to=courier.reply_to)), b"\xc1"):
        message = amqp.Message(body, application_headers={"CC": ["right-0000"]})
        wait_until(lambda sent=message: _comes(agent, intruder, topology, sent), "the header does not route")
    assert agent.orders() == []
    token = topology.answer_token(courier.reply_to)
    answer = encode(Answer(id="o", node="right-0000", instance="vm", incarnation=5, generation=1))
    intruder.basic_publish(amqp.Message(answer), topology.answers, f"{token}.left-0000")

    def refused() -> bool:
        assert courier.answers(0.05) == []
        return bool(courier.bad_answers)

    wait_until(refused, "the answer does not come")


def _comes(agent: KombuSink, intruder: Any, topology: Topology, message: Any) -> bool:
    """Send a message with the own key and another one in a header. True if the agent of the other one refuses it."""
    before = agent.bad_orders
    intruder.basic_publish(message, topology.node_orders, "left-0000")
    agent.resyncs(0.1)
    assert agent.orders() == []
    return agent.bad_orders > before


def test_an_event_of_another_node_carries_the_user_that_published_it(
    declared: Site, opened: Callable[[Any], Any]
) -> None:
    source, sink = (
        opened(KombuSource(declared.config("consumer"), range(PARTITIONS))),
        opened(KombuSink(declared.config("node-left-0000"))),
    )
    event = Heartbeat(node="right-0000", incarnation=1_763_787_600, generation=1, reported_at=1_763_787_600.0)
    confirmed: list[bool] = []
    sink.publish(bucket_of("right-0000"), msgspec.msgpack.encode(event), confirmed.append)
    sink.flush(PATIENCE_S)
    assert confirmed == [True]
    nodes: list[str] = []

    def came() -> bool:
        for delivery in source.receive(100, 0.05):
            nodes.extend([delivery.node] if b"right-0000" in delivery.body else [])
            source.ack([delivery])
        return bool(nodes)

    wait_until(came, "the event does not come")
    assert nodes == ["left-0000"]

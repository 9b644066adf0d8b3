"""Every metric, scraped from one running cell of real servers and processes; values against independent counts.

Most metrics with a label have no sample before the first event of their kind. So the test lets each kind happen: a bad
message, an order that is not answered, a request that no node fits, and a store that does not answer for a while.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.commands import start_command
from harness.processes import ModuleProcess
from harness.servers import MemcachedServer, RabbitServer
from harness.waiting import PATIENCE_S, wait_until
from nodestate.broker import KombuCourier, KombuSink
from nodestate.broker.topology import Topology
from nodestate.config import Config, load
from nodestate.designs.reader import Reader
from nodestate.errors import StaleViewError
from nodestate.metrics import serve_metrics
from nodestate.metrics.metric_table import METRICS, PREFIX
from nodestate.scheduling.orders.boot import Booted
from nodestate.scheduling.request import parse
from nodestate.scheduling.scheduler import Scheduler
from tests.test_metrics import Samples, scraped

NODES_COUNT = 7
BAD_MESSAGES_COUNT = 3


@contextmanager
def started(
    environment: dict[str, str], *words: str, prefix: str = "nodestate: metrics at "
) -> Iterator[tuple[ModuleProcess, str]]:
    """Run a command; gives its process and the address that it prints after ``prefix``."""
    with start_command(environment, *words) as process:
        try:
            out = process.stdout if words[0] == "serve" else process.stderr
            assert out is not None
            assert process.stderr is not None
            line = next(line for line in iter(out.readline, b"") if prefix.encode() in line).decode()
            threading.Thread(target=process.stderr.read, daemon=True).start()  # its log must not fill the pipe
            yield process, line.split()[-1]
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
                assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()


def labelled(page: Samples, name: str) -> dict[tuple[str, ...], float]:
    """Return the samples of a metric by the values of its labels, in the order of the labels' names."""
    return {
        tuple(value for _, value in labels): value for (found, labels), value in page.items() if found == PREFIX + name
    }


def refusals_of(url: str) -> list[str]:
    """Return the reasons for which orders were refused, each as often as it is counted."""
    return [
        reason for (reason,), count in labelled(scraped(url), "orders_refused_total").items() for _ in range(int(count))
    ]


def known_nodes(scheduler: Scheduler) -> list[str]:
    try:
        return list(scheduler.refresh().nodes)
    except StaleViewError:
        return []


def sums_by_zone(states: list[Any], field: str) -> dict[tuple[str, ...], int]:
    """Return the sum of a field of all nodes by class and zone, from their reports."""
    sums: Counter[tuple[str, ...]] = Counter()
    for state in states:
        for name, stock in state["inventory"].items():
            amount = state["usage"].get(name, 0)
            if field == "total":
                amount = int((stock["total"] - stock.get("reserved", 0)) * stock.get("allocation_ratio", 1.0))
            sums[name, state.get("zone", "")] += amount
    return dict(sums)


def ready_by_rabbitmqctl(rabbit: RabbitServer, queues: set[str]) -> int:
    listed = json.loads(rabbit.control("--quiet", "list_queues", "--formatter", "json", "name", "messages_ready"))
    return sum(one["messages_ready"] for one in listed if one["name"] in queues)


@pytest.mark.service
def test_a_running_cell_exports_every_metric_with_the_values_of_independent_counts(
    rabbit: RabbitServer, memcached: MemcachedServer, cell: str, tmp_path: Path
) -> None:
    """A consumer, an agent and the HTTP service as processes; a scheduler in this one, as in a user's program."""
    environment = {
        **os.environ,
        "NODESTATE_BROKER": rabbit.url,
        "NODESTATE_STORE": memcached.url,
        "NODESTATE_CELL": cell,
        "NODESTATE_STATE_DIR": str(tmp_path),
        "NODESTATE_PARTITIONS": "2",
        "NODESTATE_HEARTBEAT_S": "1",
        "NODESTATE_STANDBY_S": "0.5",
        "NODESTATE_ANSWER_TIMEOUT_S": "2",
        "NODESTATE_STORE_TIMEOUT_S": "0.3",
    }
    config = load(environ=environment)
    with ExitStack() as stack:
        consumer, consumer_url = stack.enter_context(started(environment, "consume", "--metrics-listen", "0"))
        fleet = ("--source", "simulated", "--nodes", str(NODES_COUNT), "--rate", "0")
        agent, agent_url = stack.enter_context(started(environment, "agent", *fleet, "--metrics-listen", "0"))
        served = started(environment, "serve", "--listen", "127.0.0.1:0", prefix="listening on ")
        _, service_url = stack.enter_context(served)
        courier = stack.enter_context(closing(KombuCourier(config)))
        scheduler = stack.enter_context(Scheduler(config, courier=courier, max_age=PATIENCE_S))
        own = stack.enter_context(serve_metrics("0", scheduler=scheduler))
        wait_until(lambda: len(known_nodes(scheduler)) == NODES_COUNT, "the nodes do not report")
        pages = {"consumer": consumer_url, "agent": agent_url, "cell": f"{service_url}/metrics"}
        pages |= {"reader": own.url, "scheduler": own.url, "node": f"{service_url}/metrics/nodes"}

        [booted] = scheduler.boot(parse({"instances": ["one"], "resources": {"VCPU": 1}}), PATIENCE_S)
        assert isinstance(booted, Booted), booted
        [claimed] = scheduler.claim([parse({"instances": ["two"], "resources": {"VCPU": 3}})])
        assert claimed.claim is not None
        [refused] = scheduler.claim([parse({"instances": ["much"], "resources": {"VCPU": 1_000_000}})])
        assert refused.failure is not None
        send_bad_messages(config)
        check_consumer_and_agent(pages)
        check_cell(config, pages)
        own_page = scraped(own.url)
        assert labelled(own_page, "decisions_total") == {
            ("selected",): 0, ("claimed",): 2, ("booted",): 1, ("no-host",): 1, ("failed",): 0,
        }  # fmt: skip
        assert labelled(own_page, "filter_removed_nodes_total")["resources",] == NODES_COUNT
        propagated = (PREFIX + "propagation_seconds_count", ())
        wait_until(lambda: scraped(pages["cell"])[propagated] >= 1, "no change of the boot was seen")

        agent.send_signal(signal.SIGSTOP)
        late = {"instances": ["late"], "resources": {"VCPU": 1}, "force_nodes": [booted.node]}
        [unanswered] = scheduler.boot(parse(late), PATIENCE_S)
        assert [refusal.reason for refusal in unanswered.refusals] == refusals_of(own.url) != [], unanswered
        agent.send_signal(signal.SIGCONT)
        memcached.pause()
        wait_until(lambda: labelled(scraped(consumer_url), "store_errors_total"), "no error of the store is counted")
        memcached.resume()
        check_names(pages)
        consumer.kill()
        consumer.wait(PATIENCE_S)
        check_queues(rabbit, config, agent, pages)


def send_bad_messages(config: Config) -> None:
    """Publish messages that no consumer can decode."""
    with closing(KombuSink(config, control=False)) as sink:
        for number in range(BAD_MESSAGES_COUNT):
            sink.publish(0, b"\xc1 is no event %d" % number, lambda _ok: None)
        sink.flush(PATIENCE_S)


def check_consumer_and_agent(pages: dict[str, str]) -> None:
    """The consumer counts the events that the agent published, and the bad messages."""

    def is_equal() -> bool:
        published = sum(labelled(scraped(pages["agent"]), "agent_events_total").values())
        return sum(labelled(scraped(pages["consumer"]), "consumer_events_total").values()) == published

    wait_until(is_equal, "the consumer does not count the events that the agent published")
    wait_until(
        lambda: sum(labelled(scraped(pages["consumer"]), "dead_letters_total").values()) == BAD_MESSAGES_COUNT,
        lambda: str(labelled(scraped(pages["consumer"]), "dead_letters_total")),
    )
    assert labelled(scraped(pages["agent"]), "orders_total") == {("build", "done"): 1}


def check_cell(config: Config, pages: dict[str, str]) -> None:
    """Nodes and amounts of the cell are the sums over the reports of its nodes."""
    with Reader(config) as reader:
        view = reader.read(max_age=PATIENCE_S, on_stale="flag")
        states = [dict(node.state) for node in view.nodes.values()]
    expected = {
        "nodes": dict(Counter((state["status"], state.get("zone", "")) for state in states)),
        "capacity_total": sums_by_zone([one for one in states if one["status"] == "up"], "total"),
        "capacity_used": sums_by_zone([one for one in states if one["status"] == "up"], "used"),
    }
    for name, values in expected.items():
        wait_until(
            lambda name=name, values=values: labelled(scraped(pages["cell"]), name) == values,  # type: ignore[misc]
            lambda name=name, values=values: f"{name}: {labelled(scraped(pages['cell']), name)}, not {values}",  # type: ignore[misc]
        )
    claims = {labels: value for labels, value in labelled(scraped(pages["cell"]), "capacity_claimed").items() if value}
    assert sum(value for (resource, _), value in claims.items() if resource == "VCPU") == 3


def check_names(pages: dict[str, str]) -> None:
    """Each metric of the table has a sample on the page of its part."""

    def missing() -> list[str]:
        names = {part: {name for name, _ in scraped(url)} for part, url in pages.items()}
        return [
            metric.name
            for metric in METRICS
            if PREFIX + metric.name + ("_count" if metric.kind == "histogram" else "") not in names[metric.part]
        ]

    wait_until(lambda: not missing(), lambda: f"no sample of {missing()}")


def check_queues(rabbit: RabbitServer, config: Config, agent: ModuleProcess, pages: dict[str, str]) -> None:
    """Without a consumer, events wait in the queues: as many as rabbitmqctl counts."""
    topology = Topology.of(config)
    queues = {topology.queue(partition) for partition in range(config.partitions)}
    wait_until(lambda: ready_by_rabbitmqctl(rabbit, queues), "no event waits")
    agent.send_signal(signal.SIGSTOP)

    def is_equal() -> bool:
        shown = labelled(scraped(pages["cell"]), "queue_ready_messages")
        return sum(shown.values()) == ready_by_rabbitmqctl(rabbit, queues)

    wait_until(is_equal, "the service counts other messages than rabbitmqctl")
    assert set(labelled(scraped(pages["cell"]), "queue_consumers").values()) == {0}

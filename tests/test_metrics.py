"""Metrics: what a process exports, that hostile clients do not matter, and that names agree with their table."""

from __future__ import annotations

import math
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from harness.waiting import PATIENCE_S, wait_until
from nodestate.cli.shutdown import stop_on_signals
from nodestate.designs import propagation
from nodestate.designs.reader import Reader
from nodestate.errors import BehindError, ConfigError, StaleViewError
from nodestate.histogram import Histogram, doubling_bounds
from nodestate.metrics import (
    MetricsPage,
    MetricsServer,
    agent_samples,
    cell_metrics,
    consumer_samples,
    reader_samples,
    scheduler_samples,
    serve_metrics,
)
from nodestate.metrics.exposition import SampleSource
from nodestate.metrics.metric_table import BY_NAME, METRICS, PREFIX, Part, Sample
from nodestate.metrics.server import MAX_CLIENTS_COUNT, MAX_STEP_S
from nodestate.model import Heartbeat, Receipt, Version, parse_event
from nodestate.scheduling.request import parse
from nodestate.testing import FaultyStore, MemoryStore
from tests.machines.scheduling_cell import SchedulingCell
from tests.machines.simulated_cell import SimulatedCell, all_well
from tests.scheduling.cells import boot, cell_of, reserve, wanted
from tests.test_agent import AgentBench, ScriptedSource

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parsed(text: str) -> Samples:
    """Return the samples of a page by name and labels, as Prometheus' own parser reads them."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scraped(url: str) -> Samples:
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:  # noqa: S310 - our own server
        return parsed(answer.read().decode())


def page_of(*sources: tuple[Part, SampleSource]) -> Samples:
    return parsed(MetricsPage(sources, with_process=False).render()[0].decode())


# -- values -----------------------------------------------------------------------------------------


def test_a_histogram_counts_a_value_in_the_first_bucket_whose_bound_is_not_smaller() -> None:
    histogram = Histogram(doubling_bounds(1, 3))
    for value in (0.5, 1, 1.5, 4, 5):
        histogram.observe(value)
    assert histogram.bounds == (1, 2, 4)
    assert histogram.counts == [2, 1, 1, 1]
    assert histogram.total == 12


def test_buckets_of_a_page_are_cumulative_and_name_their_bounds() -> None:
    histogram = Histogram(doubling_bounds(0.5, 2))
    for value in (0.1, 0.7, 9.0):
        histogram.observe(value)
    page = page_of(("consumer", lambda: [Sample("batch_events", histogram)]))
    buckets = {labels[0][1]: value for (name, labels), value in page.items() if name == "nodestate_batch_events_bucket"}
    assert buckets == {"0.5": 1, "1.0": 2, "+Inf": 3}
    assert page["nodestate_batch_events_sum", ()] == pytest.approx(9.8)
    assert page["nodestate_batch_events_count", ()] == 3


def test_a_part_without_events_shows_all_its_metrics() -> None:
    page = MetricsPage([("consumer", lambda: ())], with_process=False).render()[0].decode()
    shown = {family.name for family in text_string_to_metric_families(page)}
    wanted = {PREFIX + metric.name.removesuffix("_total") for metric in METRICS if metric.part == "consumer"}
    assert shown == wanted


def test_metrics_of_a_consumer_and_a_reader_equal_independent_counts() -> None:
    world = SimulatedCell(seed=1)
    member = world.start_member([0, 1], [])
    for number in range(6):
        world.start_agent(f"n{number}", {"inventory": {"VCPU": {"total": 8}}})
    world.run_well(3.0)
    page = page_of(("consumer", lambda: consumer_samples(member.consumer)))
    assert page["nodestate_partitions_held", ()] == 2
    assert page["nodestate_takeovers_total", ()] == 2
    authored = sum(agent.publisher.version.generation for agent in world.agents.values())
    assert page["nodestate_consumer_events_total", (("outcome", "applied"),)] == authored >= 6
    assert page["nodestate_batch_events_sum", ()] == member.consumer.stats.received
    for design in ("journal", "snapshot"):
        assert page["nodestate_commit_duration_seconds_count", (("design", design),)] >= 2
    _, stores = world.connected(lambda server: FaultyStore(MemoryStore(server), all_well))
    reader = Reader(world.config, stores=stores, clock=world.clock)
    for _ in range(3):
        reader.read(max_age=60.0)
    with pytest.raises(StaleViewError):
        reader.read(node_max_age=0.0)
    with pytest.raises(BehindError):
        reader.read(at_least=Receipt("n0", Version(2**40, 1)), on_stale="flag")
    page = page_of(("reader", lambda: reader_samples(reader)))
    assert page["nodestate_view_age_seconds", (("design", "journal"),)] == reader.read(max_age=60.0).age
    assert page["nodestate_view_refresh_duration_seconds_count", (("design", "journal"), ("result", "ok"))] == 5
    refusals = {labels[0][1]: value for (name, labels), value in page.items() if name.endswith("view_refusals_total")}
    assert refusals == {"stale-view": 0, "stale-nodes": 1, "behind": 1}


def test_propagation_is_the_time_from_an_event_to_the_view_that_shows_it() -> None:
    """One node of each refresh counts, unless the reader paused, or nothing but a mark of the node changed."""
    world = SimulatedCell(seed=1)
    world.start_member([0, 1], [])
    for name in ("a", "b"):
        world.start_agent(name, {"inventory": {"VCPU": {"total": 8}}})
    world.run_well(60.0)
    _, stores = world.connected(lambda server: FaultyStore(MemoryStore(server), all_well))
    reader = Reader(world.config, stores=stores, clock=world.clock)
    histogram = reader.stats.propagation.durations_s

    def change_then_read(wait_s: float) -> float:
        """Change a node, and return the seconds by which the histogram grew with the next view after ``wait_s``."""
        before, published_at = histogram.total, world.clock.time()
        world.agents["a"].publisher.change({"usage": {"VCPU": round(published_at) % 8}})
        world.run_well(wait_s)
        view = reader.read(max_age=60.0)
        assert view.nodes["a"].reported_at == published_at
        assert histogram.total - before in (0.0, pytest.approx(world.clock.time() - published_at))
        return histogram.total - before

    reader.read(max_age=60.0)
    assert sum(histogram.counts) == 0, "the first view shows changes of any age"
    assert change_then_read(0.5) >= 0.5
    assert change_then_read(1.5) >= 1.5
    reader.read(max_age=60.0)
    assert sum(histogram.counts) == 2, "nothing changed"
    assert change_then_read(propagation.MAX_PAUSE_S + 1.0) == 0.0, "the reader paused"
    assert change_then_read(0.5) >= 0.5
    page = page_of(("reader", lambda: reader_samples(reader)))
    assert page["nodestate_propagation_seconds_count", ()] == 3
    assert page["nodestate_propagation_seconds_sum", ()] == pytest.approx(histogram.total)


def test_a_refresh_without_its_servers_counts_as_failed() -> None:
    world = SimulatedCell(seed=1)
    _, stores = world.connected(lambda server: FaultyStore(MemoryStore(server), all_well))
    reader = Reader(world.config, stores=stores, clock=world.clock)
    for server in world.servers:
        server.stop()
    reader.read(max_age=math.inf, on_stale="flag")
    page = page_of(("reader", lambda: reader_samples(reader)))
    assert page["nodestate_view_age_seconds", (("design", "journal"),)] == math.inf
    assert page["nodestate_view_refresh_duration_seconds_count", (("design", "journal"), ("result", "failed"))] == 1


def test_metrics_of_a_scheduler_equal_independent_counts() -> None:
    cell, [process] = cell_of(schedulers=1)
    scheduler = process.scheduler
    boot(scheduler, "first")
    boot(scheduler, "second")
    scheduler.claim([parse(wanted("third"))])
    [failed] = scheduler.claim([parse(wanted("much", vcpu=10_000))])
    assert failed.failure is not None
    scheduler.select(parse(wanted("fourth")))
    reserve(scheduler, "a", "b")
    page = page_of(("scheduler", lambda: scheduler_samples(scheduler)))
    results = {labels[0][1]: value for (name, labels), value in page.items() if name == "nodestate_decisions_total"}
    assert results == {"selected": 1, "claimed": 5, "booted": 2, "no-host": 1, "failed": 0}
    assert page["nodestate_filter_removed_nodes_total", (("filter", "resources"),)] == len(scheduler.fleet)
    assert page["nodestate_reservations_held", ()] == 1
    assert page["nodestate_decision_duration_seconds_count", (("phase", "answer"),)] == 2
    del cell


def test_the_metrics_of_a_cell_grow_with_its_nodes_if_each_has_a_zone_and_a_class_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Regression: a service had a sample for each pair of zone and class, and ran out of memory."""
    monkeypatch.setattr(cell_metrics, "MAX_ZONES_COUNT", 40)
    states = {
        f"n{number}": {"zone": f"z{number}", "inventory": {"VCPU": {"total": 8}, f"CUSTOM_{number}": {"total": 1}}}
        for number in range(60)
    }
    cell = SchedulingCell(states)
    cell.wait_until_complete()
    process = cell.start_scheduler("s0")
    process.scheduler.refresh()
    samples = list(cell_metrics.node_samples(process.scheduler.view, 10.0, {"n0": {"VCPU": 3}}))
    totals = {one.labels: one.value for one in samples if one.name == "capacity_total"}
    assert len(totals) == 40 + 1 + 60, "one of VCPU for each named zone and for the others, and each class once"
    assert sum(value for (name, _), value in totals.items() if name == "VCPU") == 8 * 60
    assert totals["VCPU", cell_metrics.OTHER_ZONES] == 8 * 20
    claimed = {one.labels: one.value for one in samples if one.name == "capacity_claimed"}
    zone = "z0" if ("VCPU", "z0") in totals else cell_metrics.OTHER_ZONES
    assert {labels: value for labels, value in claimed.items() if value} == {("VCPU", zone): 3}


def test_metrics_of_an_agent_count_its_events_and_its_orders() -> None:
    bench = AgentBench(ScriptedSource(["a", "b"]))
    bench.pass_time(30.0)
    bench.agent.stats.count_order("build", "no-room")
    bench.agent.leave()
    page = page_of(("agent", lambda: agent_samples(bench.agent)))
    kinds = {labels[0][1]: value for (name, labels), value in page.items() if name.endswith("agent_events_total")}
    heartbeats = sum(isinstance(parse_event(body), Heartbeat) for _, body in bench.sink.sent)
    assert kinds == {"report": 2, "change": 0, "heartbeat": heartbeats, "leave": 2, "resend": 0}
    assert page["nodestate_orders_total", (("kind", "build"), ("result", "no-room"))] == 1


# -- the server -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[MetricsServer]:
    with MetricsServer("0", MetricsPage([("consumer", lambda: [Sample("takeovers_total", 3)])])) as running:
        yield running


def connection_to(server: MetricsServer) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname, address.port), PATIENCE_S)


def answer_to(server: MetricsServer, request: bytes) -> bytes:
    with connection_to(server) as client:
        client.sendall(request)
        received = bytearray()
        while part := client.recv(65536):
            received += part
    return bytes(received)


def test_a_page_has_the_metrics_of_the_process_and_its_memory(server: MetricsServer) -> None:
    page = scraped(server.url)
    assert server.url.startswith("http://127.0.0.1:"), "a port alone is a port of this machine"
    assert page["nodestate_takeovers_total", ()] == 3
    assert page["process_resident_memory_bytes", ()] > 0


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:99999", "127.0.0.1:x", "", ":1", "host.invalid:1"])
def test_a_wrong_address_is_refused_by_name(address: str) -> None:
    with pytest.raises(ConfigError, match="--metrics-listen"):
        serve_metrics(address)


def test_a_taken_port_is_refused_with_a_remedy(server: MetricsServer) -> None:
    with pytest.raises(ConfigError, match="another port"):
        serve_metrics(urlsplit(server.url).netloc)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"501"),
        (b"GET /metrics HTTP/1.1\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\n", b""),
        (b"GET /" + b"y" * 100_000 + b" HTTP/1.1\r\n\r\n", b""),
        (b"\x00\xff\x16\x03\x01" * 10 + b"\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/9.9\r\n\r\n", b"505"),
    ],
    ids=["path", "method", "huge-header", "huge-line", "bytes", "version"],
)
def test_a_hostile_request_gets_an_error_and_the_next_one_the_page(
    server: MetricsServer, request_bytes: bytes, status: bytes
) -> None:
    try:
        answer = answer_to(server, request_bytes)
    except ConnectionError:  # the server closed the connection before it had read all of the request
        answer = b""
    assert status in answer[:200] if status else True
    assert scraped(server.url)["nodestate_takeovers_total", ()] == 3


def test_clients_that_send_nothing_do_not_keep_out_a_scrape(server: MetricsServer) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(connection_to(server)) for _ in range(3 * MAX_CLIENTS_COUNT)]
        for client in slow[-3:]:
            client.sendall(b"GET /metr")
        assert scraped(server.url)["nodestate_takeovers_total", ()] == 3
        assert slow[0].recv(1) == b"", "the oldest connection was ended"


def test_threads_of_clients_end_with_their_connections(server: MetricsServer) -> None:
    before = threading.active_count()
    for _ in range(50):
        connection_to(server).close()
    wait_until(lambda: threading.active_count() <= before, "threads of closed connections stay")


@pytest.mark.parametrize(
    ("age", "live", "ready"), [(None, b"200", b"503"), (0.1, b"200", b"200"), (MAX_STEP_S + 1, b"503", b"503")]
)
def test_health_is_that_of_the_loop(age: float | None, live: bytes, ready: bytes) -> None:
    """Before the first step, while the loop runs, and while a step hangs: as READY and WATCHDOG tell systemd."""
    with MetricsServer("0", MetricsPage([]), step_age=lambda: age) as server:
        assert live in answer_to(server, b"GET /livez HTTP/1.0\r\n\r\n")[:20]
        assert ready in answer_to(server, b"GET /readyz HTTP/1.0\r\n\r\n")[:20]


def test_a_process_without_a_loop_lives_and_is_ready(server: MetricsServer) -> None:
    for path in (b"livez", b"readyz"):
        assert b'{"status":"pass"}' in answer_to(server, b"GET /" + path + b" HTTP/1.0\r\n\r\n")


def test_the_age_of_the_last_step_is_known_to_the_metrics() -> None:
    with stop_on_signals() as stop:
        assert not stop(), "the first step begins"
        assert stop.step_age() is None
        assert not stop(), "the first step has ended"
        age = stop.step_age()
        assert age is not None
        assert 0.0 <= age < MAX_STEP_S


def test_a_collector_that_fails_is_an_error_of_the_scrape_alone() -> None:
    def broken() -> list[Sample]:
        raise RuntimeError("out of order")

    with MetricsServer("0", MetricsPage([("consumer", broken)])) as server:
        assert b"500" in answer_to(server, b"GET /metrics HTTP/1.0\r\n\r\n")[:30]
        assert b"500" in answer_to(server, b"GET /metrics HTTP/1.0\r\n\r\n")[:30]


# -- names ------------------------------------------------------------------------------------------


def test_names_follow_the_conventions_of_prometheus() -> None:
    assert len(BY_NAME) == len(METRICS)
    for metric in METRICS:
        is_sum = metric.name in ("capacity_total", "node_capacity_total")
        assert metric.name.endswith("_total") == (metric.kind == "counter") or is_sum
        assert ("node" in metric.labels) == (metric.part == "node"), "a time series for each node is too many"

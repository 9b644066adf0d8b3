"""Views by HTTP: the document of the command, bounds, waits, and ETags that cover all that can change."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from harness.waiting import PATIENCE_S, wait_until
from nodestate.designs.reader import Reader
from nodestate.metrics.metric_table import METRICS, PREFIX
from nodestate.serve import metrics_routes
from nodestate.testing import MemoryStore
from nodestate.view.documents import view_document
from tests.machines.simulated_cell import SimulatedCell
from tests.serve.running_service import RunningService

NODES = [f"node-{n}" for n in range(6)]


def new_world() -> SimulatedCell:
    world = SimulatedCell(designs=("journal", "snapshot"))
    world.start_member([0, 1], [])
    for name in NODES:
        world.start_agent(name, {"usage": {"VCPU": 1}, "zone": f"az{name[-1]}"[:3]})
    world.run_well(60)
    return world


@pytest.fixture
def world() -> SimulatedCell:
    return new_world()


@pytest.fixture(scope="module")
def calm() -> Iterator[RunningService]:
    """A service of a cell in which nothing happens, for tests that only read."""
    with RunningService.over(new_world()) as running:
        yield running


@pytest.fixture
def running(world: SimulatedCell) -> Iterator[RunningService]:
    with RunningService.over(world) as running:
        yield running


def change(world: SimulatedCell, name: str, used: int) -> None:
    world.agents[name].publisher.change({"usage": {"VCPU": used}})
    world.run_well(3)


def test_the_view_by_http_is_the_document_of_the_command(world: SimulatedCell, running: RunningService) -> None:
    """``nodestate view --json`` prints ``view_document`` of a reader's view; the service returns the same."""
    _, stores = world.connected(MemoryStore)
    expected = view_document(Reader(world.config, stores=stores, clock=world.clock).read(max_age=5.0, on_stale="flag"))
    answer = running.get("/v1/view")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == json.loads(msgspec.json.encode(expected))
    packed = running.get("/v1/view", accept="application/x-msgpack")
    assert packed.headers["content-type"] == "application/x-msgpack"
    assert msgspec.msgpack.decode(packed.content) == answer.json()
    assert answer.json().keys() == {"position", "age", "nodes", "stale", "incomplete"}


def test_zone_and_fields_select_a_part_of_the_view(calm: RunningService) -> None:
    nodes = calm.get("/v1/view?zone=az3&fields=usage,zone").json()["nodes"]
    assert {name: node["state"] for name, node in nodes.items()} == {"node-3": {"usage": {"VCPU": 1}, "zone": "az3"}}


def test_a_stale_view_is_refused_with_age_bound_and_partitions(world: SimulatedCell, running: RunningService) -> None:
    """Right or refused, in every language: the problem says what would satisfy it."""
    world.pass_time(30)
    answer = running.get("/v1/view?max_age=5")
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    assert int(answer.headers["retry-after"]) >= 1
    problem = answer.json()
    assert (problem["type"], problem["status"], problem["max_age"]) == ("stale-view", 503, 5.0)
    assert problem["age"] > 30
    assert problem["partitions"] == [0, 1]
    assert running.get(f"/v1/view?max_age={math.ceil(problem['age'])}").status_code == 200
    flagged = running.get("/v1/view?on_stale=flag").json()
    assert (sorted(flagged["nodes"]), flagged["stale"]) == (NODES, NODES)
    assert running.get("/v1/view?on_stale=exclude").json()["nodes"] == {}
    for path in ("/v1/nodes", "/v1/nodes/node-1", "/v1/nodes/node-9"):
        assert running.get(path).json()["type"] == "stale-view", path
    assert 'nodestate_view_refusals_total{cause="stale-view"} 4.0' in running.get("/metrics").text


def test_a_node_without_a_sign_of_life_is_refused_by_its_own_bound(
    world: SimulatedCell, running: RunningService
) -> None:
    del world.agents["node-3"]
    world.run_well(60)
    problem = running.get("/v1/view?node_max_age=15").json()
    assert (problem["type"], problem["nodes"], problem["partitions"]) == ("stale-view", ["node-3"], [])
    assert running.get("/v1/nodes/node-3?node_max_age=15").json()["nodes"] == ["node-3"]
    assert running.get("/v1/nodes/node-4?node_max_age=15").status_code == 200
    shown = running.get("/v1/nodes/node-3?node_max_age=15&on_stale=flag").json()
    assert shown["stale"]
    assert shown["last_seen"] >= 60


def test_a_repeated_request_is_answered_by_304_until_anything_changes(
    world: SimulatedCell, running: RunningService
) -> None:
    """The ETag covers the position, the query, and which nodes are stale; the bounds are judged before a 304."""
    first = running.get("/v1/view?node_max_age=15&on_stale=flag")
    etag = first.headers["etag"]

    def again(path: str = "/v1/view?node_max_age=15&on_stale=flag") -> Any:
        return running.get(path, if_none_match=etag)

    same = again()
    assert (same.status_code, same.content) == (304, b"")
    assert same.headers["nodestate-position"] == first.headers["nodestate-position"]
    assert float(same.headers["nodestate-age"]) >= 0
    assert again("/v1/view?node_max_age=15&on_stale=flag&fields=usage").status_code == 200, "another query"
    del world.agents["node-3"]
    before = world.clock.monotonic()
    while world.clock.monotonic() < before + 60:  # heartbeats only: no commit, so the position stays
        world.run_well(5)
    silent = again()
    assert (silent.status_code, silent.json()["stale"]) == (200, ["node-3"])
    world.pass_time(60)
    assert again("/v1/view?node_max_age=15").status_code == 503, "a bound is judged before a 304"


def test_read_your_own_write_by_its_receipt(world: SimulatedCell, running: RunningService) -> None:
    node = running.get("/v1/nodes/node-1").json()
    receipt = f"node-1:{node['incarnation']}.{node['generation'] + 1}"
    behind = running.get(f"/v1/view?at_least={receipt}")
    assert (behind.status_code, behind.json()["type"]) == (503, "behind")
    assert behind.json()["wanted"] == {"incarnation": node["incarnation"], "generation": node["generation"] + 1}
    assert behind.json()["reached"]["generation"] == node["generation"]
    change(world, "node-1", 7)
    for path in ("/v1/view", "/v1/nodes/node-1"):
        assert running.get(f"{path}?at_least={receipt}").status_code == 200, path


def test_a_wait_ends_with_the_news(world: SimulatedCell, running: RunningService) -> None:
    """A request with the present position gets no answer until a commit changes it."""
    position = running.get("/v1/view").headers["nodestate-position"]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(running.get, f"/v1/view?wait=60s&position={position}&max_age=60")
        assert running.get(f"/v1/view?wait=0s&position={position}").headers["nodestate-position"] == position
        assert not waiting.done()
        change(world, "node-2", 9)
        answer = waiting.result()
    assert answer.headers["nodestate-position"] != position
    assert answer.json()["nodes"]["node-2"]["state"]["usage"] == {"VCPU": 9}
    assert running.get(f"/v1/view?wait=60s&position={position}").status_code == 200, "there is news already"


def test_a_request_can_name_another_design(calm: RunningService) -> None:
    other = calm.get("/v1/view?design=sql")
    assert (other.status_code, other.json()["type"]) == (404, "not-found")
    assert "sql" in other.json()["detail"]
    read = calm.get("/v1/view").headers["nodestate-position"].partition("/")[0]
    assert calm.get(f"/v1/view?design={read}").status_code == 200


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("max_age=old", "max_age"),
        ("max_age=-1", "max_age"),
        ("max_age=nan", "max_age"),
        ("max_age=5&max_age=6", "max_age"),
        ("on_stale=maybe", "on_stale"),
        ("at_least=node-1", "at_least"),
        ("wait=forever", "wait"),
        ("color=red", "color"),
    ],
)
def test_a_wrong_parameter_is_refused_by_its_name(calm: RunningService, query: str, field: str) -> None:
    answer = calm.get(f"/v1/view?{query}")
    assert (answer.status_code, answer.json()["type"], answer.json()["field"]) == (400, "bad-request", field)


def test_pages_of_nodes_contain_every_node_once(calm: RunningService) -> None:
    found, after = [], ""
    while after is not None:
        page = calm.get(f"/v1/nodes?limit=4{after and f'&after={after}'}").json()
        found += [node["name"] for node in page["nodes"]]
        after = page["next"]
    assert found == NODES
    assert [node["name"] for node in calm.get("/v1/nodes?zone=az2").json()["nodes"]] == ["node-2"]
    assert calm.get("/v1/nodes?status=down").json()["nodes"] == []


def test_one_node_is_answered_in_full(calm: RunningService) -> None:
    node = calm.get("/v1/nodes/node-5").json()
    assert node["usage"] == node["state"]["usage"] == {"VCPU": 1}
    assert (node["free"]["VCPU"], node["capacity"]["VCPU"]) == (-1, 0)
    missing = calm.get("/v1/nodes/node-9")
    assert (missing.status_code, missing.json()["type"]) == (404, "not-found")


def test_a_node_that_may_exist_is_not_called_missing(world: SimulatedCell, running: RunningService) -> None:
    """While a partition's server does not answer, a node that the view lacks may be there."""
    assert running.get("/v1/nodes/node-9").status_code == 404
    for server in world.servers:
        server.flush()
    answer = running.get("/v1/nodes/node-9?max_age=1000000")
    assert (answer.status_code, answer.json()["type"]) == (503, "stale-view")


def test_events_of_a_node_are_those_that_the_service_saw(world: SimulatedCell, running: RunningService) -> None:
    assert running.get("/v1/nodes/node-1/events").json() == {"name": "node-1", "events": []}
    before = running.get("/v1/nodes/node-1").json()["generation"]
    change(world, "node-1", 3)
    node = running.get(f"/v1/nodes/node-1?at_least=node-1:{world_incarnation(running)}.{before + 1}").json()
    events = running.get("/v1/nodes/node-1/events").json()["events"]
    assert events[-1]["generation"] == node["generation"] > before
    assert running.get("/v1/nodes/node-9/events").status_code == 404


def world_incarnation(running: RunningService) -> int:
    return int(running.get("/v1/nodes/node-1").json()["incarnation"])


def test_designs_health_and_unknown_paths(calm: RunningService) -> None:
    designs = calm.get("/v1/designs").json()
    assert designs["reads"] in designs["writes"]
    assert designs["designs"].keys() == {"journal", "snapshot"}
    assert {design["nodes"] for design in designs["designs"].values()} == {len(NODES)}
    assert {design["whole"] for design in designs["designs"].values()} == {2}
    assert calm.get("/livez").json() == {"status": "pass"}
    assert calm.get("/readyz").json()["status"] == "pass"
    assert calm.get("/v2/view").json()["type"] == "not-found"
    refused = calm.client.post("/v1/view")
    assert (refused.status_code, refused.json()["type"]) == (405, "about:blank")
    assert "GET" in refused.headers["allow"]


def test_the_metrics_of_each_node_are_a_page_of_their_own(calm: RunningService) -> None:
    page = calm.get("/metrics/nodes")
    assert page.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(page.text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    assert found.keys() == {PREFIX + metric.name for metric in METRICS if metric.part == "node"}
    for node in calm.get("/v1/nodes").json()["nodes"]:
        name = node["name"]
        assert found["nodestate_node_status"][name, node["status"], node["zone"]] == 1
        assert found["nodestate_node_age_seconds"][(name,)] == pytest.approx(node["last_seen"], abs=PATIENCE_S)
        for resource, total in node["capacity"].items():
            used = node["usage"][resource]
            assert found["nodestate_node_capacity_total"][name, resource] == total
            assert found["nodestate_node_capacity_used"][name, resource] == used
            assert found["nodestate_node_capacity_claimed"][name, resource] == 0
            assert found["nodestate_node_capacity_free"][name, resource] == total - used
    assert 'node="' not in calm.get("/metrics").text


def test_a_page_of_many_nodes_does_not_keep_other_requests_waiting(
    calm: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = threading.Event()

    def slow_page(*_: object) -> bytes:
        may_end.wait(PATIENCE_S)
        return b"late"

    monkeypatch.setattr(metrics_routes, "node_page", slow_page)
    with ThreadPoolExecutor(1) as pool:
        page = pool.submit(calm.get, "/metrics/nodes")
        wait_until(lambda: calm.service.workers._pending, "the page is not rendered")
        assert calm.get("/livez").status_code == 200
        assert calm.get("/v1/nodes/node-1").status_code == 200
        may_end.set()
        assert page.result().text == "late"


def test_metrics_of_the_cell_and_of_the_reader_are_one_page(calm: RunningService) -> None:
    page = calm.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    lines = page.text.splitlines()
    assert sum(float(line.split()[-1]) for line in lines if line.startswith("nodestate_nodes{")) == len(NODES)
    for design in ("journal", "snapshot"):
        for partition in ("0", "1"):
            assert f'nodestate_partition_complete{{design="{design}",partition="{partition}"}} 1.0' in lines
    assert any(line.startswith("nodestate_view_refresh_duration_seconds_count{") for line in lines)

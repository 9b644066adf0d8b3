"""The routes that cordon, uncordon and drain nodes, over a cell of doubles."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.deciding_cell import VCPU, DecidingCell, wanted


@pytest.fixture
def deciding(tmp_path: Path) -> Iterator[DecidingCell]:
    with DecidingCell(state_dir=tmp_path) as found:
        yield found


def state_of(deciding: DecidingCell, node: str, receipt: dict[str, int]) -> Any:
    """The state of a node in a view that shows the version of an answer."""
    at_least = f"{node}:{receipt['incarnation']}.{receipt['generation']}"

    for _ in range(20):
        deciding.pass_time(1.0)
        answer = deciding.running.get(f"/v1/nodes/{node}?at_least={at_least}&max_age=1000")
        if answer.status_code == 200:
            return answer.json()["state"]
    raise AssertionError(answer.text)


def test_a_cordoned_node_gets_no_instances_until_it_is_uncordoned(deciding: DecidingCell) -> None:
    answer = deciding.post("/v1/nodes/n0/cordon", {"reason": "disk", "by": "ann"})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found == {"node": "n0", "done": True, "version": found["version"], "refused": "", "detail": ""}
    state = state_of(deciding, "n0", found["version"])
    assert (state["status"], state["namespaces"]["nodestate"]["cordon"]["by"]) == ("draining", "ann")
    assert state["namespaces"]["nodestate"]["cordon"]["why"] == "disk"
    claims = deciding.post("/v1/claims", wanted("a", "b", "c", vcpu=VCPU)).json()["claims"]
    assert sorted(str(claim["node"]) for claim in claims) == ["None", "n1", "n2"]
    opened = deciding.post("/v1/nodes/n0/uncordon", {}).json()
    assert state_of(deciding, "n0", opened["version"])["status"] == "up"
    assert deciding.post("/v1/claims", wanted("d", vcpu=VCPU)).json()["claims"][0]["node"] == "n0"


def test_a_node_is_cordoned_while_no_view_is_fresh(deciding: DecidingCell) -> None:
    """An operator closes nodes when the cell is in trouble, and the order needs no view."""
    deciding.cell.consumer_frozen = True
    deciding.pass_time(60.0)
    assert deciding.post("/v1/claims", wanted("a")).status_code == 503
    assert deciding.post("/v1/nodes/n0/cordon", {}).status_code == 200
    assert deciding.post("/v1/nodes/n0/uncordon", {}).status_code == 200


def test_an_agent_that_is_away_or_silent_is_a_conflict_that_says_so(deciding: DecidingCell) -> None:
    deciding.cell.agent_frozen = True
    silent = deciding.post("/v1/nodes/n0/cordon", {"timeout_s": 2})
    assert (silent.status_code, silent.json()["type"]) == (409, "conflict")
    assert silent.json()["detail"].startswith("n0: silent: no answer within 2 s")
    missing = deciding.post("/v1/nodes/nowhere/uncordon", {"timeout_s": 2})
    assert (missing.status_code, missing.json()["type"]) == (409, "conflict")
    assert missing.json()["detail"].startswith("nowhere: no-agent: no agent listens for this node")


def test_a_repeated_cordon_with_an_idempotency_key_is_one_order(deciding: DecidingCell) -> None:
    first = deciding.post("/v1/nodes/n0/cordon", {}, Idempotency_Key="k").json()
    assert deciding.post("/v1/nodes/n0/uncordon", {}).status_code == 200
    assert deciding.post("/v1/nodes/n0/cordon", {}, Idempotency_Key="k").json() == first
    deciding.pass_time(3.0)
    assert deciding.running.get("/v1/nodes/n0").json()["state"]["status"] == "up"


def test_a_drain_is_a_resource_with_progress_and_a_report(deciding: DecidingCell) -> None:
    deciding.done(deciding.post("/v1/boots", wanted(*"abcde", force_nodes=["n0"])))
    deciding.pass_time(3.0)
    accepted = deciding.post("/v1/nodes/n0/drain", {"reason": "kernel", "max_parallel": 2, "deadline_s": 500})
    assert accepted.headers["location"] == f"/v1/operations/{accepted.json()['id']}"
    begun = accepted.json()
    assert (begun["kind"], begun["subject"], begun["state"], begun["cordon"]) == ("drain", "n0", "running", None)
    assert 400 < begun["deadline_at"] - time.time() <= 500
    done = deciding.done(accepted)
    assert (done["state"], done["error"], done["cordon"]["done"]) == ("done", "", True)
    assert {one["instance"]: one["state"] for one in done["instances"]} == dict.fromkeys("abcde", "booted")
    for one in done["instances"]:
        assert deciding.nodes_with(one["instance"]) in ([one["node"]], sorted(["n0", one["node"]]))
    deciding.pass_time(5.0)
    assert deciding.allocations()["n0"] == set()
    listed = deciding.running.get("/v1/decisions?limit=5").json()["decisions"]
    assert {(one["kind"], one["instance"]) for one in listed} == {("drain", name) for name in "abcde"}


def test_a_drain_in_a_full_fleet_names_each_instance_that_is_left_and_why(deciding: DecidingCell) -> None:
    for name, node, vcpu in (("large", "n0", 6), ("small", "n0", 2), ("x", "n1", 5), ("y", "n2", VCPU)):
        deciding.done(deciding.post("/v1/boots", wanted(name, vcpu=vcpu, force_nodes=[node])))
    deciding.pass_time(3.0)
    done = deciding.done(deciding.post("/v1/nodes/n0/drain", {}))
    assert (done["state"], done["cordon"]["done"]) == ("failed", True)
    small, large = sorted(done["instances"], key=lambda one: one["instance"], reverse=True)
    assert (small["instance"], small["state"], small["node"]) == ("small", "booted", "n1")
    assert (large["instance"], large["state"], large["node"]) == ("large", "failed", None)
    assert "the filter resources removed the last" in large["why"]
    assert {"name": "resources", "left": 0} in large["filters"]
    deciding.pass_time(3.0)
    assert deciding.allocations() == {"n0": {"large"}, "n1": {"small", "x"}, "n2": {"y"}}


def test_a_drain_whose_cordon_is_not_answered_moves_nothing(deciding: DecidingCell) -> None:
    deciding.done(deciding.post("/v1/boots", wanted("a", force_nodes=["n0"])))
    deciding.pass_time(3.0)
    deciding.cell.agent_frozen = True
    done = deciding.done(deciding.post("/v1/nodes/n0/drain", {"timeout_s": 2}))
    assert (done["state"], done["instances"], done["cordon"]["refused"]) == ("failed", [], "silent")
    assert done["error"].startswith("the node is not cordoned, so nothing was moved: no answer within 2 s")
    unknown = deciding.post("/v1/nodes/nowhere/drain", {})
    assert (unknown.status_code, unknown.json()["type"]) == (404, "not-found")


def test_a_drain_whose_view_becomes_stale_says_that_the_node_is_cordoned(deciding: DecidingCell) -> None:
    deciding.cell.consumer_frozen = True
    done = deciding.done(deciding.post("/v1/nodes/n0/drain", {}))
    assert (done["state"], done["cordon"]["done"], done["instances"]) == ("failed", True, [])
    assert done["error"].startswith("the view is ")


def test_other_work_goes_on_while_a_node_is_drained(deciding: DecidingCell) -> None:
    deciding.done(deciding.post("/v1/boots", wanted("a", force_nodes=["n0"])))
    deciding.pass_time(3.0)
    deciding.cell.agent_frozen = True
    accepted = deciding.post("/v1/nodes/n0/drain", {"timeout_s": 20})
    again = deciding.post("/v1/nodes/n0/drain", {})
    assert (again.status_code, again.json()["type"]) == (409, "conflict")
    assert deciding.post("/v1/claims", wanted("b")).status_code == 200
    assert deciding.running.get(accepted.headers["location"]).json()["state"] == "running"
    deciding.cell.agent_frozen = False
    assert deciding.done(accepted)["state"] == "done"

"""The routes about room: capacity and what-if, over a cell of doubles."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.serve.deciding_cell import VCPU, DecidingCell, state, wanted


@pytest.fixture
def deciding() -> Iterator[DecidingCell]:
    states = {"n0": state(zone="az1", aggregates=["rack"]), "n1": state(zone="az1"), "n2": state(zone="az2")}
    with DecidingCell(states) as found:
        found.done(found.post("/v1/boots", wanted("i0", vcpu=6, force_nodes=["n0"])))
        found.pass_time(5.0)
        assert found.post("/v1/claims", wanted("c1", vcpu=2, force_nodes=["n1"])).status_code == 200
        yield found


def test_capacity_sums_amounts_of_all_nodes_zones_and_aggregates_with_claims(deciding: DecidingCell) -> None:
    found = deciding.running.get("/v1/capacity").json()
    assert found["whole"]["classes"]["VCPU"] == {"total": 3 * VCPU, "used": 6, "claimed": 2, "free": 3 * VCPU - 8}
    assert (found["whole"]["nodes"], found["whole"]["open_nodes"], found["fit"]) == (3, 3, None)
    assert {zone: part["classes"]["VCPU"]["free"] for zone, part in found["zones"].items()} == {"az1": 8, "az2": 8}
    assert found["aggregates"].keys() == {"rack"}
    assert found["age"] < 5


def test_capacity_counts_how_many_instances_fit_and_why_the_next_one_does_not(deciding: DecidingCell) -> None:
    asked = {"request": json.dumps({"resources": {"VCPU": 3}})}
    fit = deciding.running.client.get("/v1/capacity", params=asked).json()["fit"]
    assert (fit["fits"], fit["is_minimum"], fit["nodes"]) == (2 + 2, False, 2)  # n0 has 2 left, n1 6, n2 8
    assert fit["filters"][-1]["left"] == 0
    assert "VCPU: 3 wanted, at most 2 free on a node" in fit["why"]
    claimed = deciding.post("/v1/claims", wanted("a", "b", "c", "d", "e", vcpu=3)).json()["claims"]
    assert sum(claim["node"] is not None for claim in claimed) == 4


@pytest.mark.parametrize(
    ("text", "field"),
    [("{}", "request.resources"), ("nonsense", "request"), ('{"resources": {"vcpu": 1}}', "request.resources.vcpu")],
)
def test_a_wrong_request_in_the_query_is_named(deciding: DecidingCell, text: str, field: str) -> None:
    answer = deciding.running.client.get("/v1/capacity", params={"request": text})
    assert (answer.status_code, answer.json()["type"], answer.json()["field"]) == (400, "bad-request", field)


def test_what_if_answers_as_after_the_change_and_claims_nothing(deciding: DecidingCell) -> None:
    asked = {"request": {"resources": {"VCPU": VCPU, "MEMORY_MB": 100}, "count": 3}}
    empty = deciding.post("/v1/what-if", {**asked, "assume_empty": True}).json()
    assert sorted(choice["node"] for choice in empty["choices"]) == ["n0", "n1", "n2"]
    assert (empty["fit"]["fits"], empty["assume_empty"], empty["without"]) == (3, True, [])
    assert empty["explanation"]["filters"][0] == {"name": "all", "left": 3}
    assert len(empty["explanation"]["best"]) == 3
    gone = deciding.post("/v1/what-if", {**asked, "assume_empty": True, "without": ["n0", "n1", "n0"]})
    assert gone.status_code == 200, gone.text
    assert [choice["node"] for choice in gone.json()["choices"]] == ["n2", None, None]
    assert (gone.json()["fit"]["fits"], gone.json()["without"]) == (1, ["n0", "n1"])
    after = deciding.running.get("/v1/capacity").json()["whole"]["classes"]["VCPU"]
    assert after["used"] == 6, "the fleet of the scheduler is as before"


def test_what_if_names_unknown_nodes_and_the_lack_of_a_change(deciding: DecidingCell) -> None:
    asked = {"request": {"resources": {"VCPU": 1}}}
    unknown = deciding.post("/v1/what-if", {**asked, "without": ["nowhere"]})
    assert (unknown.status_code, unknown.json()["type"]) == (404, "not-found")
    unchanged = deciding.post("/v1/what-if", asked)
    assert (unchanged.status_code, unchanged.json()["field"]) == (400, "without")

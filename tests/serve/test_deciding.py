"""The routes that decide: selections, claims, boots, moves, reservations and decisions, over a cell of doubles."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from harness.deciding_requests import BODIES
from harness.waiting import wait_until
from nodestate.scheduling import parse
from nodestate.serve.app import ROUTES
from nodestate.serve.decision_recorder import DecisionRecorder
from nodestate.testing import MemoryServer
from tests.serve.deciding_cell import VCPU, DecidingCell, state, wanted


@pytest.fixture
def deciding() -> Iterator[DecidingCell]:
    with DecidingCell() as found:
        yield found


MEMBERS = BODIES["/v1/reservations"]


def test_a_stale_view_is_503_in_every_route_that_decides(deciding: DecidingCell) -> None:
    deciding.cell.consumer_frozen = deciding.cell.agent_frozen = True
    deciding.cell.clock.advance(60.0)
    deciding_routes = [route for route in ROUTES if route.decides]
    assert {route.path for route in deciding_routes if route.method == "POST"} == set(BODIES)
    for route in deciding_routes:
        path = route.path.replace("{id}", "any").replace("{name}", "n0")
        answer = deciding.post(path, BODIES[route.path]) if route.method == "POST" else deciding.running.get(path)
        assert answer.status_code == 503, (path, answer.text)
        problem = answer.json()
        assert (problem["type"], problem["max_age"]) == ("stale-view", 5.0), path
        assert problem["age"] > 5.0
        assert answer.headers["retry-after"]


def test_each_route_with_a_role_above_read_decides_and_no_other_changes_anything() -> None:
    for route in ROUTES:
        if route.path == "/v1/session":
            continue
        assert (route.method == "GET") == (route.role in ("read", "open")), route.path
        if route.method == "POST":
            assert route.is_repeatable, route.path
            assert route.decides != route.path.endswith("cordon"), "a cordon needs no view"


def test_a_selection_names_nodes_and_explains_and_claims_nothing(deciding: DecidingCell) -> None:
    answer = deciding.post("/v1/select", {**wanted("a", "b", alternates=2), "explain": True})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert [choice["instance"] for choice in found["choices"]] == ["a", "b"]
    assert all(len(choice["alternates"]) == 2 for choice in found["choices"])
    [explanation] = found["explanations"]
    assert explanation["filters"][0] == {"name": "all", "left": 3}
    assert len(explanation["best"]) == 3
    assert len(deciding.post("/v1/claims", wanted(*"abc", vcpu=VCPU)).json()["claims"]) == 3, "nothing was claimed"


def test_many_requests_are_claimed_in_one_post_and_those_without_a_node_say_why(deciding: DecidingCell) -> None:
    requests = [wanted(f"i{number}", vcpu=VCPU)["requests"][0] for number in range(4)]
    answer = deciding.post("/v1/claims", {"requests": requests})
    assert answer.status_code == 200, answer.text
    claims = answer.json()["claims"]
    assert sorted(claim["node"] for claim in claims[:3]) == ["n0", "n1", "n2"]
    assert claims[3]["node"] is None
    assert {"name": "resources", "left": 0} in claims[3]["filters"]
    assert answer.json()["seconds"] > 0


def test_no_node_at_all_is_the_problem_no_host_with_the_funnel(deciding: DecidingCell) -> None:
    for path in ("/v1/select", "/v1/claims"):
        answer = deciding.post(path, wanted("a", vcpu=VCPU + 1))
        assert answer.status_code == 409
        problem = answer.json()
        assert (problem["type"], problem["instance"]) == ("no-host", "a")
        assert problem["filters"][0] == {"name": "all", "left": 3}
        assert problem["filters"][-1]["left"] == 0


def test_a_wrong_field_of_a_request_is_named_with_its_number(deciding: DecidingCell) -> None:
    body = {"requests": [*wanted("a")["requests"], {"resources": {"vcpu": 1}}]}
    answer = deciding.post("/v1/claims", body)
    assert answer.status_code == 400
    assert answer.json()["field"] == "requests[1].resources.vcpu"


def test_a_boot_is_a_resource_that_shows_each_instance_until_its_node_has_it(deciding: DecidingCell) -> None:
    accepted = deciding.post("/v1/boots", wanted("a", "b"))
    assert accepted.headers["location"] == f"/v1/boots/{accepted.json()['id']}"
    done = deciding.done(accepted)
    assert done["state"] == "done"
    for one in done["instances"]:
        assert one["state"] == "booted"
        assert deciding.nodes_with(one["instance"]) == [one["node"]]


def test_a_boot_without_a_node_ends_as_failed_with_the_funnel(deciding: DecidingCell) -> None:
    done = deciding.done(deciding.post("/v1/boots", wanted("a", vcpu=VCPU + 1)))
    assert done["state"] == "failed"
    [one] = done["instances"]
    assert (one["state"], one["node"]) == ("failed", None)
    assert one["filters"][-1]["left"] == 0


def test_boots_of_four_clients_at_once_never_overcommit(deciding: DecidingCell) -> None:
    def boot(number: int) -> Any:
        return deciding.done(deciding.post("/v1/boots", wanted(*(f"c{number}-{one}" for one in range(8)), vcpu=1)))

    with ThreadPoolExecutor(4) as clients:
        ended = list(clients.map(boot, range(4)))
    states = Counter(one["state"] for document in ended for one in document["instances"])
    assert states == {"booted": 3 * VCPU, "failed": 32 - 3 * VCPU}
    assert {node: len(found) for node, found in deciding.allocations().items()} == dict.fromkeys(
        ("n0", "n1", "n2"), VCPU
    )
    assert not deciding.cell.overcommitments


def test_a_repeated_post_with_an_idempotency_key_boots_once(deciding: DecidingCell) -> None:
    body = {"requests": [{"count": 1, "resources": {"VCPU": 1}}]}
    start = threading.Barrier(2)

    def boot(_client: int) -> Any:
        start.wait()
        return deciding.post("/v1/boots", body, Idempotency_Key="k1")

    with ThreadPoolExecutor(2) as clients:
        one, two = clients.map(boot, range(2))
    again = deciding.post("/v1/boots", body, Idempotency_Key="k1")
    assert one.headers["location"] == two.headers["location"] == again.headers["location"]
    assert deciding.done(again)["state"] == "done"
    assert sum(len(found) for found in deciding.allocations().values()) == 1
    other = deciding.post("/v1/boots", wanted("b"), Idempotency_Key="k1")
    assert (other.status_code, other.json()["type"]) == (409, "conflict")


def test_a_post_that_was_refused_can_be_repeated_with_its_key(deciding: DecidingCell) -> None:
    deciding.cell.consumer_frozen = True
    deciding.cell.clock.advance(60.0)
    assert deciding.post("/v1/boots", wanted("a"), Idempotency_Key="k1").status_code == 503
    deciding.cell.consumer_frozen = False
    deciding.pass_time(5.0)
    assert deciding.done(deciding.post("/v1/boots", wanted("a"), Idempotency_Key="k1"))["state"] == "done"


def test_instances_are_migrated_resized_terminated_and_nodes_evacuated(deciding: DecidingCell) -> None:
    deciding.done(deciding.post("/v1/boots", wanted("a", "b", force_nodes=["n0"])))

    def ended(path: str, body: Any) -> Any:
        deciding.pass_time(5.0)  # a view shows the last change then
        return deciding.done(deciding.post(path, body))

    assert ended("/v1/instances/a/migrate", {"to": "n1"})["instances"][0]["node"] == "n1"
    assert ended("/v1/instances/a/resize", {"resources": {"VCPU": 3}})["state"] == "done"
    assert ended("/v1/nodes/n0/evacuate", {})["state"] == "done"
    deciding.pass_time(5.0)
    assert not deciding.allocations()["n0"]
    gone = ended("/v1/instances/a/terminate", {})
    assert gone["instances"] == [
        {**gone["instances"][0], "instance": "a", "state": "terminated", "node": "n1", "why": ""}
    ]
    assert deciding.nodes_with("a") == []
    assert len(deciding.nodes_with("b")) == 1
    unknown = deciding.post("/v1/instances/nothing/migrate", {})
    assert (unknown.status_code, unknown.json()["type"]) == (404, "not-found")


def test_two_operations_on_one_instance_at_once_are_a_conflict(deciding: DecidingCell) -> None:
    deciding.cell.agent_frozen = True
    first = deciding.post("/v1/boots", wanted("a"))
    second = deciding.post("/v1/boots", wanted("a"))
    assert (second.status_code, second.json()["type"]) == (409, "conflict")
    deciding.cell.agent_frozen = False
    deciding.done(first)
    assert len(deciding.nodes_with("a")) == 1


def test_a_reservation_is_held_extended_confirmed_and_another_one_released(deciding: DecidingCell) -> None:
    held = deciding.post("/v1/reservations", {**MEMBERS, "owner": "me"})
    assert held.status_code == 201, held.text
    name = held.json()["id"]
    assert len(held.json()["members"]) == 3
    assert [one["id"] for one in deciding.running.get("/v1/reservations").json()["reservations"]] == [name]
    extended = deciding.post(f"/v1/reservations/{name}/extend", {"hold_s": 600})
    assert extended.json()["seconds"] > 500
    foreign = deciding.post(f"/v1/reservations/{name}/release", {"owner": "you"})
    assert foreign.status_code == 404
    done = deciding.done(deciding.post(f"/v1/reservations/{name}/confirm", {"owner": "me"}))
    assert done["state"] == "done", done
    assert len(deciding.nodes_with("m1")) == 1
    other = deciding.post("/v1/reservations", {"members": [{"instances": ["x"], "resources": {"VCPU": 1}}]}).json()
    assert deciding.post(f"/v1/reservations/{other['id']}/release", {}).json() == {"id": other["id"], "released": True}
    refused = deciding.post("/v1/reservations", {"members": [{"count": 2, "resources": {"VCPU": VCPU + 1}}]})
    assert (refused.status_code, refused.json()["type"]) == (409, "no-host")


def test_a_decision_tells_what_each_filter_left_before_the_claim_and_the_best_nodes() -> None:
    """The claim itself must not count: the only node in the zone is full after it."""
    states = {"n0": state(zone="az1"), "n1": state(zone="az2"), "n2": state(zone="az2")}
    with DecidingCell(states) as deciding:
        claim = deciding.post("/v1/claims", wanted("a", vcpu=VCPU, zone="az1")).json()["claims"][0]

        path = f"/v1/decisions/{claim['decision']}"
        wait_until(lambda: deciding.running.get(path).json()["explained"], "the decision is never explained")
        found = deciding.running.get(path).json()
        assert found["filters"][0] == {"name": "all", "left": 3}
        assert found["filters"][-1]["left"] == 1
        assert [best["node"] for best in found["best"]] == ["n0"]
        assert found["best"][0]["weight"] == pytest.approx(sum(found["best"][0]["by"].values()), abs=1e-3)
        assert (found["kind"], found["chosen"], found["outcome"]) == ("claim", "n0", "claimed")
        assert found["request"] == {
            "instances": ["a"],
            "resources": {"VCPU": VCPU, "MEMORY_MB": 100},
            "zone": "az1",
            "max_age": 5.0,
        }
        after = deciding.post("/v1/select", wanted("b", zone="az1"))
        assert after.status_code == 409, "the claim counts again after the explanation"


def explained(deciding: DecidingCell, instance: str) -> Any:
    """The last decision about an instance, once it is explained."""
    found: list[Any] = []

    def is_explained() -> bool:
        found[:] = deciding.running.get(f"/v1/decisions?instance={instance}&limit=1").json()["decisions"]
        assert found, "a decision is recorded before its operation ends"
        return bool(found[0]["explained"])

    wait_until(is_explained, "it is never explained")
    return found[0]


def test_a_claim_that_no_server_takes_is_503_and_not_a_lack_of_nodes() -> None:
    """A client takes ``no-host`` for a full fleet. The views come from other servers, so they are fresh."""
    deciding = DecidingCell()
    deciding.claim_servers = [MemoryServer()]
    with deciding:
        assert deciding.post("/v1/claims", wanted("a")).status_code == 200
        deciding.claim_servers[0].stop()
        for path, body in (("/v1/claims", wanted("b")), ("/v1/reservations", MEMBERS)):
            answer = deciding.post(path, body)
            assert (answer.status_code, answer.json()["type"]) == (503, "overloaded"), (path, answer.text)
            assert answer.headers["retry-after"]


def test_a_decision_about_a_boot_tells_how_the_nodes_ranked_before_its_claim() -> None:
    """The node is chosen in a step of the scheduler. The only node in the zone is full after it."""
    states = {"n0": state(zone="az1"), "n1": state(zone="az2"), "n2": state(zone="az2")}
    with DecidingCell(states) as deciding:
        deciding.done(deciding.post("/v1/boots", wanted("a", vcpu=VCPU, zone="az1")))
        found = explained(deciding, "a")
        assert [best["node"] for best in found["best"]] == ["n0"]
        assert found["filters"][-1]["left"] == 1
        assert (found["kind"], found["chosen"], found["outcome"]) == ("boot", "n0", "booted")
        assert found["age"] < 5


def test_a_decision_about_a_move_ranks_the_other_nodes_without_the_instance_itself(deciding: DecidingCell) -> None:
    deciding.done(deciding.post("/v1/boots", wanted("a", vcpu=VCPU, force_nodes=["n0"])))
    deciding.pass_time(5.0)
    assert deciding.done(deciding.post("/v1/instances/a/migrate", {}))["state"] == "done"
    found = explained(deciding, "a")
    assert found["kind"] == "migrate"
    assert {best["node"] for best in found["best"]} == {"n1", "n2"}
    assert found["filters"][0] == {"name": "all", "left": 2}


def test_decisions_about_reservations_are_recorded(deciding: DecidingCell) -> None:
    held = deciding.post("/v1/reservations", MEMBERS).json()
    found = explained(deciding, "m1")
    assert (found["kind"], found["outcome"]) == ("reserve", "reserved")
    assert found["chosen"] in {one["node"] for one in held["members"]}
    assert len(found["best"]) == 3
    for member in held["members"]:
        assert deciding.running.get(f"/v1/decisions?instance={member['instance']}").json()["decisions"]
    large = {"members": [{"instances": ["x"], "resources": {"VCPU": VCPU + 1}}]}
    assert deciding.post("/v1/reservations", large).status_code == 409
    failed = explained(deciding, "x")
    assert (failed["kind"], failed["outcome"], failed["chosen"]) == ("reserve", "no-host", None)
    assert failed["filters"][-1]["left"] == 0


def test_a_claim_that_was_given_back_before_its_explanation_is_not_explained(deciding: DecidingCell) -> None:
    """Regression: it was to be subtracted from its node, but has none. A reservation that fails gives claims back."""
    scheduler = deciding.open_scheduler()
    recorder = DecisionRecorder(lambda _decisions: None)
    [placing] = scheduler.claim([parse(wanted("a")["requests"][0])])
    recorder.note_placings(scheduler, [placing])
    [made] = recorder.record_claims(scheduler, "", [placing])
    placing.release()
    recorder.explain_pending(scheduler, is_idle=True)
    assert made.basis.explanation is None


def test_decisions_are_listed_newest_first_in_pages_and_by_instance(deciding: DecidingCell) -> None:
    for name in "abc":
        deciding.post("/v1/claims", wanted(name))
    deciding.done(deciding.post("/v1/boots", wanted("d")))
    deciding.post("/v1/claims", wanted("e", vcpu=VCPU + 1))

    def listed(query: str = "") -> Any:
        return deciding.running.get(f"/v1/decisions{query}").json()

    assert [one["instance"] for one in listed()["decisions"]] == [*"edcba"]
    assert listed()["decisions"][0]["outcome"] == "no-host"
    assert listed()["decisions"][1]["outcome"] == "booted"
    page = listed("?limit=2")
    assert [one["instance"] for one in listed(f"?limit=2&before={page['next']}")["decisions"]] == [*"cb"]
    assert [one["instance"] for one in listed("?instance=b")["decisions"]] == ["b"]
    assert deciding.running.get("/v1/decisions/none").status_code == 404

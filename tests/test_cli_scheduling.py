"""The commands that schedule, as an operator gives them: real memcached and RabbitMQ, and agents that admit."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from harness.servers import RabbitServer
from nodestate.agent.sources.static_fleet import StaticFleet
from nodestate.cli import main
from nodestate.cli.embedded_cell import EmbeddedCell
from nodestate.cli.logs import set_up_logs
from nodestate.config import load
from nodestate.designs.connections import open_claims
from nodestate.designs.reader import Reader
from nodestate.ports import Put, SystemClock, Write
from nodestate.scheduling.claims import CLAIMS, ClaimRecord
from nodestate.store import keys
from tests.conftest import MemcachedFactory

pytestmark = [pytest.mark.service, pytest.mark.timeout(120)]

PLACES = (
    "select",
    "boot",
    "refuse",
    "reserve",
    "members",
    "confirm",
    "move",
    "evacuate",
    "resize",
    "dead",
    "silent",
    "end",
)
STATE: Mapping[str, Any] = {
    "inventory": {"VCPU": {"total": 8}, "MEMORY_MB": {"total": 8_000}},
    "traits": ["HW_CPU_X86_AVX2"],
}
DEADLINE_S = 20.0


class Cell:
    """A cell of three nodes for each of ``PLACES``, so that tests do not take each other's room. It runs in threads."""

    def __init__(self, broker: str, store: str, folder: Path) -> None:
        name = f"t-{uuid.uuid4().hex[:12]}"
        self.env = {
            "NODESTATE_BROKER": broker,
            "NODESTATE_STORE": store,
            "NODESTATE_CELL": name,
            "NODESTATE_STATE_DIR": str(folder),
            "NODESTATE_PARTITIONS": "2",
            "NODESTATE_DESIGNS": "snapshot",
            "NODESTATE_HEARTBEAT_S": "1",
            "NODESTATE_RESYNC_JITTER_S": "0.2",
            "NODESTATE_ANSWER_TIMEOUT_S": "3",
        }
        self.config = load(environ=self.env)
        self.fleet = StaticFleet(
            {f"{place}-{n}": {**STATE, "zone": f"az{n}", "aggregates": [place]} for place in PLACES for n in (1, 2, 3)}
        )
        self._forget_that_it_is_new()
        self._cell = EmbeddedCell(self.config, [self.fleet])

    def _forget_that_it_is_new(self) -> None:
        """Claim records that nobody began lately: a reservation waits ten seconds for those of a new cell."""
        [server] = open_claims(self.config, SystemClock())
        value = CLAIMS.pack(ClaimRecord(0.0))
        server.write([Write(Put.ADD, keys.claim(self.config.cell, node), value) for node in self.fleet.nodes()])
        server.close()

    def close(self) -> None:
        self._cell.close()

    def run(self, *words: str, stdin: Any = None, code: int = 0) -> Result:
        """A command with this exit code."""
        given = stdin if isinstance(stdin, str | None) else json.dumps(stdin)
        answer = CliRunner().invoke(main, words, env=self.env, input=given)
        assert answer.exit_code == code, f"{words}\n{answer.stdout}\n{answer.stderr}\n{answer.exception!r}"
        return answer

    def ask(self, *words: str, stdin: Any = None, code: int = 0) -> Any:
        """The JSON answer of a command."""
        return json.loads(self.run(*words, "--json", stdin=stdin, code=code).stdout)

    def boot(self, instance: str, place: str, vcpu: int = 1, **more: Any) -> str:
        """Boot one instance; its node."""
        [one] = self.ask("boot", "-", stdin=wanted(place, vcpu, instances=[instance], **more))["instances"]
        return str(one["node"])

    def on(self, node: str) -> dict[str, Any]:
        """What the agent says of a node's allocations."""
        return dict(self.fleet.room(node).allocations)


def wanted(place: str, vcpu: int = 1, **more: Any) -> dict[str, Any]:
    return {"resources": {"VCPU": vcpu, "MEMORY_MB": 500 * vcpu}, "aggregates": [place], **more}


@pytest.fixture(scope="module")
def site(
    rabbit: RabbitServer, memcached_factory: MemcachedFactory, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cell]:
    set_up_logs("critical", "console")  # what the cell's threads say must not get into the answers of commands
    cell = Cell(rabbit.url, memcached_factory().url, tmp_path_factory.mktemp("agents"))
    with Reader(cell.config) as reader:
        deadline = time.monotonic() + DEADLINE_S
        while len(reader.read(max_age=5.0, node_max_age=5.0, on_stale="exclude").nodes) < 3 * len(PLACES):
            assert time.monotonic() < deadline, "agents do not come up"
            time.sleep(0.05)
    yield cell
    cell.close()


class TestSelect:
    def test_it_names_nodes_and_alternates_and_claims_nothing(self, site: Cell) -> None:
        request = wanted("select", 5, count=3, alternates=2)
        for _ in range(2):  # had it claimed, the second could not be placed
            answer = site.ask("select", "-", stdin=request)
            nodes = [choice["node"] for choice in answer["choices"]]
            assert sorted(nodes) == ["select-1", "select-2", "select-3"]
            assert 0 <= answer["age"] < 5
        assert set(answer["choices"][0]["alternates"]) == set(nodes[1:])

    def test_a_few_words_do_for_a_file(self, site: Cell) -> None:
        told = site.run("select", "--resources", "VCPU=2,MEMORY_MB=1000").stdout
        assert told.splitlines()[0].split() == ["instance", "node", "alternates"]

    def test_where_nothing_fits_it_says_which_filter_left_none(self, site: Cell) -> None:
        lack = "; VCPU: 9 wanted, at most 8 free on a node"
        told = site.run("select", "-", stdin=wanted("select", 9, zone="az1"), code=1).stdout.splitlines()
        assert (
            told[0] == f"no node passes resources: of {3 * len(PLACES)}, {3 * len(PLACES)} were left before it" + lack
        )
        assert told[1].split() == ["filter", "removed", "left"]
        assert told[2].split() == ["resources", str(3 * len(PLACES)), "0"]
        [choice] = site.ask("select", "-", stdin=wanted("select", 9), code=1)["choices"]
        assert choice["node"] is None
        assert choice["remaining"][0] == {"filter": "all", "nodes": 3 * len(PLACES)}
        assert choice["why"] == told[0]
        [choice] = site.ask("select", "-", stdin=wanted("select", force_nodes=["select-9"]), code=1)["choices"]
        assert choice["why"] == "no node select-9 is known"
        [choice] = site.ask("select", "-", stdin=wanted("select"))["choices"]
        assert "why" not in choice

    def test_explained_filter_by_filter_and_weigher_by_weigher(self, site: Cell) -> None:
        explanation = site.ask("select", "-", "--explain", stdin=wanted("select", zone="az1"))["explanation"]
        assert {"filter": "zone", "nodes": len(PLACES)} in explanation["remaining"]
        [best] = explanation["best"]
        assert best["node"] == "select-1"
        assert best["weighers"]["cpu"] == 0.875
        assert best["weight"] == pytest.approx(sum(best["weighers"].values()), abs=0.001)
        told = site.run("select", "-", "--explain", stdin=wanted("select", zone="az1")).stdout
        assert f"{3 * len(PLACES)} nodes, 1 pass all filters" in told
        assert "0.875" in told

    def test_a_view_that_is_too_old_is_refused(self, site: Cell) -> None:
        answer = site.run("select", "--resources", "VCPU=1", "--max-age", "0.000001", "--json", code=1)
        assert json.loads(answer.stderr)["kind"] == "stale-view"


class TestBoot:
    def test_agents_build_what_was_placed_and_the_next_command_sees_it(self, site: Cell) -> None:
        request = wanted("boot", 5, instances=["b-1", "b-2"], group={"name": "b", "policy": "anti-affinity"})
        answer = site.ask("boot", "-", "--explain", stdin=request)
        assert answer["under_way"] == []
        nodes = {one["instance"]: one["node"] for one in answer["instances"]}
        assert len(set(nodes.values())) == 2
        for instance, node in nodes.items():
            assert site.on(node)[instance]["hints"]["group_policy"] == "anti-affinity"
        assert answer["explanation"]["best"]
        [choice] = site.ask("select", "-", stdin=wanted("boot", 5))["choices"]
        assert choice["node"] not in nodes.values()

    def test_what_no_node_has_room_for_is_said(self, site: Cell) -> None:
        told = site.run("boot", "-", stdin=wanted("boot", 9, instances=["b-3"]), code=1).stdout
        assert told.startswith("no node passes resources: of ")
        assert "(b-3)" in told.splitlines()[0]

    def test_an_agents_refusal_is_told_with_its_reason(self, site: Cell) -> None:
        """The view of the scheduler says up, as the agent's word is under way: so the agent refuses."""
        for n in (1, 2, 3):
            site.fleet._nodes[f"refuse-{n}"].fixed["status"] = "maintenance"
        told = site.run("boot", "-", stdin=wanted("refuse", instances=["r-1"], zone="az1"), code=1).stdout
        assert told.startswith("no node passes ")
        assert "\n  refused by refuse-1: status" in told
        others = wanted("refuse", instances=["r-2"], ignore_nodes=["refuse-1"])
        [one] = site.ask("boot", "-", stdin=others, code=1)["instances"]
        assert {refused["node"] for refused in one["refused"]} == {"refuse-2", "refuse-3"}
        assert {refused["reason"] for refused in one["refused"]} == {"status"}
        assert one["booted"] is False

    def test_what_has_no_outcome_in_time_is_said_to_be_under_way(self, site: Cell) -> None:
        site.fleet.kill("silent-1")
        while site.fleet._new_readings:  # until the agent has noticed
            time.sleep(0.01)
        request = wanted("silent", instances=["u-1"], force_nodes=["silent-1"])
        answer = site.ask("boot", "-", "--timeout", "0.2", stdin=request, code=1)
        assert answer == {"instances": [], "under_way": ["u-1"]}
        told = site.run("boot", "-", "--timeout", "0.2", stdin={**request, "instances": ["u-2"]}, code=1).stdout
        assert told.startswith("1 instances have no outcome yet, for example u-2: agents may still build them")


@pytest.fixture
def asleep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package whose filter fails."""
    (tmp_path / "asleep_for_test.py").write_text("def awake(fleet, rows, request):\n    return 1 / 0\n")
    metadata = tmp_path / "asleep_for_test-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: asleep-for-test\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[nodestate.filters]\nawake = asleep_for_test:awake\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("asleep")
@pytest.mark.parametrize(("command", "member"), [("select", False), ("boot", False), ("reserve", True)])
def test_an_own_filter_that_fails_is_told_in_one_line(site: Cell, command: str, member: bool) -> None:
    """As any other error, and no traceback from within nodestate."""
    request: dict[str, Any] = {"members": [wanted("select")]} if member else wanted("select")
    told = site.run(command, "-", stdin=request, code=1)
    line = "filter 'awake' (asleep_for_test:awake) failed: ZeroDivisionError('division by zero')"
    assert told.stderr == f"nodestate: {line}\n"
    answer = json.loads(site.run(command, "-", "--json", stdin=request, code=1).stderr)
    assert (answer["error"], answer["kind"], answer["policy"]) == (line, "policy", "awake")


class TestReservations:
    def test_what_is_held_is_listed_extended_and_released(self, site: Cell, tmp_path: Path) -> None:
        file = tmp_path / "group.json"
        member = wanted("reserve", 5)
        file.write_text(json.dumps({"members": [{**member, "instances": [f"v-{n}"]} for n in (1, 2, 3)]}))
        held = site.ask("reserve", str(file), "--owner", "alice", "--hold", "30")
        assert sorted(one["node"] for one in held["members"]) == ["reserve-1", "reserve-2", "reserve-3"]
        assert held["owner"] == "alice"

        [listed] = site.ask("reservations")["reservations"]
        assert listed["id"] == held["id"]
        assert 0 < listed["seconds"] <= 31
        assert held["id"] in site.run("reservations").stdout

        none = site.run("reserve", str(file), "--timeout", "0.1", code=1).stdout
        assert none.startswith("no node passes aggregates: of ")  # others have room, these have none left
        assert "nothing is reserved" in none
        assert site.ask("select", "-", stdin=member, code=1)["choices"][0]["node"] is None

        assert site.ask("extend", held["id"], "--hold", "600")["seconds"] == 600
        mallory = site.run("release", held["id"], "--owner", "mallory", "--json", code=1)
        assert json.loads(mallory.stderr)["field"] == "owner"
        site.run("release", held["id"], "--owner", "alice")
        assert site.run("reservations").stdout == "there are no reservations\n"
        gone = site.run("confirm", held["id"], "--json", code=1)
        assert json.loads(gone.stderr)["kind"] == "not-found"

    def test_all_members_are_built_when_it_is_confirmed(self, site: Cell) -> None:
        group = {
            "members": [wanted("confirm", 5, instances=["c-1"]), wanted("confirm", 5, instances=["c-2"])],
            "group": {"name": "c", "policy": "anti-affinity"},
        }
        held = site.ask("reserve", "-", stdin=group)
        assert not any(site.on(f"confirm-{n}") for n in (1, 2, 3))
        answer = site.ask("confirm", held["id"])
        assert answer["confirmed"]
        for one in answer["instances"]:
            assert one["instance"] in site.on(one["node"])
        nodes = {one["instance"]: one["node"] for one in held["members"]}
        assert nodes == {one["instance"]: one["node"] for one in answer["instances"]}

    def test_a_member_is_built_by_itself_where_it_is_held(self, site: Cell) -> None:
        group = {"members": [wanted("members", instances=["m-1"]), wanted("members", instances=["m-2"])]}
        held = site.ask("reserve", "-", stdin=group)
        nodes = {one["instance"]: one["node"] for one in held["members"]}
        [one] = site.ask("boot", "--reservation", held["id"], "--instance", "m-1")["instances"]
        assert one["node"] == nodes["m-1"]
        assert "m-1" in site.on(nodes["m-1"])
        assert "no member" in site.run("boot", "--reservation", held["id"], "--instance", "m-9", code=1).stderr
        site.run("release", held["id"])


class TestMoves:
    def test_a_move_keeps_what_was_asked_for(self, site: Cell) -> None:
        away = site.boot("v-anchor", "move", group={"name": "mv", "policy": "anti-affinity"})
        before = site.boot("v-moved", "move", group={"name": "mv", "policy": "anti-affinity"})
        answer = site.ask("migrate", "v-moved", "--explain")
        [one] = answer["instances"]
        assert one["node"] not in {away, before}
        assert "v-moved" in site.on(one["node"])
        assert "v-moved" not in site.on(before)
        assert [best["node"] for best in answer["explanation"]["best"]] == [one["node"]]
        assert site.run("migrate", "v-moved", "--to", away, code=1).stdout.startswith(f"{away} does not pass group")
        assert site.ask("migrate", "v-moved", "--to", before)["instances"][0]["node"] == before
        assert "no node reports v-none" in site.run("migrate", "v-none", code=1).stderr
        assert site.run("migrate", "v-moved", "--to", "nowhere", code=1).stderr.startswith("nodestate: to: ")

    def test_everything_goes_off_a_node(self, site: Cell) -> None:
        for n in (1, 2, 3):
            site.boot(f"e-{n}", "evacuate", 2, force_nodes=["evacuate-1"])
        answer = site.ask("evacuate", "evacuate-1")
        assert {one["instance"] for one in answer["instances"]} == {"e-1", "e-2", "e-3"}
        assert "evacuate-1" not in {one["node"] for one in answer["instances"]}
        assert site.on("evacuate-1") == {}
        assert "there are no instances on evacuate-1" in site.run("evacuate", "evacuate-1").stdout

    def test_a_node_that_died_is_evacuated_by_what_it_said_last(self, site: Cell) -> None:
        site.boot("d-1", "dead", 2, force_nodes=["dead-1"])
        site.fleet.kill("dead-1")
        [one] = site.ask("evacuate", "dead-1")["instances"]
        assert one["node"] in {"dead-2", "dead-3"}

    def test_a_resize_takes_room_where_it_is_or_elsewhere(self, site: Cell) -> None:
        node = site.boot("r-1", "resize", 2)
        [one] = site.ask("resize", "r-1", "VCPU=4")["instances"]
        assert one["node"] == node
        assert site.on(node)["r-1"]["resources"] == {"VCPU": 4, "MEMORY_MB": 1000}
        site.boot("r-2", "resize", 4, force_nodes=[node])
        [one] = site.ask("resize", "r-1", "VCPU=5", "--explain")["instances"]
        assert one["node"] != node
        assert "r-1" not in site.on(node)
        assert "does not pass" not in site.run("resize", "r-1", "VCPU=9", code=1).stderr

    def test_what_is_ended_is_on_no_node(self, site: Cell) -> None:
        places = {name: site.boot(name, "end") for name in ("x-1", "x-2", "x-3")}
        assert "no node reports x-9" in site.run("terminate", "x-1", "x-9", code=1).stderr
        assert "x-1" in site.on(places["x-1"]), "none is ended where one is nowhere"
        answer = site.ask("terminate", "x-1", "x-2")
        assert answer["instances"] == [{"instance": name, "nodes": [places[name]]} for name in ("x-1", "x-2")]
        assert not {"x-1", "x-2"} & {name for node in places.values() for name in site.on(node)}
        assert f"x-3 is terminated; it was on {places['x-3']}" in site.run("terminate", "x-3").stdout
        assert "no node reports x-3" in site.run("migrate", "x-3", code=1).stderr


@pytest.mark.parametrize(
    ("words", "stdin", "field"),
    [
        (["select", "-"], "{", "request"),
        (["select", "-"], "[]", "request"),
        (["select", "nowhere.json"], None, "request"),
        (["select", "-"], {"resources": {"VCPU": 1}, "colour": "red"}, "colour"),
        (["select", "-"], {"resources": {}}, "resources"),
        (["select", "-"], {"resources": {"VCPV": 1}}, "resources.VCPV"),
        (["select", "--resources", "VCPU=two"], None, "resources.VCPU"),
        (["select", "--resources", "VCPU=-2"], None, "resources.VCPU"),
        (["select", "--resources", "VCPU=1,VCPU=2"], None, "resources.VCPU"),
        (["select", "-"], {"resources": {"VCPU": 1}, "weights": {"luck": 1}}, "weights.luck"),
        (["boot", "-"], {"resources": {"VCPU": 1}, "count": 0}, "count"),
        (["boot", "-"], {"resources": {"VCPU": 1}, "required_traits": ["HW_CPU_X86_AVX9"]}, "required_traits"),
        (["boot", "-"], {"resources": {"VCPU": 1}, "group": {"name": "g", "policy": "love"}}, "group.policy"),
        (["reserve", "-"], {"members": []}, "members"),
        (["reserve", "-"], {"members": [{"resources": {"VCPU": 0}}]}, "members[0].resources.VCPU"),
        (["reserve", "-", "--hold", "0"], {"members": [{"resources": {"VCPU": 1}}]}, "hold_s"),
        (["extend", "1", "--hold", "1e9"], None, "hold_s"),
        (["resize", "web-1", "VCPU"], None, "resources.VCPU"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_wrong_with_a_request_is_named(site: Cell, words: list[str], stdin: Any, field: str) -> None:
    """Exit code 2, the field in the message, and in JSON by itself."""
    given = stdin if stdin is not None else ""
    told = site.run(*words, stdin=given, code=2)
    assert told.stderr.startswith(f"nodestate: {field}: ")
    assert told.stdout == ""
    assert json.loads(site.run(*words, "--json", stdin=given, code=2).stderr)["field"] == field

"""The scheduling commands against real memcached and RabbitMQ, with agents that carry out orders."""

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
from harness.waiting import wait_until
from nodestate.agent.sources.static_fleet import StaticFleet
from nodestate.auth import TAG
from nodestate.cli import main
from nodestate.cli.embedded_cell import EmbeddedCell
from nodestate.cli.logs import set_up_logs
from nodestate.config import load
from nodestate.designs.connections import open_claims
from nodestate.designs.reader import Reader
from nodestate.ports import Put, SystemClock, Write
from nodestate.scheduling.claims import CLAIMS, ClaimRecord
from nodestate.store import keys
from tests.cell_keys import new_cell_keys, written
from tests.conftest import MemcachedFactory

pytestmark = [pytest.mark.service]

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
    "update",
    "dead",
    "silent",
    "end",
    "retag",
    "cordon",
    "room",
    "drain",
    "forget",
)
STATE: Mapping[str, Any] = {
    "inventory": {"VCPU": {"total": 8}, "MEMORY_MB": {"total": 8_000}},
    "traits": ["HW_CPU_X86_AVX2"],
}


class ThreadedCell:
    """A cell in threads, with three nodes for each of ``PLACES``, so that no test takes the room of another."""

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
        self._write_old_claim_records()
        self._cell = EmbeddedCell(self.config, [self.fleet])

    def _write_old_claim_records(self) -> None:
        """Write old, empty claim records: in a new cell, the first reservation would wait ten seconds."""
        [server] = open_claims(self.config, SystemClock())
        value = CLAIMS.pack(ClaimRecord(0.0))
        server.write([Write(Put.ADD, keys.claim(self.config.cell, node), value) for node in self.fleet.nodes()])
        server.close()

    def close(self) -> None:
        self._cell.close()

    def run(self, *words: str, stdin: Any = None, code: int = 0) -> Result:
        """Run a command and check its exit code."""
        given = stdin if isinstance(stdin, str | None) else json.dumps(stdin)
        answer = CliRunner().invoke(main, words, env=self.env, input=given)
        assert answer.exit_code == code, f"{words}\n{answer.stdout}\n{answer.stderr}\n{answer.exception!r}"
        return answer

    def ask(self, *words: str, stdin: Any = None, code: int = 0) -> Any:
        """Run a command with ``--json`` and return its answer."""
        return json.loads(self.run(*words, "--json", stdin=stdin, code=code).stdout)

    def boot(self, instance: str, place: str, vcpu: int = 1, **more: Any) -> str:
        """Boot one instance and return its node."""
        [one] = self.ask("boot", "-", stdin=wanted(place, vcpu, instances=[instance], **more))["instances"]
        return str(one["node"])

    def on(self, node: str) -> dict[str, Any]:
        """Return the allocations of a node, as its agent has them."""
        return dict(self.fleet.resources_of(node).allocations)


def wanted(place: str, vcpu: int = 1, **more: Any) -> dict[str, Any]:
    return {"resources": {"VCPU": vcpu, "MEMORY_MB": 500 * vcpu}, "aggregates": [place], **more}


@pytest.fixture(scope="module")
def site(
    rabbit: RabbitServer, memcached_factory: MemcachedFactory, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ThreadedCell]:
    set_up_logs("critical", "console")  # logs of the cell's threads must not get into the output of commands
    cell = ThreadedCell(rabbit.url, memcached_factory().url, tmp_path_factory.mktemp("agents"))
    with Reader(cell.config) as reader:
        wait_until(
            lambda: len(reader.read(max_age=5.0, node_max_age=5.0, on_stale="exclude").nodes) == 3 * len(PLACES),
            "not all agents reported",
        )
    yield cell
    cell.close()


class TestSelect:
    def test_select_prints_nodes_and_alternates_and_claims_nothing(self, site: ThreadedCell) -> None:
        request = wanted("select", 5, count=3, alternates=2)
        for _ in range(2):  # if the first one had claimed, the second one would fail
            answer = site.ask("select", "-", stdin=request)
            nodes = [choice["node"] for choice in answer["choices"]]
            assert sorted(nodes) == ["select-1", "select-2", "select-3"]
            assert 0 <= answer["age"] < 5
        assert set(answer["choices"][0]["alternates"]) == set(nodes[1:])

    def test_resources_option_replaces_a_request_file(self, site: ThreadedCell) -> None:
        told = site.run("select", "--resources", "VCPU=2,MEMORY_MB=1000").stdout
        assert told.splitlines()[0].split() == ["instance", "node", "alternates"]

    def test_select_without_a_node_names_the_filter_that_left_none(self, site: ThreadedCell) -> None:
        lack = "; VCPU: 9 wanted, at most 8 free on a node"
        told = site.run("select", "-", stdin=wanted("select", 9, zone="az1"), code=1).stdout.splitlines()
        count = 3 * len(PLACES)
        assert told[0] == f"the filter resources removed the last {count} of {count} nodes{lack}"
        assert told[1].split() == ["filter", "removed", "left"]
        assert told[2].split() == ["resources", str(3 * len(PLACES)), "0"]
        [choice] = site.ask("select", "-", stdin=wanted("select", 9), code=1)["choices"]
        assert choice["node"] is None
        assert choice["remaining"][0] == {"filter": "all", "nodes": 3 * len(PLACES)}
        assert choice["why"] == told[0]
        [choice] = site.ask("select", "-", stdin=wanted("select", force_nodes=["select-9"]), code=1)["choices"]
        assert choice["why"] == "no node select-9 is known; 'nodestate view' lists them"
        [choice] = site.ask("select", "-", stdin=wanted("select"))["choices"]
        assert "why" not in choice

    def test_explanation_has_all_filters_and_weighers(self, site: ThreadedCell) -> None:
        explanation = site.ask("select", "-", "--explain", stdin=wanted("select", zone="az1"))["explanation"]
        assert {"filter": "zone", "nodes": len(PLACES)} in explanation["remaining"]
        [best] = explanation["best"]
        assert best["node"] == "select-1"
        assert best["weighers"]["cpu"] == 0.875
        assert best["weight"] == pytest.approx(sum(best["weighers"].values()), abs=0.001)
        told = site.run("select", "-", "--explain", stdin=wanted("select", zone="az1")).stdout
        assert f"{3 * len(PLACES)} nodes, 1 passes all filters" in told
        assert "0.875" in told

    def test_select_refuses_a_view_that_is_too_old(self, site: ThreadedCell) -> None:
        answer = site.run("select", "--resources", "VCPU=1", "--max-age", "0.000001", "--json", code=1)
        assert json.loads(answer.stderr)["kind"] == "stale-view"


class TestBoot:
    def test_boot_returns_when_the_next_command_sees_the_instances(self, site: ThreadedCell) -> None:
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

    def test_boot_without_room_prints_the_reason(self, site: ThreadedCell) -> None:
        told = site.run("boot", "-", stdin=wanted("boot", 9, instances=["b-3"]), code=1).stdout
        assert told.startswith("the filter resources removed the last ")
        assert "(b-3)" in told.splitlines()[0]
        for command in ("boot", "select"):
            two = wanted("boot", 9, instances=["b-4", "b-5"])
            told = site.run(command, "-", "--explain", stdin=two, code=1).stdout
            assert [line.split() for line in told.splitlines()].count(["filter", "removed", "left"]) == 1, told

    def test_boot_prints_the_reason_of_an_agent_that_refuses(self, site: ThreadedCell) -> None:
        """The agent's change of status is still under way, so the scheduler's view has the old one and the agent
        refuses.
        """
        for n in (1, 2, 3):
            site.fleet._nodes[f"refuse-{n}"].fixed["status"] = "maintenance"
        told = site.run("boot", "-", stdin=wanted("refuse", instances=["r-1"], zone="az1"), code=1).stdout
        assert told.startswith("refuse-1 refused it: status")
        assert "; then the filter " in told
        assert "\n  tried refuse-1: status" in told
        others = wanted("refuse", instances=["r-2"], ignore_nodes=["refuse-1"])
        [one] = site.ask("boot", "-", stdin=others, code=1)["instances"]
        assert {refused["node"] for refused in one["refused"]} == {"refuse-2", "refuse-3"}
        assert {refused["reason"] for refused in one["refused"]} == {"status"}
        assert one["booted"] is False

    def test_boot_without_an_answer_in_time_lists_the_instance_as_under_way(self, site: ThreadedCell) -> None:
        site.fleet.kill("silent-1")
        while site.fleet._new_readings:  # until the agent has noticed
            time.sleep(0.01)
        request = wanted("silent", instances=["u-1"], force_nodes=["silent-1"])
        answer = site.ask("boot", "-", "--timeout", "0.2", stdin=request, code=1)
        assert answer == {"instances": [], "under_way": ["u-1"]}
        told = site.run("boot", "-", "--timeout", "0.2", stdin={**request, "instances": ["u-2"]}, code=1).stdout
        assert told.startswith("1 instance has no outcome yet, for example u-2: agents may still build them")


@pytest.fixture
def asleep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a package whose filter fails."""
    (tmp_path / "asleep_for_test.py").write_text("def awake(fleet, rows, request):\n    return 1 / 0\n")
    metadata = tmp_path / "asleep_for_test-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: asleep-for-test\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[nodestate.filters]\nawake = asleep_for_test:awake\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("asleep")
@pytest.mark.parametrize(("command", "member"), [("select", False), ("boot", False), ("reserve", True)])
def test_failing_filter_of_a_plugin_is_an_error_of_one_line(site: ThreadedCell, command: str, member: bool) -> None:
    """The error of a plugin is printed like any other error, without a traceback of nodestate."""
    request: dict[str, Any] = {"members": [wanted("select")]} if member else wanted("select")
    told = site.run(command, "-", stdin=request, code=1)
    line = "filter 'awake' (asleep_for_test:awake) failed: ZeroDivisionError('division by zero')"
    assert told.stderr == f"nodestate: {line}\n"
    answer = json.loads(site.run(command, "-", "--json", stdin=request, code=1).stderr)
    assert (answer["error"], answer["kind"], answer["policy"]) == (line, "policy", "awake")


class TestReservations:
    def test_reservation_is_listed_extended_and_released(self, site: ThreadedCell, tmp_path: Path) -> None:
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
        assert none.startswith(
            "the filter aggregates removed the last "
        )  # other nodes have room, but these three have none
        assert "nothing is reserved" in none
        assert site.ask("select", "-", stdin=member, code=1)["choices"][0]["node"] is None

        assert site.ask("extend", held["id"], "--hold", "600")["seconds"] == 600
        mallory = site.run("release", held["id"], "--owner", "mallory", "--json", code=1)
        assert json.loads(mallory.stderr)["field"] == "owner"
        site.run("release", held["id"], "--owner", "alice")
        assert site.run("reservations").stdout == "there are no reservations\n"
        gone = site.run("confirm", held["id"], "--json", code=1)
        assert json.loads(gone.stderr)["kind"] == "not-found"

    def test_confirm_builds_all_members_on_their_nodes(self, site: ThreadedCell) -> None:
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

    def test_boot_builds_one_member_on_the_node_held_for_it(self, site: ThreadedCell) -> None:
        group = {"members": [wanted("members", instances=["m-1"]), wanted("members", instances=["m-2"])]}
        held = site.ask("reserve", "-", stdin=group)
        nodes = {one["instance"]: one["node"] for one in held["members"]}
        [one] = site.ask("boot", "--reservation", held["id"], "--instance", "m-1")["instances"]
        assert one["node"] == nodes["m-1"]
        assert "m-1" in site.on(nodes["m-1"])
        assert "no member" in site.run("boot", "--reservation", held["id"], "--instance", "m-9", code=1).stderr
        site.run("release", held["id"])


class TestCapacity:
    def test_capacity_counts_the_fleet_and_how_many_instances_fit(self, site: ThreadedCell) -> None:
        answer = site.ask("capacity", "--request", "-", stdin=wanted("room", 3))
        assert answer["whole"]["nodes"] == 3 * len(PLACES)
        assert answer["aggregates"]["room"]["classes"]["VCPU"] == {"total": 24, "used": 0, "claimed": 0, "free": 24}
        assert answer["fit"]["fits"] == 6
        assert "the filter aggregates removed the last" in answer["fit"]["why"]
        printed = site.run("capacity", "--request", "-", stdin=wanted("room", 3)).stdout
        assert "6 more instances fit; 3 nodes take at least one now" in printed
        site.run("capacity", "--request", "-", stdin=wanted("room", 9), code=1)

    def test_what_if_answers_without_nodes_and_claims_nothing(self, site: ThreadedCell) -> None:
        words = ("what-if", "--without", "room-1,room-2", "--request", "-")
        answer = site.ask(*words, stdin=wanted("room", 8, count=1))
        assert [choice["node"] for choice in answer["choices"]] == ["room-3"]
        assert answer["fit"]["fits"] == 1
        printed = site.run(*words, stdin=wanted("room", 8, count=2), code=1).stdout
        assert "1 of 2 instances would get no node" in printed
        assert (
            "without: no node nowhere is known"
            in site.run("what-if", "--without", "nowhere", "--resources", "VCPU=1", code=1).stderr
        )


class TestMigrations:
    def test_migration_keeps_hints_and_group_policy(self, site: ThreadedCell) -> None:
        away = site.boot("v-anchor", "move", group={"name": "mv", "policy": "anti-affinity"})
        before = site.boot("v-moved", "move", group={"name": "mv", "policy": "anti-affinity"})
        answer = site.ask("migrate", "v-moved", "--explain")
        [one] = answer["instances"]
        assert one["node"] not in {away, before}
        assert "v-moved" in site.on(one["node"])
        assert "v-moved" not in site.on(before)
        assert [best["node"] for best in answer["explanation"]["best"]] == [one["node"]]
        site.boot("v-stuck", "move", zone="az1")
        told = site.run("migrate", "v-stuck", "--explain", code=1).stdout
        assert [line.split() for line in told.splitlines()].count(["filter", "removed", "left"]) == 1, told
        assert site.run("migrate", "v-moved", "--to", away, code=1).stdout.startswith(f"{away} does not pass group")
        assert site.ask("migrate", "v-moved", "--to", before)["instances"][0]["node"] == before
        assert "no node reports v-none" in site.run("migrate", "v-none", code=1).stderr
        assert site.run("migrate", "v-moved", "--to", "nowhere", code=1).stderr.startswith("nodestate: to: ")

    def test_retag_adopts_instances_of_a_cell_that_had_no_secrets(
        self, site: ThreadedCell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        node = site.boot("t-1", "retag")
        assert "no tags can be made" in site.run("retag", code=2).stderr
        monkeypatch.setitem(site.env, "NODESTATE_AUTH_ORDERS", "accept")
        keys_file = written(tmp_path, "cell.keys", new_cell_keys(site.config.cell))
        monkeypatch.setitem(site.env, "NODESTATE_KEYS_FILE", keys_file)
        left = site.ask("retag", node, code=1)["left"]
        assert [(one["node"], one["instance"]) for one in left] == [(node, "t-1")]
        assert "t-1 on " in site.run("retag", node, code=1).stdout
        assert site.ask("retag", node, "--adopt") == {"retagged": 1, "current": 0, "left": []}
        assert TAG in site.on(node)["t-1"]["hints"]
        assert "no node nowhere is known" in site.run("retag", "nowhere", code=1).stderr

    def test_a_cordoned_node_gets_no_instances_until_it_is_uncordoned(self, site: ThreadedCell) -> None:
        [one] = site.ask("node", "cordon", "cordon-1", "--reason", "new disk", "--by", "ann")["nodes"]
        assert (one["node"], one["done"], one["refused"]) == ("cordon-1", True, "")
        state = json.loads(site.run("view", "--max-age", "60", "--json").stdout)["nodes"]["cordon-1"]["state"]
        cordon = state["namespaces"]["nodestate"]["cordon"]
        assert (state["status"], cordon["by"], cordon["why"]) == ("draining", "ann", "new disk")
        answer = site.ask("boot", "-", stdin=wanted("cordon", force_nodes=["cordon-1"]), code=1)
        assert not answer["instances"][0]["booted"]
        assert site.run("node", "uncordon", "cordon-1").stdout == "cordon-1 is not cordoned\n"
        assert site.boot("cordoned", "cordon", force_nodes=["cordon-1"]) == "cordon-1"

    def test_a_drained_node_is_cordoned_and_what_cannot_move_is_left_with_its_reason(self, site: ThreadedCell) -> None:
        for n in (1, 2):
            site.boot(f"dr-{n}", "drain", 2, force_nodes=["drain-1"])
        site.boot("dr-stays", "drain", 1, force_nodes=["drain-1"], zone="az1")
        [answer] = site.ask("node", "drain", "drain-1", "--max-parallel", "1", code=1)["nodes"]
        assert {one["instance"] for one in answer["moved"]} == {"dr-1", "dr-2"}
        [left] = answer["left"]
        assert left["instance"] == "dr-stays"
        assert "zone" in left["reason"] or "aggregates" in left["reason"]
        assert set(site.on("drain-1")) == {"dr-stays"}
        printed = site.run("node", "drain", "drain-1", code=1).stdout
        assert printed.startswith("drain-1 is cordoned: 0 instances moved, 1 left\nleft: dr-stays: the filter ")
        site.run("terminate", "dr-stays")
        assert "0 left" in site.run("node", "drain", "drain-1").stdout

    def test_a_node_is_shown_in_full(self, site: ThreadedCell) -> None:
        site.boot("shown", "forget", 2, force_nodes=["forget-1"])
        details = site.ask("node", "show", "forget-1")
        assert details["classes"]["VCPU"] == {"total": 8, "used": 2, "claimed": 0, "free": 6}
        assert details["allocations"]["shown"]["hints"]["force_nodes"] == ["forget-1"]
        assert (details["status"], details["is_open"], details["cordon"]) == ("up", True, None)
        assert details["findings"] == []
        site.run("node", "cordon", "forget-1", "--reason", "new disk", "--by", "ann")
        printed = site.run("node", "show", "forget-1").stdout
        assert "draining, zone az1, last seen" in printed
        assert "cordoned by ann at" in printed
        assert "new disk" in printed
        assert "shown" in printed
        assert "no node nowhere is known" in site.run("node", "show", "nowhere", code=1).stderr

    def test_a_live_node_is_not_forgotten(self, site: ThreadedCell) -> None:
        error = site.run("node", "forget", "forget-2", code=1).stderr
        assert "forget-2 gave a sign of life" in error
        assert "no view has the node nowhere" in site.run("node", "forget", "nowhere", code=1).stderr

    def test_a_node_that_is_forgotten_by_force_is_in_no_view(self, site: ThreadedCell) -> None:
        site.boot("forgotten", "forget", 1, force_nodes=["forget-3"])
        assert site.ask("node", "forget", "forget-3", "--force") == {"node": "forget-3", "allocations": 1}
        assert "forget-3" not in json.loads(site.run("view", "--max-age", "60", "--json").stdout)["nodes"]

    def test_a_cordon_without_an_agent_fails_and_names_the_remedy(self, site: ThreadedCell) -> None:
        failed = site.run("node", "cordon", "nowhere", code=1)
        assert "nowhere: no-agent: no agent listens for this node" in failed.stdout

    def test_evacuate_moves_all_instances_off_a_node(self, site: ThreadedCell) -> None:
        for n in (1, 2, 3):
            site.boot(f"e-{n}", "evacuate", 2, force_nodes=["evacuate-1"])
        answer = site.ask("evacuate", "evacuate-1")
        assert {one["instance"] for one in answer["instances"]} == {"e-1", "e-2", "e-3"}
        assert "evacuate-1" not in {one["node"] for one in answer["instances"]}
        assert site.on("evacuate-1") == {}
        assert "there are no instances on evacuate-1" in site.run("evacuate", "evacuate-1").stdout

    def test_evacuate_uses_the_last_report_of_a_dead_node(self, site: ThreadedCell) -> None:
        site.boot("d-1", "dead", 2, force_nodes=["dead-1"])
        site.fleet.kill("dead-1")
        [one] = site.ask("evacuate", "dead-1")["instances"]
        assert one["node"] in {"dead-2", "dead-3"}

    def test_resize_stays_on_the_node_if_there_is_room_else_moves(self, site: ThreadedCell) -> None:
        node = site.boot("r-1", "resize", 2)
        [one] = site.ask("resize", "r-1", "VCPU=4")["instances"]
        assert one["node"] == node
        assert site.on(node)["r-1"]["resources"] == {"VCPU": 4, "MEMORY_MB": 1000}
        site.boot("r-2", "resize", 4, force_nodes=[node])
        [one] = site.ask("resize", "r-1", "VCPU=5", "--explain")["instances"]
        assert one["node"] != node
        assert "r-1" not in site.on(node)
        assert "does not pass" not in site.run("resize", "r-1", "VCPU=9", code=1).stderr

    def test_update_changes_the_request_of_an_instance(self, site: ThreadedCell) -> None:
        node = site.boot("u-1", "update", required_traits=["HW_CPU_X86_AVX2"], aggregates_none=["old"])
        words = ("--zone", "az9", "--traits", "CUSTOM_A, CUSTOM_B", "--drop-hint", "aggregates-none")
        [one] = site.ask("update", "u-1", *words)["instances"]
        assert one["node"] == node
        hints = site.on(node)["u-1"]["hints"]
        asked = {name: value for name, value in hints.items() if name not in {"order", "boot", "aggregates"}}
        assert asked == {"zone": "az9", "required_traits": ["CUSTOM_A", "CUSTOM_B"]}
        assert "no node is in zone az9" in site.run("migrate", "u-1", code=1).stdout
        site.run("update", "u-1", "--zone", "", "--traits", "")
        assert not {"zone", "required_traits"} & site.on(node)["u-1"]["hints"].keys()
        assert site.ask("migrate", "u-1")["instances"][0]["node"] != node
        refused = site.run("update", "u-1", "--drop-hint", "group", code=2).stderr
        assert refused.startswith("nodestate: group: can't be changed; an update changes required_traits, ")
        refused = site.run("update", "u-1", "--drop-hint", "no-such", code=2).stderr
        assert refused.startswith("nodestate: no-such: can't be changed; ")
        refused = site.run("update", "u-1", "--zone", " ", code=2).stderr
        assert refused.startswith("nodestate: zone: ' ' begins or ends with a blank")

    def test_terminated_instances_are_on_no_node(self, site: ThreadedCell) -> None:
        places = {name: site.boot(name, "end") for name in ("x-1", "x-2", "x-3")}
        assert "no node reports x-9" in site.run("terminate", "x-1", "x-9", code=1).stderr
        assert "x-1" in site.on(places["x-1"]), "none is terminated if no node reports one of them"
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
        (["select", "-"], {"resources": [1]}, "resources"),
        (["select", "-"], {"resources": {"no class": 1}}, "resources.no class"),
        (["select", "--resources", "VCPU=two"], None, "resources.VCPU"),
        (["select", "--resources", "VCPU=-2"], None, "resources.VCPU"),
        (["select", "--resources", "VCPU=1,VCPU=2"], None, "resources.VCPU"),
        (["select", "-"], {"resources": {"VCPU": 1}, "weights": {"luck": 1}}, "weights.luck"),
        (["boot", "-"], {"resources": {"VCPU": 1}, "count": 0}, "count"),
        (["boot", "-"], {"resources": {"VCPU": 1}, "required_traits": [""]}, "required_traits[0]"),
        (["boot", "-"], {"resources": {"VCPU": 1}, "group": {"name": "g", "policy": "love"}}, "group.policy"),
        (["reserve", "-"], {"members": []}, "members"),
        (["reserve", "-"], {"members": [{"resources": {"VCPU": -1}}]}, "members[0].resources.VCPU"),
        (["reserve", "-", "--hold", "0"], {"members": [{"resources": {"VCPU": 1}}]}, "hold_s"),
        (["extend", "1", "--hold", "1e9"], None, "hold_s"),
        (["resize", "web-1", "VCPU"], None, "resources.VCPU"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_error_of_a_bad_request_names_the_field(site: ThreadedCell, words: list[str], stdin: Any, field: str) -> None:
    """The exit code is 2; the field begins the message and is a key of its own in JSON."""
    given = stdin if stdin is not None else ""
    told = site.run(*words, stdin=given, code=2)
    assert told.stderr.startswith(f"nodestate: {field}: ")
    assert told.stdout == ""
    assert json.loads(site.run(*words, "--json", stdin=given, code=2).stderr)["field"] == field

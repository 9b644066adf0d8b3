"""Findings: the table, the checks, the page and the health of a cell agree."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nodestate import findings
from nodestate.broker import DeadLetter
from nodestate.config import Config
from nodestate.designs.inspection import DesignStatus, HeadStatus
from nodestate.designs.reader import Reader
from nodestate.errors import BrokerUnavailableError
from nodestate.findings import FINDINGS, broker_checks, examine_node, health_of
from nodestate.findings.agent_checks import examine_leaving
from nodestate.findings.broker_checks import examine_refused_clocks
from nodestate.findings.design_checks import examine_design
from nodestate.findings.finding import found, well
from nodestate.findings.finding_table import DOCS_PAGE
from nodestate.testing import FaultyStore, MemoryStore
from tests.machines.simulated_cell import SimulatedCell, all_well

ROOT = Path(__file__).parents[1]
CODES = {kind.code for kind in FINDINGS}
CHECKS = sorted(Path(str(findings.__file__)).parent.glob("*_check*.py"))


def strings_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def calls_of(name: str, path: Path) -> list[ast.Call]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == name]


# -- the table --------------------------------------------------------------------------------------


def test_each_code_stands_once_in_the_table_and_in_a_check() -> None:
    assert len(CODES) == len(FINDINGS)
    assert set().union(*map(strings_of, CHECKS)) >= CODES


def test_checks_make_no_finding_that_is_not_in_the_table() -> None:
    for path in CHECKS:
        assert not calls_of("Finding", path), f"{path.name}: only found() and well() make findings"
        for call in calls_of("found", path):
            code = call.args[0]
            assert not isinstance(code, ast.Constant) or code.value in CODES, f"{path.name}: {ast.dump(code)}"


@pytest.mark.parametrize("kind", FINDINGS, ids=lambda kind: kind.code)
def test_a_kind_of_finding_says_its_meaning_and_its_remedy_in_sentences(kind: findings.FindingKind) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", kind.code)
    for text in (kind.meaning, kind.remedy):
        assert re.fullmatch(r"[A-Z].*[.]", text), text


def test_the_docs_of_a_finding_lead_to_a_heading_of_its_page() -> None:
    page = (ROOT / DOCS_PAGE).read_text(encoding="utf-8")
    for kind in FINDINGS:
        document = found(kind.code, "a part", "a fault").document()
        name, _, heading = document.docs.partition("#")
        assert name == DOCS_PAGE
        assert f"\n## {heading}\n" in page
        assert (document.severity, document.remedy) == (kind.severity, kind.remedy)


def test_a_finding_as_json_has_the_fixed_fields() -> None:
    fields = set(msgspec.structs.asdict(found("queue-no-consumer", "queues", "one", "start it").document()))
    assert fields == {"code", "severity", "subject", "says", "remedy", "docs"}
    assert msgspec.structs.asdict(well("queues", "8 queues").document()) == {
        "code": "",
        "severity": "pass",
        "subject": "queues",
        "says": "8 queues",
        "remedy": "",
        "docs": "",
    }


# -- health -----------------------------------------------------------------------------------------


def test_the_health_of_a_cell_is_that_of_its_worst_finding() -> None:
    fine, warned = well("broker", "RabbitMQ"), found("queue-backlog", "queues", "2,000 events wait")
    failed = found("store-unreachable", "store a", "no answer")
    assert health_of([]).status == "pass"
    assert health_of([fine]).status == "pass"
    assert (health_of([fine, warned]).status, health_of([warned, fine]).output) == ("warn", "queues: 2,000 events wait")
    worst = health_of([warned, failed, found("queue-missing", "queues", "1 missing"), fine])
    assert (worst.status, worst.output) == ("fail", "store a: no answer")
    assert [(one.status, one.code) for one in worst.checks["queues"]] == [
        ("warn", "queue-backlog"),
        ("fail", "queue-missing"),
    ]


# -- kinds ------------------------------------------------------------------------------------------


def well_cell(**states: dict[str, Any]) -> SimulatedCell:
    world = SimulatedCell(seed=1)
    world.start_member([0, 1], [])
    for name, state in states.items():
        world.start_agent(name, state)
    world.run_well(3.0)
    return world


def view_of(world: SimulatedCell) -> Any:
    _, stores = world.connected(lambda server: FaultyStore(MemoryStore(server), all_well))
    return Reader(world.config, stores=stores, clock=world.clock).read(
        max_age=60.0, node_max_age=math.inf, on_stale="flag"
    )


def test_a_node_that_leaves_with_instances_is_named_until_they_are_gone() -> None:
    hosting = {"inventory": {"VCPU": {"total": 8}}, "allocations": {"i1": {"resources": {"VCPU": 1}}}}
    world = well_cell(full=hosting, empty={"inventory": {"VCPU": {"total": 8}}})
    assert list(examine_leaving(view_of(world))) == []
    for agent in world.agents.values():
        agent.publisher.leave()
    world.run_well(2.0)
    [finding] = examine_leaving(view_of(world))
    assert (finding.code, finding.level) == ("leaving-with-instances", "WARN")
    assert "1 node is down or left with 1 instance, for example full" in finding.says
    world.agents["full"].publisher.report({"inventory": {"VCPU": {"total": 8}}})
    world.run_well(2.0)
    assert list(examine_leaving(view_of(world))) == []


def test_findings_of_a_node_are_those_about_itself_and_name_it() -> None:
    """Each fault of a node that the doctor sums up over all nodes; a node beside it has none."""
    inventory = {"inventory": {"VCPU": {"total": 8}}}
    hosting = {**inventory, "allocations": {"i1": {"resources": {"VCPU": 1}}}}
    refusals = {"order": {"reason": "expired", "at": 0.0}}
    same_name = {"hosts": ["one", "other"], "at": 0.0}
    world = well_cell(
        full=hosting,
        good=inventory,
        large={"inventory": {"VCPU": {"total": 9}}},
        late={**inventory, "namespaces": {"nodestate": {"refused": refusals}}},
        twice={**inventory, "namespaces": {"nodestate": {"same_name": same_name}}},
        silent=inventory,
    )
    world.agents["full"].publisher.leave()
    del world.agents["silent"]
    world.run_well(60.0)
    config = msgspec.structs.replace(world.config, inventory_ceilings=("VCPU=8",))
    view = view_of(world)

    def codes_of(node: str, now: float = 1.0) -> list[str]:
        findings = list(examine_node(config, view, node, now))
        assert {one.about for one in findings} <= {node}
        return [one.code for one in findings if one.code != "clock-ahead"]

    assert codes_of("good") == []
    assert codes_of("missing") == []
    assert codes_of("full") == ["agents-unresponsive", "leaving-with-instances"]
    assert codes_of("large") == ["inventory-over-ceiling"]
    assert codes_of("late") == ["orders-expired"]
    assert codes_of("twice") == ["node-name-conflict"]
    assert codes_of("silent") == ["agents-unresponsive"]
    assert [one.code for one in examine_node(config, view, "good", view.nodes["good"].reported_at - 3)] == [
        "clock-ahead"
    ]
    assert list(examine_node(config, view, "good", view.nodes["good"].reported_at)) == []


def test_a_broker_that_blocks_publishers_under_an_alarm_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """The alarm of a real RabbitMQ reaches publishers in tests/faults/test_broker.py."""

    def refuse(config: Config) -> None:
        raise BrokerUnavailableError(config.broker_safe, "it is short of memory")

    monkeypatch.setattr(broker_checks, "check_accepts_messages", refuse)
    found_codes = {one.code: one for one in broker_checks.examine_broker(Config(partitions=2), [2])}
    assert found_codes["broker-alarm"].level == "FAIL"
    assert "short of memory" in found_codes["broker-alarm"].says


def test_events_that_were_refused_for_a_clock_are_named() -> None:
    letters = [
        DeadLetter(b"", "clock", "reported_at of n1 is 900 s ahead", 0, 0),
        DeadLetter(b"", "too-large", "", 0, 0),
    ]
    [finding] = examine_refused_clocks(letters)
    assert (finding.code, finding.about) == ("dead-letters-clock", "clocks")
    assert "n1 is 900 s ahead" in finding.says
    assert list(examine_refused_clocks(letters[1:])) == []


def test_a_partition_of_a_design_that_is_not_complete_is_named() -> None:
    world = well_cell(n={"inventory": {"VCPU": {"total": 8}}})
    whole = status_of(world, complete=True)
    partial = status_of(world, complete=False)
    config = Config(partitions=2)
    assert "partition-incomplete" not in {one.code for one in examine_design(config, whole)}
    assert "partition-incomplete" in {one.code for one in examine_design(config, partial)}


def status_of(world: SimulatedCell, *, complete: bool) -> DesignStatus:
    heads = [HeadStatus(1, 1, "m/1", 3, 0.0, flag, 0.0, 0) for flag in (True, complete)]
    return DesignStatus("journal", view_of(world), 0.0, heads)

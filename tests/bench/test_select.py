"""``select`` and ``reserve`` measure decisions and reservations, and notice claims beyond the capacity of a node."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from bench.memcached_environment import MemcachedEnvironment
from bench.record import Case, Measure
from bench.report import write_report
from bench.report.page import compose
from bench.report.records import Records
from bench.scenario import Settings
from bench.scheduling import reserve, select
from bench.scheduling.claim_audit import ClaimAudit
from bench.scheduling.hosts import FLAVOURS, GROUP_SIZE, KINDS, Hosts, RequestStream, best_worth, fits
from bench.workload import WrongResultError
from harness.servers import MemcachedServer
from nodestate.model import FoldOutcome, fold, parse_event
from nodestate.ports import Put, Write
from nodestate.scheduling.claims import CLAIMS, Claim, ClaimRecord
from nodestate.scheduling.request import Request
from nodestate.store import keys
from nodestate.store.memcached import MemcachedStore
from tests.bench.quick_runs import ignore_progress
from tests.bench.test_report import measure, record

BRIEF = Settings(("snapshot",), (200,), 0.1, 1, 10, 1_024, 200)


@pytest.mark.parametrize("full", select.FULL)
def test_hosts_have_the_requested_mean_usage_in_their_events(full: float) -> None:
    hosts = Hosts(1, 300, full)
    shares = []
    for number in range(len(hosts)):
        folded, outcome = fold(None, parse_event(hosts.report(number)))
        folded, outcome = fold(folded, parse_event(hosts.change(number)))
        assert outcome is FoldOutcome.APPLIED
        assert folded is not None
        assert folded.state() == hosts.state(number, 2)
        assert folded.state()["usage"] == hosts.usage(number)
        shares.append(hosts.usage(number)["MEMORY_MB"] / hosts.kind(number).capacity["MEMORY_MB"])
    assert sum(shares) / len(shares) == pytest.approx(full, abs=0.05)
    assert all(0 <= share <= 1 for share in shares)


def test_seed_and_name_determine_a_stream_of_requests() -> None:
    def drawn(*of: str | int) -> list[bytes]:
        return [request.shape for request in RequestStream(*of).take(200)]  # type: ignore[arg-type]

    assert drawn(1) == drawn(1)
    assert drawn(1, "one") != drawn(1, "two")
    wants = RequestStream(1)
    groups = [request.group.name for request in wants.take(2_000) if request.group is not None]
    sizes = [len(list(of)) for _, of in itertools.groupby(groups)]
    assert set(sizes[:-1]) == {GROUP_SIZE}
    assert len({wants.unseen().shape for _ in range(50)}) == 50


def test_the_plain_search_respects_room_and_traits() -> None:
    hosts = Hosts(1, 200, 0.5)
    for number in range(len(hosts)):
        hosts.report(number)
    special = FLAVOURS[-1]
    request = Request(resources=special.resources, required_traits=special.traits)
    able = {number for number in range(len(hosts)) if fits(hosts, number, request)}
    assert able
    assert all("STORAGE_DISK_SSD" in hosts.kind(number).traits for number in able)
    huge = Request(resources={**special.resources, "VCPU": 10 * max(kind.capacity["VCPU"] for kind in KINDS)})
    assert best_worth(hosts, huge) == float("-inf")


@pytest.mark.service
def test_groups_are_reserved_by_one_scheduler_and_by_several() -> None:
    findings = reserve.run(replace(BRIEF, nodes=(30,)), ignore_progress)
    assert [case.settings["schedulers"] for case in findings.cases] == [1, reserve.SCHEDULERS]
    for case in findings.cases:
        assert case.measures["reserve"].count == reserve.GROUPS_BRIEF_COUNT
        assert 0 < case.measures["held"].p50 <= 100
        assert "are complete" in case.shown[0]
    assert findings.goals == []


@pytest.mark.service
def test_an_audit_notices_wrong_and_excessive_claims(memcached: MemcachedServer) -> None:
    """The races rely on this: the audit reads the records without any scheduler."""
    hosts, environment = Hosts(1, 10, 0.5), MemcachedEnvironment(["snapshot"], memcached)
    for number in range(len(hosts)):
        hosts.report(number)
    store = MemcachedStore(environment.address, timeout_s=5.0)
    node, kind = hosts.names[3], hosts.kind(3)
    free = kind.capacity["VCPU"] - hosts.usage(3)["VCPU"]
    group = {"group": "web", "hints": {"group_policy": "anti-affinity"}}
    one = Claim("a", "i-1", "me", 10.0, {"VCPU": free}, **group)  # type: ignore[arg-type]

    def claimed_are(*claims: Claim) -> None:
        store.write([Write(Put.DELETE, keys.claim("c", node))])
        store.write([Write(Put.ADD, keys.claim("c", node), CLAIMS.pack(ClaimRecord(1.0, claims=claims)))])

    with ClaimAudit(environment.addresses, "c", hosts) as audit:
        claimed_are(one)
        assert "exactly the 1 claims" in audit.require_sound([(node, "a")])
        with pytest.raises(WrongResultError, match="belong to no scheduler"):
            audit.require_sound([])
        claimed_are(one, Claim("b", "i-2", "me", 10.0, {"VCPU": 1}))
        with pytest.raises(WrongResultError, match=f"{node} is over its capacity"):
            audit.require_sound([(node, "a"), (node, "b")])
        claimed_are(one, Claim("b", "i-2", "me", 10.0, {}, **group))  # type: ignore[arg-type]
        with pytest.raises(WrongResultError, match="several members of an anti-affinity group"):
            audit.require_sound([(node, "a"), (node, "b")])
        audit.delete_records()
        with pytest.raises(WrongResultError, match="not in the records"):
            audit.require_sound([(node, "a")])
    store.close()


@pytest.mark.service
def test_select_measures_requests_batches_and_races(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NODESTATE_BENCH_OPENSTACK", raising=False)
    findings = select.run(BRIEF, ignore_progress)
    labels = [case.design for case in findings.cases]
    assert labels.count("snapshot: one request") == 1
    assert [case.settings["batch"] for case in findings.cases if case.design == "snapshot: batches"] == [1, 10, 100]
    races = [case for case in findings.cases if ": schedulers" in case.design]
    assert len(races) == len(select.FULL_BRIEF) * 3
    for case in findings.cases:
        assert case.shown
        assert all(0 <= one.min <= one.p50 <= one.p99 <= one.max for one in case.measures.values())
    for case in races:
        assert case.measures["claims"].count == case.settings["schedulers"]
        assert case.measures["conflicts"].p50 == 0 or case.settings["schedulers"] > 1
    assert "openstack" in findings.skipped[0]
    assert "snapshot: schedulers, sharing nothing, 50% full, 2 schedulers: all claims / sharing" in findings.across


# -- the report -----------------------------------------------------------------------------------


def _select_cases() -> list[Case]:
    def of(design: str, measures: dict[str, Measure], **settings: float) -> Case:
        return Case(design, 10_000, settings, measures, {}, ["it is right"])

    one = dict.fromkeys(("select, unseen shape", "claim", "advance", "memory beyond the reader"), measure(0.5))
    rates = {"claims": measure(4_000, "claims/s")}
    raced = {"claims, all": measure(7_000, "claims/s"), "conflicts": Measure("%", 1, 0.0, 0.0, 0.0, 0.0)}
    cases = [of("snapshot: one request", one, changed=100), of("snapshot: batches", rates, batch=10)]
    for full, schedulers in itertools.product((0.0, 0.99), (1, 2)):
        cases.append(of("snapshot: schedulers", raced, full=full, schedulers=schedulers))
    cases.append(of("snapshot: schedulers, sharing nothing", raced, full=0.99, schedulers=2))
    return [*cases, of("nova scheduler", {"filter and weigh": measure(2_000)})]


def test_the_report_shows_decisions_and_races(tmp_path: Path) -> None:
    across = {"10,000 nodes: nova scheduler, filter and weigh / snapshot: one request, select, unseen shape": 4_000.0}
    one = replace(record("select", *_select_cases()), across=across)
    sections = {section.title: section for section in compose(Records({"select": one})).sections}
    assert {chart.name for chart in sections["Scheduling decisions"].charts} == {"select-one", "select-batches"}
    [beside] = sections["Scheduling decisions"].tables
    assert beside.rows[0][2] == "4,000×"
    races = sections["Several schedulers at once"]
    assert {chart.name for chart in races.charts} == {"select-claims", "select-conflicts"}
    [table] = races.tables
    assert table.rows == [["99% full", "2", "0 %", "0 %", "7,000 claims/s", "7,000 claims/s"]]
    (tmp_path / "select.json").write_bytes(one.to_json())
    assert "Several schedulers at once" in write_report(tmp_path).read_text(encoding="utf-8")

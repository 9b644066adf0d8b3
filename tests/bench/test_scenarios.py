"""The scenarios measure designs in memcached as they claim to. No test asserts how fast anything is."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from bench import (
    apply,
    auth,
    cold,
    contention,
    footprint,
    http_api,
    propagation,
    recovery,
    refresh,
    replicas,
)
from bench.command import SCENARIOS
from bench.counting_store import CountingStore
from bench.memcached_stats import memcached_sizes
from bench.mode_comparison import mode_rows
from bench.numbered_faults import NUMBERED_FAULTS
from bench.record import Case, Goal, Measure
from bench.report.fault_table import HEAD, fault_rows, is_numbered
from bench.scenario import Findings
from bench.worker import ParentLink, Worker
from bench.workload import WrongResultError, require
from harness.servers import MemcachedServer
from nodestate.auth.signatures import FIELD_BYTES
from nodestate.ports import Put, Write
from nodestate.store.memcached import MemcachedStore
from tests.bench.quick_runs import BRIEF, ignore_progress, new_size, require_sound, require_sound_case


def test_the_command_knows_every_scenario_of_designs() -> None:
    modules = (refresh, cold, apply, auth, replicas, footprint, propagation, recovery, contention, http_api)
    assert {one.SCENARIO.name: one.SCENARIO for one in modules}.items() <= SCENARIOS.items()


def of_design(findings: Findings, design: str) -> list[Case]:
    return [case for case in findings.cases if case.design.partition(":")[0] == design]


# -- cold and apply -------------------------------------------------------------------------------


@pytest.mark.service
def test_cold_measures_the_journal_with_and_without_a_tail_and_the_snapshot() -> None:
    findings = cold.run(BRIEF, ignore_progress)
    require_sound(findings)
    assert [case.design for case in findings.cases] == ["journal, no tail", "journal, tail", "snapshot"]
    fresh, tailed, _ = findings.cases
    assert fresh.settings["tail_events"] == 0
    assert tailed.settings["tail_share"] >= 0.5
    assert all({"first view", "bare keys", "bare blocks"} < case.measures.keys() for case in findings.cases)


@pytest.mark.service
@pytest.mark.usefixtures("few_events")
def test_apply_measures_a_consumer_and_bare_kombu_with_the_same_messages() -> None:
    findings = apply.run(replace(BRIEF, designs=("snapshot",), nodes=new_size()), ignore_progress)
    require_sound(findings)
    [case] = findings.cases
    assert case.measures.keys() == {"consumer", "consumer, CPU", "bare kombu", "bare kombu, CPU", "takeover"}
    assert case.ratios.keys() == {"consumer / bare kombu", "CPU, consumer / bare kombu"}
    assert {"rabbitmq", "memcached"} == findings.servers.keys()


@pytest.mark.service
@pytest.mark.thorough
@pytest.mark.usefixtures("few_events")
def test_auth_measures_the_same_events_and_changes_with_each_setting() -> None:
    findings = auth.run(replace(BRIEF, designs=("snapshot",), nodes=new_size()), ignore_progress)
    require_sound(findings)
    consumer, reader = findings.cases
    assert consumer.settings["message_bytes, require"] == consumer.settings["message_bytes, off"] + FIELD_BYTES
    assert [goal.what for goal in (*consumer.goals, *reader.goals)] == [
        "snapshot: consumer, off / require",
        "snapshot: consumer, CPU, require / off",
        "snapshot: refresh, require / off",
    ]


# -- replicas -------------------------------------------------------------------------------------


@pytest.mark.service
@pytest.mark.usefixtures("memcached")  # skips the test if there is no memcached
def test_replicas_compares_claims_on_three_servers_in_each_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thorough test below measures consumers and readers as well, which take longer to start."""
    monkeypatch.setattr(replicas, "OWNER_RENEW_S", 0.02)
    monkeypatch.setattr(replicas, "FRESH_S", 5.0)
    monkeypatch.setattr(replicas, "BATCHES", (1, 10))
    monkeypatch.setattr(replicas, "SLICES_MIN", 1)
    case = replicas.ReplicaCost("snapshot", 20, replace(BRIEF, seconds=0.001), ignore_progress).claims(count=10)
    require_sound_case(case)
    assert case.settings["servers"] == 3
    assert case.settings["copies of records, 1 replica"] == 1
    assert case.settings["copies of records, 2 replicas"] == 2
    assert [goal.what for goal in case.goals] == [
        "snapshot: claims, one by one, 2 replicas / 1 replica",
        "snapshot: claims, batches of 10, 2 replicas / 1 replica",
    ]


@pytest.mark.service
@pytest.mark.thorough
@pytest.mark.usefixtures("few_events")
def test_replicas_measures_both_modes_of_a_consumer_of_each_design() -> None:
    designs = ("journal", "snapshot", "sql:sqlite")
    findings = replicas.run(replace(BRIEF, designs=designs, nodes=new_size()), ignore_progress)
    require_sound(findings)
    parts = ("consumer", "reader", "claims")
    assert [case.design for case in findings.cases] == [f"{design}: {part}" for design in designs[:2] for part in parts]
    [consumer] = [case for case in findings.cases if case.design == "journal: consumer"]
    assert [goal.what for goal in consumer.goals] == ["journal: consumer, 2 replicas / 1 replica"]
    for case in findings.cases:
        if case.design.endswith(": reader"):
            assert case.ratios["stored, 2 replicas / 1 replica"] == pytest.approx(2.0, rel=0.05)
    assert findings.skipped == ("sql on sqlite: only the designs of memcached have replicas",)


def test_a_table_of_two_modes_shows_ratios_in_both_directions_and_their_goals() -> None:
    """Of a rate, less is worse: such a ratio may be the other way round, and then says so."""
    rate = [Measure.of("events/s", [value]) for value in (1_000.0, 800.0)]
    ms = [Measure.of("ms", [value]) for value in (2.0, 3.0)]
    case = Case(
        "snapshot: reader",
        10_000,
        {},
        {"consumer, off": rate[0], "consumer, on": rate[1], "refresh, off": ms[0], "refresh, on": ms[1]},
        {"consumer, off / on": 1.25, "refresh, on / off": 1.5, "refresh / bare": 3.0},
        ["a proof"],
        [Goal.at_most("snapshot: refresh, on / off", 1.5, 1.2, "x")],
    )
    assert mode_rows([case], ("off", "on")) == [
        ["snapshot: consumer", "1,000", "800", "events/s", "1.25x (off / on)", ""],
        ["snapshot: refresh", "2", "3", "ms", "1.50x", "<= 1.2x NOT met"],
    ]


# -- propagation ----------------------------------------------------------------------------------


@pytest.mark.service
def test_propagation_times_every_event_at_each_rate() -> None:
    """There are as many samples as events were published."""
    findings = propagation.run(replace(BRIEF, designs=("snapshot",), nodes=new_size()), ignore_progress)
    require_sound(findings)
    assert [case.settings["rate"] for case in findings.cases] == list(propagation.RATES_BRIEF)
    for case in findings.cases:
        events = case.settings["rate"] * BRIEF.seconds
        assert case.measures["propagation"].count == case.settings["events"] == events
        assert case.measures["propagation, p99.9"].p50 <= case.measures["propagation"].max
        assert case.settings["flush_ms"] == 50
    assert {"rabbitmq", "memcached"} == findings.servers.keys()


# -- footprint ------------------------------------------------------------------------------------


@pytest.mark.service
def test_footprint_adds_up_all_kinds_of_keys() -> None:
    findings = footprint.run(BRIEF, ignore_progress)
    require_sound(findings)
    for case in findings.cases:
        kinds = [name for name in case.measures if name.startswith("write amplification, ")]
        whole = case.measures["write amplification"].p50
        assert sum(case.measures[name].p50 for name in kinds) == pytest.approx(whole)
        assert case.measures["stored"].max < case.measures["stored, chunks of slabs"].max
        assert case.measures["stored"].min > case.settings["state_bytes"]
    [journal] = of_design(findings, "journal")
    [snapshot] = of_design(findings, "snapshot")
    assert journal.measures["write amplification, segments"].p50 > 1
    assert "write amplification, checkpoints" in journal.measures
    assert {"write amplification, items", "write amplification, indexes"} <= snapshot.measures.keys()
    assert journal.settings["change_bytes"] == snapshot.settings["change_bytes"] == BRIEF.change_bytes


@pytest.mark.service
def test_a_counting_store_counts_the_bytes_sent_to_memcached(memcached: MemcachedServer) -> None:
    """It counts keys and values, also of refused writes, and the deletion of keys that existed."""
    counter = CountingStore(MemcachedStore(memcached.address, timeout_s=5.0))
    node, segment = "ns:c:8.1:s:node:a:b", "ns:c:8.1:j:log:1:1:7"
    counter.write([Write(Put.ADD, node, b"x" * 100), Write(Put.ADD, node, b"y" * 100), Write(Put.ADD, segment, b"")])
    counter.write([Write(Put.DELETE, segment), Write(Put.DELETE, segment)])
    assert counter.written_bytes == {"items": 2 * (len(node) + 100), "segments": len(segment)}
    assert counter.deleted == {"segments": 1}
    held = memcached_sizes(memcached.address)
    assert len(node) + 100 < held.items <= held.chunks <= held.pages
    counter.clear()
    assert not counter.written_bytes
    counter.close()


# -- recovery -------------------------------------------------------------------------------------


@pytest.mark.service
def test_recovery_of_a_new_reader_is_never_sooner_than_that_of_an_existing_one() -> None:
    """A new reader needs every key; an existing one has read some of them before the fault. The cheapest numbered fault
    follows in the same cell.
    """
    findings = recovery.run(replace(BRIEF, designs=("journal",), nodes=new_size()), ignore_progress)
    require_sound(findings)
    faults = [f"journal: {one.name}" for one in recovery.FAULTS if one.brief and "journal" in one.names]
    assert [case.design for case in findings.cases if not is_numbered(case)] == faults
    for case in findings.cases:
        if not is_numbered(case):
            assert case.measures["recovery, following reader"].max <= case.measures["recovery"].max
    [row] = fault_rows(findings.cases)
    assert row[:2] == ["V2", "dead-letter queue deleted, 1 bad message"]
    assert row[HEAD.index("worst age error")] == "0 s"
    assert "oldest view of other partitions" in row[HEAD.index("other figures")]
    assert [goal.met for goal in findings.goals] == [True]


@pytest.mark.service
def test_recovery_of_the_snapshot_from_the_death_of_a_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thorough test causes all other faults as well."""
    faults = tuple(one for one in recovery.FAULTS if one.name == "consumer killed")
    monkeypatch.setattr(recovery, "FAULTS", faults)
    monkeypatch.setattr(recovery, "NUMBERED_FAULTS", ())
    findings = recovery.run(replace(BRIEF, designs=("snapshot",), nodes=new_size()), ignore_progress)
    require_sound(findings)
    assert [case.design for case in findings.cases] == ["snapshot: consumer killed"]


@pytest.mark.service
@pytest.mark.thorough
def test_recovery_measures_every_fault_of_the_snapshot() -> None:
    settings = replace(BRIEF, designs=("snapshot",), nodes=new_size(), seconds=recovery.BRIEF_S)
    findings = recovery.run(settings, ignore_progress)
    require_sound(findings)
    assert len(findings.cases) == sum("snapshot" in one.names for one in recovery.FAULTS) + len(NUMBERED_FAULTS)
    assert [row[0] for row in fault_rows(findings.cases)] == [one.number for one in NUMBERED_FAULTS]
    assert all(goal.met for goal in findings.goals)


# -- contention -----------------------------------------------------------------------------------


@pytest.mark.service
def test_contention_measures_every_crowd_of_readers() -> None:
    findings = contention.run(replace(BRIEF, designs=("journal",)), ignore_progress)
    require_sound(findings)
    crowds = [(crowd.variant, crowd.readers) for crowd in contention.CROWDS_BRIEF]
    assert [(case.design.partition(": ")[2], case.settings["readers"]) for case in findings.cases] == crowds
    for case in findings.cases:
        assert ("commit" in case.measures) == (case.settings["changed"] > 0)
        assert ("refresh" in case.measures) == (case.settings["readers"] > 0 and case.settings["changed"] > 0)
        assert case.settings["readers"] == 0 or "refresh" in case.measures or "nothing" in case.measures
        assert case.settings["reads_incomplete"] == 0
    assert all(ratio > 0 and math.isfinite(ratio) for ratio in findings.across.values())
    assert "journal, 60 nodes: commit p99, 2 readers / 0" in findings.across


# -- workers ------------------------------------------------------------------------------------


def count_until_stopped(parent: ParentLink, beginning: int) -> int:
    parent.report_ready()
    while not parent.should_stop(0.01):
        beginning += 1
    return beginning


def fail_before_ready(_parent: ParentLink) -> None:
    require(claim=False, otherwise="the worker cannot start")


def test_a_worker_runs_until_it_is_asked_to_stop() -> None:
    with Worker(count_until_stopped, 1_000) as counter:
        counter.wait_until_ready()
        assert not counter.has_ended(0.1)
        counter.stop()
        assert counter.result() > 1_000
        counter.stop()


def test_an_error_of_a_worker_is_raised_in_the_parent() -> None:
    with Worker(fail_before_ready) as failing, pytest.raises(WrongResultError, match="cannot start"):
        failing.wait_until_ready()


def test_a_running_worker_ends_with_its_context() -> None:
    with Worker(count_until_stopped, 0) as counter:
        counter.wait_until_ready()
    assert not counter._process.is_alive()


# -- http -----------------------------------------------------------------------------------------


@pytest.mark.service
@pytest.mark.thorough
def test_http_measures_requests_without_and_beside_event_streams() -> None:
    findings = http_api.run(replace(BRIEF, designs=("snapshot",), nodes=new_size()), ignore_progress)
    require_sound(findings)
    assert [case.settings["streams"] for case in findings.cases] == list(http_api.STREAMS_COUNTS)
    for case in findings.cases:
        assert case.measures["GET /v1/nodes/{name}"].count >= 1
        assert (http_api.STREAM_BYTES in case.measures) == (case.settings["streams"] > 0)
        assert case.settings["changes/s"] > 0
        assert any("routes that decide answered 503" in sentence for sentence in case.shown)

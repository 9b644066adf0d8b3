"""The scenarios over whole cells measure what they say. How fast anything is, no test asserts."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import pytest

from bench import contention, footprint, propagation, recovery
from bench.command import SCENARIOS
from bench.counting_store import CountingStore
from bench.memcached_stats import memcached_sizes
from bench.record import Case
from bench.scenario import Findings, Settings
from bench.worker import ParentLink, Worker
from bench.workload import WrongResultError, require
from harness.servers import MemcachedServer, RabbitServer
from nodestate.ports import Put, Write
from nodestate.store.memcached import MemcachedStore

BRIEF = Settings(("journal", "snapshot"), (60,), 0.2, 1, 10, 1_024, 200)


def in_silence(_what: str, _done: float) -> None:
    """Nobody waits for a test."""


def test_all_four_are_scenarios_of_the_command() -> None:
    wanted = {one.SCENARIO.name: one.SCENARIO for one in (propagation, footprint, recovery, contention)}
    assert wanted.items() <= SCENARIOS.items()


def require_sound(findings: Findings) -> None:
    """What holds of every scenario."""
    for case in findings.cases:
        assert case.shown, "a figure without a claim that was checked"
        assert all(isinstance(value, (int, float)) for value in case.settings.values())
        for name, measure in case.measures.items():
            assert 0 < measure.min <= measure.p50 <= measure.p99 <= measure.max, name


def of_design(findings: Findings, design: str) -> list[Case]:
    return [case for case in findings.cases if case.design.partition(":")[0] == design]


# -- propagation ----------------------------------------------------------------------------------


@pytest.mark.service
def test_propagation(memcached: MemcachedServer, rabbit: RabbitServer) -> None:  # noqa: ARG001 - there is one
    """Every event is timed: as many samples as were published, at each rate."""
    findings = propagation.run(replace(BRIEF, designs=("snapshot",)), in_silence)
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
def test_footprint(memcached: MemcachedServer) -> None:  # noqa: ARG001 - ditto
    findings = footprint.run(BRIEF, in_silence)
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
def test_the_ledger_counts_what_went_to_memcached(memcached: MemcachedServer) -> None:
    """Keys and values, also of writes that were refused; and what was there to be deleted."""
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
def test_recovery(memcached: MemcachedServer, rabbit: RabbitServer) -> None:  # noqa: ARG001 - ditto
    """A new reader needs every key that a following one has read already: it is never whole before."""
    findings = recovery.run(replace(BRIEF, designs=("journal",)), in_silence)
    require_sound(findings)
    faults = [f"journal: {one.name}" for one in recovery.FAULTS if one.brief and "journal" in one.names]
    assert [case.design for case in findings.cases] == faults
    for case in findings.cases:
        assert case.measures["recovery, following reader"].max <= case.measures["recovery"].max


@pytest.mark.service
def test_recovery_from_all_faults(memcached: MemcachedServer, rabbit: RabbitServer) -> None:  # noqa: ARG001 - ditto
    findings = recovery.run(replace(BRIEF, designs=("snapshot",), seconds=recovery.BRIEF_S), in_silence)
    require_sound(findings)
    assert len(findings.cases) == sum("snapshot" in one.names for one in recovery.FAULTS)


# -- contention -----------------------------------------------------------------------------------


@pytest.mark.service
def test_contention(memcached: MemcachedServer) -> None:  # noqa: ARG001 - ditto
    findings = contention.run(replace(BRIEF, designs=("journal",)), in_silence)
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


# -- processes beside -----------------------------------------------------------------------------


def count_until_told(parent: ParentLink, beginning: int) -> int:
    parent.report_ready()
    while not parent.should_stop(0.01):
        beginning += 1
    return beginning


def fail_before_it_begins(_parent: ParentLink) -> None:
    require(claim=False, otherwise="there was nothing to begin with")


def test_a_process_beside_goes_on_until_it_is_told_to_stop() -> None:
    with Worker(count_until_told, 1_000) as counter:
        counter.wait_until_ready()
        assert not counter.has_ended(0.1)
        counter.stop()
        assert counter.result() > 1_000
        counter.stop()


def test_what_a_process_beside_raises_is_raised_here() -> None:
    with Worker(fail_before_it_begins) as failing, pytest.raises(WrongResultError, match="nothing to begin with"):
        failing.wait_until_ready()


def test_a_process_beside_that_is_left_alone_ends_with_its_context() -> None:
    began = time.monotonic()
    with Worker(count_until_told, 0) as counter:
        counter.wait_until_ready()
    assert not counter._process.is_alive()
    assert time.monotonic() - began < 30

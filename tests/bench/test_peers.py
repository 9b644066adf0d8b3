"""Every installed peer does the same work as nodestate, and no peer is required."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest

from bench.peers import peer_scenario
from bench.peers.interfaces import Row, packed, unpacked
from bench.peers.openstack import measure_openstack
from bench.peers.peer_scenario import (
    COMPARED,
    SOURCES,
    PeerMissingError,
    Source,
    Theirs,
    measure,
    require_all_shown,
    row_of,
    theirs,
)
from bench.record import Case, Measure
from bench.scenario import Settings
from bench.workload import SeededFleet, WrongResultError
from harness.servers import MemcachedServer, ServerMissingError
from tests.bench.quick_runs import ignore_progress

SETTINGS = Settings(("snapshot",), (200,), 0.2, 1, 10, 1_024, 200)


def fleet_of(nodes: int) -> SeededFleet:
    """A fleet whose nodes have all reported once."""
    fleet = SeededFleet(1, nodes)
    for number in range(nodes):
        fleet.report(number)
    return fleet


class HeldRows:
    """A reader that shows the rows that it was created with."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = {row.name: row for row in rows}

    def cold(self) -> None: ...
    def refresh(self) -> None: ...
    def close(self) -> None: ...

    def names(self) -> Iterable[str]:
        return self.rows

    def node(self, name: str) -> Row:
        return self.rows[name]


class ForgetfulPeer:
    """A peer that accepts every write, but whose readers see only the first generation of each node."""

    def __init__(self) -> None:
        self.clients: dict[str, str] = {}
        self.rows: dict[str, Row] = {}
        self.openers = {"forgetful": lambda: HeldRows(self.rows.values())}

    def write(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self.rows.setdefault(row.name, row)

    def close(self) -> None: ...


class NoServer:
    """A server for peers that need none."""

    url = address = version = "nowhere"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


# -- without any server ---------------------------------------------------------------------------


def test_a_value_carries_version_and_body() -> None:
    row = Row("compute-1", 1_763_787_600, 2**40, b"\x80")
    assert unpacked(row.name, packed(row)) == row


def test_a_reader_that_shows_wrong_nodes_gives_no_figures() -> None:
    """A missing node, an extra node, an old version and a wrong state are each noticed."""
    fleet = fleet_of(3)
    right = [row_of(fleet, number) for number in range(3)]
    require_all_shown("right", HeldRows(right), fleet)
    for wrong in (
        right[:2],
        [*right, right[0]._replace(name="compute-9")],
        [*right[:2], right[2]._replace(generation=0)],
        [*right[:2], right[2]._replace(body=right[1].body)],
    ):
        with pytest.raises(WrongResultError, match="wrong shows"):
            require_all_shown("wrong", HeldRows(wrong), fleet)


def test_a_peer_that_loses_writes_gives_no_figures() -> None:
    peer = ForgetfulPeer()
    side = Theirs(peer, SeededFleet(1, 20), {})
    side.load(ignore_progress)
    with pytest.raises(WrongResultError, match="forgetful shows"):
        measure(side, "forgetful", peer.openers["forgetful"], SETTINGS, ignore_progress)


def test_a_peer_without_its_client_is_skipped_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "peer_without_client.py").write_text("import no_such_client\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    source = Source("absent", "peer_without_client", "Peer", NoServer)
    with (
        pytest.raises(PeerMissingError, match=r"absent: .*no_such_client.*pip install"),
        theirs(source, SeededFleet(1, 1)),
    ):
        raise AssertionError


def test_openstack_without_its_environment_is_skipped_with_instructions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NODESTATE_BENCH_OPENSTACK", str(tmp_path))
    with pytest.raises(ServerMissingError, match=r"has no bin/python: make .*openstack-placement"):
        measure_openstack(10, SETTINGS, ignore_progress)


def test_a_peer_without_its_server_is_skipped_with_the_command_that_installs_it() -> None:
    def missing() -> NoServer:
        raise ServerMissingError("absentd is not installed: apt-get install absent-server")

    source = Source("absent", "bench.peers.interfaces", "Peer", missing)
    with (
        pytest.raises(PeerMissingError, match=r"absent: .*apt-get install absent-server"),
        theirs(source, SeededFleet(1, 1)),
    ):
        raise AssertionError


def test_ratios_are_above_one_if_the_peer_takes_longer() -> None:
    def case(design: str, ms: float) -> Case:
        measures = {name: Measure.of("ms", [ms]) for name in COMPARED}
        return Case(design, 10_000, {"changed": 100}, measures, {}, [])

    cases = [case("nodestate journal", 2.0), case("slow select", 8.0), case("fast stream", 1.0)]
    cases.append(Case("candidates alone", 10_000, {}, {"candidates": Measure.of("ms", [0.1])}, {}, []))
    across, [goal, decoded] = peer_scenario._ratios_to_nodestate(cases)
    assert not any("candidates" in name for name in across)
    assert across["refresh, 10,000 nodes: slow select / nodestate journal"] == 4.0
    assert across["cold, 10,000 nodes: fast stream / nodestate journal"] == 0.5
    assert (goal.got, goal.met) == (0.5, False)
    assert "fast stream" in goal.what
    assert (decoded.got, "decoded" in decoded.what) == (0.5, True)


# -- with servers ---------------------------------------------------------------------------------


@pytest.fixture(params=[source.name for source in SOURCES])
def side(request: pytest.FixtureRequest, shared_servers: None) -> Iterator[Theirs]:  # noqa: ARG001 - replaces servers
    """Each peer in turn. The test is skipped if the peer is not installed."""
    [source] = [source for source in peer_scenario.SOURCES if source.name == request.param]
    try:
        with theirs(source, SeededFleet(1, 200)) as found:
            yield found
    except PeerMissingError as error:
        pytest.skip(str(error))


@pytest.mark.service
@pytest.mark.usefixtures("in_this_process")
def test_readers_of_a_peer_show_the_written_nodes(side: Theirs) -> None:
    side.load(ignore_progress)
    for label, opener in side.openers.items():
        case = measure(side, label, opener, SETTINGS, ignore_progress)
        assert case.measures.keys() == set(COMPARED)
        assert len(case.shown) == 3


@pytest.mark.service
@pytest.mark.timeout(300)
@pytest.mark.skipif(not os.environ.get("NODESTATE_BENCH_OPENSTACK"), reason="NODESTATE_BENCH_OPENSTACK is not set")
def test_openstack_reads_the_saved_usage() -> None:
    """OpenStack's commands that create the tables take most of the time of this test."""
    try:
        [nova, numa, placement], versions = measure_openstack(200, SETTINGS, ignore_progress)
    except ServerMissingError as error:
        pytest.skip(str(error))
    assert nova.measures.keys() == numa.measures.keys() == {"cold", "write", "refresh, decoded", "nothing"}
    assert placement.measures.keys() == {"candidates"}
    assert versions.keys() == {"nova", "openstack-placement", "mariadb"}


@pytest.mark.service
@pytest.mark.usefixtures("in_this_process")
def test_a_missing_peer_is_reported_and_does_not_stop_the_run(
    monkeypatch: pytest.MonkeyPatch,
    memcached: MemcachedServer,  # noqa: ARG001 - skips the test if there is none
) -> None:
    """nodestate itself is measured even if nothing else is installed."""

    def missing() -> Any:
        raise ServerMissingError("absentd is not installed: apt-get install absent-server")

    monkeypatch.setattr(
        peer_scenario, "SOURCES", [replace(SOURCES[0], name="absent", module="bench.peers.interfaces", server=missing)]
    )
    monkeypatch.setattr(peer_scenario, "ALWAYS_MEASURED", ())
    monkeypatch.delenv("NODESTATE_BENCH_OPENSTACK", raising=False)
    findings = peer_scenario.run(replace(SETTINGS, nodes=(50, 60)), ignore_progress)
    assert [(case.design, case.nodes) for case in findings.cases] == [
        ("nodestate snapshot", 50),
        ("nodestate snapshot", 60),
    ]
    absent, openstack = findings.skipped
    assert absent == "absent: absentd is not installed: apt-get install absent-server"
    assert openstack.startswith("openstack: NODESTATE_BENCH_OPENSTACK is not set: make")
    assert findings.goals == []


@pytest.mark.service
@pytest.mark.thorough
def test_the_database_design_is_measured_beside_the_plain_select(
    monkeypatch: pytest.MonkeyPatch,
    memcached: MemcachedServer,  # noqa: ARG001 - skips the test if there is none
) -> None:
    """It is measured on each installed server, although the run does not name it."""
    monkeypatch.setattr(peer_scenario, "SOURCES", [])
    monkeypatch.delenv("NODESTATE_BENCH_OPENSTACK", raising=False)
    findings = peer_scenario.run(replace(SETTINGS, nodes=(50,)), ignore_progress)
    wanted = [f"nodestate sql on {database}" for database in ("mariadb", "postgres")]
    said = [line.partition(":")[0] for line in findings.skipped]
    there = [case.design for case in findings.cases]
    assert there == ["nodestate snapshot", *(label for label in wanted if label not in said)]
    for case in findings.cases:
        assert case.measures.keys() == set(COMPARED)
        assert case.shown[-1] in {
            "memcached evicted and refused nothing",
            "the database has one row for each of 50 nodes",
        }

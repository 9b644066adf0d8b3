"""The scenarios measure the design in a database, on each database that is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from bench import apply, cold, contention, database_environment, footprint, propagation, recovery, refresh, scale
from bench.cold_start import bare_read, digest_of
from bench.design_names import DESIGN_NAMES, DRIVERS, design_label, full_design_name
from bench.environments import Environment, bytes_sent_during
from bench.fresh_process import run_in_fresh_process
from bench.runs import open_environment
from bench.scenario import Findings, ReportProgress, Settings
from bench.stepped_cell import SteppedCell
from bench.workload import SeededFleet, WrongResultError
from harness.servers import ServerMissingError
from nodestate import Reader
from tests.bench.quick_runs import BRIEF, ignore_progress, new_size, require_sound

DESIGNS = [
    pytest.param("sql:sqlite", id="sqlite"),
    pytest.param("sql:mariadb", marks=pytest.mark.service, id="mariadb"),
    pytest.param("sql:postgres", marks=pytest.mark.service, id="postgres"),
]
"""Each database."""
SQLITE_FIRST = [
    pytest.param("sql:sqlite", id="sqlite"),
    pytest.param("sql:mariadb", marks=[pytest.mark.service, pytest.mark.thorough], id="mariadb"),
    pytest.param("sql:postgres", marks=[pytest.mark.service, pytest.mark.thorough], id="postgres"),
]
"""Each database, but a server only in thorough runs. Environments hide their differences from a scenario."""
Run = Callable[[Settings, ReportProgress], Findings]


def found_by(run: Run, design: str, **others: Any) -> Findings:
    """Run a scenario and assert the properties that all its results have."""
    findings = run(replace(BRIEF, **{"designs": (design,), "nodes": new_size(), **others}), ignore_progress)
    require_sound(findings)
    assert all(case.design.startswith(design_label([design])) for case in findings.cases)
    assert design.partition(":")[2] in findings.servers
    assert "memcached" not in findings.servers
    return findings


@pytest.fixture(params=DESIGNS)
def environment(request: pytest.FixtureRequest, shared_servers: None) -> Iterator[Environment]:  # noqa: ARG001 - first
    """Each database in turn."""
    with open_environment([request.param], 0) as opened:
        yield opened


# -- names ----------------------------------------------------------------------------------------


def test_a_design_in_a_database_is_named_with_the_database() -> None:
    assert DESIGN_NAMES == ("journal", "snapshot", "sql:sqlite", "sql:mariadb", "sql:postgres")
    assert (full_design_name("sql"), full_design_name("sql:mariadb"), full_design_name("journal")) == (
        "sql:sqlite",
        "sql:mariadb",
        "journal",
    )
    assert design_label(["sql:mariadb"]) == "sql on mariadb"
    assert design_label(["journal", "snapshot"]) == "journal and snapshot"


# -- missing programs ----------------------------------------------------------------------------


def test_a_missing_driver_is_reported_and_the_other_databases_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DRIVERS, "mariadb", "no_such_driver")
    findings = refresh.run(replace(BRIEF, designs=("sql:mariadb", "sql:sqlite")), ignore_progress)
    assert [case.design for case in findings.cases] == ["sql on sqlite"]
    [line] = findings.skipped
    assert line == "sql on mariadb: No module named 'no_such_driver': pip install -e '.[bench]'"


def test_a_run_that_measured_nothing_fails_and_names_the_missing_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ServerMissingError("postgres is not installed: apt-get install postgresql")

    monkeypatch.setattr(database_environment, "PostgresServer", missing)
    with pytest.raises(
        ServerMissingError, match="sql on postgres: postgres is not installed: apt-get install postgresql"
    ):
        refresh.run(replace(BRIEF, designs=("sql:postgres",)), ignore_progress)


# -- environments---------------------------------------------------------------------------------


def test_an_environment_counts_bytes_and_notices_a_missing_row(environment: Environment) -> None:
    """A lost row must be a wrong result, and statistics must be of the stored data."""
    fleet = SeededFleet(1, 50)
    with SteppedCell(fleet, environment, BRIEF) as cell:
        cell.load(ignore_progress)
        logged = environment.log_bytes()
        cell.change(range(50))
        assert environment.require_nothing_lost(50) == "the database has one row for each of 50 nodes"
        assert environment.bytes_held()["stored"] > 50 * 1_024
        assert logged is None or (environment.log_bytes() or 0) > logged
        with Reader(cell.config) as reader:
            reader.read(max_age=60.0, on_stale="flag")
            cell.change(range(20))
            sent = bytes_sent_during(environment, lambda: reader.read(max_age=60.0, on_stale="flag"))
        assert sent is None or 20 * 1_024 < sent < 40 * 1_024
        with pytest.raises(WrongResultError, match="has 50 rows of 51 nodes"):
            environment.require_nothing_lost(51)


def test_the_baseline_reads_copies_by_key_and_as_a_whole(environment: Environment) -> None:
    """It reads the same bytes in both ways, in this process and in a new one."""
    bodies = [bytes([number % 256]) * (number + 1) for number in range(300)]
    with closing(environment.baseline()) as bare:
        bare.copy(bodies)
        pieces = bare.copy_pieces(bodies)
        assert bare.read(bare.states(range(300))) == bodies
        assert bare.read(bare.states([7, 200])) == [bodies[7], bodies[200]]
        assert bare.read(bare.pieces(pieces)) == bodies
    assert bare_read(environment.baseline, 300, 0)[1] == digest_of(bodies)
    assert run_in_fresh_process(bare_read, environment.baseline, 300, pieces)[1] == digest_of(bodies)


@pytest.mark.parametrize("environment", DESIGNS[1:], indirect=True)
def test_a_killed_database_has_all_rows_after_its_restart(environment: Environment) -> None:
    with SteppedCell(SeededFleet(1, 50), environment, BRIEF) as cell:
        cell.load(ignore_progress)
        environment.restart()
        assert environment.require_nothing_lost(50)


# -- scenarios ------------------------------------------------------------------------------------


@pytest.mark.parametrize("design", SQLITE_FIRST)
def test_refresh_of_a_database(design: str) -> None:
    [case] = found_by(refresh.run, design).cases
    assert case.measures.keys() == {"commit", "refresh", "columns", "nothing", "bare states", "bare heads"}
    assert case.settings["head_bytes"] > 0
    assert ("wire_bytes" in case.settings) == (design == "sql:mariadb")
    assert not case.goals


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("design", SQLITE_FIRST)
def test_cold_of_a_database(design: str) -> None:
    [case] = found_by(cold.run, design).cases
    assert {"first view", "bare keys", "bare blocks", "memory / states"} < case.measures.keys()


@pytest.mark.parametrize("design", SQLITE_FIRST)
def test_footprint_of_a_database(design: str) -> None:
    [case] = found_by(footprint.run, design).cases
    kinds = [name for name in case.measures if name.startswith("write amplification, ")]
    written = {"write amplification, rows", "write amplification, heads"}
    assert written <= set(kinds) <= written | {"write amplification, signs of life"}
    assert sum(case.measures[name].p50 for name in kinds) == pytest.approx(case.measures["write amplification"].p50)
    assert case.measures["stored"].min > case.settings["state_bytes"]
    assert ("written to the database's log" in case.measures) == (design != "sql:sqlite")


@pytest.mark.parametrize("design", SQLITE_FIRST[:2])
def test_contention_of_a_database(design: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crowd of one reader, which reads while the consumer commits; the test of the journal has all crowds."""
    monkeypatch.setattr(contention, "CROWDS_BRIEF", contention.CROWDS_BRIEF[:2])
    findings = found_by(contention.run, design)
    assert [case.settings["readers"] for case in findings.cases] == [0, 1]
    assert all(case.settings["reads_incomplete"] == 0 for case in findings.cases)


@pytest.mark.usefixtures("in_this_process")
def test_scale_fits_laws_by_label() -> None:
    """It runs ``refresh`` and ``cold``, so one database is enough."""
    findings = found_by(scale.run, "sql:sqlite", nodes=(20, 40, 60), seconds=0.1)
    assert findings.cases[-1].settings["estimated"]
    assert "sql on sqlite: refresh, exponent of nodes" in findings.across


@pytest.mark.service
@pytest.mark.usefixtures("few_events")
@pytest.mark.parametrize("design", SQLITE_FIRST[:2])
def test_apply_of_a_database(design: str) -> None:
    [case] = found_by(apply.run, design).cases
    assert case.measures.keys() == {"consumer", "consumer, CPU", "bare kombu", "bare kombu, CPU", "takeover"}


@pytest.mark.service
@pytest.mark.parametrize("design", [SQLITE_FIRST[0], SQLITE_FIRST[2]])
def test_propagation_of_a_database(design: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At one rate; the test of the snapshot has several."""
    monkeypatch.setattr(propagation, "RATES_BRIEF", (100,))
    findings = found_by(propagation.run, design)
    assert [case.settings["rate"] for case in findings.cases] == [100]


@pytest.mark.service
@pytest.mark.parametrize("design", [SQLITE_FIRST[0], SQLITE_FIRST[2]])
def test_recovery_of_a_database_leaves_out_faults_that_lose_keys(design: str) -> None:
    """A line names the faults that a database cannot have. PostgreSQL meets all the others, SQLite the brief ones."""
    seconds = recovery.BRIEF_S if design == "sql:postgres" else BRIEF.seconds
    findings = found_by(recovery.run, design, seconds=seconds)
    label = design_label([design])
    faults = [one.name for one in recovery.FAULTS if design in one.names and (one.brief or seconds >= recovery.BRIEF_S)]
    assert [case.design for case in findings.cases] == [f"{label}: {fault}" for fault in faults]
    assert ("database restarted" in faults) == (design != "sql:sqlite")
    [line] = findings.skipped
    assert line.startswith(f"{label}: no faults that lose keys")
    assert ("no server to restart" in line) == (design == "sql:sqlite")

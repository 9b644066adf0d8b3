"""The database design goes through the same scenarios as the others, on each database that is installed."""

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
from tests.conftest import skip_or_fail

BRIEF = Settings(("sql:sqlite",), (60,), 0.2, 1, 10, 1_024, 200)
DESIGNS = [
    pytest.param(f"sql:{name}", marks=[] if name == "sqlite" else [pytest.mark.service], id=name) for name in DRIVERS
]
Run = Callable[[Settings, ReportProgress], Findings]


def some(*names: str) -> list[Any]:
    """Some of the designs: scenarios that start a broker or many processes take long, so each is tried on one or two, and each
    database by several of them. Which is which is the place's affair, not the scenario's.
    """
    return [one for one in DESIGNS if one.id in names]


def in_silence(_what: str, _done: float) -> None:
    """Nobody waits for a test."""


def found_by(run: Run, design: str, **others: Any) -> Findings:
    """What came of a scenario, with what holds of every one; skipped where the database is not installed."""
    try:
        findings = run(replace(BRIEF, designs=(design,), **others), in_silence)
    except ServerMissingError as error:
        skip_or_fail(error)
    assert findings.cases
    for case in findings.cases:
        assert case.design.startswith(design_label([design]))
        assert case.shown, "a figure without a claim that was checked"
        for name, measure in case.measures.items():
            assert 0 < measure.min <= measure.p50 <= measure.p99 <= measure.max, name
    assert design.partition(":")[2] in findings.servers
    assert "memcached" not in findings.servers
    return findings


@pytest.fixture(params=DESIGNS)
def environment(request: pytest.FixtureRequest) -> Iterator[Environment]:
    """Each database in turn; skipped where it is not installed."""
    try:
        with open_environment([request.param], 0) as found:
            yield found
    except ServerMissingError as error:
        skip_or_fail(error)


# -- names ----------------------------------------------------------------------------------------


def test_a_design_in_a_database_is_named_with_it() -> None:
    assert DESIGN_NAMES == ("journal", "snapshot", "sql:sqlite", "sql:mariadb", "sql:postgres")
    assert (full_design_name("sql"), full_design_name("sql:mariadb"), full_design_name("journal")) == (
        "sql:sqlite",
        "sql:mariadb",
        "journal",
    )
    assert design_label(["sql:mariadb"]) == "sql on mariadb"
    assert design_label(["journal", "snapshot"]) == "journal and snapshot"


# -- without what it needs ------------------------------------------------------------------------


def test_a_driver_that_is_missing_is_said_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DRIVERS, "mariadb", "no_such_driver")
    findings = refresh.run(replace(BRIEF, designs=("sql:mariadb", "sql:sqlite")), in_silence)
    assert [case.design for case in findings.cases] == ["sql on sqlite"]
    [line] = findings.skipped
    assert line == "sql on mariadb: No module named 'no_such_driver': pip install -e '.[bench]'"


def test_a_server_that_is_missing_is_said_and_nothing_measured_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ServerMissingError("postgres is not installed: apt-get install postgresql")

    monkeypatch.setattr(database_environment, "PostgresServer", missing)
    with pytest.raises(
        ServerMissingError, match="sql on postgres: postgres is not installed: apt-get install postgresql"
    ):
        refresh.run(replace(BRIEF, designs=("sql:postgres",)), in_silence)


# -- places ---------------------------------------------------------------------------------------


def test_a_place_shows_what_it_keeps_and_that_something_is_missing(environment: Environment) -> None:
    """A row that is gone must not be timed as right; and statistics are of what is there."""
    fleet = SeededFleet(1, 50)
    with SteppedCell(fleet, environment, BRIEF) as cell:
        cell.load(in_silence)
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


def test_the_bare_client_reads_what_is_there(environment: Environment) -> None:
    """The same bytes as rows by key and as all of them, here and in a new process."""
    bodies = [bytes([number % 256]) * (number + 1) for number in range(300)]
    with closing(environment.baseline()) as bare:
        bare.copy(bodies)
        pieces = bare.copy_pieces(bodies)
        assert bare.read(bare.states(range(300))) == bodies
        assert bare.read(bare.states([7, 200])) == [bodies[7], bodies[200]]
        assert bare.read(bare.pieces(pieces)) == bodies
    for count in (0, pieces):
        assert run_in_fresh_process(bare_read, environment.baseline, 300, count)[1] == digest_of(bodies)


def test_a_server_that_was_killed_has_all_again(environment: Environment) -> None:
    if environment.slug == "sqlite":
        pytest.skip("SQLite has no server")
    with SteppedCell(SeededFleet(1, 50), environment, BRIEF) as cell:
        cell.load(in_silence)
        environment.restart()
        assert environment.require_nothing_lost(50)


# -- scenarios ------------------------------------------------------------------------------------


@pytest.mark.parametrize("design", DESIGNS)
def test_refresh(design: str) -> None:
    [case] = found_by(refresh.run, design).cases
    assert case.measures.keys() == {"commit", "refresh", "columns", "nothing", "bare states", "bare heads"}
    assert case.settings["head_bytes"] > 0
    assert ("wire_bytes" in case.settings) == (design == "sql:mariadb")
    assert not case.goals


@pytest.mark.parametrize("design", DESIGNS)
def test_cold(design: str) -> None:
    [case] = found_by(cold.run, design).cases
    assert {"first view", "bare keys", "bare blocks", "memory / states"} < case.measures.keys()


@pytest.mark.parametrize("design", DESIGNS)
def test_footprint(design: str) -> None:
    [case] = found_by(footprint.run, design).cases
    kinds = [name for name in case.measures if name.startswith("write amplification, ")]
    written = {"write amplification, rows", "write amplification, heads"}
    assert written <= set(kinds) <= written | {"write amplification, signs of life"}
    assert sum(case.measures[name].p50 for name in kinds) == pytest.approx(case.measures["write amplification"].p50)
    assert case.measures["stored"].min > case.settings["state_bytes"]
    assert ("written to the database's log" in case.measures) == (design != "sql:sqlite")


@pytest.mark.parametrize("design", some("sqlite", "mariadb"))
def test_contention(design: str) -> None:
    findings = found_by(contention.run, design)
    assert len(findings.cases) == len(contention.CROWDS_BRIEF)
    assert all(case.settings["reads_incomplete"] == 0 for case in findings.cases)


def test_scale() -> None:
    """It runs the two above: one database says that laws are found by label."""
    findings = found_by(scale.run, "sql:sqlite", nodes=(20, 40, 60), seconds=0.1)
    assert findings.cases[-1].settings["estimated"]
    assert "sql on sqlite: refresh, exponent of nodes" in findings.across


@pytest.mark.service
@pytest.mark.usefixtures("rabbit")  # it shows that there is one
@pytest.mark.parametrize("design", some("sqlite", "mariadb"))
def test_apply(design: str) -> None:
    [case] = found_by(apply.run, design).cases
    assert case.measures.keys() == {"consumer", "consumer, CPU", "bare kombu", "bare kombu, CPU", "takeover"}


@pytest.mark.service
@pytest.mark.usefixtures("rabbit")
@pytest.mark.parametrize("design", some("postgres"))
def test_propagation(design: str) -> None:
    findings = found_by(propagation.run, design)
    assert [case.settings["rate"] for case in findings.cases] == list(propagation.RATES_BRIEF)


@pytest.mark.service
@pytest.mark.usefixtures("rabbit")
@pytest.mark.parametrize("design", some("sqlite", "postgres"))
def test_recovery(design: str) -> None:
    """What can fail there does, a server among it; of what can't, a line is left. One database meets all of it."""
    seconds = recovery.BRIEF_S if design == "sql:postgres" else BRIEF.seconds
    findings = found_by(recovery.run, design, seconds=seconds)
    label = design_label([design])
    faults = [one.name for one in recovery.FAULTS if design in one.names and (one.brief or seconds >= recovery.BRIEF_S)]
    assert [case.design for case in findings.cases] == [f"{label}: {fault}" for fault in faults]
    assert ("database restarted" in faults) == (design != "sql:sqlite")
    [line] = findings.skipped
    assert line.startswith(f"{label}: no faults that lose keys")
    assert ("no server to restart" in line) == (design == "sql:sqlite")

"""The command, the records and the proofs of benchmarks. No test asserts how fast anything is."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from bench.baseline import BaselineSocket, prepared
from bench.command import SCENARIOS, main
from bench.memcached_environment import MemcachedEnvironment, memcached_for
from bench.record import Case, Goal, Machine, Measure, Record
from bench.scenario import Findings, ReportProgress, Scenario, Settings
from bench.stepped_cell import SteppedCell
from bench.workload import ALLOCATION_EVERY, SeededFleet, WrongResultError, require, require_equal, require_whole
from harness.servers import MemcachedServer
from nodestate import Reader
from nodestate.model import FoldOutcome, NodeRecord, fold, parse_event
from tests.bench.quick_runs import ignore_progress

SETTINGS = Settings(("journal",), (50,), 0.1, 1, 10, 1_024, 200)


# -- the fleet ------------------------------------------------------------------------------------


@given(seed=st.integers(), size=st.integers(0, 3_000), changes=st.integers(0, 3 * ALLOCATION_EVERY))
def test_expected_states_equal_the_fold_of_the_events(seed: int, size: int, changes: int) -> None:
    """The expected states are computed without the fold; otherwise a wrong fold would be timed as right."""
    fleet = SeededFleet(seed, 2, state_bytes=1_500, change_bytes=size)
    for number in range(len(fleet)):
        record: NodeRecord | None = None
        for raw in [fleet.report(number), *(fleet.change(number) for _ in range(changes))]:
            record, outcome = fold(record, parse_event(raw))
            assert outcome is FoldOutcome.APPLIED
        assert record is not None
        assert record.version == fleet.version(number)
        assert record.state() == fleet.state(number, record.generation)


def test_the_seed_determines_the_events_of_a_fleet() -> None:
    def events(seed: int) -> list[bytes]:
        fleet = SeededFleet(seed, 5)
        return [event for number in range(5) for event in (fleet.report(number), fleet.change(number))]

    assert events(1) == events(1)
    assert events(1) != events(2)


@pytest.mark.parametrize(("state_bytes", "change_bytes"), [(1_024, 200), (5_000, 1_000), (8_000, 5_000)])
def test_states_and_changes_have_the_requested_sizes(state_bytes: int, change_bytes: int) -> None:
    fleet = SeededFleet(1, 1, state_bytes=state_bytes, change_bytes=change_bytes)
    fleet.report(0)
    assert len(fleet.body(0, 1)) == pytest.approx(state_bytes, abs=10)
    assert len(fleet.change(0)) == pytest.approx(change_bytes, abs=20)


@pytest.mark.service
def test_a_view_without_the_last_event_is_a_wrong_result(memcached: MemcachedServer) -> None:
    """Every scenario relies on this: an event that was sent but not committed fails the check."""
    fleet = SeededFleet(1, 50)
    with SteppedCell(fleet, MemcachedEnvironment(["snapshot"], memcached), SETTINGS) as cell:
        cell.load(ignore_progress)
        cell.change([3, 4])
        with Reader(cell.config) as reader:
            view = reader.read(max_age=60.0, on_stale="flag")
        require_whole(view, fleet)
        fleet.change(4)
        require_equal(view, fleet, [3])
        with pytest.raises(WrongResultError, match=fleet.names[4]):
            require_whole(view, fleet)


# -- the baseline --------------------------------------------------------------------------------


@pytest.mark.service
def test_the_baseline_reads_all_stored_values(memcached: MemcachedServer) -> None:
    """The request and the reply exceed the socket buffers, so both must flow at the same time."""
    values = [random.Random(number).randbytes(1_000) for number in range(20_000)]
    values[7] = b"MN\r\nVA 3\r\nEN\r\n"
    with BaselineSocket(memcached.address) as socket:
        socket.write((f"copy:{number}", value) for number, value in enumerate(values))
        keys = [f"copy:{number}" for number in range(len(values))]
        assert socket.read(prepared(["missing", *keys, "missing"])) == values
        assert socket.read(prepared(["missing"])) == []


@pytest.mark.service
def test_the_baseline_raises_an_error_for_a_refused_write() -> None:
    with (
        memcached_for(1) as memcached,
        BaselineSocket(memcached.address) as socket,
        pytest.raises(ValueError, match="too large"),
    ):
        socket.write([("key", b"x" * 2_000_000)])


# -- the record -----------------------------------------------------------------------------------


def test_percentiles_are_samples_by_nearest_rank() -> None:
    assert Measure.of("ms", [3.0, 1.0, 2.0]) == Measure("ms", 3, 1.0, 2.0, 3.0, 3.0)
    assert Measure.of("ms", list(range(1, 201))) == Measure("ms", 200, 1, 100, 198, 200)


def test_a_figure_equal_to_its_bound_meets_the_goal() -> None:
    assert [Goal.at_most("x", got, 2.0, "ms").met for got in (1.9, 2.0, 2.1)] == [True, True, False]
    assert [Goal.at_least("x", got, 2.0, "x").met for got in (1.9, 2.0, 2.1)] == [False, True, True]


# -- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["sleep"],
        ["refresh", "--design", "sql9"],
        ["refresh", "--design", "sql:oracle"],
        ["refresh", "--design", "journal:mariadb"],
        ["refresh", "--nodes", "0"],
        ["refresh", "--nodes", "10,x"],
        ["cold", "--seconds", "0"],
    ],
)
def test_bad_usage_exits_with_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(main, arguments).exit_code == 2


def test_a_wrong_result_exits_with_1_and_gives_no_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(_settings: Settings, _report_progress: ReportProgress) -> Findings:
        require(claim=False, otherwise="the view shows something else")
        raise AssertionError

    monkeypatch.setitem(SCENARIOS, "cold", Scenario("cold", "", run))
    result = CliRunner().invoke(main, ["cold", "--json", str(tmp_path / "record.json")])
    assert result.exit_code == 1
    assert "the view shows something else" in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "record.json").exists()


@pytest.mark.service
@pytest.mark.usefixtures("memcached")  # skips the test if there is no memcached
def test_a_run_prints_tables_and_writes_its_record() -> None:
    """The only test that starts ``python -m bench`` as users do; the other tests call scenarios in this process."""
    arguments = ["refresh", "--nodes", "100,200", "--changed", "7", "--seed", "5"]
    done = subprocess.run(  # noqa: S603 - a command of bench
        [sys.executable, "-m", "bench", *arguments, "--quick", "--seconds", "0.2", "--json", "-"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    record: dict[str, Any] = json.loads(done.stdout)
    assert (record["scenario"], record["format"], record["seed"]) == ("refresh", 1, 5)
    assert {"python", "nodestate", "memcached"} <= record["versions"].keys()
    assert record["machine"]["cores"] >= 1
    assert record["began_at"].endswith("+00:00")
    assert [(case["design"], case["nodes"]) for case in record["cases"]] == [
        ("journal", 100),
        ("journal", 200),
        ("snapshot", 100),
        ("snapshot", 200),
    ]
    for case in record["cases"]:
        assert case["shown"], "a case without a proof"
        assert case["measures"].keys() == {"commit", "refresh", "columns", "nothing", "bare states", "bare heads"}
        assert all(0 < one["min"] <= one["p50"] <= one["p99"] <= one["max"] for one in case["measures"].values())
        assert case["settings"]["changed"] == 7
        assert {"refresh / bare states", "nothing / bare heads"} < case["ratios"].keys()
        assert all(ratio > 0 for ratio in case["ratios"].values())
    assert "snapshot: refresh, 200 / 100 nodes" in record["across"]
    assert "refresh: journal, 100 nodes" in done.stderr


def test_a_record_is_read_back_unchanged_and_has_one_case_on_a_line() -> None:
    """Readers of a diff see which cases changed."""
    cases = [Case(design, 10, {}, {"refresh": Measure.of("ms", [1.0])}, {}, ["a proof"]) for design in ("one", "two")]
    record = Record("refresh", 1, 0.2, "now", "c0ffee", {}, Machine("a core", 2, 2**33, "Linux", 0.5, 12.0), cases)
    written = record.to_json()
    assert msgspec.json.decode(written, type=Record).to_json() == written
    assert sum(line.startswith(b'{"design":') for line in written.splitlines()) == 2

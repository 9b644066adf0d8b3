"""The benchmarks do what they say that they time. How fast anything is, no test asserts."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from bench.baseline import BaselineSocket, prepared
from bench.command import SCENARIOS, main
from bench.memcached_environment import MemcachedEnvironment, memcached_for
from bench.record import Goal, Measure
from bench.scenario import Findings, ReportProgress, Scenario, Settings
from bench.stepped_cell import SteppedCell
from bench.workload import ALLOCATION_EVERY, SeededFleet, WrongResultError, require, require_equal, require_whole
from harness.servers import MemcachedServer, RabbitServer
from nodestate import Reader
from nodestate.model import FoldOutcome, NodeRecord, fold, parse_event

SETTINGS = Settings(("journal",), (50,), 0.1, 1, 10, 1_024, 200)


def in_silence(_what: str, _done: float) -> None:
    """Nobody waits for a test."""


# -- the fleet ------------------------------------------------------------------------------------


@given(seed=st.integers(), size=st.integers(0, 3_000), changes=st.integers(0, 3 * ALLOCATION_EVERY))
def test_the_oracle_says_what_the_fold_makes_of_the_events(seed: int, size: int, changes: int) -> None:
    """The oracle is written down apart from the fold: if both were one, a wrong fold would be timed as right."""
    fleet = SeededFleet(seed, 2, state_bytes=1_500, change_bytes=size)
    for number in range(len(fleet)):
        record: NodeRecord | None = None
        for raw in [fleet.report(number), *(fleet.change(number) for _ in range(changes))]:
            record, outcome = fold(record, parse_event(raw))
            assert outcome is FoldOutcome.APPLIED
        assert record is not None
        assert record.version == fleet.version(number)
        assert record.state() == fleet.state(number, record.generation)


def test_a_fleet_is_its_seeds() -> None:
    def events(seed: int) -> list[bytes]:
        fleet = SeededFleet(seed, 5)
        return [event for number in range(5) for event in (fleet.report(number), fleet.change(number))]

    assert events(1) == events(1)
    assert events(1) != events(2)


@pytest.mark.parametrize(("state_bytes", "change_bytes"), [(1_024, 200), (5_000, 1_000), (8_000, 5_000)])
def test_states_and_changes_have_the_size_that_was_asked_for(state_bytes: int, change_bytes: int) -> None:
    fleet = SeededFleet(1, 1, state_bytes=state_bytes, change_bytes=change_bytes)
    fleet.report(0)
    assert len(fleet.body(0, 1)) == pytest.approx(state_bytes, abs=10)
    assert len(fleet.change(0)) == pytest.approx(change_bytes, abs=20)


@pytest.mark.service
def test_a_view_that_lags_is_not_timed_as_right(memcached: MemcachedServer) -> None:
    """What every scenario leans on: an event that was sent and not committed makes the check fail."""
    fleet = SeededFleet(1, 50)
    with SteppedCell(fleet, MemcachedEnvironment(["snapshot"], memcached), SETTINGS) as cell:
        cell.load(in_silence)
        cell.change([3, 4])
        with Reader(cell.config) as reader:
            view = reader.read(max_age=60.0, on_stale="flag")
        require_whole(view, fleet)
        fleet.change(4)
        require_equal(view, fleet, [3])
        with pytest.raises(WrongResultError, match=fleet.names[4]):
            require_whole(view, fleet)


# -- the bare socket ------------------------------------------------------------------------------


@pytest.mark.service
def test_the_bare_socket_reads_what_is_there(memcached: MemcachedServer) -> None:
    """Many times what socket buffers hold, so that requests and replies must flow at the same time."""
    values = [random.Random(number).randbytes(1_000) for number in range(20_000)]
    values[7] = b"MN\r\nVA 3\r\nEN\r\n"
    with BaselineSocket(memcached.address) as socket:
        socket.write((f"copy:{number}", value) for number, value in enumerate(values))
        keys = [f"copy:{number}" for number in range(len(values))]
        assert socket.read(prepared(["missing", *keys, "missing"])) == values
        assert socket.read(prepared(["missing"])) == []


@pytest.mark.service
def test_the_bare_socket_notices_a_refused_write() -> None:
    with (
        memcached_for(1) as memcached,
        BaselineSocket(memcached.address) as socket,
        pytest.raises(ValueError, match="too large"),
    ):
        socket.write([("key", b"x" * 2_000_000)])


# -- the record -----------------------------------------------------------------------------------


def test_percentiles_are_of_the_samples() -> None:
    assert Measure.of("ms", [3.0, 1.0, 2.0]) == Measure("ms", 3, 1.0, 2.0, 3.0, 3.0)
    assert Measure.of("ms", list(range(1, 201))) == Measure("ms", 200, 1, 100, 198, 200)


def test_a_goal_on_its_bound_is_met() -> None:
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
    def run(_settings: Settings, _tell: ReportProgress) -> Findings:
        require(claim=False, otherwise="the view shows something else")
        raise AssertionError

    monkeypatch.setitem(SCENARIOS, "cold", Scenario("cold", "", run))
    result = CliRunner().invoke(main, ["cold", "--json", str(tmp_path / "record.json")])
    assert result.exit_code == 1
    assert "the view shows something else" in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "record.json").exists()


def bench(*arguments: str) -> tuple[dict[str, Any], str]:
    """Run the command as users do; its record and what it printed for them."""
    command = [sys.executable, "-m", "bench", *arguments, "--quick", "--seconds", "0.2", "--json", "-"]
    done = subprocess.run(  # noqa: S603 - our own
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False, timeout=110
    )
    assert done.returncode == 0, done.stderr
    record: dict[str, Any] = json.loads(done.stdout)
    assert (record["scenario"], record["format"]) == (arguments[0], 1)
    assert {"python", "nodestate", "memcached"} <= record["versions"].keys()
    assert record["machine"]["cores"] >= 1
    assert record["began_at"].endswith("+00:00")
    for case in record["cases"]:
        assert case["shown"], "a figure without a claim that was checked"
        for name, measure in case["measures"].items():
            assert 0 < measure["min"] <= measure["p50"] <= measure["p99"] <= measure["max"], name
        assert all(ratio > 0 for ratio in case["ratios"].values())
    return record, done.stderr


@pytest.mark.service
def test_refresh(memcached: MemcachedServer) -> None:  # noqa: ARG001 - it shows that there is one
    record, printed = bench("refresh", "--nodes", "100,200", "--changed", "7", "--seed", "5")
    assert [(case["design"], case["nodes"]) for case in record["cases"]] == [
        ("journal", 100),
        ("journal", 200),
        ("snapshot", 100),
        ("snapshot", 200),
    ]
    for case in record["cases"]:
        assert case["measures"].keys() == {"commit", "refresh", "columns", "nothing", "bare states", "bare heads"}
        assert case["settings"]["changed"] == 7
        assert {"refresh / bare states", "nothing / bare heads"} < case["ratios"].keys()
    assert "snapshot: refresh, 200 / 100 nodes" in record["across"]
    assert record["seed"] == 5
    assert "refresh: journal, 100 nodes" in printed


@pytest.mark.service
def test_cold(memcached: MemcachedServer) -> None:  # noqa: ARG001 - ditto
    record, _ = bench("cold", "--nodes", "100")
    assert [case["design"] for case in record["cases"]] == ["journal, no tail", "journal, tail", "snapshot"]
    fresh, tailed, _ = record["cases"]
    assert fresh["settings"]["tail_events"] == 0
    assert tailed["settings"]["tail_share"] >= 0.5
    assert all({"first view", "bare keys", "bare blocks"} < case["measures"].keys() for case in record["cases"])


@pytest.mark.service
def test_apply(memcached: MemcachedServer, rabbit: RabbitServer) -> None:  # noqa: ARG001 - ditto
    record, _ = bench("apply", "--design", "snapshot", "--nodes", "100")
    [case] = record["cases"]
    assert case["measures"].keys() == {"consumer", "consumer, CPU", "bare kombu", "bare kombu, CPU", "takeover"}
    assert case["ratios"].keys() == {"consumer / bare kombu", "CPU, consumer / bare kombu"}
    assert "rabbitmq" in record["versions"]

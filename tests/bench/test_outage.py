"""The command ``python -m bench outage``: its figures, its checks and its table. No test asserts how fast it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import pytest
from click.testing import CliRunner

from bench.outage import run
from bench.outage.cell import OutageCell
from bench.outage.command import main
from bench.outage.messages import BootSample, Confirm, InstanceChange, ReadSample, ReservationSample, WorkerLog
from bench.outage.outages import OUTAGES, Outage
from bench.outage.record import OutageRecord
from bench.outage.run import Row, goals_of, run_outages, total_of
from bench.outage.run_log import RunLog, Window
from bench.outage.table import HEAD, markdown_of
from bench.record import Machine
from bench.workload import require
from nodestate.model import Version

BOUND_S = 5.0
OLD, NEW = Version(7, 1), Version(7, 2)


def log_of(**logs: WorkerLog) -> RunLog:
    """The merged logs of processes, by name."""
    log = RunLog(BOUND_S)
    for process, one in logs.items():
        log.add(process, one)
    log.settle(100.0)
    return log


# -- the checks -----------------------------------------------------------------------------------


def test_a_view_without_an_event_that_it_vouches_for_is_a_violation() -> None:
    agents = WorkerLog(100.0, confirms=[Confirm(10.0, "busy-1", OLD), Confirm(20.0, "busy-1", NEW)])

    def violations(as_of: float, shown: Version | None) -> list[str]:
        read = ReadSample(21.0, 21.1, as_of, "", {"busy-1": shown})
        return log_of(agents=agents, reader=WorkerLog(100.0, reads=[read])).violations

    assert violations(19.9, OLD) == []
    assert violations(20.1, NEW) == []
    assert violations(20.1, None) == [], "the view says that the node is incomplete"
    [violation] = violations(20.1, OLD)
    assert "busy-1 at (7, 1), but (7, 2) was confirmed before" in violation


def test_a_view_over_its_bound_is_a_violation_and_a_refused_read_is_none() -> None:
    old, refused = ReadSample(30.0, 30.1, 24.9, ""), ReadSample(30.0, 30.1, 24.9, "too old")
    assert log_of(reader=WorkerLog(100.0, reads=[refused])).violations == []
    assert log_of(reader=WorkerLog(100.0, reads=[old])).violations == [
        "reader got a view that was 5.10 s old, and its bound is 5 s"
    ]


def test_an_instance_on_two_nodes_is_found_in_the_logs_of_two_agents() -> None:
    first = WorkerLog(
        100.0, changes=[InstanceChange(10.0, "a", "i", built=True), InstanceChange(13.0, "a", "i", built=False)]
    )
    second = WorkerLog(100.0, changes=[InstanceChange(11.0, "b", "i", built=True)])
    log = log_of(first=first, second=second)
    assert (log.locations.twice, log.locations.instances) == ([], {"i": {"b"}})
    assert log.figures(Window(0.0, 100.0)).longest_twice_s == 2.0
    assert log_of(second=second, first=first._replace(changes=first.changes[:1])).locations.twice == ["i"]


def test_an_overfull_node_is_a_violation() -> None:
    assert log_of(agents=WorkerLog(100.0, overfull=["a had 9 of 8 VCPU in use"])).violations == [
        "a had 9 of 8 VCPU in use"
    ]


def test_a_run_says_how_much_it_checked() -> None:
    built = InstanceChange(10.0, "busy-1", "i", built=True)
    agents = WorkerLog(100.0, confirms=[Confirm(10.0, "busy-1", OLD)], changes=[built])
    reads = [ReadSample(11.0, 11.1, 10.9, "", {"busy-1": OLD}), ReadSample(12.0, 12.1, 10.9, "too old")]
    assert log_of(agents=agents, reader=WorkerLog(100.0, reads=reads)).checked() == (
        "checked 2 reads against 1 confirmed events of busy nodes, and 1 built instances against the capacity of "
        "their nodes"
    )


# -- the figures ----------------------------------------------------------------------------------


def sample_row() -> Row:
    """A row of known logs."""
    reads = [ReadSample(at, at + 0.5, 9.5, "too old" if 20 <= at < 23 else "") for at in (10.0, 20.0, 21.0, 22.0, 23.0)]
    reads[-1] = reads[-1]._replace(as_of=22.0)
    boots = [BootSample(10.0, 10.5, ""), BootSample(20.0, 27.0, "no room"), BootSample(99.0, 99.1, "after the window")]
    calls = [ReservationSample(at, at + 0.5, "reserve", "no room" if at == 12.0 else "") for at in (11.0, 12.0, 16.0)]
    calls.append(ReservationSample(17.0, 18.0, "confirm", ""))
    log = log_of(
        reader=WorkerLog(100.0, reads=reads),
        scheduler=WorkerLog(100.0, boots=boots, reservations=calls),
        agents=WorkerLog(50.0, events=1_234),
    )
    assert log.violations == []
    return Row("memcached-killed", 60.0, 1.5, 0, Window(5.0, 60.0), log.figures(Window(5.0, 60.0)))


def test_the_table_has_one_line_for_each_row() -> None:
    head, rule, line = markdown_of([sample_row()]).splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")] == list(HEAD)
    assert set(rule) == set("|-:")
    assert len(head) == len(rule) == len(line)
    cells = dict(zip(HEAD[:11], (cell.strip() for cell in line.strip("|").split("|")), strict=False))
    assert cells == {
        "outage": "memcached-killed",
        "away": "60.0 s",
        "well after": "1.5 s",
        "no fresh view": "3.5 s",
        "longest": "3.5 s",
        "reads refused": "3",
        "incomplete": "0.0 s",
        "greatest age": "12.5 s",
        "events": "1,234",
        "lost": "0",
        "boots": "1",
    }


def test_figures_count_what_began_within_the_window() -> None:
    seen = sample_row().figures
    assert (seen.boots, seen.boots_failed, seen.longest_boot_s) == (1, 1, 7.0)
    assert (seen.reserved, seen.reservations_refused, seen.longest_refused_s, seen.confirmed) == (2, 1, 4.5, 1)
    assert seen.reasons == ["1 x boot: no room", "1 x reserve: no room"]


# -- a run ----------------------------------------------------------------------------------------


class CellDouble:
    """A cell without servers and processes, for one run: its view lacks ``lost`` events after each outage."""

    def __init__(self, lost: int = 0, changes: Sequence[InstanceChange] = ()) -> None:
        self.log = RunLog(BOUND_S)
        self.share_done = 0.0
        self.steps: list[str] = []
        self._lost = lost
        self._changes = changes

    def report_step(self, what: str) -> None:
        """Ignore the name of a step."""

    def watch(self, _seconds: float, what: str) -> None:
        self.steps.append(f"watch {what}")

    def is_well(self) -> bool:
        return True

    def problem(self) -> str:
        return ""

    def wait_until(self, condition: Callable[[], bool], failure: Callable[[], str], _timeout_s: float) -> None:
        require(condition(), failure())

    def lost_events(self, _timeout_s: float) -> int:
        return self._lost

    def wait_for_logs(self, until: float) -> None:
        self.log.add("agents", WorkerLog(until, changes=self._changes, events=10))
        self._changes = ()


def run_on(double: CellDouble, *names: str) -> list[Row]:
    """Run outages of these names on a double."""

    def begin(_cell: OutageCell) -> Callable[[], object]:
        double.steps.append("begin")
        return lambda: double.steps.append("end")

    return list(run_outages(cast("OutageCell", double), [Outage(name, "", begin) for name in names], 1.0))


def test_outages_follow_each_other_and_their_total_covers_all() -> None:
    double = CellDouble()
    rows = run_on(double, "one", "two")
    steps = [f"begin, watch {name}, end, watch {name}: settling" for name in ("one", "two")]
    assert ", ".join(double.steps) == ", ".join(steps)
    total = total_of(cast("OutageCell", double), rows)
    assert [row.name for row in (*rows, total)] == ["one", "two", "total"]
    assert (total.window.began, total.window.ended) == (rows[0].window.began, rows[1].window.ended)
    assert all(goal.met for row in rows for goal in goals_of(row))
    assert double.log.violations == []


def test_lost_events_are_a_violation_and_miss_a_goal() -> None:
    double = CellDouble(lost=3)
    [row] = run_on(double, "one")
    assert [goal.what for goal in goals_of(row) if not goal.met] == ["one: lost events"]
    assert double.log.violations == ["one: the view lacks 3 events"]


def test_an_instance_that_stays_on_two_nodes_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "TWICE_LIMIT_S", 0.0)
    double = CellDouble(changes=[InstanceChange(1.0, node, "i", built=True) for node in ("a", "b")])
    run_on(double, "one")
    assert double.log.violations == ["one: i stays on a and b"]


def test_a_record_has_rows_goals_and_violations() -> None:
    row = sample_row()
    where = Machine("a core", 2, 2**33, "Linux", 0.5, 12.0)
    record = OutageRecord(
        "now", "c0ffee", {}, where, {"nodes": 36}, 60.0, [row], goals_of(row), ["a node was overfull"], "all"
    )
    content = json.loads(record.to_json())
    assert content["scenario"] == "outage"
    assert content["rows"][0]["figures"]["boots_failed"] == 1
    assert [goal["met"] for goal in content["goals"]] == [False, False, True]
    assert content["violations"] == ["a node was overfull"]


# -- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["--outage", "earthquake"], ["--outage-s", "0"], ["--nodes", "1"], ["--rolling", "--outage", "none"]]
)
def test_bad_usage_exits_with_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(main, arguments).exit_code == 2


def test_help_names_each_outage_and_an_example() -> None:
    text = CliRunner().invoke(main, ["--help"]).output
    assert all(one.name in text for one in OUTAGES)
    assert "python -m bench outage --outage memcached-killed --outage-s 600" in text


@pytest.mark.service
@pytest.mark.thorough
def test_a_run_with_a_memcached_away_loses_nothing(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    load = ["--nodes", "60", "--rate", "100", "--schedulers", "1", "--outage-s", "5"]
    done = CliRunner().invoke(main, [*load, "--outage", "memcached-killed", "--json", str(record)])
    assert done.exit_code == 0, done.output
    [row] = json.loads(record.read_bytes())["rows"]
    assert row["lost"] == 0
    assert row["figures"]["boots"] > 0

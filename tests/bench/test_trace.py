"""``trace`` runs a task list through a whole cell, and computes the packing of nodes correctly."""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench.command import main
from bench.record import Case
from bench.report import write_report
from bench.report.page import compose
from bench.report.records import Records
from bench.scenario import Settings
from bench.scheduling import trace
from bench.scheduling.tasks import GPU, BadTraceError, Packing, Trace, parse, replay, scatter
from bench.workload import WrongResultError
from tests.bench.quick_runs import ignore_progress
from tests.bench.test_report import record

BRIEF = Settings(("snapshot", "journal"), (1,), 0.1, 1, 1, 1, 1)
FULL = {"VCPU": 1, "MEMORY_MB": 4_096}
"""A sixteenth of a node."""


def events(nodes: int, tasks: int, seed: int = 1, running: int = 12) -> Iterator[dict[str, Any]]:
    """Events of tasks that start and end on nodes of two kinds, each on any node that has room."""
    rng = random.Random(seed)
    free = {}
    for number in range(nodes):
        name, gpus = f"node-{number:03d}", 2_000 * (number % 2)
        free[name] = {"VCPU": 16, "MEMORY_MB": 65_536, GPU: gpus}
        inventory = {of: {"total": amount} for of, amount in free[name].items()}
        state = {"status": "up", "inventory": inventory, "usage": {}, "traits": [f"CUSTOM_KIND_{number % 2}"]}
        yield {"kind": "report", "node": name, "reported_at": 0.0, "state": state}
    here: dict[str, tuple[str, dict[str, int]]] = {}
    for number in itertools.count():
        at = 1_000.0 + 10.0 * number
        if number >= 2 * tasks:
            return
        if len(here) >= running or (here and rng.random() < 0.4):
            name = rng.choice(list(here))
            node, wanted = here.pop(name)
            sign, allocation = 1, None
        else:
            name, wanted = f"task-{number}", {"VCPU": rng.choice([2, 4, 8]), "MEMORY_MB": 8_192}
            if rng.random() < 0.4:
                wanted[GPU] = rng.choice([500, 1_000])
            fitting = [one for one, left in free.items() if all(left[of] >= amount for of, amount in wanted.items())]
            if not fitting:
                continue
            node, sign = rng.choice(fitting), -1
            hints = {"any_traits": ["CUSTOM_KIND_1"]} if GPU in wanted else {}
            allocation = {"resources": wanted, "group": "LS", "hints": hints}
            here[name] = node, wanted
        for of, amount in wanted.items():
            free[node][of] += sign * amount
        yield {"kind": "change", "node": node, "reported_at": at, "patch": {"allocations": {name: allocation}}}


def lines(*of: dict[str, Any]) -> list[bytes]:
    return [json.dumps(one).encode() for one in of]


def excerpt(nodes: int = 40, tasks: int = 40) -> Trace:
    return parse(lines(*events(nodes, tasks)))


# -- the file -------------------------------------------------------------------------------------


def test_a_trace_is_divided_into_waves_of_ends_and_starts() -> None:
    """No task ends between the starts of a wave, and a wave keeps the order of ends and starts."""
    whole = excerpt()
    names = [task_event.task.name for task_event in whole.task_events if task_event.starts]
    ended = [task_event.task.name for task_event in whole.task_events if not task_event.starts]
    waves = list(whole.waves())
    assert [task.name for wave in waves for task in wave.starts] == names
    assert [task.name for wave in waves for task in wave.ends] == ended
    started: set[str] = set()
    for wave in waves:
        assert {task.name for task in wave.ends} <= started
        started |= {task.name for task in wave.starts}
    assert len(whole.first(7).tasks) == 7
    assert any(task.any_traits == ("CUSTOM_KIND_1",) for task in whole.tasks)
    assert all(0 not in task.resources.values() for task in whole.tasks)


@pytest.mark.parametrize(
    "bad",
    [
        [b"{"],
        [b"[]"],
        [b'{"kind":"report"}'],
        lines({"kind": "change", "node": "n", "reported_at": 1.0, "patch": {"allocations": {"unknown": None}}}),
        [],
    ],
)
def test_a_file_that_is_not_a_trace_is_refused(bad: list[bytes]) -> None:
    with pytest.raises(BadTraceError):
        parse(bad)


# -- packing --------------------------------------------------------------------------------------


def test_the_placement_of_the_trace_is_sampled() -> None:
    whole = excerpt()
    own = replay(whole, {task.name: task.node for task in whole.tasks})
    running: dict[str, str] = {}
    peak = 0
    for task_event in whole.task_events:
        if task_event.starts:
            running[task_event.task.name] = task_event.task.node
        else:
            del running[task_event.task.name]
        peak = max(peak, len(set(running.values())))
    assert own.peak == peak
    assert own.over == 0
    assert own.in_use[-1] == len(set(running.values())) or own.in_use[-1] <= peak
    assert len(own.series["day"]) == len(own.in_use) == len(own.stranded)


def test_free_gpus_are_stranded_on_nodes_without_room_for_the_typical_task() -> None:
    whole = excerpt(4, 30)
    packing = Packing(whole)
    assert packing.stranded == 0.0
    packing.put("node-001", {"VCPU": 16}, 1)
    assert packing.stranded == 50.0, "of two nodes with GPUs one has no processors left"
    packing.put("node-001", {"VCPU": 1}, 1)
    assert packing.over == 1
    assert not packing.fitting({"VCPU": 1, "CUSTOM_OTHER": 1}).any()
    assert packing.fitting({"VCPU": 1}, ["CUSTOM_KIND_0"]).tolist() == [True, False, True, False]


def test_a_random_placement_never_exceeds_the_capacity_of_a_node() -> None:
    whole = excerpt()
    few = whole.on(list(whole.nodes)[:3])
    where = scatter(few, random.Random(1))
    assert replay(few, where).over == 0
    assert 0 < len(where) < len(whole.tasks)


# -- the whole cell -------------------------------------------------------------------------------


def require_sound(cases: list[Case], tasks: int) -> None:
    for case in cases:
        assert case.shown
        assert case.settings["placed"] + case.settings["not placed"] == case.settings["tasks"] == tasks
        assert len(case.series["day"]) == len(case.series["nodes in use"]) > 1


def crowded() -> list[dict[str, Any]]:
    """Seven small tasks on one node of the trace and a large one on another, then tasks that start and end."""
    others = list(events(3, 12, running=2))
    small, large = ({of: share * total for of, total in FULL.items()} for share in (1, 16))
    placed = [("node-000", f"small-{number}", small) for number in range(7)] + [("node-001", "large", large)]
    started = [
        {"kind": "change", "node": node, "reported_at": 1.0, "patch": {"allocations": {name: {"resources": resources}}}}
        for node, name, resources in placed
    ]
    ended = [
        {"kind": "change", "node": node, "reported_at": 2.0, "patch": {"allocations": {name: None}}}
        for node, name, _ in placed
    ]
    return [*others[:3], *started[:7], *ended[:1], *started[7:], *ended[1:], *others[3:]]


@pytest.mark.service
def test_a_task_without_room_is_proved_to_have_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedulers that spread have a small task on every node when the large one starts."""
    monkeypatch.setattr(trace, "BRIEF_WEIGHTS", ("spread",))
    path = tmp_path / "excerpt.jsonl"
    path.write_bytes(b"\n".join(lines(*crowded())))
    findings = trace.run(replace(BRIEF, file=path), ignore_progress)
    [spread, own] = findings.cases
    require_sound([spread, own], len(parse(lines(*crowded())).tasks))
    assert own.design == trace.OWN
    assert own.settings["not placed"] == 0
    assert spread.settings["not placed"] == 1
    assert any("nodestate check found no difference between snapshot, journal" in one for one in spread.shown)


@pytest.mark.service
@pytest.mark.skipif(trace.VARIABLE not in os.environ, reason=f"{trace.VARIABLE} names no task list")
@pytest.mark.timeout(600)
@pytest.mark.thorough
def test_the_real_trace_runs_through_a_whole_cell() -> None:
    findings = trace.run(replace(BRIEF, file=Path(os.environ[trace.VARIABLE])), ignore_progress)
    require_sound(list(findings.cases), trace.BRIEF_TASKS)


def test_only_the_trace_scenario_takes_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(trace.VARIABLE, raising=False)
    path = tmp_path / "no-trace.jsonl"
    path.write_text("nonsense")
    done = CliRunner().invoke(main, ["refresh", str(path)])
    assert done.exit_code == 2
    assert "refresh takes no FILE" in done.output
    done = CliRunner().invoke(main, ["trace"])
    assert done.exit_code == 1
    assert trace.VARIABLE in done.output
    done = CliRunner().invoke(main, ["trace", str(path)])
    assert done.exit_code == 1
    assert "line 1 is not an event" in done.output
    with pytest.raises(WrongResultError, match="missing"):
        trace.run(replace(BRIEF, file=tmp_path / "missing"), ignore_progress)


# -- the report -----------------------------------------------------------------------------------


def test_the_report_shows_packing_over_time(tmp_path: Path) -> None:
    whole = excerpt()
    few = whole.on(list(whole.nodes)[:3])
    cases = [
        trace._other_placement(of, label, scatter(of, random.Random(1)))
        for of, label in ((whole, trace.OWN), (few, trace.RANDOM), (few, "spread"))
    ]
    cases[2] = replace(cases[2], settings={**cases[2].settings, "conflicts": 3.0})
    one = record("trace", *cases)
    [section] = [one for one in compose(Records({"trace": one})).sections if one.title == "A real task list"]
    names = ["trace-in-use-40", "trace-stranded-40", "trace-in-use-3", "trace-stranded-3", "trace-nowhere"]
    assert [chart.name for chart in section.charts] == names
    [table] = section.tables
    assert table.rows[2][0] == "spread"
    assert table.rows[2][table.head.index("conflicts")] == "3"
    assert table.rows[0][table.head.index("conflicts")] == "–"
    (tmp_path / "trace.json").write_bytes(one.to_json())
    assert "A real task list" in write_report(tmp_path).read_text(encoding="utf-8")

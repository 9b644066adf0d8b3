"""The section on a real task list: what became of its tasks, and how densely its nodes were packed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bench.report.chart_parts import absent, commands_of, detail
from bench.report.document import Bar, BarPlot, LinePlot, Plot, PlotLine, Section, Table
from bench.report.number_format import exact, figure, quantity
from bench.report.records import RecordedCase, Records

SHADES: Final = ("journal", "snapshot", "other", "mariadb")
"""Colours for lines that are not designs."""
COMPARED: Final = "bare"
"""The colour of placements that nodestate's schedulers did not make."""
COUNTED: Final = ("placed", "not placed", "tried again", "refused", "conflicts")


def packing(records: Records) -> Section:
    """Return the section: nodes in use over time, tasks without a node, and conflicts, by weights."""
    title = "A real task list"
    lead = (
        "Two schedulers boot and end the tasks of Alibaba's cluster-trace-gpu-v2023 in the order of the trace, through "
        "RabbitMQ, agents, a consumer and memcached: once on all nodes of the trace, and once on a few of them, so "
        "that it matters how tasks are packed."
    )
    cases = list(records.of_scenarios("trace"))
    if not cases:
        return absent(title, lead, "trace")
    charts: list[Plot] = []
    for nodes, of in _by_nodes(cases).items():
        charts += [
            _over_time(f"trace-{name}-{nodes}", of, series, unit, f"{caption}, with {exact(nodes)} nodes.")
            for name, series, unit, caption in (
                ("in-use", "nodes in use", "nodes", "Nodes that have a task, by day of the trace"),
                (
                    "stranded",
                    "stranded GPUs",
                    "%",
                    "Share of free GPUs on nodes without room for the typical GPU task, by day of the trace",
                ),
            )
        ]
    few = [one for one in cases if one.case.nodes == min(one.case.nodes for one in cases)]
    bars = [_counted(one, "not placed") for one in few]
    caption = f"Tasks for which no node had room, with {exact(few[0].case.nodes)} nodes."
    charts.append(BarPlot("trace-nowhere", caption, "tasks", bars))
    head = ["weights", "nodes", "nodes in use", "at most", "stranded GPUs", *COUNTED, "boots a second"]
    table = Table(head, [_row(one) for one in cases], "Outcomes of the tasks, and medians over the time of the trace")
    text = [
        (
            "For each task that was not placed, the run proves that no agent had room for it while all schedulers were "
            "idle."
        ),
        "The file of the task list is the argument of the command, or the value of NODESTATE_TRACE.",
        "The typical GPU task needs the median of each resource over all tasks that need GPUs.",
    ]
    return Section(title, lead, text, charts, [table], [detail(cases)], commands_of(cases))


def _by_nodes(cases: Sequence[RecordedCase]) -> dict[int, list[RecordedCase]]:
    sizes = sorted({one.case.nodes for one in cases}, reverse=True)
    return {nodes: [one for one in cases if one.case.nodes == nodes] for nodes in sizes}


def _tone(one: RecordedCase, index: int) -> str:
    return SHADES[index % len(SHADES)] if "boots" in one.case.measures else COMPARED


def _over_time(name: str, of: Sequence[RecordedCase], series: str, unit: str, caption: str) -> LinePlot:
    lines = [
        PlotLine(
            one.case.design,
            _tone(one, index),
            one.case.series["day"],
            one.case.series[series],
            dashed=_tone(one, index) == COMPARED,
        )
        for index, one in enumerate(of)
        if {"day", series} <= one.case.series.keys()
    ]
    return LinePlot(name, caption, "days", unit, lines)


def _counted(one: RecordedCase, setting: str) -> Bar:
    value = one.case.settings[setting]
    tone = SHADES[0] if "boots" in one.case.measures else COMPARED
    return Bar("", one.case.design, tone, value, value, value, exact(value))


def _row(one: RecordedCase) -> list[str]:
    case = one.case
    counts = [exact(case.settings[name]) if name in case.settings else "–" for name in COUNTED]
    return [
        case.design,
        exact(case.nodes),
        figure(one.p50("nodes in use")),
        exact(case.settings["peak nodes in use"]),
        quantity(one.p50("stranded GPUs"), "%"),
        *counts,
        figure(one.p50("boots")) if "boots" in case.measures else "–",
    ]

"""A real task list: what became of its tasks, and how its nodes were packed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bench.report.chart_parts import absent, commands_of, detail
from bench.report.document import Bar, BarPlot, LinePlot, Plot, PlotLine, Section, Table
from bench.report.number_format import exact, figure, quantity
from bench.report.records import RecordedCase, Records

SHADES: Final = ("journal", "snapshot", "other", "mariadb")
"""Colours of lines that are no designs: they are told apart as those are."""
BESIDE: Final = "bare"
"""… and of what stands beside, which no scheduler of ours placed."""
COUNTED: Final = ("placed", "not placed", "tried again", "refused", "conflicts")


def packing(records: Records) -> Section:
    """By weights: nodes in use over time, tasks without a node, and what it took."""
    title = "A real task list"
    lead = (
        "Tasks of Alibaba's cluster-trace-gpu-v2023, in their order, booted and ended by two schedulers through RabbitMQ, "
        "agents, a consumer and memcached; on all of its nodes, and on few of them, where it matters how they are packed."
    )
    found = list(records.found("trace"))
    if not found:
        return absent(title, lead, "trace")
    charts: list[Plot] = []
    for nodes, of in _by_nodes(found).items():
        charts += [
            _over_time(f"trace-{name}-{nodes}", of, series, unit, f"{caption}, of {exact(nodes)}.")
            for name, series, unit, caption in (
                ("in-use", "nodes in use", "nodes", "Nodes that have a task, by the trace's day"),
                ("stranded", "stranded GPUs", "%", "Free GPUs on nodes without room for the usual GPU task, by day"),
            )
        ]
    few = [one for one in found if one.case.nodes == min(one.case.nodes for one in found)]
    bars = [_counted(one, "not placed") for one in few]
    charts.append(
        BarPlot("trace-nowhere", f"Tasks that found no room, of {exact(few[0].case.nodes)} nodes.", "tasks", bars)
    )
    head = ["weights", "nodes", "nodes in use", "at most", "stranded GPUs", *COUNTED, "boots a second"]
    table = Table(head, [_row(one) for one in found], "What became of them; medians over the trace's time")
    text = [
        "That a task found no room is proved each time: nobody was at work, and no agent had room.",
        "The task list is named by NODESTATE_TRACE, or behind the command.",
        "The usual GPU task has the median of each resource over all tasks that want GPUs.",
    ]
    return Section(title, lead, text, charts, [table], [detail(found)], commands_of(found))


def _by_nodes(found: Sequence[RecordedCase]) -> dict[int, list[RecordedCase]]:
    sizes = sorted({one.case.nodes for one in found}, reverse=True)
    return {nodes: [one for one in found if one.case.nodes == nodes] for nodes in sizes}


def _tone(one: RecordedCase, place: int) -> str:
    return SHADES[place % len(SHADES)] if "boots" in one.case.measures else BESIDE


def _over_time(name: str, of: Sequence[RecordedCase], series: str, unit: str, caption: str) -> LinePlot:
    lines = [
        PlotLine(
            one.case.design,
            _tone(one, place),
            one.case.series["day"],
            one.case.series[series],
            dashed=_tone(one, place) == BESIDE,
        )
        for place, one in enumerate(of)
        if {"day", series} <= one.case.series.keys()
    ]
    return LinePlot(name, caption, "days", unit, lines)


def _counted(one: RecordedCase, setting: str) -> Bar:
    value = one.case.settings[setting]
    tone = SHADES[0] if "boots" in one.case.measures else BESIDE
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

"""What a scheduler feels: following along, starting, growing fleets, and how soon a change is seen."""

from __future__ import annotations

from functools import partial
from typing import Final

from bench.report.chart_parts import (
    absent,
    across_nodes,
    by_nodes,
    commands_of,
    designs_of,
    detail,
    line,
    median_and_p99,
    setting_of,
)
from bench.report.document import LinePlot, Section, Table
from bench.report.number_format import exact, quantity, times
from bench.report.records import Records, typical, varied
from bench.scale import UNSHOWN

ESTIMATED: Final = ("refresh", "nothing", "first view", "commit")
"""Of all that was fitted, what an operator would ask for."""


def following(records: Records) -> Section:
    """A warm reader, against the size of the fleet and against what changed."""
    title, lead = "Following along", "How long a scheduler's `read()` takes when some nodes changed since its last one."
    found = records.widest("refresh", "refresh", "scale")
    if not found:
        return absent(title, lead, "refresh")
    changed = exact(found[0].case.settings["changed"])
    caption = f"After {changed} nodes changed, by the size of the fleet."
    bare = ("bare states", "bare socket, the changed states")
    charts = [across_nodes("following-nodes", caption, found, "refresh", bare)]
    by_changed = [one for one in records.found("refresh") if one.case.nodes == typical(found)[0].case.nodes]
    # One of each load: of two runs with the same, the first. A database may have one alone, which is a point.
    by_changed = list({(one.case.design, one.case.settings["changed"]): one for one in reversed(by_changed)}.values())[
        ::-1
    ]
    if varied(by_changed, ("changed",)):
        of_changed = partial(setting_of, "changed")
        lines = [line(of, "refresh", design, of_changed) for design, of in designs_of(by_changed).items()]
        caption = f"At {by_changed[0].case.nodes:,} nodes, by how many changed (a run each)."
        charts.append(LinePlot("following-changed", caption, "nodes changed between two reads", "ms", lines))
    shown = {f"{changed} changed": "refresh", "nothing changed": "nothing"}
    table = by_nodes(found, shown)
    used = [*found, *(by_changed if len(charts) > 1 else [])]
    return Section(title, lead, charts=charts, tables=[table], detail=[detail(found)], commands=commands_of(used))


def starting(records: Records) -> Section:
    """A new reader."""
    title, lead = "Starting", "How long a scheduler that was just started takes to its first view of all nodes."
    found = records.widest("first view", "cold", "scale")
    if not found:
        return absent(title, lead, "cold")
    bare = ("bare blocks", "bare socket, in blocks")
    text = [
        "A journal that has just written a checkpoint has no tail to fold; on average a reader meets half of the longest."
    ]
    return Section(
        title,
        lead,
        text,
        [across_nodes("starting-nodes", "First view, in a new process.", found, "first view", bare)],
        [by_nodes(found, {"": "first view"})],
        [detail(found)],
        commands_of(found),
    )


def growing(records: Records) -> Section:
    """The fitted exponents, and what they say of a larger fleet."""
    title, lead = (
        "Growing",
        "A cost grows with the fleet to the power of its exponent: 0 does not grow, 1 grows in step.",
    )
    estimates = list(records.estimates())
    if not estimates:
        return absent(title, lead, "scale")
    across = estimates[0].record.across
    rows = []
    for one in estimates:
        design = one.case.design.removesuffix(", estimate")
        for measure in ESTIMATED:
            of = one.case.measures.get(f"{measure}, estimate")
            if of is None:
                continue
            exponent = across.get(f"{design}: {measure}, exponent of nodes", float("nan"))
            residual = across.get(f"{design}: {measure}, residual", float("nan"))
            between = f"{quantity(of.min, of.unit)} to {quantity(of.max, of.unit)}"
            rows.append(
                [f"{design}: {measure}", f"{exponent:.2f}", times(residual), quantity(of.p50, of.unit), between]
            )
    large = f"{estimates[0].case.nodes:,} nodes"
    table = Table(
        ["", "exponent", "residual", "estimate", "two standard errors"],
        rows,
        f"Fitted, and carried on to {large}",
    )
    fitted, *assumed = estimates[0].case.shown
    text = [
        f"{fitted.capitalize()}. {UNSHOWN.capitalize()}{'; '.join(one.removeprefix(UNSHOWN) for one in assumed)}.",
        "The residual is the factor by which points lie off the fitted line, root mean square.",
    ]
    return Section(title, lead, text, tables=[table], commands=commands_of(estimates))


def propagating(records: Records) -> Section:
    """From the agent to the view, by rate: the median and, dashed, the worst of a hundred."""
    title = "Propagation"
    lead = "From an agent's publishing of a change until the view of a reader that looks all the time shows it."
    found = typical(list(records.found("propagation")))
    found = [one for one in found if {"rate", "propagation"} <= {*one.case.settings, *one.case.measures}]
    if not found:
        return absent(title, lead, "propagation")
    flush = {one.case.settings["flush_ms"] for one in found if "flush_ms" in one.case.settings}
    text = [f"Of this, a consumer waits up to {exact(ms)} ms for a batch to fill." for ms in sorted(flush)]
    over = ("rate", "events a second, all nodes together")
    chart = median_and_p99("propagation-rate", f"At {exact(found[0].case.nodes)} nodes.", found, "propagation", over)
    return Section(title, lead, text, [chart], detail=[detail(found)], commands=commands_of(found))

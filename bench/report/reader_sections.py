"""Sections on the waits of a scheduler: for a refresh, for its first view, and for a change to become visible."""

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
from bench.scale import ASSUMED

ESTIMATED: Final = ("refresh", "nothing", "first view", "commit")
"""The fitted measures that the page shows."""


def refreshing(records: Records) -> Section:
    """Return the section on a reader that refreshes its view, by size of fleet and by number of changes."""
    title = "Refreshing a view"
    lead = "How long a scheduler's `read()` takes if some nodes have changed since its previous `read()`."
    cases = records.widest("refresh", "refresh", "scale")
    if not cases:
        return absent(title, lead, "refresh")
    changed = exact(cases[0].case.settings["changed"])
    caption = f"A refresh after {changed} nodes have changed, by size of fleet."
    bare = ("bare states", "bare socket, the changed states")
    charts = [across_nodes("following-nodes", caption, cases, "refresh", bare)]
    by_changed = [one for one in records.of_scenarios("refresh") if one.case.nodes == typical(cases)[0].case.nodes]
    # Of two runs with the same number of changes, the first. A database may have one run only, which is a point.
    by_changed = list({(one.case.design, one.case.settings["changed"]): one for one in reversed(by_changed)}.values())[
        ::-1
    ]
    if varied(by_changed, ("changed",)):
        of_changed = partial(setting_of, "changed")
        lines = [line(of, "refresh", design, of_changed) for design, of in designs_of(by_changed).items()]
        caption = f"A refresh with {by_changed[0].case.nodes:,} nodes, by number of changed nodes (one run for each)."
        charts.append(LinePlot("following-changed", caption, "nodes changed between two reads", "ms", lines))
    shown = {f"{changed} changed": "refresh", "nothing changed": "nothing"}
    table = by_nodes(cases, shown)
    used = [*cases, *(by_changed if len(charts) > 1 else [])]
    return Section(title, lead, charts=charts, tables=[table], detail=[detail(cases)], commands=commands_of(used))


def starting(records: Records) -> Section:
    """Return the section on a new reader."""
    title = "First view of a new scheduler"
    lead = "How long a scheduler that has just been started takes until its first view of all nodes."
    cases = records.widest("first view", "cold", "scale")
    if not cases:
        return absent(title, lead, "cold")
    bare = ("bare blocks", "bare socket, in blocks")
    text = [
        (
            "A journal that has just written a checkpoint has no tail of events to fold (“no tail”). On average a new "
            "reader finds a tail of half its largest length (“tail”)."
        )
    ]
    return Section(
        title,
        lead,
        text,
        [across_nodes("starting-nodes", "The first view in a new process.", cases, "first view", bare)],
        [by_nodes(cases, {"": "first view"})],
        [detail(cases)],
        commands_of(cases),
    )


def growing(records: Records) -> Section:
    """Return the section on fitted exponents, and the costs that they predict for a larger fleet."""
    title = "Growth with the fleet"
    lead = (
        "A cost grows with the number of nodes to the power of its exponent: with 0 it does not grow, with 1 it grows "
        "in proportion."
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
    table = Table(
        ["", "exponent", "residual", "estimate", "two standard errors"],
        rows,
        f"Fitted exponents, and estimates for {estimates[0].case.nodes:,} nodes",
    )
    fitted = estimates[0].case.shown[0]
    text = [
        f"{fitted[:1].upper()}{fitted[1:]}. The estimates assume, without proof: {'; '.join(ASSUMED)}.",
        "The residual is the factor by which points lie off the fitted line (root mean square).",
    ]
    return Section(title, lead, text, tables=[table], commands=commands_of(estimates))


def propagating(records: Records) -> Section:
    """Return the section on the time from an agent to a view, by rate of changes."""
    title = "Propagation of a change"
    lead = "How long after an agent publishes a change the view of a reader shows it. The reader reads all the time."
    cases = typical(list(records.of_scenarios("propagation")))
    cases = [one for one in cases if {"rate", "propagation"} <= {*one.case.settings, *one.case.measures}]
    if not cases:
        return absent(title, lead, "propagation")
    flush = {one.case.settings["flush_ms"] for one in cases if "flush_ms" in one.case.settings}
    text = [
        f"This includes up to {exact(ms)} ms in which a consumer waits for a batch to fill." for ms in sorted(flush)
    ]
    over = ("rate", "events a second, all nodes together")
    caption = f"Propagation with {exact(cases[0].case.nodes)} nodes."
    chart = median_and_p99("propagation-rate", caption, cases, "propagation", over)
    return Section(title, lead, text, [chart], detail=[detail(cases)], commands=commands_of(cases))

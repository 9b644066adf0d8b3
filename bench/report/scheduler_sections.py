"""Sections on what decisions and claims cost a scheduler, and on several schedulers at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

from bench.report.chart_parts import absent, bar, commands_of, detail, line, setting_of
from bench.report.document import BarPlot, LinePlot, Plot, PlotLine, Section, Table
from bench.report.number_format import exact, quantity, times
from bench.report.records import RecordedCase, Records, spread

ONE: Final = "one request"
MEMORY: Final = "memory beyond the reader"
BATCHES: Final = "batches"
RACES: Final = "schedulers"
RACES_UNSHARED: Final = "schedulers, sharing nothing"
DECISIONS: Final = {
    "select, unseen shape": "request of a new shape",
    "select, one node changed": "request of a known shape, one node changed",
    "read and select, nothing changed": "read and request, nothing changed",
    "read and select, some changed": "read and request, {changed} nodes changed",
    "claim": "read, choose and claim",
    "advance": "update of the fleet, {changed} nodes changed",
}
SHADES: Final = ("journal", "snapshot", "other", "bare")
"""Colours for lines that are not designs."""


def deciding(records: Records) -> Section:
    """Return the section on one scheduler: decisions by kind and size, claims by batch, and OpenStack's figures."""
    title = "Scheduling decisions"
    lead = (
        "How long a scheduler with an up-to-date view takes for one request, with the default filters and weighers, "
        "and how many claims it writes in a second."
    )
    cases = list(records.of_scenarios("select"))
    one = [case for case in cases if case.variant == ONE]
    if not one:
        return absent(title, lead, "select")
    changed = exact(one[0].case.settings["changed"])
    bars = [
        bar(case, measure, f"{exact(case.case.nodes)} nodes{_on(case, one)}", text.format(changed=changed), "snapshot")
        for case in one
        for measure, text in DECISIONS.items()
        if measure in case.case.measures
    ]
    charts: list[Plot] = [
        BarPlot("select-one", "Time for one request. Whiskers: min to p99.", "ms", bars, logarithmic=True)
    ]
    batches = [case for case in cases if case.variant == BATCHES]
    if batches:
        batched = [
            bar(
                case,
                "claims",
                f"{exact(case.case.nodes)} nodes{_on(case, one)}",
                f"{exact(case.case.settings['batch'])} at a time",
                "snapshot",
            )
            for case in batches
        ]
        charts.append(BarPlot("select-batches", "Claims a second of one scheduler.", "claims/s", batched))
    theirs = [case for case in cases if case.variant == "" and not case.design.startswith("snapshot")]
    text = [
        f"With {exact(case.case.nodes)} nodes a scheduler needs {quantity(case.p50(MEMORY), 'bytes')} of memory for "
        "each node, beyond the memory of its reader."
        for case in one
    ]
    tables = []
    ratios = {name: ratio for case in one[:1] for name, ratio in case.record.across.items() if " nodes: " in name}
    if ratios:
        rows = [[*name.split(" / ", 1), times(ratio)] for name, ratio in ratios.items()]
        head = ["OpenStack", "nodestate", "factor by which OpenStack takes longer"]
        tables.append(Table(head, rows, "OpenStack's own scheduler on the same fleet", words=True))
    text += [
        f"Left out: {line}." for line in dict.fromkeys(skipped for case in cases for skipped in case.record.skipped)
    ]
    shown = [*one, *batches, *theirs]
    return Section(title, lead, text, charts, tables, [detail(shown)], commands_of(shown))


def racing(records: Records) -> Section:
    """Return the section on several schedulers at once, by how full the fleet is."""
    title = "Several schedulers at once"
    lead = (
        "Several schedulers, each in a process of its own, claim on the same fleet at the same time. A conflict is a "
        "compare-and-swap that fails because another scheduler has written first. It costs another round trip, and "
        "never overcommits a node."
    )
    cases = [case for case in records.of_scenarios("select") if case.variant in {RACES, RACES_UNSHARED}]
    races = [case for case in cases if case.variant == RACES]
    if not races:
        return absent(title, lead, "select")
    cores = races[0].record.machine.cores
    over = "schedulers"
    where = f"{exact(races[0].case.nodes)} nodes; {cores} cores for schedulers, memcached and everything else"
    charts: list[Plot] = [
        LinePlot(name, f"{caption} ({where}).", over, spread(races[0], measure).unit, _by_fullness(races, measure))
        for name, measure, caption in (
            ("select-claims", "claims, all", "Claims of all schedulers together, by how full the fleet is"),
            ("select-conflicts", "conflicts", "Share of compare-and-swaps that conflict, by how full the fleet is"),
        )
    ]
    rows = []
    for one in (case for case in cases if case.variant == RACES_UNSHARED):
        beside = next((case for case in races if _same_race(case, one)), None)
        if beside is not None:
            settings = one.case.settings
            rows.append(
                [
                    f"{settings['full']:.0%} full",
                    exact(settings["schedulers"]),
                    *(quantity(case.p50("conflicts"), "%") for case in (one, beside)),
                    *(quantity(case.p50("claims, all"), "claims/s") for case in (one, beside)),
                ]
            )
    head = ["fleet", "schedulers", "conflicts without", "conflicts with", "claims without", "claims with"]
    caption = "With and without sharing: schedulers that share prefer different nodes among equally good ones"
    tables = [Table(head, rows, caption)] if rows else []
    return Section(title, lead, [], charts, tables, [detail(cases)], commands_of(cases))


def reserving(records: Records) -> Section:
    """Return the section on reservations of groups: one scheduler alone, and several that compete."""
    title = "Reservations of groups"
    lead = (
        "Reservations of 2 to 64 members each, all or nothing, on a fleet that has hardly enough room: once made by "
        "one scheduler, once shared out to several. Afterwards a process that wrote no claims reads the claim records "
        "and proves that each group is reserved completely or not at all, and that no node is over its capacity."
    )
    cases = list(records.of_scenarios("reserve"))
    if not cases:
        return absent(title, lead, "reserve")
    rows = [
        [
            exact(case.case.settings["schedulers"]),
            exact(case.case.settings["reservations"]),
            quantity(case.p50("held"), "%"),
            quantity(case.p50("reserve"), "ms"),
            quantity(case.case.measures["reserve"].p99, "ms"),
            quantity(case.p50("reservations"), "/s"),
        ]
        for case in cases
    ]
    table = Table(
        ["schedulers", "reservations", "succeed", "p50", "p99", "a second"], rows, "Reservations near capacity"
    )
    return Section(title, lead, [], [], [table], [detail(cases)], commands_of(cases))


def _on(case: RecordedCase, among: Sequence[RecordedCase]) -> str:
    """Return the design of a case as part of a label; empty if all cases have the same design."""
    return f", {case.design}" if len({one.design for one in among}) > 1 else ""


def _by_fullness(races: Sequence[RecordedCase], measure: str) -> list[PlotLine]:
    levels = sorted({case.case.settings["full"] for case in races})
    return [
        line(
            [case for case in races if case.case.settings["full"] == full],
            measure,
            f"{full:.0%} full",
            partial(setting_of, "schedulers"),
            SHADES[number % len(SHADES)],
        )
        for number, full in enumerate(levels)
    ]


def _same_race(one: RecordedCase, other: RecordedCase) -> bool:
    names = ("schedulers", "full")
    return (one.run, one.design) == (other.run, other.design) and all(
        one.case.settings[name] == other.case.settings[name] for name in names
    )

"""What decisions and claims cost a scheduler, and what several do to each other."""

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
DECIDES: Final = {
    "select, unseen shape": "a request of a shape never seen",
    "select, one node changed": "of a shape seen before, one node changed",
    "read and select, nothing changed": "with a read in front, nothing changed",
    "read and select, some changed": "with a read in front, {changed} nodes changed",
    "claim": "read, choose and claim",
    "advance": "bringing the fleet up to date, {changed} nodes changed",
}
SHADES: Final = ("journal", "snapshot", "other", "bare")
"""Colours of lines that are no designs: they are told apart as those are."""


def deciding(records: Records) -> Section:
    """One scheduler: a decision by kind and size, and claims by batch; OpenStack's beside them."""
    title = "Deciding"
    lead = "What one request costs a scheduler that follows along, with the default filters and weighers, and how many claims it writes."
    found = list(records.found("select"))
    one = [case for case in found if case.variant == ONE]
    if not one:
        return absent(title, lead, "select")
    changed = exact(one[0].case.settings["changed"])
    bars = [
        bar(case, measure, f"{exact(case.case.nodes)} nodes{_on(case, one)}", says.format(changed=changed), "snapshot")
        for case in one
        for measure, says in DECIDES.items()
        if measure in case.case.measures
    ]
    charts: list[Plot] = [
        BarPlot("select-one", "One request at a time. Whiskers: min to p99.", "ms", bars, logarithmic=True)
    ]
    batches = [case for case in found if case.variant == BATCHES]
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
    theirs = [case for case in found if case.variant == "" and not case.design.startswith("snapshot")]
    text = [
        f"A scheduler takes {quantity(case.p50(MEMORY), 'bytes')} a node beyond its reader, at {exact(case.case.nodes)}."
        for case in one
    ]
    tables = []
    ratios = {name: ratio for case in one[:1] for name, ratio in case.record.across.items() if " nodes: " in name}
    if ratios:
        rows = [[*name.split(" / ", 1), times(ratio)] for name, ratio in ratios.items()]
        tables.append(
            Table(
                ["OpenStack", "nodestate", "takes so many times as long"],
                rows,
                "Beside OpenStack's own, on the same fleet",
                words=True,
            )
        )
    text += [
        f"Left out: {line}." for line in dict.fromkeys(skipped for case in found for skipped in case.record.skipped)
    ]
    shown = [*one, *batches, *theirs]
    return Section(title, lead, text, charts, tables, [detail(shown)], commands_of(shown))


def racing(records: Records) -> Section:
    """Several schedulers at once, by how full the fleet is."""
    title = "Schedulers among each other"
    lead = (
        "Several schedulers, each in a process of its own, claim on the same fleet at the same time. A conflict is a "
        "compare-and-swap that another was faster with: it costs another round trip, and never an overcommitted node."
    )
    found = [case for case in records.found("select") if case.variant in {RACES, RACES_UNSHARED}]
    races = [case for case in found if case.variant == RACES]
    if not races:
        return absent(title, lead, "select")
    cores = races[0].record.machine.cores
    over = "schedulers"
    nodes = f"{exact(races[0].case.nodes)} nodes, {cores} cores for all of them, memcached, and whatever else ran"
    charts: list[Plot] = [
        LinePlot(name, f"{caption} At {nodes}.", over, spread(races[0], measure).unit, _by_fullness(races, measure))
        for name, measure, caption in (
            ("select-claims", "claims, all", "Claims of all schedulers together, by how full the fleet is."),
            ("select-conflicts", "conflicts", "Compare-and-swaps that conflicted."),
        )
    ]
    rows = []
    for one in (case for case in found if case.variant == RACES_UNSHARED):
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
    tables = (
        [
            Table(
                [
                    "fleet",
                    "schedulers",
                    "conflicts, sharing nothing",
                    "conflicts, shared out",
                    "claims, sharing nothing",
                    "claims, shared out",
                ],
                rows,
                "What it is worth that schedulers share out nodes that are about equally good",
            )
        ]
        if rows
        else []
    )
    return Section(title, lead, [], charts, tables, [detail(found)], commands_of(found))


def reserving(records: Records) -> Section:
    """Groups all or nothing: one scheduler alone, and several against each other."""
    title = "Groups, all or nothing"
    lead = (
        "The same reservations of 2 to 64 members, in the same order, by one scheduler alone and shared out to several, on a "
        "fleet that has hardly room for them. What is held in the end is read from the claim records by nobody who wrote "
        "them: each group is whole or not there, and no node is over its capacity."
    )
    found = list(records.found("reserve"))
    if not found:
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
        for case in found
    ]
    table = Table(
        ["schedulers", "reservations", "succeed", "p50", "p99", "a second"], rows, "Reservations near capacity"
    )
    return Section(title, lead, [], [], [table], [detail(found)], commands_of(found))


def _on(case: RecordedCase, among: Sequence[RecordedCase]) -> str:
    """Which design, where there are several."""
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

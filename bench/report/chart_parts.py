"""Lines, bars, tables and commands that several sections build from their cases."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from bench.report.document import Bar, BarPlot, LinePlot, Plot, PlotLine, Section, Table
from bench.report.number_format import exact, figure, quantity
from bench.report.records import LOAD_SETTINGS, RecordedCase, command_for, command_of, spread

TONES: Final = ("journal", "snapshot", "sql", "bare")
"""Words of a label that have a colour of their own, see ``theme``."""
DATABASES: Final = ("sqlite", "mariadb", "postgres")
"""Words that have a colour of their own in a label with ``sql``."""


def absent(title: str, lead: str, *scenarios: str) -> Section:
    """Return a section without records, with the commands that would make them."""
    commands = [command_for(scenario) for scenario in scenarios]
    return Section(title, lead, missing=f"There are no records of {' or '.join(scenarios)}.", commands=commands)


def commands_of(cases: Sequence[RecordedCase]) -> list[str]:
    """Return the commands that measured these cases, each once."""
    return list(dict.fromkeys(command_of(one.run, one.record) for one in cases))


def tone_of(label: str) -> str:
    """Return the name of a label's colour: each design has the same colour in all plots."""
    words = re.findall(r"\w+", label)
    if "and" in words:
        return "other"
    tone = next((tone for tone in TONES if tone in words), "other")
    return next((database for database in DATABASES if database in words), tone) if tone == "sql" else tone


def line(
    cases: Sequence[RecordedCase], measure: str, label: str, x: Callable[[RecordedCase], float], tone: str = ""
) -> PlotLine:
    """Return a line through the medians, with a band from the minimum to p99."""
    ordered = sorted(cases, key=x)
    spreads = [spread(one, measure) for one in ordered]
    return PlotLine(
        label,
        tone or tone_of(label),
        [x(one) for one in ordered],
        [one.p50 for one in spreads],
        [one.min for one in spreads],
        [one.p99 for one in spreads],
        dashed=tone == "bare" or "no tail" in label,
    )


def bar(one: RecordedCase, measure: str, group: str, label: str, tone: str = "") -> Bar:
    """Return a bar up to the median, with a whisker from the minimum to p99."""
    of = spread(one, measure)
    return Bar(group, label, tone or tone_of(one.case.design), of.p50, of.min, of.p99, quantity(of.p50, of.unit))


def across(
    name: str,
    caption: str,
    cases: Sequence[RecordedCase],
    measure: str,
    over: tuple[str, Callable[[RecordedCase], float]],
    bare: PlotLine | None = None,
) -> Plot:
    """Plot a measure of each design over a setting, as lines; as bars if the setting has only one value.

    ``over`` is the label of the axis and the function that gives the setting's value for a case.
    """
    axis, x = over
    unit = spread(cases[0], measure).unit
    if len({x(one) for one in cases}) > 1:
        lines = [line(of, measure, design, x) for design, of in designs_of(cases).items()]
        return LinePlot(name, f"{caption} Bands: min to p99.", axis, unit, [*lines, *([bare] if bare else [])])
    bars = [bar(one, measure, "", one.case.design) for one in cases]
    return BarPlot(name, f"{caption} At {figure(x(cases[0]))} {axis}. Whiskers: min to p99.", unit, bars)


def across_nodes(name: str, caption: str, cases: Sequence[RecordedCase], measure: str, bare: tuple[str, str]) -> Plot:
    """Plot a measure of each design over the size of the fleet, with the baseline of the first design below.

    ``bare`` is the baseline's measure and its label.
    """
    first = [one for one in cases if one.case.design == cases[0].case.design and bare[0] in one.case.measures]
    below = line(first, bare[0], bare[1], nodes_of, "bare") if first else None
    return across(name, caption, cases, measure, ("nodes", nodes_of), below)


def median_and_p99(name: str, caption: str, cases: Sequence[RecordedCase], measure: str, over: tuple[str, str]) -> Plot:
    """Plot the median and p99 of a measure over a setting, as two lines for each design.

    ``over`` is the setting and the label of its axis.
    """
    lines: list[PlotLine] = []
    for design, of in designs_of(cases).items():
        ordered = sorted(of, key=lambda one: setting_of(over[0], one))
        xs, spreads = [setting_of(over[0], one) for one in ordered], [spread(one, measure) for one in ordered]
        lines.append(PlotLine(design, tone_of(design), xs, [one.p50 for one in spreads]))
        lines.append(PlotLine(f"{design}, p99", tone_of(design), xs, [one.p99 for one in spreads], dashed=True))
    return LinePlot(name, f"{caption} Dashed: p99.", over[1], spread(cases[0], measure).unit, lines)


def detail(cases: Sequence[RecordedCase]) -> Table:
    """Return a table of every measure of these cases, with its spread."""
    rows = []
    for one in cases:
        load = {name: value for name, value in one.case.settings.items() if name in LOAD_SETTINGS}
        settings = ", ".join(f"{name.replace('_', ' ')} {exact(value)}" for name, value in load.items())
        for name, of in one.case.measures.items():
            figures = [figure(value) for value in (of.p50, of.p99, of.min, of.max)]
            rows.append(
                [f"{one.case.design}: {name}", f"{one.case.nodes:,}", settings, *figures, of.unit, f"{of.count:,}"]
            )
    head = ["measure", "nodes", "settings", "p50", "p99", "min", "max", "unit", "rounds"]
    return Table(head, rows)


def by_nodes(cases: Sequence[RecordedCase], measures: Mapping[str, str]) -> Table:
    """Return a table of medians with a row for each size of fleet and a column for each design and measure.

    ``measures`` has the measures by their headings.
    """
    designs = designs_of(cases)
    sizes = sorted({one.case.nodes for one in cases})
    at = {(one.case.design, one.case.nodes): one.case.measures for one in cases}
    head = ["nodes", *(f"{design}: {name}" if name else design for name in measures for design in designs)]
    rows = [
        [
            exact(nodes),
            *(
                quantity(of[measure].p50, of[measure].unit) if measure in (of := at.get((design, nodes), {})) else "–"
                for measure in measures.values()
                for design in designs
            ),
        ]
        for nodes in sizes
    ]
    return Table(head, rows, "Medians")


def nodes_of(one: RecordedCase) -> float:
    """Return the size of the fleet."""
    return float(one.case.nodes)


def setting_of(name: str, one: RecordedCase) -> float:
    """Return one of the settings of a case."""
    return one.case.settings[name]


def designs_of(cases: Sequence[RecordedCase]) -> dict[str, list[RecordedCase]]:
    """Group cases by label, in the order in which the labels first appear."""
    grouped: dict[str, list[RecordedCase]] = {}
    for one in cases:
        grouped.setdefault(one.case.design, []).append(one)
    return grouped

"""What sections share: lines, bars, tables and commands of the cases that they show."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from bench.report.document import Bar, BarPlot, LinePlot, Plot, PlotLine, Section, Table
from bench.report.number_format import exact, figure, quantity
from bench.report.records import LOADS, RecordedCase, command_for, command_of, spread

TONES: Final = ("journal", "snapshot", "sql", "bare")
"""What has a colour of its own, see ``theme``."""
DATABASES: Final = ("sqlite", "mariadb", "postgres")
"""The same, where sql is said to be on one of them."""


def absent(title: str, lead: str, *scenarios: str) -> Section:
    """A section that has no records, and the command that makes them."""
    commands = [command_for(scenario) for scenario in scenarios]
    return Section(title, lead, missing=f"No records of {' or '.join(scenarios)} here.", commands=commands)


def commands_of(found: Sequence[RecordedCase]) -> list[str]:
    """The commands behind these cases, each once."""
    return list(dict.fromkeys(command_of(one.run, one.record) for one in found))


def tone_of(label: str) -> str:
    """The colour's name: a design has its own wherever it appears."""
    words = re.findall(r"\w+", label)
    if "and" in words:
        return "other"
    tone = next((tone for tone in TONES if tone in words), "other")
    return next((database for database in DATABASES if database in words), tone) if tone == "sql" else tone


def line(
    found: Sequence[RecordedCase], measure: str, label: str, x: Callable[[RecordedCase], float], tone: str = ""
) -> PlotLine:
    """A line through the medians, with a band from min to p99."""
    ordered = sorted(found, key=x)
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
    """A bar to the median, with a whisker from min to p99."""
    of = spread(one, measure)
    return Bar(group, label, tone or tone_of(one.case.design), of.p50, of.min, of.p99, quantity(of.p50, of.unit))


def across(
    name: str,
    caption: str,
    found: Sequence[RecordedCase],
    measure: str,
    over: tuple[str, Callable[[RecordedCase], float]],
    bare: PlotLine | None = None,
) -> Plot:
    """A measure of each design over something that was varied, as lines; as bars if it was not."""
    axis, x = over
    unit = spread(found[0], measure).unit
    if len({x(one) for one in found}) > 1:
        lines = [line(of, measure, design, x) for design, of in designs_of(found).items()]
        return LinePlot(name, f"{caption} Bands: min to p99.", axis, unit, [*lines, *([bare] if bare else [])])
    bars = [bar(one, measure, "", one.case.design) for one in found]
    return BarPlot(name, f"{caption} At {figure(x(found[0]))} {axis}. Whiskers: min to p99.", unit, bars)


def across_nodes(name: str, caption: str, found: Sequence[RecordedCase], measure: str, bare: tuple[str, str]) -> Plot:
    """The same over the size of the fleet, with the first design's ``bare`` measure and its label below."""
    first = [one for one in found if one.case.design == found[0].case.design and bare[0] in one.case.measures]
    below = line(first, bare[0], bare[1], nodes_of, "bare") if first else None
    return across(name, caption, found, measure, ("nodes", nodes_of), below)


def median_and_p99(name: str, caption: str, found: Sequence[RecordedCase], measure: str, over: tuple[str, str]) -> Plot:
    """Where the tail is what matters: two lines for each design over a setting, which ``over`` names and labels."""
    lines: list[PlotLine] = []
    for design, of in designs_of(found).items():
        ordered = sorted(of, key=lambda one: setting_of(over[0], one))
        xs, spreads = [setting_of(over[0], one) for one in ordered], [spread(one, measure) for one in ordered]
        lines.append(PlotLine(design, tone_of(design), xs, [one.p50 for one in spreads]))
        lines.append(PlotLine(f"{design}, p99", tone_of(design), xs, [one.p99 for one in spreads], dashed=True))
    return LinePlot(name, f"{caption} Dashed: p99.", over[1], spread(found[0], measure).unit, lines)


def detail(found: Sequence[RecordedCase]) -> Table:
    """Every measure of these cases, with its spread."""
    rows = []
    for one in found:
        shared = {name: value for name, value in one.case.settings.items() if name in LOADS}
        settings = ", ".join(f"{name.replace('_', ' ')} {exact(value)}" for name, value in shared.items())
        for name, of in one.case.measures.items():
            figures = [figure(value) for value in (of.p50, of.p99, of.min, of.max)]
            rows.append(
                [f"{one.case.design}: {name}", f"{one.case.nodes:,}", settings, *figures, of.unit, f"{of.count:,}"]
            )
    head = ["measure", "nodes", "settings", "p50", "p99", "min", "max", "unit", "rounds"]
    return Table(head, rows, "All of it")


def by_nodes(found: Sequence[RecordedCase], measures: Mapping[str, str]) -> Table:
    """Medians: a row for each size, a column for each design and measure, which ``measures`` gives by its heading."""
    designs = designs_of(found)
    sizes = sorted({one.case.nodes for one in found})
    at = {(one.case.design, one.case.nodes): one.case.measures for one in found}
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
    """The size of the fleet."""
    return float(one.case.nodes)


def setting_of(name: str, one: RecordedCase) -> float:
    """One of the case's settings."""
    return one.case.settings[name]


def designs_of(found: Sequence[RecordedCase]) -> dict[str, list[RecordedCase]]:
    """By label, in the order of appearance."""
    grouped: dict[str, list[RecordedCase]] = {}
    for one in found:
        grouped.setdefault(one.case.design, []).append(one)
    return grouped

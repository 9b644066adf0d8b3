"""The parts of the page, before they are written as Markdown. Text may contain `code` and **strong** words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text. The first column is words; the other columns are figures, unless ``words`` is true."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    words: bool = False


@dataclass(frozen=True, slots=True)
class PlotLine:
    """The points of one line of a plot."""

    label: str
    tone: str
    """The name of its colour, see ``theme``."""
    xs: Sequence[float]
    ys: Sequence[float]
    lows: Sequence[float] = ()
    """With ``highs``, the edges of a band around the line."""
    highs: Sequence[float] = ()
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class LinePlot:
    """A plot of lines. An axis is logarithmic if its values are all positive and far enough apart."""

    name: str
    caption: str
    x: str
    y: str
    lines: Sequence[PlotLine]


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar from 0 to ``value``, with a whisker from ``low`` to ``high``."""

    group: str
    """Bars of one group stand together under its name."""
    label: str
    tone: str
    """The name of its colour, see ``theme``."""
    value: float
    low: float
    high: float
    text: str
    """The value as it is written beside the bar."""


@dataclass(frozen=True, slots=True)
class BarPlot:
    """A plot of horizontal bars, one below the other."""

    name: str
    caption: str
    x: str
    bars: Sequence[Bar]
    logarithmic: bool = False


Plot = LinePlot | BarPlot


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page."""

    title: str
    lead: str
    text: Sequence[str] = ()
    charts: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    detail: Sequence[Table] = ()
    """Tables of all measures, which only the HTML page shows."""
    commands: Sequence[str] = ()
    """The commands that measured the figures; if there are none, the commands that would."""
    missing: str = ""
    """The sentence that names the missing records, if there are none."""


@dataclass(frozen=True, slots=True)
class Page:
    """The whole evaluation."""

    answer: Sequence[str]
    """The answer, as numbered sentences."""
    notes: Sequence[str]
    """Warnings about the records."""
    sections: Sequence[Section]

    @property
    def charts(self) -> list[Plot]:
        """All plots of the page."""
        return [chart for section in self.sections for chart in section.charts]

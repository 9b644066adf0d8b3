"""What a page is made of, before it is written as HTML or Markdown. Text may have `code` and **strong** words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text; the first column is words, the others are figures unless ``words``."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    words: bool = False


@dataclass(frozen=True, slots=True)
class PlotLine:
    """Points of one thing, by x; ``lows`` and ``highs`` make a band. ``tone`` names its colour, see ``draw``."""

    label: str
    tone: str
    xs: Sequence[float]
    ys: Sequence[float]
    lows: Sequence[float] = ()
    highs: Sequence[float] = ()
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class LinePlot:
    """A plot of lines; both axes are logarithmic where the points allow it."""

    name: str
    caption: str
    x: str
    y: str
    lines: Sequence[PlotLine]


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar, from nothing to ``value``, with a whisker from ``low`` to ``high``. ``group`` has its own heading."""

    group: str
    label: str
    tone: str
    value: float
    low: float
    high: float
    text: str


@dataclass(frozen=True, slots=True)
class BarPlot:
    """A plot of bars lying one below the other."""

    name: str
    caption: str
    x: str
    bars: Sequence[Bar]
    logarithmic: bool = False


Plot = LinePlot | BarPlot


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page with the commands behind it. Without records, ``missing`` says so."""

    title: str
    lead: str
    text: Sequence[str] = ()
    charts: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    detail: Sequence[Table] = field(default=())
    commands: Sequence[str] = ()
    missing: str = ""

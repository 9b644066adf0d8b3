"""Draws plots as SVG, with the same bytes for the same figures. The only importer of matplotlib.

matplotlib knows no CSS variables. So each colour of the theme is drawn in a colour of its own, which ``compact_svg``
replaces by the variable of the theme.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from bench.report.compact_svg import STAND_INS, compact_svg
from bench.report.document import BarPlot, LinePlot, Plot, PlotLine
from bench.report.number_format import figure

SETTINGS: Final[Any] = {
    "svg.hashsalt": "nodestate",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # ships with matplotlib, so text has the same size on every machine
    "font.size": 10.0,
    "figure.facecolor": "none",  # the SVG sets the background itself
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": STAND_INS["ink"],
    "axes.labelcolor": STAND_INS["muted"],
    "axes.edgecolor": STAND_INS["grid"],
    "xtick.color": STAND_INS["muted"],
    "ytick.color": STAND_INS["muted"],
    "grid.color": STAND_INS["grid"],
}
WIDTH_IN, LINES_HEIGHT_IN = 7.6, 3.9
BAR_IN, BARS_FRAME_IN = 0.3, 0.75
LABEL_GAP: Final = 0.062
"""Smallest distance between labels at the ends of lines, as a share of the height of the plot."""
DECADES_MIN: Final = 4.0
"""An axis is logarithmic if its largest value is at least this many times its smallest."""
FEW: Final = 100.0
"""A logarithmic axis whose largest value is less than this many times its smallest has ticks at 2 and 5, too."""


def svg_of(chart: Plot) -> str:
    """Return the plot as the text of an SVG file, light or dark as its reader prefers."""
    with mpl.rc_context(SETTINGS):
        return compact_svg(_written(_lines(chart) if isinstance(chart, LinePlot) else _bars(chart)), chart.caption)


def _lines(chart: LinePlot) -> Figure:
    plot = Figure(figsize=(WIDTH_IN, LINES_HEIGHT_IN), layout="constrained")
    axes = plot.add_subplot()
    drawn = [one for one in chart.lines if one.xs]
    xs, ys = [x for one in drawn for x in one.xs], [y for one in drawn for y in (*one.ys, *one.lows, *one.highs)]
    _scale(axes, xs, ys)
    for one in drawn:
        colour = STAND_INS[one.tone]
        if one.lows and len(one.xs) > 1 and one.tone != "bare":
            axes.fill_between(one.xs, one.lows, one.highs, color=colour, alpha=0.14, linewidth=0)
        axes.plot(
            one.xs,
            one.ys,
            color=colour,
            marker="o",
            markersize=4.5,
            linewidth=2,
            linestyle=(0, (4, 2)) if one.dashed else "-",
        )
    axes.set_xlabel(chart.x)
    axes.set_title(chart.y, loc="left", fontsize=10, color=STAND_INS["muted"])
    _dress(axes)
    axes.grid(visible=True, axis="y", linewidth=0.8)
    if axes.get_yscale() == "linear":
        axes.set_ylim(bottom=0.0)
    _label_ends(axes, drawn)
    return plot


def _scale(axes: Axes, xs: Sequence[float], ys: Sequence[float]) -> None:
    for values, set_scale, axis in ((xs, axes.set_xscale, axes.xaxis), (ys, axes.set_yscale, axes.yaxis)):
        low, high = min(values, default=1.0), max(values, default=1.0)
        if low > 0 and high / low >= DECADES_MIN:
            set_scale("log")
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < FEW else (1.0,)))
            axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(FuncFormatter(lambda value, _at: figure(value)))
    different = sorted(set(xs))
    if 1 < len(different) <= 8:  # ticks only at values that were measured
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(different, [figure(x) for x in different])


def _dress(axes: Axes) -> None:
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, which="both")


def _label_ends(axes: Axes, lines: Sequence[PlotLine]) -> None:
    """Write the label of each line at its right end, and move labels apart that would overlap."""
    axes.get_ylim()  # updates the limits, which the transform does not do
    to_share = axes.transScale + axes.transLimits
    heights = sorted(
        (float(to_share.transform((one.xs[-1], one.ys[-1]))[1]), number) for number, one in enumerate(lines)
    )
    at = -math.inf
    for share, number in heights:
        at = max(share, at + LABEL_GAP)
        one = lines[number]
        axes.annotate(
            one.label,
            (1.0, at),
            xycoords="axes fraction",
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=STAND_INS[one.tone],
            fontweight="bold" if one.tone != "bare" else "normal",
            annotation_clip=False,
        )


def _bars(chart: BarPlot) -> Figure:
    rows: list[tuple[str, int]] = []
    at = 0.0
    groups = [(name, list(of)) for name, of in groupby(chart.bars, key=lambda one: one.group)]
    heads = sum(1 for name, _ in groups if name)
    height = BARS_FRAME_IN + BAR_IN * (len(chart.bars) + heads)
    plot = Figure(figsize=(WIDTH_IN, height), layout="constrained")
    axes = plot.add_subplot()
    values = [value for one in chart.bars for value in (one.value, one.low) if value > 0]
    logarithmic = (
        chart.logarithmic and bool(values) and max(one.high for one in chart.bars) / min(values) >= DECADES_MIN
    )
    floor = 10 ** math.floor(math.log10(min(values)) - 0.3) if logarithmic else 0.0
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    ticks: list[float] = []
    for name, of in groups:
        if name:
            axes.annotate(name, (0, at), xycoords=("axes fraction", "data"), va="center", fontweight="bold")
            at += 1
        for one in of:
            colour = STAND_INS[one.tone]
            axes.barh(at, max(one.value - floor, 0.0), 0.66, left=floor, color=colour)
            axes.plot([max(one.low, floor), one.high], [at, at], color=STAND_INS["ink"], linewidth=1)
            axes.annotate(one.text, (one.high, at), xytext=(6, 0), textcoords="offset points", va="center")
            ticks.append(at)
            rows.append((one.label, len(ticks)))
            at += 1
    axes.set_yticks(ticks, [label for label, _ in rows], color=STAND_INS["ink"])
    axes.set_ylim(at - 0.4, -0.6)
    highest = max((one.high for one in chart.bars), default=1.0) or 1.0
    axes.set_xlim(floor, highest * (highest / floor) ** 0.16 if logarithmic else highest * 1.16)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _at: figure(value)))
    axes.set_xlabel(chart.x)
    _dress(axes)
    axes.grid(visible=True, axis="x", linewidth=0.8)
    return plot


def _written(plot: Figure) -> str:
    """Return the SVG that matplotlib writes, with neither date nor version."""
    out = io.StringIO()
    FigureCanvasSVG(plot)
    plot.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return out.getvalue()

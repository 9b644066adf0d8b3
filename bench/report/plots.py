"""Plots as SVG, the same bytes for the same figures. The only importer of matplotlib.

Colours are names of CSS variables: matplotlib is given a stand-in for each, which is replaced in what it wrote. So a
plot in a page follows the page, and a plot in a file of its own follows the reader's preference.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from bench.report.document import BarPlot, LinePlot, Plot, PlotLine
from bench.report.number_format import figure
from bench.report.theme import DARK, LIGHT

STAND_INS: Final = {name: f"#0101{number:02x}" for number, name in enumerate(LIGHT, 16)}
SETTINGS: Final[Any] = {
    "svg.hashsalt": "nodestate",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # ships with matplotlib, so every machine measures text alike
    "font.size": 10.0,
    "figure.facecolor": "none",  # the page's own shows through
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
"""Between labels at the ends of lines, as a share of the plot's height."""
DECADES_MIN: Final = 4.0
"""An axis whose ends are this many times apart or more is logarithmic."""
FEW: Final = 100.0
"""A logarithmic axis whose ends are nearer than this has ticks within its decades, too."""
FONT: Final = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"


def svg(chart: Plot) -> str:
    """The plot as it stands in a page, which defines the colours."""
    with mpl.rc_context(SETTINGS):
        return _cleaned(_lines(chart) if isinstance(chart, LinePlot) else _bars(chart), chart.name)


def svg_file(chart: Plot) -> str:
    """The plot as a file of its own, light or dark as its reader likes."""

    def variables(theme: dict[str, str]) -> str:
        return "svg{" + "".join(f"--{name}:{colour};" for name, colour in theme.items()) + "}"

    style = f"<style>{variables(LIGHT)}@media(prefers-color-scheme:dark){{{variables(DARK)}}}svg{{background:var(--paper)}}</style>"
    return re.sub(r"(<svg[^>]*>)", rf"\1{style}", svg(chart), count=1) + "\n"


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
    if 1 < len(different) <= 8:  # what was measured, and nothing that was not
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(different, [figure(x) for x in different])


def _dress(axes: Axes) -> None:
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, which="both")


def _label_ends(axes: Axes, lines: Sequence[PlotLine]) -> None:
    """Each line's name at its right end, moved apart where they would lie on each other."""
    axes.get_ylim()  # limits follow what is drawn only when asked for, and the transform does not ask
    to_share = axes.transScale + axes.transLimits
    places = sorted(
        (float(to_share.transform((one.xs[-1], one.ys[-1]))[1]), number) for number, one in enumerate(lines)
    )
    at = -math.inf
    for share, number in places:
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


def _cleaned(plot: Figure, name: str) -> str:
    """What matplotlib wrote, without what names a program, a date or another place; ids are the plot's own."""
    out = io.StringIO()
    FigureCanvasSVG(plot)
    plot.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for variable, stand_in in STAND_INS.items():
        text = text.replace(stand_in, f"var(--{variable})")
    text = re.sub(r"(?<= )id=\"([^\"]+)\"", rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r"xlink:href=\"#([^\"]+)\"", rf'href="#{name}-\1"', text)
    text = text.replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    text = text.replace("'DejaVu Sans'", FONT.replace('"', "'"))
    text = re.sub(r"<svg ", f'<svg role="img" aria-labelledby="{name}" ', text, count=1)
    return re.sub(r"\s*\n\s*", "\n", text).strip()

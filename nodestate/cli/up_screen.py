"""What ``nodestate up`` shows while it runs: a panel on a terminal, a line a second elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from rich.box import ROUNDED
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nodestate.config import Config

PANEL_WIDTH_CHARS: Final = 100
BAR_WIDTH_CHARS: Final = 36
LATE_S: Final = 5.0
SHOWN_CLASSES: Final = {"VCPU": ("vcpu", 1, ""), "MEMORY_MB": ("memory", 1024, " GB"), "DISK_GB": ("disk", 1024, " TB")}
"""Resource classes with a bar each: what it is called, and what its amounts are divided by to be in which unit."""


@dataclass(frozen=True, slots=True)
class DesignSample:
    """One design as its reader sees it. ``lag``: events that agents sent and its view does not hold yet."""

    design: str
    nodes: int
    age_s: float
    lag: int
    refresh_p50_s: float
    refresh_p95_s: float
    stale: int
    incomplete: int
    vouched: int


@dataclass(frozen=True, slots=True)
class CellSample:
    """The cell at one moment. ``amounts``: usage and capacity of the fleet, by resource class."""

    config: Config
    elapsed_s: float
    seconds: float | None
    nodes: int
    events_per_s: float
    published: int
    applied: int
    dead_letters: int
    owned: int
    designs: tuple[DesignSample, ...]
    amounts: Mapping[str, tuple[int, int]]
    host: str
    host_metrics: Mapping[str, float]


def as_line(tick: CellSample) -> str:
    """For a log: one line."""
    designs = (
        f"{one.design}: {one.nodes:,} nodes, {_age(one.age_s)} old, lag {one.lag:,}, "
        f"refresh {one.refresh_p50_s * 1000:.2f} ms, {one.stale:,} stale, {one.incomplete:,} incomplete"
        for one in tick.designs
    )
    return f"{tick.elapsed_s:3.0f} s  {tick.events_per_s:,.0f} events/s  " + "  ".join(designs)


def as_panel(tick: CellSample) -> RenderableType:
    """For a terminal."""
    end = f" of {tick.seconds:.0f}" if tick.seconds is not None else ""
    return Panel(
        Group(_facts(tick), "", _designs(tick), "", _bars(tick)),
        title=f"[bold]nodestate[/] cell {tick.config.cell}",
        title_align="left",
        subtitle=f"{tick.elapsed_s:.0f}{end} s" + ("" if end else ", Ctrl-C ends it"),
        subtitle_align="right",
        box=ROUNDED,
        padding=(1, 2),
        width=PANEL_WIDTH_CHARS,
        border_style="cyan",
    )


def _facts(tick: CellSample) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", width=9)
    table.add_column()
    table.add_row("fleet", f"{tick.nodes:,} nodes: {tick.nodes - 1:,} simulated, and this host")
    dead = f", [red]{tick.dead_letters:,} dead letters[/]" if tick.dead_letters else ""
    table.add_row(
        "events", f"[cyan]{tick.events_per_s:,.0f}/s[/], {tick.published:,} published, {tick.applied:,} applied{dead}"
    )
    partitions = tick.config.partitions
    vouched = min((one.vouched for one in tick.designs), default=0)
    known = "all vouched for" if vouched == partitions else f"{vouched} vouched for, the others still listen for nodes"
    table.add_row("consumer", f"owns {tick.owned} of {partitions} partitions, {known}")
    metrics = ", ".join(f"{name} {value:g}" for name, value in sorted(tick.host_metrics.items()))
    table.add_row("this host", Text(f"{tick.host}: {metrics or 'not heard of yet'}", overflow="ellipsis", no_wrap=True))
    return table


def _designs(tick: CellSample) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("design", style="bold", width=9)
    for title in ("nodes", "view age", "lag", "refresh p50", "p95", "stale", "incomplete"):
        table.add_column(title, justify="right", no_wrap=True, min_width=8)
    for one in tick.designs:
        table.add_row(
            one.design,
            f"{one.nodes:,}",
            Text(_age(one.age_s), style="green" if one.age_s <= LATE_S else "yellow"),
            f"{one.lag:,}",
            Text(f"{one.refresh_p50_s * 1000:.2f} ms", style="cyan"),
            f"{one.refresh_p95_s * 1000:.2f} ms",
            _count(one.stale),
            _count(one.incomplete),
        )
    return table


def _bars(tick: CellSample) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", width=9)
    table.add_column(width=BAR_WIDTH_CHARS)
    table.add_column(justify="right")
    for name, (usage, capacity) in tick.amounts.items():
        bar = ProgressBar(total=max(capacity, 1), completed=usage, width=BAR_WIDTH_CHARS, finished_style="bar.complete")
        title, divisor, unit = SHOWN_CLASSES[name]
        table.add_row(title, bar, f"{usage // divisor:,} of {capacity // divisor:,}{unit}")
    return table


def _count(number: int) -> Text:
    return Text(f"{number:,}", style="yellow" if number else "green")


def _age(seconds: float) -> str:
    return f"{seconds:.1f} s" if math.isfinite(seconds) else "?"

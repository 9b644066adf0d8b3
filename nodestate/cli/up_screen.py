"""Output of ``nodestate up`` while it runs: a panel on a terminal, else one line a second."""

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
from nodestate.text import age_text, count_text

PANEL_WIDTH_CHARS: Final = 100
BAR_WIDTH_CHARS: Final = 36
LATE_S: Final = 5.0
"""Age in seconds above which a view is marked as late."""
SHOWN_CLASSES: Final = {"VCPU": ("vcpu", 1, ""), "MEMORY_MB": ("memory", 1024, " GB"), "DISK_GB": ("disk", 1024, " TB")}
"""Resource classes that have a bar: title, divisor of the amounts, unit after the division."""


@dataclass(frozen=True, slots=True)
class DesignSample:
    """Figures of one design, as its reader sees it."""

    design: str
    """Name of the design."""
    nodes: int
    """Nodes in the view."""
    age_s: float
    """Age of the view in seconds; infinite if it was never confirmed."""
    lag: int
    """Events that agents sent and the view does not contain."""
    refresh_p50_s: float
    """Median duration of a refresh."""
    refresh_p95_s: float
    """95th percentile of the duration of a refresh."""
    stale: int
    """Nodes without a recent sign of life."""
    incomplete: int
    """Nodes and partitions of which the view misses an event."""
    complete: int
    """Partitions whose owner knows all nodes."""


@dataclass(frozen=True, slots=True)
class CellSample:
    """Figures of the whole cell at one moment."""

    config: Config
    """Settings of the cell."""
    elapsed_s: float
    """Seconds since the start."""
    seconds: float | None
    """Seconds after which the command ends; None: with Ctrl-C."""
    nodes: int
    """Nodes that agents report."""
    events_per_s: float
    """Events applied per second, in the last few samples."""
    published: int
    """Events that agents sent."""
    applied: int
    """Events that the consumer processed."""
    dead_letters: int
    """Messages that were refused as broken."""
    owned: int
    """Partitions that the consumer owns."""
    designs: tuple[DesignSample, ...]
    """Figures of each design."""
    amounts: Mapping[str, tuple[int, int]]
    """Usage and capacity of all nodes together, by resource class."""
    host: str
    """Name of this machine as a node."""
    host_metrics: Mapping[str, float]
    """Metrics of this machine, by name."""


def as_line(sample: CellSample) -> str:
    """Return a sample as one line of text."""
    designs = (
        f"{one.design}: {count_text(one.nodes, 'node')}, {age_text(one.age_s)}, lag {one.lag:,}, "
        f"refresh {one.refresh_p50_s * 1000:.2f} ms, {one.stale:,} stale, {one.incomplete:,} incomplete"
        for one in sample.designs
    )
    return f"{sample.elapsed_s:3.0f} s  {sample.events_per_s:,.0f} events/s  " + "  ".join(designs)


def as_panel(sample: CellSample) -> RenderableType:
    """Return a sample as a panel for a terminal."""
    end = f" of {sample.seconds:.0f}" if sample.seconds is not None else ""
    return Panel(
        Group(_facts(sample), "", _designs(sample), "", _bars(sample)),
        title=f"[bold]nodestate[/] cell {sample.config.cell}",
        title_align="left",
        subtitle=f"{sample.elapsed_s:.0f}{end} s" + ("" if end else ", Ctrl-C ends it"),
        subtitle_align="right",
        box=ROUNDED,
        padding=(1, 2),
        width=PANEL_WIDTH_CHARS,
        border_style="cyan",
    )


def _facts(sample: CellSample) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", width=9)
    table.add_column()
    table.add_row("fleet", f"{count_text(sample.nodes, 'node')}: {sample.nodes - 1:,} simulated, and this host")
    dead = f", [red]{count_text(sample.dead_letters, 'dead letter')}[/]" if sample.dead_letters else ""
    table.add_row(
        "events",
        f"[cyan]{sample.events_per_s:,.0f}/s[/], {sample.published:,} published, {sample.applied:,} applied{dead}",
    )
    partitions = sample.config.partitions
    complete = min((one.complete for one in sample.designs), default=0)
    known = "all complete" if complete == partitions else f"{complete} complete, the others wait for reports of nodes"
    table.add_row("consumer", f"owns {sample.owned} of {count_text(partitions, 'partition')}, {known}")
    metrics = ", ".join(f"{name} {value:g}" for name, value in sorted(sample.host_metrics.items()))
    table.add_row(
        "this host", Text(f"{sample.host}: {metrics or 'no report so far'}", overflow="ellipsis", no_wrap=True)
    )
    return table


def _designs(sample: CellSample) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("design", style="bold", min_width=9, no_wrap=True)
    for title in ("nodes", "view age", "lag", "refresh p50", "p95", "stale", "incomplete"):
        table.add_column(title, justify="right", no_wrap=True, min_width=8)
    for one in sample.designs:
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


def _bars(sample: CellSample) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", width=9)
    table.add_column(width=BAR_WIDTH_CHARS)
    table.add_column(justify="right")
    for name, (usage, capacity) in sample.amounts.items():
        bar = ProgressBar(total=max(capacity, 1), completed=usage, width=BAR_WIDTH_CHARS, finished_style="bar.complete")
        title, divisor, unit = SHOWN_CLASSES[name]
        table.add_row(title, bar, f"{usage // divisor:,} of {capacity // divisor:,}{unit}")
    return table


def _count(number: int) -> Text:
    return Text(f"{number:,}", style="yellow" if number else "green")


def _age(seconds: float) -> str:
    return f"{seconds:.1f} s" if math.isfinite(seconds) else "never"

"""``nodestate up``: a whole cell in one process, to look at, and to see that it is right."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import click
import msgspec
from rich.live import Live

from nodestate.agent.sources.host import HostSource
from nodestate.agent.sources.simulated import SimulatedFleet
from nodestate.cli import check
from nodestate.cli.check import Verdict
from nodestate.cli.command import Run, cell_command
from nodestate.cli.embedded_cell import EmbeddedCell
from nodestate.cli.inspection import CellInspector
from nodestate.cli.shutdown import StopRequest, stop_on_signals
from nodestate.cli.up_screen import SHOWN_CLASSES, CellSample, DesignSample, as_line, as_panel
from nodestate.config import Config
from nodestate.designs.stored_design import StoredDesign
from nodestate.view.view import View

READ_INTERVAL_S: Final = 0.1
PANEL_INTERVAL_S: Final = 0.5
LINE_INTERVAL_S: Final = 1.0
MAX_REFRESHES_COUNT: Final = 300
DRAIN_S: Final = 20.0
HOST_INTERVAL_S: Final = 1.0
QUICK: Final = {"heartbeat_s": 2.0, "resync_jitter_s": 1.0}
"""What is set otherwise than elsewhere, unless it was set: partitions are vouched for within seconds."""


@cell_command("up", example="nodestate up --nodes 1000 --rate 500 --seconds 15")
@click.option("--nodes", type=click.IntRange(1), default=100, help="How many nodes are simulated.")
@click.option("--rate", type=click.FloatRange(0), default=200.0, help="Changes per second, of all together.")
@click.option("--seed", type=int, default=0, help="The same seed, the same fleet.")
@click.option("--seconds", type=float, metavar="S", help="End after so long.  [default: with Ctrl-C]")
def command(run: Run, nodes: int, rate: float, seed: int, seconds: float | None) -> int:
    """Simulate a fleet, add this host, consume what they report, and read it as a scheduler does, all at once.

    Broker and store are embedded unless --broker and --store name others; what the environment or a settings file says
    of them is for real cells, into which a simulated fleet must not get by accident. At the end the fleet stands still,
    and every design's view is compared with the others and with what the agents say, node by node. Exit code 0 only if
    all of them agree.
    """
    config = _quick(
        run.settings(broker=run.common_option("broker") or "memory://", store=run.common_option("store") or "memory://")
    )
    if config.broker != run.config.broker or config.store != run.config.store:
        run.err.print("embedded broker and store: --broker and --store would name others", markup=False)
    host = HostSource(zone="here", every_s=HOST_INTERVAL_S)
    fleet = SimulatedFleet(nodes, seed=seed, changes_per_s=rate)
    cell = EmbeddedCell(config, [fleet, host])
    inspector = CellInspector(config, [StoredDesign(design, config.partitions) for design in config.designs])
    try:
        watch = _CellSampler(cell, inspector, host.name, seconds)
        with stop_on_signals(seconds) as stop:
            _watch(run, watch, stop)
        tick = watch.tick()
        cell.stop_agents()
        states = {name: publisher.state() for name, publisher in cell.agent.publishers.items()}
        verdict = check.compare(inspector.views, DRAIN_S, cell.versions(), states)
    finally:
        try:
            cell.close()
        finally:
            inspector.close()
    everyone = {*fleet.nodes(), *host.nodes()}
    missing = {name: sorted(everyone - set(view.nodes)) for name, view in verdict.views.items()}
    agree = verdict.agree and not any(missing.values())
    if run.as_json:
        run.print_json(_as_json(watch, tick, verdict, missing, agree=agree))
    else:
        _print_summary(run, watch, tick, verdict, missing, agree=agree)
    return 0 if agree else 1


def _quick(config: Config) -> Config:
    usual = Config()
    changes = {name: value for name, value in QUICK.items() if getattr(config, name) == getattr(usual, name)}
    return msgspec.structs.replace(config, **changes)


# -- watching -------------------------------------------------------------------------------------


class _CellSampler:
    """Reads a running cell, and keeps what its readers saw."""

    def __init__(self, cell: EmbeddedCell, inspector: CellInspector, host: str, seconds: float | None) -> None:
        self.cell = cell
        self.host = host
        self.seconds = seconds
        self.refreshes_s: dict[str, deque[float]] = {
            design: deque(maxlen=MAX_REFRESHES_COUNT) for design in cell.config.designs
        }
        self._inspector = inspector
        self._started = time.monotonic()
        self._applied: deque[tuple[float, int]] = deque([(self._started, 0)], maxlen=5)

    def read(self) -> None:
        """Refresh every design, as a scheduler before each decision. Raises what ended a part of the cell."""
        self.cell.check()
        for name, _, seconds in self._inspector.timed_views():
            self.refreshes_s[name].append(seconds)

    def tick(self) -> CellSample:
        """What is so now."""
        now, applied, cell = time.monotonic(), self.cell.applied, self.cell
        self._applied.append((now, applied))
        (then, before), stats = self._applied[0], cell.consumer.stats
        versions = cell.versions()
        node_max_age = 3 * cell.config.heartbeat_s
        views = [view for _, view, _ in self._inspector.timed_views(node_max_age=node_max_age)]
        return CellSample(
            config=cell.config,
            elapsed_s=now - self._started,
            seconds=self.seconds,
            nodes=len(versions),
            events_per_s=(applied - before) / max(now - then, 1e-9),
            published=cell.published,
            applied=applied,
            dead_letters=sum(stats.counts.dead_letters.values()),
            owned=len(cell.consumer.owned),
            designs=tuple(self._design_sample(view, versions) for view in views),
            amounts=_amounts(views[-1]),
            host=self.host,
            host_metrics=_metrics(views[-1], self.host),
        )

    def _design_sample(self, view: View, versions: dict[str, Any]) -> DesignSample:
        lag = 0
        for name, version in versions.items():
            record = view.nodes.record(name)
            known = record.generation if record is not None and record.incarnation == version.incarnation else 0
            lag += max(0, version.generation - known)
        p50_s, p95_s = quantiles(self.refreshes_s[view.design])
        return DesignSample(
            design=view.design,
            nodes=len(view.nodes),
            age_s=view.age,
            lag=lag,
            refresh_p50_s=p50_s,
            refresh_p95_s=p95_s,
            stale=len(view.stale),
            incomplete=len(view.incomplete),
            vouched=sum(partition.vouched for partition in view.partitions),
        )


def quantiles(seconds: deque[float]) -> tuple[float, float]:
    """The median and the 95th percentile; 0 where nothing was measured."""
    if len(seconds) < 2:
        return (seconds[0], seconds[0]) if seconds else (0.0, 0.0)
    cuts = statistics.quantiles(seconds, n=20, method="inclusive")
    return cuts[9], cuts[18]


def _amounts(view: View) -> dict[str, tuple[int, int]]:
    columns = view.columns
    return {
        name: (int(columns.usage[name].sum()), int(columns.capacity[name].sum()))
        for name in SHOWN_CLASSES
        if name in columns.capacity
    }


def _metrics(view: View, host: str) -> dict[str, float]:
    return dict(view.nodes[host].state.get("metrics", {})) if host in view.nodes else {}


def _watch(run: Run, watch: _CellSampler, stop: StopRequest) -> None:
    """Read and show until it is time to end."""
    with _shown(run) as (show, every_s):
        show_at = 0.0
        while not stop():
            watch.read()
            if time.monotonic() >= show_at:
                show_at = time.monotonic() + every_s
                show(watch.tick())
            stop.wait(READ_INTERVAL_S)


@contextmanager
def _shown(run: Run) -> Iterator[tuple[Callable[[CellSample], None], float]]:
    """How a tick is shown, and how often: a live panel on a terminal, a line elsewhere, nothing for programs."""
    if run.as_json:
        yield (lambda _tick: None), LINE_INTERVAL_S
    elif not run.out.is_terminal:
        yield (lambda tick: run.out.print(as_line(tick), soft_wrap=True)), LINE_INTERVAL_S
    else:
        with Live(console=run.out, auto_refresh=False) as live:
            yield (lambda tick: live.update(as_panel(tick), refresh=True)), PANEL_INTERVAL_S


# -- the end --------------------------------------------------------------------------------------


def _print_summary(
    run: Run, watch: _CellSampler, tick: CellSample, verdict: Verdict, missing: dict[str, list[str]], *, agree: bool
) -> None:
    cell = watch.cell
    run.out.print(
        f"\n{tick.elapsed_s:.1f} s: {cell.published:,} events of {tick.nodes:,} nodes published, {cell.applied:,} "
        f"applied ({tick.applied / tick.elapsed_s:,.0f}/s), {tick.dead_letters:,} dead letters"
    )
    for view, seen in zip(verdict.views.values(), tick.designs, strict=True):
        run.out.print(
            f"{view.design:<9} {len(view.nodes):,} nodes, refreshed in {seen.refresh_p50_s * 1000:.2f} ms (p50)"
        )
    if agree:
        designs = " and ".join(verdict.views)
        run.out.print(f"[green]agree[/]: {designs} are equal node by node, and are what the agents say")
        return
    run.out.print("[bold red]disagree[/]:")
    check.show(run, verdict)
    for design, names in missing.items():
        if names:
            run.out.print(f"{design} lacks {len(names):,} nodes, as {names[0]}", markup=False)


def _as_json(
    watch: _CellSampler, tick: CellSample, verdict: Verdict, missing: dict[str, list[str]], *, agree: bool
) -> dict[str, Any]:
    answer = check.as_json(verdict)
    designs = {
        design.design: {
            "nodes": len(view.nodes),
            "age": design.age_s,
            "refresh_p50_ms": round(design.refresh_p50_s * 1000, 3),
            "refresh_p95_ms": round(design.refresh_p95_s * 1000, 3),
            "stale": design.stale,
            "incomplete": sorted(view.incomplete),
            "missing": missing[view.design],
        }
        for view, design in zip(verdict.views.values(), tick.designs, strict=True)
    }
    return {
        "agree": agree,
        "seconds": round(tick.elapsed_s, 3),
        "nodes": tick.nodes,
        "published": watch.cell.published,
        "applied": watch.cell.applied,
        "events_per_s": round(tick.applied / tick.elapsed_s, 1),
        "dead_letters": watch.cell.consumer.stats.counts.dead_letters,
        "designs": designs,
        "pairs": answer["pairs"],
    }

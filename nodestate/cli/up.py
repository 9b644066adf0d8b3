"""The command ``up``: run a whole cell in one process, show it, and compare its designs at the end."""

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
from nodestate.cli.shutdown import StopRequest, stop_on_signals
from nodestate.cli.up_screen import SHOWN_CLASSES, CellSample, DesignSample, as_line, as_panel
from nodestate.config import Config
from nodestate.designs.inspection import CellInspector
from nodestate.designs.stored_design import StoredDesign
from nodestate.text import count_text
from nodestate.view.view import View

READ_INTERVAL_S: Final = 0.1
"""Time between two refreshes of the views."""
PANEL_INTERVAL_S: Final = 0.5
"""Time between two drawings of the panel on a terminal."""
LINE_INTERVAL_S: Final = 1.0
"""Time between two lines, if the output is not a terminal."""
MAX_REFRESHES_COUNT: Final = 300
"""The last refreshes of a design from which its quantiles are computed."""
DRAIN_S: Final = 20.0
"""How long the designs may take at the end until they have all events and agree."""
HOST_INTERVAL_S: Final = 1.0
"""Time between two measurements of this host."""
QUICK: Final = {"heartbeat_s": 2.0, "resync_jitter_s": 1.0}
"""Other defaults than in ``Config``, for this command: partitions are complete within seconds."""


@cell_command("up", example="nodestate up --nodes 1000 --rate 500 --seconds 15", embedded=True)
@click.option("--nodes", type=click.IntRange(1), default=100, help="Number of simulated nodes.")
@click.option(
    "--rate", type=click.FloatRange(0), default=200.0, help="Changes per second of all simulated nodes together."
)
@click.option(
    "--seed",
    type=int,
    default=0,
    help="Seed of the simulation; two runs with the same seed have the same nodes and changes.",
)
@click.option("--seconds", type=float, metavar="S", help="End after S seconds.", show_default="run until Ctrl-C")
def command(run: Run, nodes: int, rate: float, seed: int, seconds: float | None) -> int:
    """Run a cell in one process: a simulated fleet and this host as nodes, a consumer, and a reader for each design.

    Broker and store are embedded unless --broker and --store name others. URLs in the environment or in a settings file
    are ignored, so that simulated nodes never get into a real cell by accident.

    The columns of the table: "lag": events that agents sent and that the view lacks. "stale": nodes whose
    agent gave no sign of life during three heartbeats; in the first second that is every node. "incomplete": nodes and
    partitions of which the view may miss an event.

    At the end the agents stop, and the views of all designs are compared node by node with each other and with the
    agents. Exit code 0 if all agree, else 1.
    """
    config = _quick(
        run.settings(broker=run.common_option("broker") or "memory://", store=run.common_option("store") or "memory://")
    )
    if config.broker != run.config.broker or config.store != run.config.store:
        run.err.print("using the embedded broker and store; --broker and --store name others", markup=False)
    host = HostSource(zone="here", every_s=HOST_INTERVAL_S)
    fleet = SimulatedFleet(nodes, seed=seed, changes_per_s=rate)
    cell = EmbeddedCell(config, [fleet, host])
    inspector = CellInspector(config, [StoredDesign(design, config.partitions) for design in config.designs])
    try:
        sampler = _CellSampler(cell, inspector, host.name, seconds)
        with stop_on_signals(seconds) as stop:
            _show_until_stopped(run, sampler, stop)
        sample = sampler.sample()
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
        run.print_json(_as_json(sampler, sample, verdict, missing, agree=agree))
    else:
        _print_summary(run, sampler, sample, verdict, missing, agree=agree)
    return 0 if agree else 1


def _quick(config: Config) -> Config:
    usual = Config()
    changes = {name: value for name, value in QUICK.items() if getattr(config, name) == getattr(usual, name)}
    return msgspec.structs.replace(config, **changes)


# -- watching -------------------------------------------------------------------------------------


class _CellSampler:
    """Reads a running cell and keeps the durations of its refreshes."""

    def __init__(self, cell: EmbeddedCell, inspector: CellInspector, host: str, seconds: float | None) -> None:
        # The running cell.
        self.cell = cell
        # Name of this machine as a node.
        self.host = host
        # Seconds after which the command ends; None: with Ctrl-C.
        self.seconds = seconds
        # By design, the durations of its last refreshes.
        self.refreshes_s: dict[str, deque[float]] = {
            design: deque(maxlen=MAX_REFRESHES_COUNT) for design in cell.config.designs
        }
        # Reads all designs.
        self._inspector = inspector
        # Start on the monotonic clock.
        self._started = time.monotonic()
        # Times and counts of applied events at the last samples.
        self._applied: deque[tuple[float, int]] = deque([(self._started, 0)], maxlen=5)

    def read(self) -> None:
        """Refresh the view of every design, as a scheduler does before each decision.

        Raises the error that ended a thread of the cell, if there is one.
        """
        self.cell.check()
        for name, _, seconds in self._inspector.timed_views():
            self.refreshes_s[name].append(seconds)

    def sample(self) -> CellSample:
        """Return the present figures of the cell."""
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
            complete=sum(partition.complete for partition in view.partitions),
        )


def quantiles(seconds: deque[float]) -> tuple[float, float]:
    """Return the median and the 95th percentile of durations in seconds; 0 if there are none."""
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


def _show_until_stopped(run: Run, sampler: _CellSampler, stop: StopRequest) -> None:
    """Refresh the views and show the figures until the command is to stop."""
    with _display(run) as (show, every_s):
        show_at = 0.0
        while not stop():
            sampler.read()
            if time.monotonic() >= show_at:
                show_at = time.monotonic() + every_s
                show(sampler.sample())
            stop.wait(READ_INTERVAL_S)


@contextmanager
def _display(run: Run) -> Iterator[tuple[Callable[[CellSample], None], float]]:
    """Give the function that shows a sample, and the seconds between two of them.

    A terminal gets a live panel, a file or pipe one line a sample, and a program (``--json``) nothing.
    """
    if run.as_json:
        yield (lambda _sample: None), LINE_INTERVAL_S
    elif not run.out.is_terminal:
        yield (lambda sample: run.out.print(as_line(sample), soft_wrap=True)), LINE_INTERVAL_S
    else:
        with Live(console=run.out, auto_refresh=False) as live:
            yield (lambda sample: live.update(as_panel(sample), refresh=True)), PANEL_INTERVAL_S


# -- the end --------------------------------------------------------------------------------------


def _print_summary(
    run: Run, sampler: _CellSampler, sample: CellSample, verdict: Verdict, missing: dict[str, list[str]], *, agree: bool
) -> None:
    cell = sampler.cell
    run.out.print(
        f"\n{sample.elapsed_s:.1f} s: {count_text(cell.published, 'event')} of {count_text(sample.nodes, 'node')} "
        f"published, {cell.applied:,} applied ({sample.applied / sample.elapsed_s:,.0f}/s), "
        f"{count_text(sample.dead_letters, 'dead letter')}"
    )
    width = max(map(len, verdict.views))
    for view, seen in zip(verdict.views.values(), sample.designs, strict=True):
        run.out.print(
            f"{view.design:<{width}}  {count_text(len(view.nodes), 'node')}, "
            f"refreshed in {seen.refresh_p50_s * 1000:.2f} ms (p50)"
        )
    if agree:
        designs = " and ".join(verdict.views)
        run.out.print(f"[green]agree[/]: {designs} are equal node by node, and equal to the reports of the agents")
        return
    run.out.print("[bold red]disagree[/]:")
    check.show(run, verdict)
    for design, names in missing.items():
        if names:
            run.out.print(f"{design} lacks {count_text(len(names), 'node')}, for example {names[0]}", markup=False)


def _as_json(
    sampler: _CellSampler, sample: CellSample, verdict: Verdict, missing: dict[str, list[str]], *, agree: bool
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
        for view, design in zip(verdict.views.values(), sample.designs, strict=True)
    }
    return {
        "agree": agree,
        "seconds": round(sample.elapsed_s, 3),
        "nodes": sample.nodes,
        "published": sampler.cell.published,
        "applied": sampler.cell.applied,
        "events_per_s": round(sample.applied / sample.elapsed_s, 1),
        "dead_letters": sampler.cell.consumer.stats.counts.dead_letters,
        "designs": designs,
        "pairs": answer["pairs"],
    }

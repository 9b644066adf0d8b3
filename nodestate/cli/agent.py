"""The command ``agent``: report the state of nodes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

import click

from nodestate.agent.agent import Agent
from nodestate.agent.allocation_file import AllocationFile
from nodestate.agent.incarnation import state_directory
from nodestate.agent.sources import StateSource
from nodestate.agent.sources.host import HostSource
from nodestate.agent.sources.installed import installed_sources, open_installed_source
from nodestate.agent.sources.libvirt import LibvirtSource
from nodestate.agent.sources.simulated import SimulatedFleet, fleet_name
from nodestate.broker import KombuSink
from nodestate.cli.command import SECONDS, Run, cell_command
from nodestate.cli.metrics_listen import metrics_option, metrics_server
from nodestate.cli.shutdown import stop_on_signals
from nodestate.cli.streams import lost_log_lines, lost_log_lines_text
from nodestate.ports import SystemClock
from nodestate.text import count_text

OWN_SOURCES: Final = ("host", "simulated", "libvirt")
"""The sources of nodestate. Other packages add more by entry points."""


@cell_command(
    "agent",
    example="nodestate agent --source host\nnodestate agent --source simulated --nodes 1000 --rate 200",
    log_level="info",
)
@click.option(
    "--source",
    type=click.Choice([*OWN_SOURCES, *installed_sources(OWN_SOURCES)]),
    default="host",
    help="What to report: this machine, the hypervisor that libvirt controls, a simulated fleet, or a source that an "
    "installed package adds.",
)
@click.option("--nodes", type=click.IntRange(1), default=100, help="Simulated fleet: number of nodes.")
@click.option(
    "--rate", type=click.FloatRange(0), default=10.0, help="Simulated fleet: changes per second of all nodes together."
)
@click.option(
    "--seed",
    type=int,
    default=0,
    help="Simulated fleet: seed; two runs with the same seed have the same nodes and changes.",
)
@click.option("--prefix", default="compute-", help="Simulated fleet: text before the number in a node's name.")
@click.option("--name", metavar="NAME", help="Host, libvirt: name of the node.", show_default="name of this machine")
@click.option("--zone", default="", metavar="ZONE", help="Host, libvirt: zone of the node.", show_default="none")
@click.option("--uri", default="qemu:///system", metavar="URI", help="libvirt: URI of the hypervisor.")
@metrics_option
@click.option(
    "--seconds", type=SECONDS, metavar="S", help="End after S seconds.", show_default="run until SIGTERM or Ctrl-C"
)
@click.option(
    "--leave",
    is_flag=True,
    help="At the end, report that the nodes are gone for good, so that views no longer show them. A node with "
    "allocations stays in views, down.",
)
def command(
    run: Run,
    source: str,
    nodes: int,
    rate: float,
    seed: int,
    prefix: str,
    name: str | None,
    zone: str,
    uri: str,
    metrics_listen: str | None,
    seconds: float | None,
    leave: bool,
) -> None:
    """Publish the state of nodes, each change and heartbeats; answer requests for reports; carry out orders of
    schedulers.

    On SIGTERM, the agent waits until the broker has confirmed the newest states, then ends. The nodes stay in views and
    become stale, so that an agent can be restarted, for example for an update. With --leave they are removed, except
    nodes with allocations, which stay, down.
    """
    run.require_shared(broker=True)
    sources: Sequence[StateSource]
    if source == "host":
        sources = [HostSource(name=name or "", zone=zone)]
    elif source == "libvirt":
        sources = [LibvirtSource(uri, name=name or "", zone=zone)]
    elif source != "simulated":
        sources = [open_installed_source(source, run.config)]
    else:
        allocations = AllocationFile(state_directory(run.config), fleet_name(prefix, seed))
        sources = [SimulatedFleet(nodes, seed=seed, changes_per_s=rate, prefix=prefix, allocations=allocations)]
    sink = KombuSink(run.config)
    try:
        agent = Agent(run.config, sources, sink, SystemClock(), random.Random(), inbox=sink)
        try:
            with stop_on_signals(seconds) as stop, metrics_server(run, metrics_listen, stop, agent=agent, sink=sink):
                agent.run(stop)
        finally:
            agent.close(leave=leave)
    finally:
        sink.close()
    if run.as_json:
        counts = {
            **asdict(agent.stats),
            "unsigned_orders": sink.unsigned_orders,
            "refused_messages": sink.bad_orders + sink.bad_resyncs,
            "lost_log_lines": lost_log_lines(),
        }
        run.print_json({"source": source, "nodes": len(agent.publishers), **counts})
    else:
        stats = agent.stats
        run.out.print(
            f"{count_text(len(agent.publishers), 'node')}: {count_text(stats.reports, 'report')}, "
            f"{count_text(stats.changes, 'change')}, {count_text(stats.heartbeats, 'heartbeat')}; "
            f"{stats.admitted:,} admitted, {stats.refused:,} refused, "
            f"{stats.ended:,} ended" + lost_log_lines_text()
        )

"""``nodestate agent``: reports the state of nodes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict

import click

from nodestate.agent.agent import Agent
from nodestate.agent.allocation_file import AllocationFile
from nodestate.agent.incarnation import state_directory
from nodestate.agent.sources import StateSource
from nodestate.agent.sources.host import HostSource
from nodestate.agent.sources.libvirt import LibvirtSource
from nodestate.agent.sources.simulated import SimulatedFleet, fleet_name
from nodestate.broker import KombuSink
from nodestate.cli.command import SECONDS, Run, cell_command
from nodestate.cli.shutdown import stop_on_signals
from nodestate.ports import SystemClock


@cell_command(
    "agent",
    example="nodestate agent --source host\nnodestate agent --source simulated --nodes 1000 --rate 200",
    log_level="info",
)
@click.option("--source", type=click.Choice(["host", "simulated", "libvirt"]), default="host", help="What is reported.")
@click.option("--nodes", type=click.IntRange(1), default=100, help="simulated: how many nodes.")
@click.option("--rate", type=click.FloatRange(0), default=10.0, help="simulated: changes per second, of all together.")
@click.option("--seed", type=int, default=0, help="simulated: the same seed, the same fleet.")
@click.option("--prefix", default="compute-", help="simulated: what the nodes' names begin with.")
@click.option("--name", metavar="NAME", help="host, libvirt: the node's name.  [default: the host's name]")
@click.option("--zone", default="", metavar="ZONE", help="host, libvirt: the node's zone.")
@click.option("--uri", default="qemu:///system", metavar="URI", help="libvirt: which hypervisor.")
@click.option("--seconds", type=SECONDS, metavar="S", help="End after so long.")
@click.option("--leave", is_flag=True, help="At the end, say that the nodes are gone for good.")
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
    seconds: float | None,
    leave: bool,
) -> None:
    """Publish the state of nodes and what changes, give signs of life, answer resyncs, and carry out orders.

    SIGTERM ends it when the broker has the newest states. Nodes then stay known and grow stale, as an agent that is
    updated should not empty the view; --leave says that they will not come back.
    """
    run.require_shared(broker=True)
    sources: Sequence[StateSource]
    if source == "host":
        sources = [HostSource(name=name or "", zone=zone)]
    elif source == "libvirt":
        sources = [LibvirtSource(uri, name=name or "", zone=zone)]
    else:
        kept = AllocationFile(state_directory(run.config), fleet_name(prefix, seed))
        sources = [SimulatedFleet(nodes, seed=seed, changes_per_s=rate, prefix=prefix, allocations=kept)]
    sink = KombuSink(run.config)
    try:
        agent = Agent(run.config, sources, sink, SystemClock(), random.Random(), inbox=sink)
        with stop_on_signals(seconds) as stop:
            try:
                agent.run(stop)
            finally:
                agent.close(leave=leave)
    finally:
        sink.close()
    if run.as_json:
        run.print_json({"source": source, "nodes": len(agent.publishers), **asdict(agent.stats)})
    else:
        stats = agent.stats
        run.out.print(
            f"{len(agent.publishers):,} nodes: {stats.reports:,} reports, {stats.changes:,} changes, "
            f"{stats.heartbeats:,} heartbeats; {stats.admitted:,} admitted, {stats.refused:,} refused, "
            f"{stats.ended:,} ended"
        )

"""``nodestate resync``: ask agents to report in full."""

from __future__ import annotations

import click

from nodestate.broker import KombuResyncSender
from nodestate.cli.command import SECONDS, Run, cell_command
from nodestate.cli.inspection import read_control
from nodestate.ports import Resync


@cell_command("resync", example="nodestate resync --node compute-0001 --node compute-0002")
@click.option("--node", "nodes", multiple=True, metavar="NAME", help="This node. May be given several times.")
@click.option(
    "--partition", "numbers", multiple=True, type=int, metavar="P", help="All nodes of this partition of what is read."
)
@click.option("--all", "everything", is_flag=True, help="All nodes of the cell.")
@click.option(
    "--jitter", type=SECONDS, metavar="S", help="Spread the answers over S seconds.  [default: the settings']"
)
def command(run: Run, nodes: tuple[str, ...], numbers: tuple[int, ...], everything: bool, jitter: float | None) -> None:
    """Ask agents for full reports: of some nodes, of whole partitions, or of all."""
    if [bool(nodes), bool(numbers), everything].count(True) != 1:
        raise click.UsageError("say who is asked: --node NAME…, --partition P…, or --all")
    run.require_shared(broker=True)
    layout = read_control(run.config).reads.partitions if numbers else run.config.partitions
    for number in numbers:
        if not 0 <= number < layout:
            raise click.UsageError(f"there is no partition {number}, the last is {layout - 1}")
    spread_s = jitter if jitter is not None else 0.0 if nodes else run.config.resync_jitter_s
    sender = KombuResyncSender(run.config)
    try:
        sender.request_resync(Resync(nodes, numbers, layout, spread_s))
    finally:
        sender.close()
    if run.as_json:
        run.print_json({"nodes": nodes, "partitions": numbers, "all": everything, "jitter": spread_s})
    else:
        whom = f"{len(nodes)} nodes" if nodes else f"partitions {list(numbers)}" if numbers else "all nodes"
        run.out.print(f"asked {whom} to report within {spread_s:g} s", markup=False)

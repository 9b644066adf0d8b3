"""The command ``resync``: ask agents for full reports."""

from __future__ import annotations

from collections.abc import Sequence

import click

from nodestate.broker import KombuResyncSender, collect_census
from nodestate.cli.command import SECONDS, Run, cell_command
from nodestate.cli.node_name import NODE
from nodestate.config import Config
from nodestate.designs.inspection import read_control
from nodestate.errors import NotFoundError
from nodestate.ports import Resync
from nodestate.text import count_text


@cell_command("resync", example="nodestate resync --node compute-0001 --node compute-0002")
@click.option(
    "--node", "nodes", type=NODE, multiple=True, metavar="NAME", help="Ask this node. Can be given several times."
)
@click.option(
    "--partition",
    "numbers",
    multiple=True,
    type=int,
    metavar="P",
    help="Ask all nodes of partition P of the design that readers read. Can be given several times.",
)
@click.option("--all", "everything", is_flag=True, help="Ask all nodes of the cell.")
@click.option(
    "--jitter",
    type=SECONDS,
    metavar="S",
    help="Spread the reports over S seconds.",
    show_default="0 with --node, else the setting resync_jitter_s",
)
def command(run: Run, nodes: tuple[str, ...], numbers: tuple[int, ...], everything: bool, jitter: float | None) -> None:
    """Ask agents for full reports of some nodes, of all nodes of some partitions, or of all nodes.

    Consumers ask by themselves when they miss an event; this command is for an operator who wants to be sure. With
    --node, the exit code is 1 if no agent answers for one of the nodes within the setting broker_timeout_s.
    """
    if [bool(nodes), bool(numbers), everything].count(True) != 1:
        raise click.UsageError(
            "no nodes, or several kinds, were named: give either --node NAME, or --partition P, or --all"
        )
    run.require_shared(broker=True)
    layout = read_control(run.config).reads.partitions if numbers else run.config.partitions
    for number in numbers:
        if not 0 <= number < layout:
            raise click.UsageError(f"--partition {number}: the cell has the partitions 0 to {layout - 1}")
    spread_s = jitter if jitter is not None else 0.0 if nodes else run.config.resync_jitter_s
    sender = KombuResyncSender(run.config)
    try:
        sender.request_resync(Resync(nodes, numbers, layout, spread_s))
    finally:
        sender.close()
    if nodes:
        _require_agents(run.config, nodes)
    if run.as_json:
        run.print_json({"nodes": nodes, "partitions": numbers, "all": everything, "jitter": spread_s})
    else:
        whom = count_text(len(nodes), "node") if nodes else f"partitions {list(numbers)}" if numbers else "all nodes"
        run.out.print(f"asked {whom} to report within {spread_s:g} s", markup=False)


def _require_agents(config: Config, nodes: Sequence[str]) -> None:
    """Raise ``NotFoundError`` unless agents answer for all of these nodes."""
    answers = collect_census(config, Resync(tuple(nodes)), config.broker_timeout_s, awaited=nodes)
    silent = [node for node in nodes if node not in answers]
    if silent:
        raise NotFoundError(
            "--node",
            f"no agent answered for {', '.join(silent)} within {config.broker_timeout_s:g} s: check the name, and that "
            "the node's agent runs",
        )

"""The commands ``node …``: operations on whole nodes."""

from __future__ import annotations

import time
from collections.abc import Sequence

import click

from nodestate.broker import KombuCourier
from nodestate.cli.command import SECONDS, Run, cell_command, operator_name
from nodestate.cli.node_name import NODE
from nodestate.designs.reader import Reader
from nodestate.errors import NodestateError
from nodestate.model import Receipt
from nodestate.scheduling import NodeOrderResult, NodeOrders


@click.group("node", epilog="\b\nExample:\n  nodestate node cordon compute-0001 --reason 'new disk'")
def command() -> None:
    """Close nodes to new instances, and open them again.

    The agent of a cordoned node stores the cordon. So the node stays closed after a restart of the agent, of the
    consumers and of the store, until 'uncordon'. Its instances stay, and can be moved, resized and terminated.
    """


_nodes_argument = click.argument("nodes", metavar="NODE…", type=NODE, nargs=-1, required=True)
_timeout_option = click.option(
    "--timeout", type=SECONDS, default=10.0, metavar="S", help="Wait at most S seconds for the agents."
)


@cell_command(
    "cordon",
    summary="Close nodes to new instances.",
    example="nodestate node cordon compute-0001 --reason 'new disk'",
)
@_nodes_argument
@click.option("--reason", default="", metavar="TEXT", help="Why the nodes are closed.", show_default="none")
@click.option(
    "--by",
    metavar="NAME",
    help="The name of the person or program that closes the nodes.",
    show_default="user and host of this process",
    default=None,
)
@_timeout_option
def cordon(run: Run, nodes: tuple[str, ...], reason: str, by: str | None, timeout: float) -> int:
    """Close each NODE to new instances, until 'nodestate node uncordon'.

    The node's agent stores the cordon and refuses new instances at once. Views show the node as 'draining', with
    name, time and reason in namespaces.nodestate.cordon. A status 'maintenance' or 'down' of the node itself stays.

    Exit code 1 if an agent refuses or does not answer within --timeout. Nothing is queued then: a node whose agent is
    away gets no new instances anyway.

    JSON: {"nodes": [{"node", "done", "version", "refused", "detail"}]}.
    """
    run.require_shared(broker=True, store=True)
    name = operator_name() if by is None else by
    courier = KombuCourier(run.config)
    try:
        results = NodeOrders(courier).cordon(_distinct(nodes), by=name, reason=reason, timeout_s=timeout)
    finally:
        courier.close()
    return _print_results(run, results, "is cordoned: it gets no new instances")


@cell_command(
    "uncordon", summary="Open nodes to new instances again.", example="nodestate node uncordon compute-0001"
)  # fmt: skip
@_nodes_argument
@_timeout_option
def uncordon(run: Run, nodes: tuple[str, ...], timeout: float) -> int:
    """Open each NODE to new instances again. A node that is not cordoned stays as it is.

    The node then has the status that its own source of state gives. Exit code 1 if an agent refuses or does not answer
    within --timeout.

    JSON: {"nodes": [{"node", "done", "version", "refused", "detail"}]}.
    """
    run.require_shared(broker=True, store=True)
    courier = KombuCourier(run.config)
    try:
        results = NodeOrders(courier).uncordon(_distinct(nodes), timeout_s=timeout)
    finally:
        courier.close()
    return _print_results(run, results, "is not cordoned")


def _distinct(nodes: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(nodes))


def _print_results(run: Run, results: Sequence[NodeOrderResult], done: str) -> int:
    """Wait until views show the effects, so that the next command sees them, and print the results."""
    _wait_until_shown(run, results)
    if run.as_json:
        run.print_json(
            {
                "nodes": [
                    {
                        "node": one.node,
                        "done": not one.refused,
                        "version": None
                        if one.version is None
                        else {"incarnation": one.version.incarnation, "generation": one.version.generation},
                        "refused": one.refused,
                        "detail": one.detail,
                    }
                    for one in results
                ]
            }
        )
    for one in results if not run.as_json else ():
        text = f"{one.node} {done}" if not one.refused else f"{one.node}: {one.refused}: {one.detail}"
        run.out.print(text, markup=False, soft_wrap=True)
    return 1 if any(one.refused for one in results) else 0


def _wait_until_shown(run: Run, results: Sequence[NodeOrderResult]) -> None:
    """Wait at most ``answer_timeout_s`` seconds until a view shows all results. Print a warning if none does."""
    deadline = time.monotonic() + run.config.answer_timeout_s
    try:
        with Reader(run.config) as reader:
            for one in results:
                if one.version is not None:
                    left_s = max(0.0, deadline - time.monotonic())
                    reader.read(at_least=Receipt(one.node, one.version), on_stale="flag", timeout=left_s)
    except NodestateError as error:
        run.err.print(f"nodestate: done, but no view shows it yet: {error}", markup=False, soft_wrap=True)


for _step in (cordon, uncordon):
    command.add_command(_step)

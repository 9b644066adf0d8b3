"""The commands ``node …``: operations on whole nodes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import click
import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from nodestate.broker import KombuCourier, KombuSink
from nodestate.cli.command import SECONDS, Run, cell_command, operator_name
from nodestate.cli.node_name import NODE
from nodestate.cli.scheduling import (
    make_table,
    max_age_option,
    node_max_age_option,
    open_scheduler,
    wait_until_shown,
)
from nodestate.designs.reader import Reader
from nodestate.errors import NodestateError
from nodestate.findings import Finding, examine_node
from nodestate.model import Receipt
from nodestate.scheduling import (
    NodeDetails,
    NodeDrain,
    NodeOrderResult,
    NodeOrders,
    draining,
    forget_node,
    node_details,
)
from nodestate.scheduling.drain import OnProgress
from nodestate.text import count_text


@click.group("node", epilog="\b\nExample:\n  nodestate node cordon compute-0001 --reason 'new disk'")
def command() -> None:
    """Show nodes, close them to new instances, open and drain them, and forget nodes that are gone.

    The agent of a cordoned node stores the cordon. So the node stays closed after a restart of the agent, of the
    consumers and of the store, until 'uncordon'. Its instances stay, and can be moved, resized and terminated.
    """


@cell_command("show", summary="Show one node in full.", example="nodestate node show compute-0001")
@click.argument("node", metavar="NODE", type=NODE)
@max_age_option
def show(run: Run, node: str, max_age: float | None) -> None:
    """Show NODE in full: amounts with claims, allocations with hints, last sign of life, cordon, conditions, findings.

    Conditions: cordoned, stale, incomplete, damaged, exceeds-ceilings, left, same-name, claims-unsure. Findings are the
    faults that 'nodestate doctor' finds on this node, each with its remedy.

    JSON: {"node", "status", "is_open", "zone", "incarnation", "generation", "reported_at", "last_seen_s",
    "clock_ahead_s", "classes", "traits", "aggregates", "taints", "allocations", "claims", "cordon", "conditions",
    "namespaces", "findings": [{"code", "severity", "subject", "says", "remedy", "docs"}]}.
    """
    with open_scheduler(run, boots=False, max_age=max_age) as scheduler:
        details = node_details(scheduler.session, node)
        view = scheduler.refresher.reader.read(max_age=math.inf, node_max_age=math.inf, on_stale="flag")
    findings = list(examine_node(run.config, view, node, time.time()))
    if run.as_json:
        documents = [msgspec.to_builtins(finding.document()) for finding in findings]
        run.print_json({**msgspec.to_builtins(details), "findings": documents})
    else:
        _print_details(run, details, findings)


def _print_details(run: Run, details: NodeDetails, findings: Sequence[Finding]) -> None:
    seen = "no sign of life is known" if details.last_seen_s is None else f"last seen {details.last_seen_s:.1f} s ago"
    zone = f", zone {details.zone}" if details.zone else ""
    closed = "" if details.is_open else "; it gets no instances"
    run.out.print(f"{details.node}: {details.status}{zone}, {seen}{closed}", markup=False, soft_wrap=True)
    if details.cordon is not None:
        why = f": {details.cordon['why']}" if details.cordon.get("why") else ""
        at = _time_text(details.cordon.get("at"))
        run.out.print(f"cordoned by {details.cordon.get('by')} at {at}{why}", markup=False, soft_wrap=True)
    if details.clock_ahead_s:
        run.out.print(f"its clock is ahead of this machine's by at least {details.clock_ahead_s:.1f} s")
    lists = (("conditions", details.conditions), ("traits", details.traits))
    for title, words in (*lists, ("aggregates", details.aggregates), ("taints", details.taints)):
        if words:
            run.out.print(f"{title}: {', '.join(words)}", markup=False, soft_wrap=True)
    for finding in findings:
        text = f"{finding.level} {finding.code}: {finding.says}; {finding.advice}"
        run.out.print(text, markup=False, soft_wrap=True)
    table = make_table("class", "total>", "used>", "claimed>", "free>")
    for name, one in details.classes.items():
        table.add_row(Text(name), *(f"{amount:,}" for amount in (one.total, one.used, one.claimed, one.free)))
    run.out.print(table)
    rows = [(name, one, "allocation") for name, one in details.allocations.items()]
    rows += [(name, {"group": group}, "claim") for name, group in details.claims.items()]
    if not rows:
        return
    table = make_table("instance", "kind", "resources", "group", "hints")
    for instance, content, kind in rows:
        amounts = ", ".join(f"{name}={amount}" for name, amount in content.get("resources", {}).items())
        hints = msgspec.json.encode(content["hints"]).decode() if content.get("hints") else ""
        table.add_row(*map(Text, (instance, kind, amounts, content.get("group") or "", hints)))
    run.out.print(table)


def _time_text(seconds: object) -> str:
    """Return a time in seconds since 1970 for people. A node may report anything in its place."""
    try:
        return datetime.fromtimestamp(float(str(seconds))).astimezone().isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return "an unknown time"


_nodes_argument = click.argument("nodes", metavar="NODE…", type=NODE, nargs=-1, required=True)
_reason_option = click.option(
    "--reason", default="", metavar="TEXT", help="Why the nodes are closed.", show_default="none"
)
_by_option = click.option(
    "--by",
    metavar="NAME",
    help="The name of the person or program that closes the nodes.",
    show_default="user and host of this process",
    default=None,
)
_timeout_option = click.option(
    "--timeout", type=SECONDS, default=10.0, metavar="S", help="Wait at most S seconds for the agents."
)


@cell_command(
    "cordon",
    summary="Close nodes to new instances.",
    example="nodestate node cordon compute-0001 --reason 'new disk'",
)
@_nodes_argument
@_reason_option
@_by_option
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


@cell_command(
    "drain",
    summary="Close nodes, and move their instances to other nodes.",
    example="nodestate node drain compute-0001 compute-0002 --deadline 600 --reason 'new kernel'",
)
@_nodes_argument
@_reason_option
@_by_option
@click.option("--deadline", type=SECONDS, default=600.0, metavar="S", help="Move no further instance after S seconds.")
@click.option(
    "--max-parallel",
    type=click.IntRange(min=1),
    default=10,
    metavar="N",
    help="Move at most N instances at a time; members of one affinity group move together.",
)
@_timeout_option
@max_age_option
@node_max_age_option
def drain_command(
    run: Run,
    nodes: tuple[str, ...],
    reason: str,
    by: str | None,
    deadline: float,
    max_parallel: int,
    timeout: float,
    max_age: float | None,
    node_max_age: float | None,
) -> int:
    """Cordon each NODE, then move all its instances to other nodes, under the requests that they were booted with.

    The nodes stay cordoned. Exit code 1 if an instance is left on one of the nodes, with the reason of each, or if an
    agent does not take the cordon: nothing is moved off its node then. If the node is dead, use 'nodestate evacuate'.

    JSON: {"nodes": [{"node", "cordoned", "detail", "moved": [{"instance", "node"}], "left": [{"instance",
    "reason"}]}]}.
    """
    with open_scheduler(run, boots=True, max_age=max_age, node_max_age=node_max_age) as scheduler:
        with _drain_progress(run) as on_progress:
            operation = draining(
                scheduler.session,
                scheduler.migrations,
                _distinct(nodes),
                by=operator_name() if by is None else by,
                reason=reason,
                timeout_s=timeout,
                deadline_s=deadline,
                max_parallel=max_parallel,
                on_progress=on_progress,
            )
            results = scheduler.session.complete(operation)
        wait_until_shown(run, scheduler, [outcome for one in results for outcome in one.moved])
    if run.as_json:
        run.print_json({"nodes": [_drain_json(one) for one in results]})
    for one in results if not run.as_json else ():
        _print_drain(run, one)
    return 0 if all(one.is_drained for one in results) else 1


@contextmanager
def _drain_progress(run: Run) -> Iterator[OnProgress]:
    """Show a progress bar on a terminal; print nothing into files, pipes or JSON."""
    columns = (SpinnerColumn(), TextColumn("draining"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    disable = run.as_json or not run.err.is_terminal
    with Progress(*columns, console=run.err, transient=True, disable=disable) as shown:
        task = shown.add_task("draining", total=None)

        def show_progress(drains: Sequence[NodeDrain]) -> None:
            done = sum(len(one.moved) + sum(bool(left.reason) for left in one.left) for one in drains)
            shown.update(task, completed=done, total=sum(len(one.moved) + len(one.left) for one in drains))

        yield show_progress


def _drain_json(one: NodeDrain) -> dict[str, Any]:
    return {
        "node": one.node,
        "cordoned": not one.cordon.refused,
        "detail": one.cordon.detail,
        "moved": [{"instance": outcome.instance, "node": outcome.node} for outcome in one.moved],
        "left": [{"instance": left.instance, "reason": left.reason} for left in one.left],
    }


def _print_drain(run: Run, one: NodeDrain) -> None:
    if one.cordon.refused:
        run.out.print(f"{one.node}: {one.cordon.refused}: {one.cordon.detail}", markup=False, soft_wrap=True)
        return
    moved = count_text(len(one.moved), "instance moved", "instances moved")
    run.out.print(f"{one.node} is cordoned: {moved}, {len(one.left):,} left", markup=False)
    if one.moved:
        table = make_table("instance", "node")
        for outcome in one.moved:
            table.add_row(Text(outcome.instance), Text(outcome.node))
        run.out.print(table)
    for left in one.left:
        run.out.print(f"left: {left.instance}: {left.reason}", markup=False, soft_wrap=True)


@cell_command(
    "forget", summary="Remove a node that is gone from all views.", example="nodestate node forget compute-0001"
)  # fmt: skip
@click.argument("node", metavar="NODE", type=NODE)
@click.option("--force", is_flag=True, help="Forget the node even if it gave a sign of life lately.")
@click.option("--timeout", type=SECONDS, default=30.0, metavar="S", help="Wait at most S seconds for views.")
def forget(run: Run, node: str, force: bool, timeout: float) -> None:
    """Remove NODE and its allocations from the views of all designs, because it is gone for good.

    A node that left with allocations stays 'down' until they are gone: move its instances with 'nodestate evacuate'
    first. The command refuses a node that gave a sign of life in the time of three heartbeats and 5 seconds, unless
    --force is given. If the node's agent is started again, the node is back.

    JSON: {"node", "allocations"}: the number of allocations that were forgotten.
    """
    run.require_shared(broker=True, store=True)
    sink = KombuSink(run.config, control=False)
    try:
        with Reader(run.config) as reader:
            count = forget_node(run.config, reader, sink, node, force=force, timeout_s=timeout)
    finally:
        sink.close()
    if run.as_json:
        run.print_json({"node": node, "allocations": count})
    else:
        run.out.print(f"{node} is forgotten, with {count_text(count, 'allocation')}", markup=False)


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


for _step in (show, cordon, uncordon, drain_command, forget):
    command.add_command(_step)

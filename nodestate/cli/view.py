"""The command ``view``: print all nodes as a scheduler sees them."""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import click
import msgspec
from click.core import ParameterSource
from rich.table import Table
from rich.text import Text

from nodestate.cli.command import SECONDS, Run, cell_command
from nodestate.cli.event_stream import reports_of
from nodestate.cli.node_name import NODE
from nodestate.designs.inspection import selected_designs
from nodestate.designs.reader import Reader
from nodestate.errors import CorruptItemError, NodestateError, StaleViewError
from nodestate.model import NodeRecord
from nodestate.text import age_text, count_text
from nodestate.view.documents import view_document
from nodestate.view.view import OnStale, View

_STATUS_STYLE = {"up": "green", "draining": "yellow", "maintenance": "yellow", "down": "red"}


class UnknownNodeError(NodestateError):
    """Raised when the view does not have the node that was asked for."""

    kind: ClassVar[str] = "not-found"


class NothingReadError(NodestateError):
    """Raised when no partition could be read: a program would take an empty answer for a cell without nodes."""

    kind: ClassVar[str] = "nothing-read"


@cell_command(
    "view",
    example="nodestate view --design journal --max-age 5 --on-stale flag --json\n"
    "nodestate view --format msgpack > nodes.msgpack",
)
@click.option(
    "--design",
    metavar="NAME",
    help="Design to read: journal, snapshot or sql; snapshot@12 is the one of 12 partitions.",
    show_default="from the control record",
)
@click.option(
    "--max-age",
    type=SECONDS,
    default=5.0,
    metavar="S",
    help="Accepted age of the view: seconds since the owner of each partition last confirmed it.",
)
@click.option(
    "--node-max-age",
    type=SECONDS,
    metavar="S",
    help="Accepted age of a node: seconds since its last sign of life.",
    show_default="any",
)
@click.option(
    "--on-stale",
    type=click.Choice(["flag", "exclude", "refuse"]),
    help="If a node or partition is older than accepted: list it as stale (flag), leave its nodes out (exclude), or "
    "print no view and exit with 1 (refuse).",
    show_default="flag; refuse if nothing can be read",
)
@click.option(
    "--timeout",
    type=SECONDS,
    default=0.0,
    metavar="S",
    help="Wait up to S seconds for a view within the accepted ages.",
)
@click.option("--node", "only", type=NODE, metavar="NAME", help="Print this node only, with its full state.")
@click.option(
    "--limit",
    type=click.IntRange(0),
    default=40,
    metavar="N",
    help="Print at most N rows of the table; 0: all rows. JSON always has all nodes.",
)
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "msgpack"]),
    default="table",
    show_default=True,
    help="msgpack: write a report of each node, one after the other as on the wire, which 'nodestate publish --format "
    "msgpack' reads.",
)
def command(
    run: Run,
    design: str | None,
    max_age: float,
    node_max_age: float | None,
    on_stale: OnStale | None,
    timeout: float,
    only: str | None,
    limit: int,
    output_format: str,
) -> None:
    """Print all nodes of the cell, as a scheduler sees them.

    The table gives two amounts of each resource class: the used and the usable one (capacity).

    A partition is older than accepted if its consumer is not caught up with its queue, or not running; a node, if its
    agent gives no sign of life. --on-stale says what happens then.

    JSON: {"position", "age", "nodes": {name: {"incarnation", "generation", "state"}}, "stale", "incomplete"}. "age" is
    in seconds, null if a partition was never confirmed; "position" has one entry for each partition, null if it was
    never read.
    """
    if output_format == "msgpack":
        _require_msgpack_alone(run)
    pinned = selected_designs(run.config, design)[0] if design else None
    run.require_shared(designs=[pinned.design if pinned else run.config.read_design])
    # The process reads once and ends, so no garbage needs to be collected, and the collector doubles the time of
    # decoding.
    gc.disable()
    with Reader(run.config, design=str(pinned) if pinned else None) as reader:
        # The table shows the age of each node: a bound, here an infinite one, makes the reader read signs of life.
        node_bound = node_max_age if node_max_age is not None or run.as_json else math.inf
        view = _read(reader, max_age, node_bound, on_stale or "flag", timeout)
        _require_read(run, view, or_refuse=on_stale is None)
        if only is not None and only not in view.nodes:
            raise UnknownNodeError(_why_absent(view, only))
        if output_format == "msgpack":
            sys.stdout.buffer.writelines(reports_of(view, only))
            sys.stdout.buffer.flush()
        elif run.as_json:
            document = view_document(view, None if only is None else (only,))
            run.print_json(document)
            _name_damaged(run, document.damaged)
        elif only is not None:
            _print_node(run, view, only)
        else:
            _print(run, view, limit, _why_late(reader, view, max_age))


def _require_msgpack_alone(run: Run) -> None:
    """Raise click's ``UsageError`` if an option of another format was given besides ``--format msgpack``."""
    if run.as_json:
        raise click.UsageError("--format msgpack and --json are two formats of the same output: give one of them")
    if click.get_current_context().get_parameter_source("limit") is not ParameterSource.DEFAULT:
        raise click.UsageError(
            "--limit is for the table, and --format msgpack always writes all nodes: leave out --limit, or name one "
            "node with --node NAME"
        )


def _read(reader: Reader, max_age: float, node_max_age: float | None, on_stale: OnStale, timeout: float) -> View:
    """Return a view; with a timeout, wait up to that many seconds for one within the accepted ages."""
    if timeout > 0 and on_stale != "refuse":
        try:
            return reader.read(max_age=max_age, node_max_age=node_max_age, on_stale="refuse", timeout=timeout)
        except StaleViewError:
            timeout = 0.0
    return reader.read(max_age=max_age, node_max_age=node_max_age, on_stale=on_stale, timeout=timeout)


def _require_read(run: Run, view: View, *, or_refuse: bool) -> None:
    """Print which partitions can't be read. With ``or_refuse``, raise ``NothingReadError`` if that is all of them."""
    unread = [partition for partition in view.partitions if partition.lost]
    if not unread:
        return
    what = (
        f"{len(unread)} of {count_text(len(view.partitions), 'partition')} can't be read, "
        f"for example {unread[0].partition}: {unread[0].lost}"
    )
    if or_refuse and all(partition.table is None for partition in view.partitions):
        raise NothingReadError(f"{what}; run 'nodestate doctor'")
    run.err.print(f"nodestate: {what}", markup=False, soft_wrap=True)


def _why_absent(view: View, name: str) -> str:
    record = view.nodes.record(name)
    if record is None:
        return (
            f"no node {name!r} in design {view.design} (number of nodes: {len(view.nodes):,}); "
            "'nodestate view' lists them"
        )
    if record.gone:
        return f"{name} has left; its last version is {record.incarnation}.{record.generation}"
    if not record.live:
        return f"the state of {name} is not known yet: its agent was asked for a report; try again in some seconds"
    reason = "stale" if name in view.stale else "incomplete"
    return f"{name} is left out because it is {reason}; --on-stale flag shows it"


def _state_of(record: NodeRecord, damaged: list[str]) -> Mapping[str, Any]:
    """Return the state of a node; an empty one if its stored state is damaged. The name is then added to the list."""
    try:
        return record.state()
    except CorruptItemError:
        damaged.append(record.name)
        return {}


def _name_damaged(run: Run, damaged: Sequence[str]) -> None:
    """Print how many nodes have a damaged state, and the remedy."""
    if damaged:
        run.err.print(
            f"nodestate: the stored state is damaged of {damaged[0]}"
            + (f" and {len(damaged) - 1:,} other nodes" if damaged[1:] else "")
            + f"; it is shown empty: ask its agent for a report with 'nodestate resync --node {damaged[0]}'",
            markup=False,
            soft_wrap=True,
        )


# -- for people -----------------------------------------------------------------------------------


def _why_late(reader: Reader, view: View, max_age: float) -> str:
    """Return the text of the refusal for a view that is older than accepted; empty if it is not."""
    if view.age <= max_age:
        return ""
    try:
        reader.read(max_age=max_age, on_stale="refuse")
    except StaleViewError as error:
        return str(error)
    return ""


def _print(run: Run, view: View, limit: int, late: str) -> None:
    columns = view.columns
    classes = sorted(columns.capacity)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("node", "status", "zone", "version"):
        table.add_column(title, no_wrap=True)
    for title in (*classes, "age"):
        unit = "" if title == "age" else "\nused/usable"
        table.add_column(title.removeprefix("CUSTOM_") + unit, justify="right", no_wrap=True)
    row_of = {name: row for row, name in enumerate(columns.names)}
    names = sorted(view.nodes)
    shown = names[:limit] if limit else names
    damaged: list[str] = []
    for name in shown:
        node, row, record = view.nodes[name], row_of[name], view.nodes.record(name)
        assert record is not None, f"{name} is in the view"
        amounts = [_amount(int(columns.usage[one][row]), int(columns.capacity[one][row])) for one in classes]
        version = f"{node.version.incarnation}.{node.version.generation}" + ("+" if node.incomplete else "")
        table.add_row(
            Text(name, style="yellow" if name in view.stale else ""),
            Text(node.status, style=_STATUS_STYLE[node.status]),
            Text(str(_state_of(record, damaged).get("zone", ""))),
            version,
            *amounts,
            _seconds(view.node_age(name)),
        )
    if shown:
        run.out.print(table)
    if len(shown) < len(names):
        run.out.print(f"… and {len(names) - len(shown):,} more (--limit 0 shows all)")
    run.out.print(
        f"{view.design}: {count_text(len(names), 'node')}, {age_text(view.age)}, "
        f"{len(view.stale):,} stale, {len(view.incomplete):,} incomplete"
    )
    if late:
        run.err.print(f"nodestate: {late}", markup=False, soft_wrap=True)
    _name_damaged(run, damaged)


def _print_node(run: Run, view: View, name: str) -> None:
    record = view.nodes.record(name)
    assert record is not None, f"{name} is in the view"
    marks = [mark for mark, there in (("stale", name in view.stale), ("incomplete", record.incomplete)) if there]
    run.out.print(
        f"{name}: version {record.incarnation}.{record.generation}, {_sign_of_life(view.node_age(name))}"
        + "".join(f", {mark}" for mark in marks),
        markup=False,
    )
    run.out.print_json(msgspec.json.encode(record.state()).decode(), highlight=run.out.is_terminal)


def _amount(usage: int, capacity: int) -> Text:
    if not capacity and not usage:
        return Text("-", style="dim")
    return Text(f"{usage:,}/{capacity:,}", style="red" if usage > capacity else "")


def _seconds(age: float) -> str:
    return f"{age:.1f} s" if math.isfinite(age) else "unknown"


def _sign_of_life(age: float) -> str:
    return f"last sign of life {age:.1f} s ago" if math.isfinite(age) else "no sign of life is known"

"""The command ``top``: the present status of each partition of a cell."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nodestate.cli.command import SECONDS, Run, cell_command
from nodestate.cli.shutdown import stop_on_signals
from nodestate.designs.inspection import CellInspector, DesignStatus, HeadStatus, replica_pairs, selected_designs
from nodestate.text import count_text


@cell_command("top", example="nodestate top --once")
@click.option(
    "--design",
    "designs",
    metavar="NAMES",
    help="Designs to show, separated by commas, as journal,snapshot.",
    show_default="all that consumers write",
)
@click.option("--once", is_flag=True, help="Print the table once and end.")
@click.option("--seconds", type=SECONDS, metavar="S", help="End after S seconds.", show_default="run until Ctrl-C")
@click.option("--every", type=SECONDS, default=1.0, metavar="S", help="Refresh the table every S seconds.")
def command(run: Run, designs: str | None, once: bool, seconds: float | None, every: float) -> None:
    """Show the partitions: owner, term, offset, how far behind, age. Refresh the table until Ctrl-C.

    Second replicas have a table of their own. Column "in sync": number of replicas that have all stored events.
    Column "offset": number of commits in the present epoch. Column "behind": seconds since the owner was last caught up
    with its queue. Column "age": age of a view of the partition. With --json, each refresh prints one object.
    """
    selected = selected_designs(run.config, designs)
    run.require_shared(designs=[one.design for one in selected])
    inspector = CellInspector(run.config, selected)
    try:
        with stop_on_signals(seconds) as stop:
            if run.as_json or once or not run.out.is_terminal:
                while True:
                    _print(run, inspector.inspect())
                    if once or stop.wait(every):
                        return
            with Live(console=run.out, screen=True, auto_refresh=False) as live:
                while not stop():
                    live.update(_renderable(inspector.inspect()), refresh=True)
                    stop.wait(every)
    finally:
        inspector.close()


def _print(run: Run, statuses: Sequence[DesignStatus]) -> None:
    if run.as_json:
        run.print_json({"at": time.time(), "designs": {status.name: _as_json(status) for status in statuses}})
    else:
        run.out.print(_renderable(statuses))


def _as_json(status: DesignStatus) -> dict[str, Any]:
    partitions = []
    for number, head in enumerate(status.heads):
        nodes, incomplete = _nodes(status, number)
        row: dict[str, Any] = {
            "partition": number,
            "age": _age(status, number),
            "nodes": nodes,
            "incomplete": incomplete,
        }
        if isinstance(head, HeadStatus):
            row |= {
                "owner": head.owner,
                "term": head.term,
                "epoch": f"{head.epoch:x}",
                "offset": head.next,
                "behind": head.behind_s,
                "vouched": head.complete,
                "copies": head.copies,
            }
        partitions.append(row | {"lost": status.view.partitions[number].lost})
    view = status.view
    return {
        "nodes": len(view.nodes),
        "age": view.age,
        "incomplete": len(view.incomplete),
        "refresh_ms": round(status.refresh_s * 1000, 3),
        "partitions": partitions,
    }


def _renderable(statuses: Sequence[DesignStatus]) -> RenderableType:
    width = max(len(status.name) for status in statuses)
    lines = [_summary(status, width) for status in statuses]
    # Partition 3 of 8 holds other nodes than partition 3 of 12, so each number of partitions gets a table of its own.
    # Second replicas get one, too: beside the first ones, they would make the table too wide for a terminal.
    pairs = replica_pairs(statuses)
    seconds = {other.name for _, other in pairs}
    replicated = seconds | {first.name for first, _ in pairs}
    groups: dict[tuple[int, bool], list[DesignStatus]] = {}
    for status in statuses:
        groups.setdefault((len(status.heads), status.name in seconds), []).append(status)
    tables = [part for group in groups.values() for part in ("", _table(group, replicated))]
    notes = [Text(note, style="yellow") for note in _notes(statuses)]
    return Group(*lines, *tables, *notes)


def _notes(statuses: Sequence[DesignStatus]) -> Iterator[str]:
    """Yield the explanations of marks in the tables."""
    heads = [
        (head, part) for status in statuses for head, part in zip(status.heads, status.view.partitions, strict=True)
    ]
    if any(isinstance(head, HeadStatus) and not part.complete for head, part in heads):
        yield "* the owner of this partition may not know all nodes yet"
    for status in statuses:
        if absent := {number: head for number, head in enumerate(status.heads) if isinstance(head, str)}:
            number, why = next(iter(absent.items()))
            yield f"- {status.name}: {count_text(len(absent), 'partition')} without a head, for example {number}: {why}"


def _table(statuses: Sequence[DesignStatus], replicated: Collection[str]) -> Table:
    """Return a table with these designs side by side. ``replicated``: names of the designs with two replicas."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("owner", no_wrap=True, overflow="ellipsis", max_width=36)
    table.add_column("nodes", justify="right", no_wrap=True)
    for status in statuses:
        titles = ("term", "offset", "behind", "age", "incomplete", *(["in sync"] if status.name in replicated else []))
        for number, title in enumerate(titles):
            heading = f"[dim]{status.name}[/]\n{title}" if number == 0 else f"\n{title}"
            table.add_column(heading, justify="right", no_wrap=True)
    for number in range(len(statuses[0].heads)):
        cells: list[RenderableType] = []
        for status in statuses:
            cells += _cells(status, number, with_copies=status.name in replicated)
        nodes = max(_nodes(status, number)[0] for status in statuses)
        table.add_row(str(number), _owners(statuses, number), f"{nodes:,}", *cells)
    return table


def _summary(status: DesignStatus, width: int) -> Text:
    view = status.view
    unread = [partition for partition in view.partitions if partition.lost and partition.table is None]
    age = _duration(view.age, 5.0)
    return Text.assemble(
        (f"{status.name:<{width}} ", "bold"),
        f"{count_text(len(view.nodes), 'node')}, ",
        (f"{count_text(len(unread), 'partition')} can't be read, ", "red") if unread else "",
        Text.assemble(age, " old, ") if math.isfinite(view.age) else ("" if unread else "never confirmed, "),
        (f"{len(view.incomplete):,} incomplete", "yellow" if view.incomplete else "green"),
        f", refreshed in {status.refresh_s * 1000:.1f} ms",
    )


def _owners(statuses: Sequence[DesignStatus], number: int) -> Text:
    heads = [status.heads[number] for status in statuses]
    members = list(dict.fromkeys(head.member for head in heads if isinstance(head, HeadStatus)))
    if not members:
        return Text("-")  # a note below the tables says why
    return Text(" / ".join(members), style="red" if len(members) > 1 else "")


def _cells(status: DesignStatus, number: int, *, with_copies: bool) -> list[RenderableType]:
    head = status.heads[number]
    _, incomplete = _nodes(status, number)
    if not isinstance(head, HeadStatus):
        return ["-"] * (6 if with_copies else 5)
    complete = status.view.partitions[number].complete
    about = Text(f"{incomplete:,}" + ("" if complete else "*"), style="yellow" if incomplete or not complete else "")
    copies = [Text(str(head.copies), style="yellow" if head.copies == 1 else "")] if with_copies else []
    return [
        str(head.term),
        f"{head.next:,}",
        _duration(head.behind_s, 5.0),
        _duration(_age(status, number), 5.0),
        about,
        *copies,
    ]


def _nodes(status: DesignStatus, number: int) -> tuple[int, int]:
    table = status.view.partitions[number].table
    if table is None:
        return 0, 0
    return sum(1 for record in table.records() if record.live), len(table.incomplete)


def _age(status: DesignStatus, number: int) -> float:
    return time.monotonic() - status.view.partitions[number].confirmed_at


def _duration(seconds: float, warn_at: float) -> Text:
    if not math.isfinite(seconds):
        return Text("never", style="red")
    return Text(f"{seconds:.1f} s", style="red" if seconds > 6 * warn_at else "yellow" if seconds > warn_at else "")

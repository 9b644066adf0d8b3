"""The command ``top``: the present status of each partition of a cell."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nodestate.cli.command import SECONDS, Run, cell_command
from nodestate.cli.inspection import CellInspector, DesignStatus, HeadStatus, selected_designs
from nodestate.cli.shutdown import stop_on_signals
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
    lines = [_summary(status) for status in statuses]
    # Partition 3 of 8 holds other nodes than partition 3 of 12, so each number of partitions gets a table of its own.
    layouts = {
        len(status.heads): [one for one in statuses if len(one.heads) == len(status.heads)] for status in statuses
    }
    tables = [part for of_layout in layouts.values() for part in ("", _table(of_layout))]
    doubtful = any(not partition.complete for status in statuses for partition in status.view.partitions)
    return Group(
        *lines,
        *tables,
        Text("* the owner of this partition may not know all nodes yet" if doubtful else "", style="yellow"),
    )


def _table(statuses: Sequence[DesignStatus]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("owner", no_wrap=True, overflow="ellipsis", max_width=36)
    table.add_column("nodes", justify="right", no_wrap=True)
    for status in statuses:
        for number, title in enumerate(("term", "offset", "behind", "age", "incomplete")):
            heading = f"[dim]{status.name}[/]\n{title}" if number == 0 else f"\n{title}"
            table.add_column(heading, justify="right", no_wrap=True)
    for number in range(len(statuses[0].heads)):
        cells: list[RenderableType] = []
        for status in statuses:
            cells += _cells(status, number)
        nodes = max(_nodes(status, number)[0] for status in statuses)
        table.add_row(str(number), _owners(statuses, number), f"{nodes:,}", *cells)
    return table


def _summary(status: DesignStatus) -> Text:
    view = status.view
    return Text.assemble(
        (f"{status.name:<9}", "bold"),
        f"{count_text(len(view.nodes), 'node')}, ",
        _duration(view.age, 5.0),
        " old, ",
        (f"{len(view.incomplete):,} incomplete", "yellow" if view.incomplete else "green"),
        f", refreshed in {status.refresh_s * 1000:.1f} ms",
    )


def _owners(statuses: Sequence[DesignStatus], number: int) -> Text:
    heads = [status.heads[number] for status in statuses]
    members = list(dict.fromkeys(head.member for head in heads if isinstance(head, HeadStatus)))
    if not members:
        return Text(str(heads[0]), style="red")
    return Text(" / ".join(members), style="red" if len(members) > 1 else "")


def _cells(status: DesignStatus, number: int) -> list[RenderableType]:
    head = status.heads[number]
    _, incomplete = _nodes(status, number)
    complete = status.view.partitions[number].complete
    about = Text(f"{incomplete:,}" + ("" if complete else "*"), style="yellow" if incomplete or not complete else "")
    if not isinstance(head, HeadStatus):
        return ["-", "-", "-", _duration(_age(status, number), 5.0), about]
    return [
        str(head.term),
        f"{head.next:,}",
        _duration(head.behind_s, 5.0),
        _duration(_age(status, number), 5.0),
        about,
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

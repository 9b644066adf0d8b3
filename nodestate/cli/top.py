"""``nodestate top``: the partitions of a cell, as they are now."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, Final

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nodestate.cli.command import SECONDS, Run, cell_command
from nodestate.cli.inspection import CellInspector, DesignStatus, HeadStatus, selected_designs
from nodestate.cli.shutdown import stop_on_signals

NEVER_CAUGHT_UP_S: Final = 1_000_000.0
"""An owner that was not caught up once says that it is longer behind than this."""


@cell_command("top", example="nodestate top --once")
@click.option("--design", "designs", metavar="NAMES", help="Designs, by comma.  [default: what is written]")
@click.option("--once", is_flag=True, help="Print once, and end.")
@click.option("--seconds", type=SECONDS, metavar="S", help="End after so long.")
@click.option("--every", type=SECONDS, default=1.0, metavar="S", help="Look again after so long.")
def command(run: Run, designs: str | None, once: bool, seconds: float | None, every: float) -> None:
    """Show who owns each partition, how far it is, how far behind, and how old what readers see of it is.

    "behind" is how long its owner has not been caught up with the queue, "age" how old a view of it is. Ends with
    Ctrl-C. --json prints one object at each look.
    """
    kept = selected_designs(run.config, designs)
    run.require_shared(designs=[one.design for one in kept])
    inspector = CellInspector(run.config, kept)
    try:
        with stop_on_signals(seconds) as stop:
            if run.as_json or once or not run.out.is_terminal:
                while True:
                    _print(run, inspector.look())
                    if once or stop.wait(every):
                        return
            with Live(console=run.out, screen=True, auto_refresh=False) as live:
                while not stop():
                    live.update(_renderable(inspector.look()), refresh=True)
                    stop.wait(every)
    finally:
        inspector.close()


def _print(run: Run, looks: Sequence[DesignStatus]) -> None:
    if run.as_json:
        run.print_json({"at": time.time(), "designs": {look.name: _as_json(look) for look in looks}})
    else:
        run.out.print(_renderable(looks))


def _as_json(look: DesignStatus) -> dict[str, Any]:
    partitions = []
    for number, head in enumerate(look.heads):
        nodes, incomplete = _nodes(look, number)
        row: dict[str, Any] = {"partition": number, "age": _age(look, number), "nodes": nodes, "incomplete": incomplete}
        if isinstance(head, HeadStatus):
            row |= {
                "owner": head.owner,
                "term": head.term,
                "epoch": f"{head.epoch:x}",
                "offset": head.next,
                "behind": head.behind_s if head.behind_s < NEVER_CAUGHT_UP_S else math.inf,
                "vouched": head.vouched,
            }
        partitions.append(row | {"lost": look.view.partitions[number].lost})
    view = look.view
    return {
        "nodes": len(view.nodes),
        "age": view.age,
        "incomplete": len(view.incomplete),
        "refresh_ms": round(look.refresh_s * 1000, 3),
        "partitions": partitions,
    }


def _renderable(looks: Sequence[DesignStatus]) -> RenderableType:
    lines = [_summary(look) for look in looks]
    # Partition 3 of 8 is another one than partition 3 of 12: a table for each layout.
    layouts = {len(look.heads): [one for one in looks if len(one.heads) == len(look.heads)] for look in looks}
    tables = [part for of_layout in layouts.values() for part in ("", _table(of_layout))]
    unvouched = any(not partition.vouched for look in looks for partition in look.view.partitions)
    return Group(*lines, *tables, Text("* its owner may not know all nodes yet" if unvouched else "", style="yellow"))


def _table(looks: Sequence[DesignStatus]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("owner", no_wrap=True, overflow="ellipsis", max_width=36)
    table.add_column("nodes", justify="right", no_wrap=True)
    for look in looks:
        for number, title in enumerate(("term", "offset", "behind", "age", "incomplete")):
            heading = f"[dim]{look.name}[/]\n{title}" if number == 0 else f"\n{title}"
            table.add_column(heading, justify="right", no_wrap=True)
    for number in range(len(looks[0].heads)):
        cells: list[RenderableType] = []
        for look in looks:
            cells += _cells(look, number)
        nodes = max(_nodes(look, number)[0] for look in looks)
        table.add_row(str(number), _owners(looks, number), f"{nodes:,}", *cells)
    return table


def _summary(look: DesignStatus) -> Text:
    view = look.view
    return Text.assemble(
        (f"{look.name:<9}", "bold"),
        f"{len(view.nodes):,} nodes, ",
        _duration(view.age, 5.0),
        " old, ",
        (f"{len(view.incomplete):,} incomplete", "yellow" if view.incomplete else "green"),
        f", refreshed in {look.refresh_s * 1000:.1f} ms",
    )


def _owners(looks: Sequence[DesignStatus], number: int) -> Text:
    heads = [look.heads[number] for look in looks]
    members = list(dict.fromkeys(head.member for head in heads if isinstance(head, HeadStatus)))
    if not members:
        return Text(str(heads[0]), style="red")
    return Text(" / ".join(members), style="red" if len(members) > 1 else "")


def _cells(look: DesignStatus, number: int) -> list[RenderableType]:
    head = look.heads[number]
    _, incomplete = _nodes(look, number)
    vouched = look.view.partitions[number].vouched
    about = Text(f"{incomplete:,}" + ("" if vouched else "*"), style="yellow" if incomplete or not vouched else "")
    if not isinstance(head, HeadStatus):
        return ["-", "-", "-", _duration(_age(look, number), 5.0), about]
    behind = head.behind_s if head.behind_s < NEVER_CAUGHT_UP_S else math.inf
    return [str(head.term), f"{head.next:,}", _duration(behind, 5.0), _duration(_age(look, number), 5.0), about]


def _nodes(look: DesignStatus, number: int) -> tuple[int, int]:
    table = look.view.partitions[number].table
    if table is None:
        return 0, 0
    return sum(1 for record in table.records() if record.live), len(table.incomplete)


def _age(look: DesignStatus, number: int) -> float:
    return time.monotonic() - look.view.partitions[number].confirmed_at


def _duration(seconds: float, warn_at: float) -> Text:
    if not math.isfinite(seconds):
        return Text("?", style="red")
    return Text(f"{seconds:.1f} s", style="red" if seconds > 6 * warn_at else "yellow" if seconds > warn_at else "")

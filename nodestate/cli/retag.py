"""The command ``retag``: give allocations a tag of the secrets that are in force."""

from __future__ import annotations

from typing import Final

import click
import msgspec

from nodestate.cli.command import Run, cell_command
from nodestate.cli.node_name import NODE
from nodestate.cli.scheduling import max_age_option, open_scheduler, progress, timeout_option
from nodestate.text import count_text

SHOWN_COUNT: Final = 20
"""Most allocations that are printed for people."""


@cell_command("retag", example="nodestate retag\nnodestate retag compute-0001 --adopt")
@click.argument("nodes", type=NODE, metavar="[NODE…]", nargs=-1)
@click.option(
    "--adopt",
    is_flag=True,
    help="Tag allocations without a valid tag, too: their nodes are believed. Without NODES: allocations that name an "
    "order of a scheduler, on one node alone.",
)
@timeout_option
@max_age_option
def command(run: Run, nodes: tuple[str, ...], adopt: bool, timeout: float, max_age: float | None) -> int:
    """Give the allocations on NODES, or on all nodes, a tag of all secrets of the cell that are in force.

    If auth_orders is require, schedulers believe a node's report of an instance only if it has a valid tag. Run this
    after 'key rotate', before the old secret is revoked; and once with --adopt in a cell that has instances from
    before it had secrets. Exit code 1 if an allocation is left without.

    JSON: {"retagged", "current", "left": [{"node", "instance", "reason"}]}.
    """
    with open_scheduler(run, boots=True, max_age=max_age) as scheduler, progress(run, scheduler, "renewing tags"):
        renewal = scheduler.tag_renewals.renew(nodes, adopt=adopt, timeout_s=timeout)
    if run.as_json:
        left = [msgspec.structs.asdict(one) for one in renewal.left]
        run.print_json({"retagged": renewal.renewed_count, "current": renewal.current_count, "left": left})
        return 1 if left else 0
    run.out.print(
        f"{count_text(renewal.renewed_count, 'allocation')} got another tag; {renewal.current_count:,} had a current "
        f"one; {len(renewal.left):,} are left",
        markup=False,
        soft_wrap=True,
    )
    for one in renewal.left[:SHOWN_COUNT]:
        run.out.print(f"  {one.instance} on {one.node}: {one.reason}", markup=False, soft_wrap=True)
    if len(renewal.left) > SHOWN_COUNT:
        run.out.print(f"  and {len(renewal.left) - SHOWN_COUNT:,} more; --json lists all", markup=False)
    return 1 if renewal.left else 0

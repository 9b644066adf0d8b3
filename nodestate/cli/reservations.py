"""The commands ``reserve``, ``confirm``, ``extend``, ``release`` and ``reservations``, which hold nodes for groups."""

from __future__ import annotations

from typing import Any

import click
import msgspec
from rich.text import Text

from nodestate.cli.command import SECONDS, Run, cell_command, operator_name
from nodestate.cli.scheduling import (
    file_type,
    make_table,
    node_max_age_option,
    open_scheduler,
    outcome_json,
    owner_option,
    parse_file,
    print_no_host,
    print_outcomes,
    progress,
    remaining_json,
    request_max_age_option,
    timeout_option,
    wait_until_shown,
)
from nodestate.scheduling import Confirmed, NotReserved, Reservation, parse_group

EXAMPLE_ID = "019ab2c3d4e5-0123456789ab"


@cell_command(
    "reserve",
    example="nodestate reserve group.json --hold 300",
)
@click.argument("group_file", metavar="GROUP", type=file_type)
@click.option("--owner", metavar="NAME", help="Owner of the reservation.", show_default="user@host")
@click.option(
    "--hold",
    type=float,
    metavar="S",
    help="Release the nodes after S seconds unless the reservation is confirmed or extended.",
    show_default="hold_s of GROUP",
)
@click.option(
    "--timeout",
    type=SECONDS,
    default=15.0,
    metavar="S",
    help="Try for at most S seconds if other reservations take nodes at the same time.",
)
@request_max_age_option
@node_max_age_option
def reserve(
    run: Run,
    group_file: str,
    owner: str | None,
    hold: float | None,
    timeout: float,
    max_age: float | None,
    node_max_age: float | None,
) -> int:
    """Claim a node for every member of GROUP, a JSON file ("-" for stdin), and hold the nodes.

    If there is no node for one of the members, nothing is claimed; the exit code is 1. Agents build nothing before
    'nodestate confirm'. The nodes are released by themselves if the reservation is not confirmed or extended in time.
    On a new cell the first reservation waits about 10 s, until no claim can be missing from the claim records.

    GROUP: {"members": [{"instances": ["db"], "resources": {"VCPU": 2}}, {"count": 3, "resources": {"VCPU": 1}}]}

    JSON: {"id", "owner", "members": [{"instance", "node", "resources", "group", "placed"}], "seconds", "whole"}; if
    nothing is reserved, {"id": null, "instance", "why", "remaining"}.
    """
    options = {"hold_s": hold, "max_age": max_age}
    wanted = parse_file(group_file, parse_group)
    wanted = msgspec.structs.replace(wanted, **{name: value for name, value in options.items() if value is not None})
    with (
        open_scheduler(run, boots=False, node_max_age=node_max_age) as scheduler,
        progress(run, scheduler, "reserving"),
    ):
        found = scheduler.reservations.reserve(wanted, owner=owner or operator_name(), timeout_s=timeout)
    if isinstance(found, NotReserved):
        if run.as_json:
            remaining = remaining_json(found.reason.remaining)
            run.print_json({"id": None, "instance": found.instance, "why": str(found.reason), "remaining": remaining})
        else:
            print_no_host(run, found.reason, whose=f"member {found.instance}; nothing is reserved")
        return 1
    _print_result(run, found)
    return 0


@cell_command("confirm", example=f"nodestate confirm {EXAMPLE_ID} --timeout 120")
@click.argument("reservation", metavar="ID")
@owner_option
@timeout_option
def confirm(run: Run, reservation: str, owner: str, timeout: float) -> int:
    """Have agents build every member of reservation ID, on the nodes that are held for them.

    If a node refuses its member, another node is tried. If a member can't be built at all, the members that were built
    are terminated and the reservation is released; the exit code is 1.

    JSON: {"id", "confirmed", "instances"}, instances as 'nodestate boot' prints them; if it is not confirmed, the
    members that failed.
    """
    with open_scheduler(run, boots=True) as scheduler:
        with progress(run, scheduler, "building"):
            found = scheduler.reservations.confirm(reservation, owner=owner, timeout_s=timeout)
        outcomes = found.members if isinstance(found, Confirmed) else found.failed
        wait_until_shown(run, scheduler, outcomes)
    confirmed = isinstance(found, Confirmed)
    if run.as_json:
        instances = [outcome_json(outcome) for outcome in outcomes]
        run.print_json({"id": reservation, "confirmed": confirmed, "instances": instances})
    else:
        if not confirmed:
            run.out.print(
                f"{reservation} is not confirmed: its members are terminated and its nodes are released", markup=False
            )
        print_outcomes(run, outcomes)
    return 0 if confirmed else 1


@cell_command("extend", example=f"nodestate extend {EXAMPLE_ID} --hold 600")
@click.argument("reservation", metavar="ID")
@click.option("--hold", type=float, required=True, metavar="S", help="Hold the nodes until S seconds from now.")
@owner_option
def extend(run: Run, reservation: str, hold: float, owner: str) -> None:
    """Hold reservation ID until --hold seconds from now, which may be sooner than before.

    JSON: as 'nodestate reserve' prints it.
    """
    with open_scheduler(run, boots=False) as scheduler:
        _print_result(run, scheduler.reservations.extend(reservation, hold, owner=owner))


@cell_command("release", example=f"nodestate release {EXAMPLE_ID}")
@click.argument("reservation", metavar="ID")
@owner_option
def release(run: Run, reservation: str, owner: str) -> None:
    """Release the nodes of reservation ID. Members that 'nodestate boot' built stay. JSON: {"id", "released"}."""
    with open_scheduler(run, boots=False) as scheduler:
        scheduler.reservations.release(reservation, owner=owner)
    if run.as_json:
        run.print_json({"id": reservation, "released": True})
    else:
        run.out.print(f"released {reservation}", markup=False)


@cell_command("reservations", example="nodestate reservations --json")
def reservations(run: Run) -> None:
    """List all reservations of the cell, the oldest first.

    JSON: {"reservations"}, each as 'nodestate reserve' prints it.
    """
    with open_scheduler(run, boots=False) as scheduler:
        found = scheduler.reservations.held()
    if run.as_json:
        run.print_json({"reservations": [_as_json(one) for one in found]})
        return
    if not found:
        run.out.print("there are no reservations")
        return
    table = make_table("id", "owner", "members>", "left>", "", "nodes")
    for one in found:
        nodes = ", ".join(f"{member.node}{'*' if member.placed else ''}" for member in one.members)
        state = Text("held", "green") if one.whole else Text("incomplete", "yellow")
        table.add_row(one.id, Text(one.owner), f"{len(one.members)}", f"{one.seconds:.0f} s", state, Text(nodes))
    run.out.print(table)
    if any(member.placed for one in found for member in one.members):
        run.out.print("* this member is built already")


def _as_json(reservation: Reservation) -> Any:
    return msgspec.to_builtins(reservation)


def _print_result(run: Run, reservation: Reservation) -> None:
    if run.as_json:
        run.print_json(_as_json(reservation))
        return
    run.out.print(
        f"reserved {reservation.id} for {reservation.seconds:.0f} s, for {reservation.owner}",
        markup=False,
        soft_wrap=True,
    )
    table = make_table("instance", "node", "resources")
    for member in reservation.members:
        resources = ", ".join(f"{name}={amount:,}" for name, amount in member.resources.items())
        table.add_row(Text(member.instance), Text(member.node), resources)
    run.out.print(table)

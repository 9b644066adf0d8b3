"""The commands ``capacity`` and ``what-if``: how much room the fleet has, now and after a change of nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import click
import msgspec
from rich.text import Text

from nodestate.cli.command import Run, cell_command
from nodestate.cli.node_name import NODE
from nodestate.cli.scheduling import (
    explanation_json,
    file_type,
    make_table,
    max_age_option,
    node_max_age_option,
    open_scheduler,
    print_explanation,
    print_filters,
    remaining_json,
    request_from,
    resources_option,
)
from nodestate.scheduling import CapacityPart, Choice, RequestFit, capacity_of, fit_of, what_if
from nodestate.text import count_text

SHOWN_AGGREGATES_COUNT: Final = 20
"""Aggregates that the output for people lists."""
_request_option = click.option(
    "--request", "request_file", type=file_type, metavar="FILE", help='JSON file of a request, "-" for stdin.'
)


@cell_command("capacity", example="nodestate capacity\nnodestate capacity --resources VCPU=2,MEMORY_MB=4096 --json")
@_request_option
@resources_option
@max_age_option
@node_max_age_option
def capacity(
    run: Run, request_file: str | None, resources: str | None, max_age: float | None, node_max_age: float | None
) -> int:
    """Show the total, used, claimed and free amounts of the fleet, by resource class, zone and aggregate.

    Free amounts count only on open nodes: nodes that are up, not cordoned and not stale. With --request or --resources,
    also count how many more instances of the request fit, under its filters and the policy of its group, and say why
    the next one does not fit. Nothing is claimed. Exit code 1 if not even one instance fits.

    JSON: {"age", "whole": {"nodes", "open_nodes", "classes": {class: {"total", "used", "claimed", "free"}}}, "zones",
    "aggregates"}, with a request also "fit": {"fits", "is_minimum", "nodes", "remaining", "why"}; "fits" is null if
    there is no limit.
    """
    request = None
    if request_file is not None or resources is not None:
        request = request_from(request_file, resources, max_age)
    with open_scheduler(run, boots=False, max_age=max_age, node_max_age=node_max_age) as scheduler:
        view = scheduler.refresh(request.max_age if request is not None else None)
        found = capacity_of(scheduler.fleet)
        fit = fit_of(scheduler.selector, request) if request is not None else None
        age = view.age
    if run.as_json:
        answer: dict[str, Any] = {"age": age, **msgspec.to_builtins(found)}
        run.print_json(answer if fit is None else {**answer, "fit": _fit_json(fit)})
    else:
        _print_parts(run, "cell", {run.config.cell: found.whole})
        _print_parts(run, "zone", {zone or "(none)": part for zone, part in found.zones.items()})
        _print_parts(run, "aggregate", found.aggregates, SHOWN_AGGREGATES_COUNT)
        if fit is not None:
            _print_fit(run, fit)
    return 1 if fit is not None and fit.fits == 0 else 0


@cell_command(
    "what-if",
    example="nodestate what-if --without compute-0001,compute-0002 --resources VCPU=2,MEMORY_MB=4096\n"
    "nodestate what-if --assume-empty --request request.json --json",
)
@click.option(
    "--without",
    "names",
    type=NODE,
    multiple=True,
    metavar="NODE,…",
    help="Answer as if these nodes were gone with their instances. Can be given several times.",
)
@click.option("--assume-empty", is_flag=True, help="Answer as if no node had instances, usage or claims.")
@_request_option
@resources_option
@max_age_option
@node_max_age_option
def what_if_command(
    run: Run,
    names: tuple[str, ...],
    assume_empty: bool,
    request_file: str | None,
    resources: str | None,
    max_age: float | None,
    node_max_age: float | None,
) -> int:
    """Show which nodes a request would get if some nodes were gone, or if all nodes were empty. Nothing is claimed.

    Prints how many nodes each filter leaves, the node for each instance, and how many instances of the request fit.
    Exit code 1 if there would be no node for one of the instances.

    JSON: {"age", "without", "assume_empty", "choices": [{"instance", "node"}], "explanation", "fit"}, as 'nodestate
    select' and 'nodestate capacity' print them.
    """
    without = list(dict.fromkeys(name.strip() for text in names for name in text.split(",") if name.strip()))
    if not without and not assume_empty:
        raise click.UsageError("no change was given: name nodes with --without NODE,…, or give --assume-empty")
    request = request_from(request_file, resources, max_age)
    with open_scheduler(run, boots=False, max_age=max_age, node_max_age=node_max_age) as scheduler:
        answer = what_if(scheduler.session, request, without=without, assume_empty=assume_empty)
        age = scheduler.view.age
    if run.as_json:
        choices = [{"instance": choice.instance, "node": choice.node} for choice in answer.choices]
        question = {"age": age, "without": without, "assume_empty": assume_empty, "choices": choices}
        explained = explanation_json(answer.explanation)
        run.print_json({**question, "explanation": explained, "fit": _fit_json(answer.fit)})
    else:
        print_explanation(run, answer.explanation)
        _print_choices(run, answer.choices)
        _print_fit(run, answer.fit)
    return 0 if all(choice.node is not None for choice in answer.choices) else 1


# -- output -----------------------------------------------------------------------------------------


def _fit_json(fit: RequestFit) -> dict[str, Any]:
    return {
        "fits": fit.fits,
        "is_minimum": fit.is_minimum,
        "nodes": fit.nodes,
        "remaining": remaining_json(fit.remaining),
        "why": fit.reason,
    }


def _print_fit(run: Run, fit: RequestFit) -> None:
    if fit.fits is None:
        run.out.print(f"any number of instances fits, on {count_text(fit.nodes, 'node')}")
        return
    least = "at least " if fit.is_minimum else ""
    fits = count_text(fit.fits, "more instance fits", "more instances fit")
    run.out.print(f"{least}{fits}; {count_text(fit.nodes, 'node takes', 'nodes take')} at least one now")
    if fit.reason:
        run.out.print(f"the next one does not fit: {fit.reason}", markup=False, soft_wrap=True)
        print_filters(run, fit.remaining)


def _print_parts(run: Run, title: str, parts: Mapping[str, CapacityPart], most: int | None = None) -> None:
    if not parts:
        return
    table = make_table(title, "nodes>", "open>", "class", "total>", "used>", "claimed>", "free>")
    for name, part in list(parts.items())[:most]:
        first = (Text(name), f"{part.nodes:,}", f"{part.open_nodes:,}")
        for resource, one in part.classes.items() or [("", None)]:
            amounts = [f"{n:,}" for n in (one.total, one.used, one.claimed, one.free)] if one is not None else [""] * 4
            table.add_row(*first, Text(resource), *amounts)
            first = (Text(""), "", "")
    run.out.print(table)
    if most is not None and len(parts) > most:
        run.out.print(f"and {len(parts) - most:,} more; --json has all of them")


def _print_choices(run: Run, choices: list[Choice]) -> None:
    placed = [choice for choice in choices if choice.node is not None]
    if placed:
        table = make_table("instance", "node")
        for choice in placed:
            table.add_row(Text(choice.instance), Text(choice.node or ""))
        run.out.print(table)
    if len(placed) < len(choices):
        run.out.print(f"{len(choices) - len(placed):,} of {count_text(len(choices), 'instance')} would get no node")

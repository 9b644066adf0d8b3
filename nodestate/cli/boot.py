"""``nodestate boot``: from a request to an allocation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from nodestate.cli.command import Run, cell_command
from nodestate.cli.scheduling import (
    boot_all,
    explain_option,
    explanation_json,
    file_type,
    max_age_option,
    node_max_age_option,
    open_scheduler,
    outcome_json,
    owner_option,
    print_explanation,
    print_outcomes,
    progress,
    request_from,
    resources_option,
    timeout_option,
    wait_until_shown,
)
from nodestate.scheduling import Booted, BootOutcome, Explanation


@cell_command(
    "boot",
    example="nodestate boot request.json\nnodestate boot --reservation 019ab2c3d4e5-0123456789ab --instance web-1",
)
@click.argument("request_file", metavar="[REQUEST]", required=False, type=file_type)
@resources_option
@click.option("--reservation", metavar="ID", help="Build a member of a reservation, where it is held, …")
@click.option("--instance", metavar="NAME", help="… this one.")
@owner_option
@timeout_option
@explain_option
@max_age_option
@node_max_age_option
def command(
    run: Run,
    request_file: str | None,
    resources: str | None,
    reservation: str | None,
    instance: str | None,
    owner: str,
    timeout: float,
    explain: bool,
    max_age: float | None,
    node_max_age: float | None,
) -> int:
    """Choose and claim a node for each instance of REQUEST, a JSON file ("-": stdin), and have its agent build it.

    Where an agent refuses, or says nothing, the next node is tried. Exit code 0 if all are built, and then a view shows
    them; 1 if some are not: it is said why, and which agents refused.

    JSON: {"instances": [{"instance", "booted", "node", "version", "refused", "conflicts"}], "under_way": [names]}; an
    instance that is not booted has "why" and "remaining" in place of "node" and "version".
    """
    if (reservation is None) != (instance is None):
        raise click.UsageError("a member that is held is named by both, --reservation ID and --instance NAME")
    if reservation is not None and instance is not None:
        if request_file is not None or resources is not None or explain:
            raise click.UsageError("where a member that is held goes is decided: no REQUEST, --resources or --explain")
        with open_scheduler(run, boots=True, max_age=max_age, node_max_age=node_max_age) as scheduler:
            with progress(run, scheduler, "booting"):
                outcome = scheduler.reservations.boot_member(reservation, instance, owner=owner, timeout_s=timeout)
            wait_until_shown(run, scheduler, [outcome])
        return _print_result(run, [outcome], [], None)
    request = request_from(request_file, resources, max_age)
    with open_scheduler(run, boots=True, node_max_age=node_max_age) as scheduler:
        scheduler.refresh(request.max_age)
        explanation = scheduler.explain(request) if explain else None
        boots = scheduler.submit(request)
        boot_all(run, scheduler, boots, timeout)
        outcomes = [boot.outcome for boot in boots if boot.outcome is not None]
        wait_until_shown(run, scheduler, outcomes)
    under_way = [boot.placing.instance for boot in boots if boot.outcome is None]
    return _print_result(run, outcomes, under_way, explanation)


def _print_result(
    run: Run, outcomes: Sequence[BootOutcome], under_way: list[str], explanation: Explanation | None
) -> int:
    if run.as_json:
        answer: dict[str, Any] = {
            "instances": [outcome_json(outcome) for outcome in outcomes],
            "under_way": under_way,
        }
        run.print_json(answer if explanation is None else {**answer, "explanation": explanation_json(explanation)})
    else:
        if explanation is not None:
            print_explanation(run, explanation)
        print_outcomes(run, outcomes)
        if under_way:
            some = f"no outcome yet of {len(under_way):,}, as {under_way[0]}"
            run.out.print(f"{some}: agents may have built them or not; views will tell", markup=False, soft_wrap=True)
    return 0 if not under_way and all(isinstance(outcome, Booted) for outcome in outcomes) else 1

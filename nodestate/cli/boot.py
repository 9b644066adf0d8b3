"""The command ``boot``: claim nodes for the instances of a request and have agents build them."""

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
    node_max_age_option,
    open_scheduler,
    outcome_json,
    owner_option,
    print_explanation,
    print_outcomes,
    progress,
    request_from,
    request_max_age_option,
    resources_option,
    timeout_option,
    wait_until_shown,
)
from nodestate.scheduling import Booted, BootOutcome, Explanation
from nodestate.text import count_text


@cell_command(
    "boot",
    example="nodestate boot request.json\nnodestate boot --reservation 019ab2c3d4e5-0123456789ab --instance web-1",
)
@click.argument("request_file", metavar="[REQUEST]", required=False, type=file_type)
@resources_option
@click.option(
    "--reservation",
    metavar="ID",
    help="Build a member of this reservation, on the node that is held for it; needs --instance.",
)
@click.option("--instance", metavar="NAME", help="Name of the member of the reservation to build; needs --reservation.")
@owner_option
@timeout_option
@explain_option
@request_max_age_option
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
    """Choose and claim a node for each instance of REQUEST, a JSON file ("-" for stdin), and have its agent build it.

    REQUEST: {"instances": ["web-1", "web-2"], "resources": {"VCPU": 2, "MEMORY_MB": 4096}}

    If an agent refuses or does not answer, the next node is tried. Exit code 0 if all instances are built and a view
    shows them, else 1; the output then says why, and which agents refused.

    JSON: {"instances": [{"instance", "booted", "node", "version", "refused", "conflicts"}], "under_way": [names]}; an
    instance that is not booted has "why" and "remaining" instead of "node" and "version".
    """
    if (reservation is None) != (instance is None):
        raise click.UsageError("--reservation ID and --instance NAME belong together: give both, or none and a REQUEST")
    if reservation is not None and instance is not None:
        if request_file is not None or resources is not None or explain:
            raise click.UsageError(
                "a reservation has already chosen the node: --reservation goes without REQUEST, --resources and "
                "--explain"
            )
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
        print_outcomes(run, outcomes, explanation)
        if under_way:
            instances = count_text(len(under_way), "instance has", "instances have")
            some = f"{instances} no outcome yet, for example {under_way[0]}"
            run.out.print(
                f"{some}: agents may still build them; 'nodestate view' shows whether they did",
                markup=False,
                soft_wrap=True,
            )
    return 0 if not under_way and all(isinstance(outcome, Booted) for outcome in outcomes) else 1

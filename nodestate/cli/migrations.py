"""The commands ``migrate``, ``evacuate``, ``resize``, ``update`` and ``terminate``, for instances that were booted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from nodestate.cli.command import Run, cell_command
from nodestate.cli.node_name import NODE
from nodestate.cli.scheduling import (
    explain_option,
    explanation_json,
    max_age_option,
    node_max_age_option,
    open_scheduler,
    outcome_json,
    parse_amounts,
    print_explanation,
    print_outcomes,
    progress,
    timeout_option,
    wait_until_shown,
)
from nodestate.scheduling import Booted, BootOutcome, Explanation
from nodestate.scheduling.request import STORED_FIELDS


@cell_command(
    "migrate",
    example="nodestate migrate web-1 --explain\nnodestate migrate web-1 --to compute-0002",
)
@click.argument("instance")
@click.option(
    "--to", type=NODE, default="", metavar="NODE", help="Move to this node only.", show_default="the best node"
)
@timeout_option
@explain_option
@max_age_option
@node_max_age_option
def migrate(
    run: Run, instance: str, to: str, timeout: float, explain: bool, max_age: float | None, node_max_age: float | None
) -> int:
    """Build INSTANCE on another node and terminate it on its present node.

    The hints and the group policy of its boot apply again. If no other node takes the instance, it stays where it is;
    the exit code is 1.

    JSON: {"instances"} as 'nodestate boot' prints it.
    """
    with open_scheduler(run, boots=True, max_age=max_age, node_max_age=node_max_age) as scheduler:
        explanation = scheduler.migrations.explain(instance) if explain else None
        with progress(run, scheduler, "migrating"):
            outcome = scheduler.migrations.migrate(instance, to=to, timeout_s=timeout)
        wait_until_shown(run, scheduler, [outcome])
    return _print_result(run, [outcome], explanation)


@cell_command("evacuate", example="nodestate evacuate compute-0001 --timeout 300")
@click.argument("node", type=NODE)
@timeout_option
@max_age_option
@node_max_age_option
def evacuate(run: Run, node: str, timeout: float, max_age: float | None, node_max_age: float | None) -> int:
    """Move all instances off NODE. If the node is dead, its last report says which instances it has.

    Other schedulers may place new instances on the node meanwhile if its status is 'up'. Exit code 1 if an instance
    could not be moved.

    JSON: {"instances"} as 'nodestate boot' prints it.
    """
    with open_scheduler(run, boots=True, max_age=max_age, node_max_age=node_max_age) as scheduler:
        with progress(run, scheduler, f"evacuating {node}"):
            outcomes = scheduler.migrations.evacuate(node, timeout_s=timeout)
        wait_until_shown(run, scheduler, outcomes)
    if not outcomes and not run.as_json:
        run.out.print(f"there are no instances on {node}", markup=False)
    return _print_result(run, outcomes, None)


@cell_command("resize", example="nodestate resize web-1 VCPU=4 MEMORY_MB=8192 --explain")
@click.argument("instance")
@click.argument("resources", metavar="CLASS=N…", nargs=-1, required=True)
@timeout_option
@explain_option
@max_age_option
@node_max_age_option
def resize(
    run: Run,
    instance: str,
    resources: tuple[str, ...],
    timeout: float,
    explain: bool,
    max_age: float | None,
    node_max_age: float | None,
) -> int:
    """Give INSTANCE these amounts of resources, on its present node if they fit there, else on another node.

    A resource class that is not named keeps its amount; the amount 0 removes the class. If no node takes the instance,
    it stays as it is; the exit code is 1.

    JSON: {"instances"} as 'nodestate boot' prints it.
    """
    amounts = parse_amounts(resources)
    with open_scheduler(run, boots=True, max_age=max_age, node_max_age=node_max_age) as scheduler:
        explanation = scheduler.migrations.explain(instance, amounts) if explain else None
        with progress(run, scheduler, "resizing"):
            outcome = scheduler.migrations.resize(instance, amounts, timeout_s=timeout)
        wait_until_shown(run, scheduler, [outcome])
    return _print_result(run, [outcome], explanation)


@cell_command(
    "update",
    example="nodestate update web-1 --zone az1-east\nnodestate update web-1 --drop-hint same_host --traits CUSTOM_FAST",
)
@click.argument("instance")
@click.option("--zone", metavar="ZONE", help='Ask for this zone; "" for any zone.', show_default="the present one")
@click.option(
    "--traits",
    metavar="TRAIT,…",
    help='Ask for these required traits in place of the present ones; "" for none.',
    show_default="the present ones",
)
@click.option(
    "--drop-hint",
    "dropped",
    metavar="FIELD",
    multiple=True,
    help="Ask no longer for this field of the request, such as same_host. May be given several times.",
)
@timeout_option
@max_age_option
def update(
    run: Run,
    instance: str,
    zone: str | None,
    traits: str | None,
    dropped: tuple[str, ...],
    timeout: float,
    max_age: float | None,
) -> int:
    """Change the request that INSTANCE was booted with. The change applies from its next migration on.

    INSTANCE stays on its node. So it can move again after its zone was renamed, or after the instance that same_host
    names has ended. Exit code 1 if the agent refuses, because the instance was changed or moved meanwhile.

    JSON: {"instances"} as 'nodestate boot' prints it.
    """
    fields = {field.replace("_", "-"): field for field in STORED_FIELDS}
    changes: dict[str, Any] = {fields.get(name, name): None for name in dropped}
    if zone is not None:
        changes["zone"] = zone
    if traits is not None:
        changes["required_traits"] = [word for word in (trait.strip() for trait in traits.split(",")) if word]
    if not changes:
        raise click.UsageError("no change was given: give --zone ZONE, --traits TRAIT,… or --drop-hint FIELD")
    with open_scheduler(run, boots=True, max_age=max_age) as scheduler:
        with progress(run, scheduler, "updating"):
            outcome = scheduler.updates.update(instance, changes, timeout_s=timeout)
        wait_until_shown(run, scheduler, [outcome])
    return _print_result(run, [outcome], None)


@cell_command("terminate", example="nodestate terminate web-1 web-2")
@click.argument("instances", metavar="INSTANCE…", nargs=-1, required=True)
@timeout_option
@max_age_option
def terminate(run: Run, instances: tuple[str, ...], timeout: float, max_age: float | None) -> int:
    """Terminate each INSTANCE on all nodes that report it, and wait until no node reports it.

    Exit code 1 if no node reports one of the instances (then none is terminated), or if a node still reports one after
    --timeout. If a node left with one of them, the error names the command that forgets the node.

    JSON: {"instances": [{"instance", "nodes"}]}.
    """
    with open_scheduler(run, boots=True, max_age=max_age) as scheduler:
        with progress(run, scheduler, "terminating"):
            ended = scheduler.terminations.terminate_everywhere(instances, timeout)
        scheduler.drop_allocated_claims()
    if run.as_json:
        run.print_json({"instances": [{"instance": name, "nodes": nodes} for name, nodes in ended.items()]})
    for name, nodes in ended.items() if not run.as_json else ():
        run.out.print(f"{name} is terminated; it was on {' and '.join(nodes)}", markup=False)
    return 0


def _print_result(run: Run, outcomes: Sequence[BootOutcome], explanation: Explanation | None) -> int:
    if run.as_json:
        answer: dict[str, Any] = {"instances": [outcome_json(outcome) for outcome in outcomes]}
        run.print_json(answer if explanation is None else {**answer, "explanation": explanation_json(explanation)})
    else:
        if explanation is not None:
            run.out.print("other nodes:")
            print_explanation(run, explanation)
        print_outcomes(run, outcomes, explanation)
    return 0 if all(isinstance(outcome, Booted) for outcome in outcomes) else 1

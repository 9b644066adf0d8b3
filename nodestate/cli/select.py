"""The command ``select``: which nodes a request would get."""

from __future__ import annotations

from typing import Any

import click
from rich.text import Text

from nodestate.cli.command import Run, cell_command
from nodestate.cli.scheduling import (
    explain_option,
    explanation_json,
    file_type,
    make_table,
    node_max_age_option,
    open_scheduler,
    print_explanation,
    print_no_host,
    remaining_json,
    request_from,
    request_max_age_option,
    resources_option,
)
from nodestate.scheduling import Choice, Explanation, NoHostFound
from nodestate.text import count_text


@cell_command(
    "select",
    example="nodestate select --resources VCPU=2,MEMORY_MB=4096 --explain\nnodestate select request.json --json",
)
@click.argument("request_file", metavar="[REQUEST]", required=False, type=file_type)
@resources_option
@explain_option
@request_max_age_option
@node_max_age_option
def command(
    run: Run,
    request_file: str | None,
    resources: str | None,
    explain: bool,
    max_age: float | None,
    node_max_age: float | None,
) -> int:
    """Choose a node and alternates for each instance of REQUEST, a JSON file ("-" for stdin). Nothing is claimed.

    REQUEST: {"instances": ["web-1", "web-2"], "resources": {"VCPU": 2, "MEMORY_MB": 4096}}

    Exit code 1 if there is no node for one of the instances; the output names the filter that removed the last node.

    JSON: {"age", "choices": [{"instance", "node", "alternates", "remaining"}]}, with --explain also "explanation"; an
    instance without a node also has "why".
    """
    request = request_from(request_file, resources, max_age)
    with open_scheduler(run, boots=False, node_max_age=node_max_age) as scheduler:
        choices = scheduler.select(request)
        explanation = scheduler.explain(request) if explain else None
        age = scheduler.view.age
    if run.as_json:
        answer: dict[str, Any] = {"age": age, "choices": [_as_json(choice) for choice in choices]}
        run.print_json(answer if explanation is None else {**answer, "explanation": explanation_json(explanation)})
    else:
        _print(run, choices, explanation)
        if explanation is not None:
            print_explanation(run, explanation)
    return 0 if all(choice.node is not None for choice in choices) else 1


def _as_json(choice: Choice) -> dict[str, Any]:
    return {
        "instance": choice.instance,
        "node": choice.node,
        "alternates": choice.alternates,
        "remaining": remaining_json(choice.remaining),
        **({} if choice.node is not None else {"why": str(_why(choice))}),
    }


def _why(choice: Choice) -> NoHostFound:
    return NoHostFound(choice.remaining, choice.unknown, lacks=choice.lacks)


def _print(run: Run, choices: list[Choice], explanation: Explanation | None) -> None:
    failed = [choice for choice in choices if choice.node is None]
    if len(failed) < len(choices):
        table = make_table("instance", "node", "alternates")
        for choice in choices:
            if choice.node is not None:
                table.add_row(Text(choice.instance), Text(choice.node), Text(", ".join(choice.alternates)))
        run.out.print(table)
    if failed:  # instances of a request are alike, so all have the reason of the first one
        whose = f"{len(failed):,} of {count_text(len(choices), 'instance')}" if len(choices) > 1 else ""
        print_no_host(run, _why(failed[0]), whose=whose, printed=explanation.remaining if explanation else ())

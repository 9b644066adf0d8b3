"""The command ``doctor``: report the faults of a cell, each with its remedy."""

from __future__ import annotations

from typing import Final

import click
import msgspec
from rich.text import Text

from nodestate.cli.command import Run, cell_command
from nodestate.designs.inspection import read_control, selected_designs
from nodestate.findings import Finding, examine_cell
from nodestate.findings.finding import FAIL, OK, WARN
from nodestate.masking import safe_url

STYLES: Final = {OK: "green", WARN: "yellow", FAIL: "bold red"}


@cell_command("doctor", example="nodestate doctor --json")
@click.option(
    "--design",
    "designs",
    metavar="NAMES",
    help="Designs to examine, separated by commas, as journal,snapshot.",
    show_default="all that consumers write",
)
def command(run: Run, designs: str | None) -> int:
    """Examine the broker, each store, each partition and the agents, and print one line for each finding.

    OK: this part of the cell works. WARN: it works, but needs attention. FAIL: it does not work. The exit code is 1 if
    there is a FAIL. Each line with WARN or FAIL is followed by its remedy.
    """
    config = run.config
    examined = selected_designs(config, designs)
    run.require_shared(broker=True, designs=[stored.design for stored in examined])
    control = read_control(config, [stored.design for stored in examined])
    findings: list[Finding] = []
    for finding in examine_cell(config, control, examined):
        findings.append(finding)
        if not run.as_json:
            _print(run, finding)
    failed = any(finding.level == FAIL for finding in findings)
    if run.as_json:
        run.print_json(
            {
                "ok": not failed,
                "broker": config.broker_safe,
                "store": safe_url(config.store),
                "cell": config.cell,
                "partitions": control.reads.partitions,
                "findings": [_as_json(finding) for finding in findings],
            }
        )
    return 1 if failed else 0


def _print(run: Run, finding: Finding) -> None:
    line = Text.assemble((f"{finding.level:<5}", STYLES[finding.level]), (f"{finding.about}: ", "bold"), finding.says)
    run.out.print(line, soft_wrap=True)
    if finding.advice:
        run.out.print(Text(f"     → {finding.advice}", style="dim"), soft_wrap=True)


def _as_json(finding: Finding) -> dict[str, str]:
    """Return a finding with the names of fields of earlier versions and of the HTTP API."""
    earlier = {"level": finding.level, "about": finding.about, "advice": finding.advice}
    return earlier | msgspec.structs.asdict(finding.document())

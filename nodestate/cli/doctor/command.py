"""The command ``doctor``: report the faults of a cell, each with its remedy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

import click
from rich.text import Text

from nodestate.cli.command import Run, cell_command
from nodestate.cli.doctor.agent_checks import examine_agents
from nodestate.cli.doctor.broker_checks import examine_broker, examine_unnamed_layouts
from nodestate.cli.doctor.design_checks import (
    examine_copies,
    examine_design,
    examine_record,
    examine_replicas,
    examine_single_replica,
)
from nodestate.cli.doctor.findings import FAIL, OK, WARN, Finding
from nodestate.cli.doctor.signature_checks import examine_refused_answers, examine_signatures, examine_tags
from nodestate.cli.doctor.store_checks import examine_damage, examine_database, examine_store
from nodestate.cli.doctor.value_checks import examine_values
from nodestate.config import Config, servers_of
from nodestate.designs import DESIGNS
from nodestate.designs.control import Control
from nodestate.designs.inspection import CellInspector, read_control, read_copies, replica_pairs, selected_designs
from nodestate.designs.stored_design import StoredDesign
from nodestate.errors import NodestateError
from nodestate.masking import safe_url
from nodestate.ports import StoreRole, SystemClock
from nodestate.store.signed_values import ValueCounts, value_auth
from nodestate.text import count_text

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
    for finding in _examine_cell(config, control, examined):
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
                "findings": [finding._asdict() for finding in findings],
            }
        )
    return 1 if failed else 0


def _print(run: Run, finding: Finding) -> None:
    line = Text.assemble((f"{finding.level:<5}", STYLES[finding.level]), (f"{finding.about}: ", "bold"), finding.says)
    run.out.print(line, soft_wrap=True)
    if finding.advice:
        run.out.print(Text(f"     → {finding.advice}", style="dim"), soft_wrap=True)


def _examine_cell(config: Config, control: Control, designs: Sequence[StoredDesign]) -> Iterator[Finding]:
    layouts = list(dict.fromkeys(stored.partitions for stored in designs))
    copies = read_copies(config, [stored.design for stored in designs])
    yield from examine_record(config, copies)
    yield from examine_copies(config.cell, copies)
    yield from _findings_or_error(
        "broker",
        lambda: [*examine_broker(config, layouts), *examine_unnamed_layouts(config, control, layouts)],
    )
    for one in control.leaving:
        partitions = count_text(one.partitions, "partition")
        says = f"{one} was retired, but the queues of its {partitions} may still exist and fill up"
        yield Finding(WARN, "queues", says, f"run 'nodestate design retire {one}' again: it deletes them")
    changed_at = max((copy.control.version for copy in copies if copy.control is not None), default=0)
    for url in filter(None, (config.store, config.store_b)):
        for address in servers_of(url):
            yield from _findings_or_error(f"store {address}", partial(examine_store, config, url, address, changed_at))
    if any(DESIGNS[stored.design].store_role is StoreRole.SQL for stored in designs):
        yield from _findings_or_error("store of the database", partial(examine_database, config))
    values = value_auth(config, SystemClock(), ValueCounts())
    inspector = CellInspector(config, designs, values)
    try:
        statuses = inspector.inspect(node_max_age=math.inf)
        pairs = replica_pairs(statuses)
        partners = {one.name: other for pair in pairs for one, other in (pair, pair[::-1])}
        for status in statuses:
            yield from examine_design(config, status, partners.get(status.name))
        for first, other in pairs:
            yield from examine_replicas(first, other)
        yield from examine_single_replica(config, control)
        # All designs should have the same nodes. The one with the most is used to examine the agents.
        views = [inspector.followed_view(), *(status.view for status in statuses)]
        view = max(views, key=lambda view: len(view.nodes))
        yield from examine_agents(config, view)
        yield from _findings_or_error("signatures", lambda: examine_signatures(config, view))
        yield from _findings_or_error("answers", lambda: examine_refused_answers(config))
        yield from _findings_or_error("tags", lambda: examine_tags(config, view))
        yield from examine_values(config, values, [one.name for one in view.nodes.records()])
        yield from examine_damage(config.cell)
    finally:
        inspector.close()


def _findings_or_error(about: str, examine: Callable[[], list[Finding]]) -> list[Finding]:
    """Return the findings of a check. If the check raises an error, the only finding is this error.

    Args:
        about: the part of the cell, for a finding with an error.
        examine: the check.
    """
    try:
        return examine()
    except NodestateError as error:
        advice = "check that it is running, that this is its address, and that it accepts this user and password"
        return [Finding(FAIL, about, str(error), advice)]

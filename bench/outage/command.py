"""The command line of outage runs: ``python -m bench outage``.

Exit codes: 0 done, 1 a promise was violated or a server failed, 2 bad usage.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import click

from bench.consumer_process import failures_as_wrong_results
from bench.fresh_process import log_warnings_only
from bench.outage.cell import BUSY_NODES_COUNT, Load, OutageCell
from bench.outage.outages import OUTAGES, RESTARTS
from bench.outage.record import OutageRecord, show
from bench.outage.run import Row, finish, goals_of, run_outages, total_of
from bench.progress import show_progress
from bench.record import commit, machine, now, versions
from bench.workload import WrongResultError
from harness.servers import ServerFailedError, ServerMissingError
from nodestate.errors import NodestateError

EXAMPLE: Final = """\
Example: kill one of three memcacheds for ten minutes, and write the record to a file:

\b
    python -m bench outage --outage memcached-killed --outage-s 600 --json killed.json
"""


@click.command(
    help="Start three memcacheds, a RabbitMQ cluster of three nodes, consumers, agents, schedulers and readers; let "
    "one server after the other go away and return; and print the effects as a Markdown table.\n\n\b\n"
    + "\n".join(f"{one.name:23} {one.what}" for one in OUTAGES)
    + f"\n\n{EXAMPLE}",
    context_settings={"max_content_width": 120},
)
@click.option(
    "--outage",
    "chosen",
    type=click.Choice([one.name for one in OUTAGES]),
    multiple=True,
    help="An outage to cause; may be given several times.  [default: all but rabbit-links-cut]",
)
@click.option("--rolling", is_flag=True, help="Restart each server and each process of nodestate instead, in turn.")
@click.option(
    "--outage-s",
    type=click.FloatRange(min=0.0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds for which a server is away.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0.0),
    default=1_000.0,
    show_default=True,
    help="Events per second, all nodes together.",
)
@click.option(
    "--nodes",
    type=click.IntRange(min=BUSY_NODES_COUNT),
    default=1_000,
    show_default=True,
    help=f"Number of nodes. Instances are booted on {BUSY_NODES_COUNT} of them.",
)
@click.option(
    "--schedulers",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Number of schedulers, each a process.",
)
@click.option(
    "--replicas", type=click.IntRange(1, 2), default=2, show_default=True, help="Setting replicas of all processes."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of the load.")
@click.option("--json", "json_file", is_flag=False, flag_value="-", help="Write the record to FILE, - for stdout.")
@click.option(
    "--logs",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder in which logs of all processes stay.  [default: a temporary folder]",
)
def main(
    *,
    chosen: tuple[str, ...],
    rolling: bool,
    outage_s: float,
    rate: float,
    nodes: int,
    schedulers: int,
    replicas: int,
    seed: int,
    json_file: str | None,
    logs: Path | None,
) -> None:
    """Run outages, print their table and write their record."""
    if rolling and chosen:
        raise click.UsageError("--rolling restarts everything and causes no outage: leave out --outage")
    load = Load(nodes, rate, schedulers, seed, replicas)
    outages = RESTARTS if rolling else [one for one in OUTAGES if one.name in chosen or not (chosen or one.cuts_links)]
    log_warnings_only()
    began_at, where = now(), machine()
    rows: list[Row] = []
    try:
        with ExitStack() as held:
            report_progress = held.enter_context(show_progress())
            held.enter_context(failures_as_wrong_results())
            if logs is not None:
                logs.mkdir(parents=True, exist_ok=True)
            folder = logs or Path(held.enter_context(tempfile.TemporaryDirectory(prefix="nodestate-bench-")))
            cuttable = any(one.cuts_links for one in outages)
            cell = held.enter_context(OutageCell(folder, load, report_progress, cuttable=cuttable))
            try:
                for row in run_outages(cell, outages, 0.0 if rolling else outage_s):
                    rows.append(row)  # noqa: PERF402 - the rows so far are shown if the run ends early
                finish(cell)
            except WrongResultError as error:
                cell.log.violate(f"the run ended early: {error}")
            if rolling and rows:
                rows.append(total_of(cell, rows))
    except (WrongResultError, NodestateError, ServerMissingError, ServerFailedError) as error:
        click.echo(f"bench outage: {error}", err=True)
        sys.exit(1)
    without_goals = {one.name for one in outages if not one.has_quorum}
    record = OutageRecord(
        began_at,
        commit(),
        versions(**cell.versions),
        where,
        load._asdict(),
        outage_s,
        rows,
        [goal for row in rows if row.name not in without_goals for goal in goals_of(row)],
        cell.log.violations,
        cell.log.checked(),
    )
    show(record, to_stderr=json_file == "-")
    if json_file == "-":
        sys.stdout.buffer.write(record.to_json())
    elif json_file is not None:
        Path(json_file).write_bytes(record.to_json())
    sys.exit(1 if record.violations else 0)

"""The command line: run a scenario, print its tables and write its record.

Exit codes: 0 done, 1 a result was wrong or a run failed, 2 bad usage.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.table import Table

from bench import (
    apply,
    auth,
    cold,
    contention,
    footprint,
    http_api,
    plan,
    propagation,
    recovery,
    refresh,
    replicas,
    scale,
)
from bench.design_names import DEFAULT_DESIGNS, DESIGN_NAMES, full_design_name
from bench.fresh_process import log_warnings_only
from bench.mode_comparison import HEAD as MODES_HEAD
from bench.mode_comparison import mode_rows
from bench.peers import peer_scenario
from bench.progress import show_progress
from bench.record import Case, Record, commit, machine, now, versions
from bench.report import ReportError, write_html, write_report
from bench.report.fault_table import HEAD, LONG_COLUMNS_COUNT, fault_rows, is_numbered
from bench.scenario import Scenario, Settings
from bench.scheduling import reserve, select, trace
from bench.workload import WrongResultError
from harness.servers import ServerFailedError, ServerMissingError
from nodestate.config import Config
from nodestate.errors import NodestateError

SCENARIOS: Final[dict[str, Scenario]] = {
    one.name: one
    for one in (
        refresh.SCENARIO,
        cold.SCENARIO,
        apply.SCENARIO,
        auth.SCENARIO,
        replicas.SCENARIO,
        footprint.SCENARIO,
        propagation.SCENARIO,
        recovery.SCENARIO,
        contention.SCENARIO,
        http_api.SCENARIO,
        select.SCENARIO,
        reserve.SCENARIO,
        trace.SCENARIO,
        scale.SCENARIO,
        peer_scenario.SCENARIO,
    )
}
EXAMPLES: Final = (
    "refresh --design snapshot --nodes 1000,10000",
    "replicas --nodes 10000 --seconds 20 --json replicas.json",
    "replicas --quick",
)
NODES, SECONDS, CHANGED = 10_000, 10.0, 100
RESULTS: Final = Path(__file__).parent / "results"
QUICK_NODES, QUICK_SECONDS, QUICK_CHANGED = 500, 0.5, 20


class _Numbers(click.ParamType[tuple[int, ...]]):
    """Positive whole numbers, separated by commas."""

    name = "N[,N…]"

    def convert(
        self, value: str | tuple[int, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = value.split(",")
        if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
            self.fail(f"{value!r} is not a list of positive whole numbers, such as 1000,10000", param, ctx)
        return tuple(int(part) for part in parts)


class _Designs(click.ParamType[tuple[str, ...]]):
    """Names of designs, separated by commas. A design in a database is named with it: ``sql:mariadb``."""

    name = "D[:DB][,…]"

    def convert(
        self, value: str | tuple[str, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        names = value if isinstance(value, tuple) else tuple(part.strip() for part in value.split(","))
        try:
            return tuple(dict.fromkeys(map(full_design_name, names)))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command(
    help="Start servers, prove that SCENARIO gives the right result, and measure it:\n\n\b\n"
    + "\n".join(f"{one.name:11} {one.what}" for one in SCENARIOS.values())
    + "\nall         all of them, as bench/plan.py says, and then the report"
    + "\nreport      write the report on the records in --results"
    + "\noutage      a whole cell while servers go away and return: see python -m bench outage --help",
    epilog="\b\nExamples:\n" + "\n".join(f"  python -m bench {example}" for example in EXAMPLES),
    context_settings={"max_content_width": 120},
)
@click.argument("scenario", type=click.Choice([*SCENARIOS, "all", "report"]))
@click.argument("file", required=False, envvar=trace.VARIABLE, type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--design",
    "designs",
    type=_Designs(),
    default=DEFAULT_DESIGNS,
    help=f"Designs to measure, one by one: {', '.join(DESIGN_NAMES)}.  [default: {','.join(DEFAULT_DESIGNS)}]",
)
@click.option("--nodes", type=_Numbers(), help=f"Number of nodes; several numbers to see growth.  [default: {NODES}]")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.0, min_open=True),
    help=f"Seconds to measure each design at each size.  [default: {SECONDS:g}]",
)
@click.option("--changed", type=click.IntRange(min=1), help=f"Nodes changed in each commit.  [default: {CHANGED}]")
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of the fleet and of its changes.")
@click.option(
    "--state-bytes", type=click.IntRange(min=1), default=1_024, show_default=True, help="Bytes of a node's state."
)
@click.option(
    "--change-bytes", type=click.IntRange(min=1), default=200, show_default=True, help="Bytes of a change's event."
)
@click.option(
    "--batch-events",
    type=click.IntRange(min=1),
    default=Config().batch_events,
    show_default=True,
    help="Largest number of events that a consumer commits at once.",
)
@click.option(
    "--prefetch",
    type=click.IntRange(1, 65_535),
    default=Config().prefetch,
    show_default=True,
    help="Largest number of events that a consumer holds without having acknowledged them.",
)
@click.option("--quick", is_flag=True, help="Run small and short: this shows that it works, not how fast it is.")
@click.option("--json", "json_file", is_flag=False, flag_value="-", help="Write the record to FILE, - for stdout.")
@click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    default=RESULTS,
    help="Folder of the records of `all` and `report`.  [default: bench/results]",
)
@click.option(
    "--html",
    "html_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the report as HTML to FILE, too.",
)
def main(
    *,
    scenario: str,
    file: Path | None,
    designs: tuple[str, ...],
    nodes: tuple[int, ...] | None,
    seconds: float | None,
    changed: int | None,
    seed: int,
    state_bytes: int,
    change_bytes: int,
    batch_events: int,
    prefetch: int,
    quick: bool,
    json_file: str | None,
    results: Path,
    html_file: Path | None,
) -> None:
    """Run one scenario or all of them, or write the report."""
    if scenario in {"all", "report"}:
        sys.exit(0 if _evaluate(results, html_file, quick=quick, measure=scenario == "all") else 1)
    if html_file is not None:
        raise click.UsageError(f"--html is an option of `all` and `report`, not of {scenario}")
    if file is not None and not SCENARIOS[scenario].takes_file:
        named = click.get_current_context().get_parameter_source("file")
        if named is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{scenario} takes no FILE")
    settings = Settings(
        designs,
        nodes or ((QUICK_NODES,) if quick else SCENARIOS[scenario].nodes or (NODES,)),
        seconds or (QUICK_SECONDS if quick else SECONDS),
        seed,
        changed or (QUICK_CHANGED if quick else CHANGED),
        state_bytes,
        change_bytes,
        batch_events,
        prefetch,
        file,
    )
    log_warnings_only()
    began_at, where = now(), machine()
    try:
        with show_progress() as report_progress:
            findings = SCENARIOS[scenario].run(settings, report_progress)
    except (WrongResultError, NodestateError, ServerMissingError, ServerFailedError) as error:
        click.echo(f"bench {scenario}: {error}", err=True)
        sys.exit(1)
    record = Record(
        scenario,
        seed,
        settings.seconds,
        began_at,
        commit(),
        versions(**findings.servers),
        where,
        findings.cases,
        findings.across,
        findings.goals,
        skipped=findings.skipped,
    )
    _show(record, Console(stderr=json_file == "-"))
    if json_file == "-":
        sys.stdout.buffer.write(record.to_json())
    elif json_file is not None:
        Path(json_file).write_bytes(record.to_json())


def _evaluate(results: Path, html_file: Path | None, *, quick: bool, measure: bool) -> bool:
    """Carry out the plan if ``measure`` is true, then write the report. Returns whether everything succeeded."""
    failed: list[str] = []
    if measure:
        able = {name for name, one in SCENARIOS.items() if not one.takes_file or os.environ.get(trace.VARIABLE)}
        runs, missing = plan.wanted(quick, able)
        if missing:
            click.echo(f"left out, because {trace.VARIABLE} is not set: {', '.join(missing)}", err=True)
        failed = plan.carry_out(runs, results, lambda line: click.echo(line, err=True))
        if failed:
            click.echo(f"bench all: failed: {', '.join(failed)}", err=True)
    try:
        click.echo(f"report: {write_report(results)}")
        if html_file is not None:
            write_html(results, html_file)
            click.echo(f"report: {html_file}")
    except ReportError as error:
        click.echo(f"bench {'all' if measure else 'report'}: {error}", err=True)
        return False
    return not failed


def _show(record: Record, console: Console) -> None:
    for case in record.cases:
        if is_numbered(case):
            continue
        console.print(_table(record, case))
        for ratio, value in case.ratios.items():
            console.print(f"  {ratio}: {value:.2f}x", highlight=False)
        for claim in case.shown:
            console.print(f"  shown: {claim}", style="dim", highlight=False)
    _show_numbered_faults(record, console)
    _show_modes(record, console)
    for ratio, value in record.across.items():
        console.print(f"{ratio}: {value:.2f}x", highlight=False)
    for goal in [*(goal for case in record.cases for goal in case.goals), *record.goals]:
        verdict = "[green]met[/]" if goal.met else "[red]not met[/]"
        bound = f"{goal.sense} {goal.bound:g} {goal.unit}"
        console.print(f"goal {verdict}: {goal.what}: {goal.got:,.4g} {goal.unit}, goal {bound}", highlight=False)
    for line in record.skipped:
        console.print(f"skipped: {line}", highlight=False, markup=False, soft_wrap=True)
    where = record.machine
    console.print(
        f"{record.commit[:10] or 'no commit'}{'+' if record.commit.endswith('+') else ''}, seed {record.seed}, "
        f"{where.cores} cores of {where.cpu}, load {where.load_1min:.2f}, calibration {where.calibration_ms:.1f} ms",
        style="dim",
        highlight=False,
    )


def _show_modes(record: Record, console: Console) -> None:
    """Print a table of all ratios between the two modes of a scenario that compares them, for each size of fleet."""
    modes = SCENARIOS[record.scenario].modes
    if modes is None:
        return
    for nodes in dict.fromkeys(case.nodes for case in record.cases):
        title = f"{record.scenario}, {nodes:,} nodes: p50 of both modes, and {modes[1]} / {modes[0]}"
        table = Table("", title=title, title_justify="left")
        for column in (*modes, "unit", *MODES_HEAD):
            table.add_column(column, no_wrap=True, justify="right" if column in modes else "left")
        for row in mode_rows([case for case in record.cases if case.nodes == nodes], modes):
            table.add_row(*row)
        console.print(table)


def _show_numbered_faults(record: Record, console: Console) -> None:
    """Print one table of all numbered faults, and below it a paragraph for each: the long columns."""
    rows = fault_rows(record.cases)
    if not rows:
        return
    short = len(HEAD) - LONG_COLUMNS_COUNT
    table = Table(*HEAD[:short], title=f"{record.scenario}: numbered faults", title_justify="left")
    for row in rows:
        table.add_row(*row[:short])
    console.print(table)
    for number, fault, *others in rows:
        texts = zip(HEAD[short:], others[short - 2 :], strict=True)
        said = "; ".join(f"{name}: {text}" for name, text in texts)
        console.print(f"{number} {fault}: {said}", style="dim", highlight=False, markup=False, soft_wrap=True)


def _table(record: Record, case: Case) -> Table:
    facts = ", ".join(f"{name} {value:,.4g}" for name, value in case.settings.items())
    table = Table(title=f"{record.scenario}: {case.design}, {case.nodes:,} nodes", caption=facts, title_justify="left")
    table.add_column("")
    for column in ("p50", "p99", "min", "max", "rounds"):
        table.add_column(column, justify="right")
    table.add_column("unit")
    for name, measure in case.measures.items():
        figures = _figures((measure.p50, measure.p99, measure.min, measure.max))
        table.add_row(name, *figures, f"{measure.count:,}", measure.unit)
    return table


def _figures(values: Sequence[float]) -> list[str]:
    return [f"{value:,.0f}" if value >= 1_000 else f"{value:.3g}" for value in values]

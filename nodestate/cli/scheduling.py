"""Parts that the scheduling commands share: options, a scheduler from the settings, requests from files, output."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any, ClassVar, Final

import click
import msgspec
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from nodestate.broker import KombuCourier
from nodestate.cli.command import SECONDS, Run, operator_name
from nodestate.errors import BadRequestError, NodestateError, StaleViewError
from nodestate.scheduling import (
    Boot,
    Booted,
    BootOutcome,
    Explanation,
    Failed,
    NodeRefusal,
    NoHostFound,
    Remaining,
    Request,
    Scheduler,
    parse,
)
from nodestate.scheduling.fleet_refresh import HEARTBEATS_COUNT

MAX_AGE_S: Final = 5.0
FIRST_VIEW_S: Final = 2.0
STEP_S: Final = 0.1
REPEAT_TERMINATION_S: Final = 1.0


class CommandTimeoutError(NodestateError):
    """Raised when a command's time is over, and not all is done."""

    kind: ClassVar[str] = "timeout"


# -- options --------------------------------------------------------------------------------------

AGE: Final = click.FloatRange(min=0.0, min_open=True)
max_age_option = click.option(
    "--max-age",
    type=AGE,
    metavar="S",
    help=f"How old the view may be.  [default: as in the request, else {MAX_AGE_S:g}]",
)
node_max_age_option = click.option(
    "--node-max-age",
    type=AGE,
    metavar="S",
    help="Pass over nodes that gave no sign of life for so long.  [default: three heartbeats, and 5]",
)
resources_option = click.option(
    "--resources", metavar="CLASS=N,…", help="In place of a REQUEST: one instance that wants no more than these."
)
explain_option = click.option(
    "--explain", is_flag=True, help="Filter by filter, and the best nodes weigher by weigher."
)
timeout_option = click.option(
    "--timeout", type=SECONDS, default=60.0, metavar="S", help="How long to wait for agents."
)  # fmt: skip
owner_option = click.option("--owner", default="", metavar="NAME", help="Refuse if the reservation is not theirs.")
file_type = click.Path(dir_okay=False, allow_dash=True)


# -- opening --------------------------------------------------------------------------------------


@contextmanager
def open_scheduler(
    run: Run, *, boots: bool, max_age: float | None = None, node_max_age: float | None = None
) -> Iterator[Scheduler]:
    """A scheduler of the settings' cell, with a way to agents if it ``boots``.

    Raises ``ConfigError`` where the settings name no store that others see, too: claims would be nobody else's.
    """
    run.require_shared(broker=boots, store=True)
    config = run.config
    # As for ``view``: a process that decides once has no garbage worth looking for.
    gc.disable()
    courier = KombuCourier(config) if boots else None
    try:
        with Scheduler(
            config,
            name=f"{operator_name()}:{os.getpid()}",
            max_age=max_age or MAX_AGE_S,
            # One that missed so many is passed over, as of a view that may be ``MAX_AGE_S`` old itself.
            node_max_age=node_max_age or HEARTBEATS_COUNT * config.heartbeat_s + MAX_AGE_S,
            courier=courier,
        ) as scheduler:
            with suppress(StaleViewError):  # consumers may be about to vouch; which bound counts, the command says
                scheduler.refresher.reader.read(max_age=scheduler.refresher.max_age, timeout=FIRST_VIEW_S)
            try:
                yield scheduler
            except TimeoutError as error:
                cause = f"{error}: {error.__cause__}" if error.__cause__ is not None else str(error)
                if any(scheduler.claim_table.own):
                    cause += f"; claims that were made end after {config.claim_ttl_s:g} s"
                raise CommandTimeoutError(cause) from error
    finally:
        if courier is not None:
            courier.close()


def read_file(path: str) -> bytes:
    """The content of a request's file, ``-`` for stdin. Raises ``BadRequestError``."""
    try:
        with click.open_file(path, "rb") as file:
            content: bytes = file.read()
            return content
    except OSError as error:
        raise BadRequestError("request", f"{path} can't be read: {error.strerror}") from None


def request_from(path: str | None, resources: str | None, max_age: float | None) -> Request:
    """The request of a file, or of a few words. Raises ``BadRequestError``, and ``UsageError`` unless it is one of
    both.
    """
    if path is not None and resources is not None:
        raise click.UsageError("a file of a REQUEST and --resources both say what is wanted: one of them, not both")
    if path is None and resources is None:
        raise click.UsageError(
            "say what is wanted: a file of a REQUEST (- for stdin), or --resources VCPU=2,MEMORY_MB=4096"
        )
    request = parse(read_file(path) if path is not None else {"resources": parse_amounts(str(resources).split(","))})
    return request if max_age is None else msgspec.structs.replace(request, max_age=max_age)


def parse_amounts(words: Iterable[str]) -> dict[str, int]:
    """Amounts by resource class, from words as ``VCPU=2``. Raises ``BadRequestError``."""
    amounts: dict[str, int] = {}
    for word in words:
        name, _, amount = word.strip().partition("=")
        if name in amounts:
            raise BadRequestError(f"resources.{name}", "it is named twice")
        if not amount.isascii() or not amount.isdecimal():
            raise BadRequestError(f"resources.{name}", f"{word!r}; want a class and a whole number, as VCPU=2")
        amounts[name] = int(amount)
    return amounts


# -- waiting --------------------------------------------------------------------------------------


class _PendingColumn(ProgressColumn):
    """How many have no outcome yet, as the scheduler says at the moment of drawing."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self._scheduler = scheduler

    def render(self, task: Task) -> Text:  # noqa: ARG002 - as it is declared
        count = self._scheduler.session.boots_under_way_count
        return Text(f"{count:,} under way" if count is not None else "")


@contextmanager
def progress(run: Run, scheduler: Scheduler, what: str) -> Iterator[None]:
    """Show a terminal that it goes on; nothing elsewhere."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), _PendingColumn(scheduler), TimeElapsedColumn())
    disable = run.as_json or not run.err.is_terminal
    with Progress(*columns, console=run.err, transient=True, disable=disable) as shown:
        shown.add_task(what, total=None)
        yield


def boot_all(run: Run, scheduler: Scheduler, boots: Sequence[Boot], timeout_s: float) -> None:
    """Step until each has its outcome, or time is over."""
    try:
        with progress(run, scheduler, "booting"):
            scheduler.run(lambda: all(boot.outcome is not None for boot in boots), timeout_s)
    except TimeoutError as error:
        if error.__cause__ is not None:
            run.err.print(f"nodestate: {error}: {error.__cause__}", markup=False, soft_wrap=True)


def wait_until_shown(run: Run, scheduler: Scheduler, outcomes: Iterable[BootOutcome]) -> None:
    """Return when a view shows what agents did, so that the next command builds upon it; say so where none does in
    time.
    """
    booted = [outcome for outcome in outcomes if isinstance(outcome, Booted)]
    deadline = time.monotonic() + scheduler.config.answer_timeout_s
    tell_again_at = time.monotonic() + REPEAT_TERMINATION_S
    while booted:
        try:
            scheduler.refresh()
        except StaleViewError as error:
            run.err.print(f"nodestate: done, and no view shows it yet: {error}", markup=False, soft_wrap=True)
            return
        old = [(node, outcome.instance) for outcome in booted for node in _superseded_nodes(scheduler, outcome)]
        booted = [
            outcome for outcome in booted if not _is_shown(scheduler, outcome) or _superseded_nodes(scheduler, outcome)
        ]
        now = time.monotonic()
        if booted and now > deadline:
            some = f"{len(booted):,} of them, as {booted[0].instance} on {booted[0].node}"
            run.err.print(f"nodestate: done, and no view shows {some}; see 'nodestate doctor'", markup=False)
            return
        if old and now > tell_again_at:
            tell_again_at = now + REPEAT_TERMINATION_S
            scheduler.session.orders.terminations.terminate_duplicates(old)
        if booted:
            scheduler.step(STEP_S)
    scheduler.drop_allocated_claims()


def _is_shown(scheduler: Scheduler, outcome: Booted) -> bool:
    fleet = scheduler.fleet
    row = fleet.rows.get(outcome.node)
    return row is not None and fleet.version[row] >= outcome.version


def _superseded_nodes(scheduler: Scheduler, outcome: Booted) -> list[str]:
    """Other nodes that report it still and can be asked to end it; none where it was moved on meanwhile."""
    fleet = scheduler.fleet
    counting = fleet.authoritative_row(outcome.instance)
    if counting is None or fleet.names[counting] != outcome.node or not fleet.is_responsive(counting):
        return []
    return [
        fleet.names[row]
        for row in fleet.instances.reporting_rows(outcome.instance)
        if row != counting and fleet.usable[row]
    ]


# -- for programs ---------------------------------------------------------------------------------


def remaining_json(remaining: Iterable[Remaining]) -> list[dict[str, Any]]:
    """Filter by filter, how many nodes were left."""
    return [{"filter": step.filter, "nodes": step.nodes} for step in remaining]


def explanation_json(explanation: Explanation) -> dict[str, Any]:
    """The filters, and the best nodes with the weight of each weigher, by its multiplier."""
    best = [
        {"node": node, "weight": round(sum(parts.values()), 4), "weighers": parts} for node, parts in explanation.best
    ]
    return {"remaining": remaining_json(explanation.remaining), "best": best}


def outcome_json(outcome: BootOutcome) -> dict[str, Any]:
    """What became of one instance."""
    refused = [{"node": one.node, "reason": one.reason, "detail": one.detail} for one in outcome.refusals]
    if isinstance(outcome, Booted):
        version = {"incarnation": outcome.version.incarnation, "generation": outcome.version.generation}
        found: dict[str, Any] = {"booted": True, "node": outcome.node, "version": version}
    else:
        found = {"booted": False, "why": str(outcome.reason), "remaining": remaining_json(outcome.reason.remaining)}
    return {"instance": outcome.instance, **found, "refused": refused, "conflicts": outcome.conflicts}


# -- for people -----------------------------------------------------------------------------------


def make_table(*titles: str) -> Table:
    """A table in the house's form; titles that end in ``>`` head numbers."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in titles:
        table.add_column(title.rstrip(">"), justify="right" if title.endswith(">") else "left", no_wrap=True)
    return table


def print_filters(run: Run, remaining: Sequence[Remaining]) -> None:
    """The filters that took something."""
    took = [(step, before.nodes - step.nodes) for before, step in pairwise(remaining) if before.nodes != step.nodes]
    if not took:
        return
    table = make_table("filter", "took>", "left>")
    for step, count in took:
        table.add_row(step.filter, f"{count:,}", f"{step.nodes:,}")
    run.out.print(table)


def print_no_host(run: Run, why: NoHostFound, *, whose: str = "") -> None:
    """Why there is no node: in one line, then by filter."""
    run.out.print(f"{why}{f' ({whose})' if whose else ''}", markup=False, soft_wrap=True)
    if not why.reason:
        print_filters(run, why.remaining)


def print_explanation(run: Run, explanation: Explanation) -> None:
    """The filters that took something, and the best nodes weigher by weigher."""
    all_nodes = explanation.remaining[0].nodes
    run.out.print(f"{all_nodes:,} nodes, {explanation.remaining[-1].nodes:,} pass all filters")
    print_filters(run, explanation.remaining)
    if not explanation.best:
        return
    weighers = list(explanation.best[0][1])
    table = make_table("best", "weight>", *(f"{name}>" for name in weighers))
    for node, parts in explanation.best:
        table.add_row(Text(node), f"{sum(parts.values()):.3f}", *(f"{parts[name]:.3f}" for name in weighers))
    run.out.print(table)


def print_outcomes(run: Run, outcomes: Sequence[BootOutcome]) -> None:
    """Each instance with its node, then those that have none, and why."""
    booted = [outcome for outcome in outcomes if isinstance(outcome, Booted)]
    if booted:
        table = make_table("instance", "node", "version", "refused before by")
        for outcome in booted:
            version = f"{outcome.version.incarnation}.{outcome.version.generation}"
            refused = ", ".join(_refusal(one) for one in outcome.refusals)
            table.add_row(Text(outcome.instance), Text(outcome.node), version, Text(refused))
        run.out.print(table)
    for failed in outcomes:
        if isinstance(failed, Failed):
            print_no_host(run, failed.reason, whose=failed.instance)
            for one in failed.refusals:
                run.out.print(f"  refused by {_refusal(one)}", markup=False, soft_wrap=True)


def _refusal(refused: NodeRefusal) -> str:
    return f"{refused.node}: {refused.reason}{f' ({refused.detail})' if refused.detail else ''}"

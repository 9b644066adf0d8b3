"""Parts that the scheduling commands share: options, a scheduler from the settings, requests from files, output."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any, ClassVar, Final, TypeVar

import click
import msgspec
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from nodestate.broker import KombuCourier
from nodestate.cli.command import SECONDS, Run, operator_name
from nodestate.errors import SHOWN_COUNT, BadRequestError, NodestateError, StaleViewError
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
from nodestate.text import count_text

T = TypeVar("T")

MAX_AGE_S: Final = 5.0
"""Accepted age of the view, if neither the request nor an option says another."""
FIRST_VIEW_S: Final = 2.0
"""How long a command waits for a first view within its bounds."""
STEP_S: Final = 0.1
"""How long one step of the scheduler waits for messages of agents."""
REPEAT_TERMINATION_S: Final = 1.0
"""Time after which an agent is asked again to end an instance that a view still shows on its old node."""


class CommandTimeoutError(NodestateError):
    """Raised when the time of ``--timeout`` is over before a command has done all its work."""

    kind: ClassVar[str] = "timeout"


# -- options --------------------------------------------------------------------------------------

AGE: Final = click.FloatRange(min=0.0, min_open=True)
max_age_option = click.option(
    "--max-age",
    type=AGE,
    metavar="S",
    help="Accepted age of the view of all nodes, in seconds.",
    show_default=f"{MAX_AGE_S:g}",
)
request_max_age_option = click.option(
    "--max-age",
    type=AGE,
    metavar="S",
    help="Accepted age of the view of all nodes, in seconds.",
    show_default=f"max_age of the request, else {MAX_AGE_S:g}",
)
node_max_age_option = click.option(
    "--node-max-age",
    type=AGE,
    metavar="S",
    help="Choose no node without a sign of life for S seconds.",
    show_default="three heartbeats and 5 seconds",
)
resources_option = click.option(
    "--resources",
    metavar="CLASS=N,…",
    help="Instead of a REQUEST: amounts by resource class for one instance, as VCPU=2,MEMORY_MB=4096.",
)
explain_option = click.option(
    "--explain",
    is_flag=True,
    help="Print how many nodes each filter left, the weights of the best nodes, and recent refusals.",
)
timeout_option = click.option(
    "--timeout", type=SECONDS, default=60.0, metavar="S", help="Wait at most S seconds for the agents."
)  # fmt: skip
owner_option = click.option(
    "--owner",
    default="",
    metavar="NAME",
    help="Refuse if the reservation belongs to another owner.",
    show_default="any owner",
)
file_type = click.Path(dir_okay=False, allow_dash=True)


# -- the scheduler --------------------------------------------------------------------------------------


@contextmanager
def open_scheduler(
    run: Run, *, boots: bool, max_age: float | None = None, node_max_age: float | None = None
) -> Iterator[Scheduler]:
    """Give a scheduler of the cell in the settings.

    Raises ``ConfigError`` if the settings name a ``memory://`` store: claims would not be visible to other schedulers.
    Raises ``CommandTimeoutError`` if the body raises TimeoutError.

    Args:
        run: The command.
        boots: Connect to the broker as well, so that the scheduler can send orders to agents.
        max_age: Accepted age of views in seconds; None: ``MAX_AGE_S``.
        node_max_age: Seconds without a sign of life after which a node is not chosen; None: three heartbeats and
            ``MAX_AGE_S``.
    """
    run.require_shared(broker=boots, store=True)
    config = run.config
    # The process decides once and ends, so no garbage needs to be collected.
    gc.disable()
    courier = KombuCourier(config) if boots else None
    try:
        with Scheduler(
            config,
            name=f"{operator_name()}:{os.getpid()}",
            max_age=max_age or MAX_AGE_S,
            # The view itself may be ``MAX_AGE_S`` old when the last heartbeat is missed.
            node_max_age=node_max_age or HEARTBEATS_COUNT * config.heartbeat_s + MAX_AGE_S,
            courier=courier,
        ) as scheduler:
            with suppress(StaleViewError):  # consumers may be current in a moment; the command applies its own bound
                scheduler.refresher.reader.read(max_age=scheduler.refresher.max_age, timeout=FIRST_VIEW_S)
            try:
                yield scheduler
            except TimeoutError as error:
                cause = f"{error}: {error.__cause__}" if error.__cause__ is not None else str(error)
                if any(scheduler.claim_table.own):
                    cause += f"; claims of this command expire after {config.claim_ttl_s:g} s"
                raise CommandTimeoutError(cause) from error
    finally:
        if courier is not None:
            courier.close()


def read_file(path: str) -> bytes:
    """Return the content of a file, or of stdin for ``-``. Raises ``BadRequestError`` if it can't be read."""
    try:
        with click.open_file(path, "rb") as file:
            content: bytes = file.read()
            return content
    except OSError as error:
        raise BadRequestError("request", f"file {path} can't be read: {error.strerror}") from None


def parse_file(path: str, parse_content: Callable[[bytes], T]) -> T:
    """Return the request in a file.

    Raises ``BadRequestError``. The error names the file if the file is no JSON object.

    Args:
        path: The file, ``-`` for stdin.
        parse_content: ``parse`` or ``parse_group``.
    """
    content = read_file(path)
    try:
        return parse_content(content)
    except BadRequestError as error:
        if error.field != "request":
            raise
        raise BadRequestError(error.field, f"{'stdin' if path == '-' else f'file {path}'}: {error.reason}") from None


def request_from(path: str | None, resources: str | None, max_age: float | None) -> Request:
    """Return the request of a file, or of the option ``--resources``.

    Raises ``BadRequestError`` if it breaks the format, and click's ``UsageError`` unless exactly one of both is given.

    Args:
        path: File of a request, ``-`` for stdin; None if not given.
        resources: Amounts such as ``VCPU=2,MEMORY_MB=4096``; None if not given.
        max_age: Replaces the request's accepted age of the view, in seconds; None: keep the request's.
    """
    if path is not None and resources is not None:
        raise click.UsageError("a REQUEST file and --resources were both given: give one of them, not both")
    if path is None and resources is None:
        raise click.UsageError(
            "no request was given: name a REQUEST file (- for stdin), or give --resources VCPU=2,MEMORY_MB=4096"
        )
    request = (
        parse_file(path, parse) if path is not None else parse({"resources": parse_amounts(str(resources).split(","))})
    )
    return request if max_age is None else msgspec.structs.replace(request, max_age=max_age)


def parse_amounts(words: Iterable[str]) -> dict[str, int]:
    """Return amounts by resource class from words such as ``VCPU=2``. Raises ``BadRequestError``."""
    amounts: dict[str, int] = {}
    for word in words:
        name, _, amount = word.strip().partition("=")
        if name in amounts:
            raise BadRequestError(f"resources.{name}", f"{name} is given twice; give it once")
        if not amount.isascii() or not amount.isdecimal():
            raise BadRequestError(f"resources.{name}", f"{word!r} is not a class and a whole number, as VCPU=2")
        amounts[name] = int(amount)
    return amounts


# -- waiting --------------------------------------------------------------------------------------


class _PendingColumn(ProgressColumn):
    """Column of a progress bar: the present number of instances without an outcome."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self._scheduler = scheduler

    def render(self, task: Task) -> Text:  # noqa: ARG002 - the signature of rich
        count = self._scheduler.session.boots_under_way_count
        return Text(f"{count:,} under way" if count is not None else "")


@contextmanager
def progress(run: Run, scheduler: Scheduler, what: str) -> Iterator[None]:
    """Show a spinner on a terminal while the body runs; print nothing into files, pipes or JSON."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), _PendingColumn(scheduler), TimeElapsedColumn())
    disable = run.as_json or not run.err.is_terminal
    with Progress(*columns, console=run.err, transient=True, disable=disable) as shown:
        shown.add_task(what, total=None)
        yield


def boot_all(run: Run, scheduler: Scheduler, boots: Sequence[Boot], timeout_s: float) -> None:
    """Step the scheduler until each boot has its outcome or ``timeout_s`` seconds are over."""
    try:
        with progress(run, scheduler, "booting"):
            scheduler.run(lambda: all(boot.outcome is not None for boot in boots), timeout_s)
    except TimeoutError as error:
        if error.__cause__ is not None:
            run.err.print(f"nodestate: {error}: {error.__cause__}", markup=False, soft_wrap=True)


def wait_until_shown(run: Run, scheduler: Scheduler, outcomes: Iterable[BootOutcome]) -> None:
    """Wait until a view shows the instances that agents built, so that the next command decides on it.

    Prints a warning if no view shows it within ``answer_timeout_s`` seconds. If an instance was moved, its old node
    must be gone from the view as well; the agent there is asked again to end it.
    """
    booted = [outcome for outcome in outcomes if isinstance(outcome, Booted)]
    deadline = time.monotonic() + scheduler.config.answer_timeout_s
    repeat_at = time.monotonic() + REPEAT_TERMINATION_S
    while booted:
        try:
            scheduler.refresh()
        except StaleViewError as error:
            run.err.print(f"nodestate: done, but no view shows it yet: {error}", markup=False, soft_wrap=True)
            return
        old = [(node, outcome.instance) for outcome in booted for node in _superseded_nodes(scheduler, outcome)]
        booted = [
            outcome for outcome in booted if not _is_shown(scheduler, outcome) or _superseded_nodes(scheduler, outcome)
        ]
        now = time.monotonic()
        if booted and now > deadline:
            some = f"{count_text(len(booted), 'instance')}, for example {booted[0].instance} on {booted[0].node}"
            run.err.print(f"nodestate: done, but no view shows {some}; run 'nodestate doctor'", markup=False)
            return
        if old and now > repeat_at:
            repeat_at = now + REPEAT_TERMINATION_S
            scheduler.session.orders.terminations.terminate_duplicates(old)
        if booted:
            scheduler.step(STEP_S)
    scheduler.drop_allocated_claims()


def _is_shown(scheduler: Scheduler, outcome: Booted) -> bool:
    fleet = scheduler.fleet
    row = fleet.rows.get(outcome.node)
    return row is not None and fleet.version[row] >= outcome.version


def _superseded_nodes(scheduler: Scheduler, outcome: Booted) -> list[str]:
    """Return other nodes that still report the instance and can be asked to end it; none if it was moved again.

    A node whose report is not believed is left out: the allocation there stays.
    """
    fleet = scheduler.fleet
    row_now = fleet.authoritative_row(outcome.instance)
    if row_now is None or fleet.names[row_now] != outcome.node or not fleet.is_responsive(row_now):
        return []
    return [
        fleet.names[row]
        for row in fleet.instances.reporting_rows(outcome.instance)
        if row != row_now and fleet.usable[row] and fleet.reports.is_believed(row, outcome.instance)
    ]


# -- for programs ---------------------------------------------------------------------------------


def remaining_json(remaining: Iterable[Remaining]) -> list[dict[str, Any]]:
    """Return how many nodes each filter left, for ``--json``."""
    return [{"filter": step.filter, "nodes": step.nodes} for step in remaining]


def explanation_json(explanation: Explanation) -> dict[str, Any]:
    """Return the filters and the best nodes, with the weight of each weigher times its multiplier, for ``--json``."""
    best = [
        {"node": node, "weight": round(sum(parts.values()), 4), "weighers": parts} for node, parts in explanation.best
    ]
    refused = [{"node": one.node, "reason": one.reason, "age": round(one.age_s, 1)} for one in explanation.refused]
    return {"remaining": remaining_json(explanation.remaining), "best": best, "refused": refused}


def outcome_json(outcome: BootOutcome) -> dict[str, Any]:
    """Return the outcome of one instance, for ``--json``."""
    refused = [{"node": one.node, "reason": one.reason, "detail": one.detail} for one in outcome.refusals]
    if isinstance(outcome, Booted):
        version = {"incarnation": outcome.version.incarnation, "generation": outcome.version.generation}
        found: dict[str, Any] = {"booted": True, "node": outcome.node, "version": version}
    else:
        found = {"booted": False, "why": str(outcome.reason), "remaining": remaining_json(outcome.reason.remaining)}
    return {"instance": outcome.instance, **found, "refused": refused, "conflicts": outcome.conflicts}


# -- for people -----------------------------------------------------------------------------------


def make_table(*titles: str) -> Table:
    """Return an empty table. A column whose title ends with ``>`` is aligned to the right, for numbers."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in titles:
        table.add_column(title.rstrip(">"), justify="right" if title.endswith(">") else "left", no_wrap=True)
    return table


def print_filters(run: Run, remaining: Sequence[Remaining]) -> None:
    """Print the filters that removed nodes."""
    removed = [(step, before.nodes - step.nodes) for before, step in pairwise(remaining) if before.nodes != step.nodes]
    if not removed:
        return
    table = make_table("filter", "removed>", "left>")
    for step, count in removed:
        table.add_row(step.filter, f"{count:,}", f"{step.nodes:,}")
    run.out.print(table)


def print_no_host(run: Run, why: NoHostFound, *, whose: str = "", printed: Sequence[Remaining] = ()) -> None:
    """Print why there is no node for an instance: one line, then the filters.

    The filters are left out if they were ``printed`` before. They are also left out if only one node was allowed: the
    line names the filter.
    """
    run.out.print(f"{why}{f' ({whose})' if whose else ''}", markup=False, soft_wrap=True)
    if not (why.reason or why.node) and [*why.remaining] != [*printed]:
        print_filters(run, why.remaining)


def print_explanation(run: Run, explanation: Explanation) -> None:
    """Print the filters that removed nodes, and the best nodes with the weight of each weigher."""
    first, last = explanation.remaining[0].nodes, explanation.remaining[-1].nodes
    run.out.print(f"{count_text(first, 'node')}, {count_text(last, 'passes', 'pass')} all filters")
    print_filters(run, explanation.remaining)
    if explanation.refused:
        shown = [f"{one.node} ({one.reason} {one.age_s:.0f} s ago)" for one in explanation.refused[:SHOWN_COUNT]]
        shown += ["…"] if len(explanation.refused) > SHOWN_COUNT else []
        run.out.print(f"ranked lower after a refusal: {', '.join(shown)}", markup=False, soft_wrap=True)
    if not explanation.best:
        return
    weighers = list(explanation.best[0][1])
    table = make_table("best", "weight>", *(f"{name}>" for name in weighers))
    for node, parts in explanation.best:
        table.add_row(Text(node), f"{sum(parts.values()):.3f}", *(f"{parts[name]:.3f}" for name in weighers))
    run.out.print(table)


def print_outcomes(run: Run, outcomes: Sequence[BootOutcome], explanation: Explanation | None = None) -> None:
    """Print each instance with its node, then the instances that have none, with the reason.

    The filters of instances that fail alike are printed once, or not at all if ``explanation`` has printed them.
    """
    printed: Sequence[Remaining] = explanation.remaining if explanation is not None else ()
    booted = [outcome for outcome in outcomes if isinstance(outcome, Booted)]
    if booted:
        table = make_table("instance", "node", "version", "tried before")
        for outcome in booted:
            version = f"{outcome.version.incarnation}.{outcome.version.generation}"
            refused = ", ".join(_refusal(one) for one in outcome.refusals)
            table.add_row(Text(outcome.instance), Text(outcome.node), version, Text(refused))
        run.out.print(table)
    for failed in outcomes:
        if isinstance(failed, Failed):
            print_no_host(run, failed.reason, whose=failed.instance, printed=printed)
            printed = failed.reason.remaining or printed
            for one in failed.refusals:
                run.out.print(f"  tried {_refusal(one)}", markup=False, soft_wrap=True)


def _refusal(refused: NodeRefusal) -> str:
    return f"{refused.node}: {refused.reason}{f' ({refused.detail})' if refused.detail else ''}"

"""The command of the explorer: ``python -m tests.explorer --help``."""

from __future__ import annotations

import logging
import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import click
import structlog

from tests.explorer.fixes import FIXES, without
from tests.explorer.search import Result, Violation, World, explore, judge_path, shrink, walk
from tests.explorer.worlds import WORLDS

WALKS_SHARE: Final = 0.1
"""Share of a world's time that random walks get."""
WALK_STEPS_COUNT: Final = 40
"""Choices of one random walk."""
PROGRESS_S: Final = 5.0
"""Seconds between two lines about the progress."""
SETTLE_ONE_IN: Final = 64
"""One in this number of states is settled: all faults end, and everything that was confirmed must arrive."""


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog='Example: python -m tests.explorer --minutes 5 --world "late answers"',
)
@click.option("--minutes", default=30.0, show_default=True, help="Time for all worlds together.")
@click.option("--world", "names", multiple=True, help="A world to explore; may be given again. Default: all.")
@click.option("--seed", default=1, show_default=True, help="Seed of the random walks.")
@click.option("--workers", default=os.cpu_count() or 1, show_default=True, help="Processes that explore.")
@click.option("--without", "fix", type=click.Choice(list(FIXES)), help="Take this fix out: a violation is expected.")
@click.option(
    "--replay", help="Only take these choices, separated by commas, in the one --world, and print each state."
)
@click.option("--list", "only_list", is_flag=True, help="Print the names of the worlds.")
def main(
    minutes: float,
    names: tuple[str, ...],
    seed: int,
    workers: int,
    fix: str | None,
    replay: str | None,
    only_list: bool,
) -> None:
    """Take all sequences of choices in small worlds, shortest first, and judge the invariants after each choice.

    Prints a line for each world: the different states that were reached; the choices that were carried out; how many of
    them led to a state that was reached before (merged); the depth, which is the length up to which all sequences were
    taken; and the share of the states at this depth whose choices were taken, too.

    Exits with 1 if an invariant is broken, and prints the shortest sequence that breaks it.
    """
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    if only_list:
        click.echo("\n".join(WORLDS))
        return
    unknown = [name for name in names if name not in WORLDS]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is no world: see --list", param_hint="--world")
    chosen = list(names or WORLDS)
    taken_out: AbstractContextManager[None] = without(fix) if fix else nullcontext()
    with taken_out:
        if replay is not None:
            if len(names) != 1:
                raise click.UsageError("--replay needs one --world")
            sys.exit(_replay(chosen[0], replay))
        sys.exit(_explore_all(chosen, minutes * 60, seed, workers))


def _replay(name: str, choices: str) -> int:
    def tell(choice: str, world: World) -> None:
        click.echo(f"{choice}\n    {world.describe()}")

    violation = judge_path(WORLDS[name], choices.split(", "), on_choice=tell)
    click.echo(violation.reason if violation else "no invariant is broken")
    return 1 if violation else 0


def _explore_all(names: list[str], seconds: float, seed: int, workers: int) -> int:
    """Explore each world for an equal share of the time that is left: a world that is exhausted leaves its time."""
    ends_at = time.monotonic() + seconds
    total, violations_count = Result(), 0
    click.echo(f"{'world':28} {'states':>9} {'choices':>9} {'merged':>9} {'depth':>9} {'states/s':>9} {'walks':>6}")
    for number, name in enumerate(names):
        began_at = time.monotonic()
        share_s = max(0.0, ends_at - began_at) / (len(names) - number)
        result = explore(
            WORLDS[name],
            until=began_at + (1 - WALKS_SHARE) * share_s,
            workers=workers,
            settle_one_in=SETTLE_ONE_IN,
            on_progress=_Progress(name),
        )
        explored_s = time.monotonic() - began_at
        walks_until = time.monotonic() + WALKS_SHARE * share_s
        walks_count = 0
        while not result.violations and time.monotonic() < walks_until:
            violation = walk(WORLDS[name], seed * 1_000_003 + number * 10_007 + walks_count, WALK_STEPS_COUNT)
            walks_count += 1
            if violation is not None:
                result.violations.append(violation)
        depth = f"all {result.depth}" if result.exhausted else f"{result.depth} +{result.next_share:.0%}"
        click.echo(
            f"{name:28} {result.states_count:9,} {result.transitions_count:9,} {result.merged_count:9,} {depth:>9} "
            f"{result.states_count / max(explored_s, 0.001):9.0f} {walks_count:6,}"
        )
        total.states_count += result.states_count
        total.transitions_count += result.transitions_count
        total.merged_count += result.merged_count
        if result.violations:
            violations_count += 1
            _print(name, shrink(WORLDS[name], min(result.violations, key=lambda one: len(one.path))))
    click.echo(f"{'all':28} {total.states_count:9,} {total.transitions_count:9,} {total.merged_count:9,}")
    click.echo(f"worlds with a violation: {violations_count}")
    return 1 if violations_count else 0


class _Progress:
    """Prints a line about a search every few seconds, to the standard error."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._due_at = time.monotonic() + PROGRESS_S

    def __call__(self, result: Result) -> None:
        if time.monotonic() >= self._due_at:
            self._due_at = time.monotonic() + PROGRESS_S
            click.echo(f"  {self._name}: {result.states_count:,} states, all of depth {result.depth}", err=True)


def _print(name: str, violation: Violation) -> None:
    path = ", ".join(violation.path)
    click.echo(f"  {violation.reason}")
    click.echo(f'  repeat it: python -m tests.explorer --world "{name}" --replay "{path}"')


if __name__ == "__main__":
    main()

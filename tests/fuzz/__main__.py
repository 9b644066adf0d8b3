"""The command of the fuzz tests: ``python -m tests.fuzz --help``."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from random import Random
from typing import Final

import click

from tests.fuzz import MIN_REACHED_SHARE, targets
from tests.fuzz.judge import Judge, judged_logs

WARM_UP_INPUTS_COUNT: Final = 500
"""Inputs after which the memory of the process counts as idle: caches are filled, and valid values built."""
MAX_MEMORY_FACTOR: Final = 2.0
"""The most memory that a process may ever need, as a multiple of that."""
PROGRESS_S: Final = 5.0
"""Seconds between two lines about the progress."""


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: python -m tests.fuzz wire --first 4711 --inputs 1",
)
@click.argument("names", nargs=-1)
@click.option("--inputs", default=200_000, show_default=True, help="Inputs of each target.")
@click.option("--first", default=0, show_default=True, help="Number of the first input.")
@click.option("--list", "only_list", is_flag=True, help="Print the names of the targets.")
def main(names: tuple[str, ...], inputs: int, first: int, only_list: bool) -> None:
    """Give generated inputs to the targets NAMES, by default to all of them.

    Exits with 1 if an input causes an exception or a traceback in the log, needs more than twice the memory of an idle
    process, or if fewer than half of the inputs pass the outer checksum or envelope.
    """
    known = targets()
    if only_list:
        click.echo("\n".join(known))
        return
    unknown = sorted(set(names) - known.keys())
    if unknown:
        raise click.BadParameter(f"no target {unknown[0]!r}; give one of {', '.join(known)}")
    chosen = names or tuple(known)
    if len(chosen) == 1:
        with judged_logs() as judge:
            sys.exit(not run_target(chosen[0], first, inputs, judge))
    failed = [name for name in chosen if not run_in_process(name, first, inputs)]
    click.echo(f"{len(chosen)} targets, {inputs:,} inputs each; failed: {', '.join(failed) or 'none'}")
    sys.exit(bool(failed))


def run_in_process(name: str, first: int, inputs: int) -> bool:
    """Run a target in a process of its own, so that its memory counts alone, and its death is noticed."""
    command = [sys.executable, "-m", "tests.fuzz", name, "--first", str(first), "--inputs", str(inputs)]
    return subprocess.run(command, check=False).returncode == 0  # noqa: S603 - our own command


def run_target(name: str, first: int, inputs: int, judge: Judge) -> bool:
    """Run one target, and print its progress and result. Returns False if it failed."""
    run = targets()[name]
    began = told_at = time.monotonic()
    reached = 0
    idle_kb = peak_kb()
    for n in range(inputs):
        try:
            reached += run(Random(f"{name}/{first + n}"))
            judge.require_none()
        except BaseException:
            click.echo(f"{name}: FAILED; repeat it: python -m tests.fuzz {name} --first {first + n} --inputs 1")
            raise
        if n < WARM_UP_INPUTS_COUNT:
            idle_kb = peak_kb()
        elif peak_kb() > MAX_MEMORY_FACTOR * idle_kb:
            click.echo(
                f"{name}: FAILED at input {first + n}: the process took {peak_kb() / 1024:,.0f} MB, "
                f"idle {idle_kb / 1024:,.0f} MB"
            )
            return False
        if time.monotonic() > told_at + PROGRESS_S:
            told_at = time.monotonic()
            rate = (n + 1) / (told_at - began)
            click.echo(f"{name}: {n + 1:,} of {inputs:,} inputs, {rate:,.0f}/s, {(inputs - n - 1) / rate:,.0f} s left")
    enough = reached >= MIN_REACHED_SHARE * inputs or inputs < WARM_UP_INPUTS_COUNT
    click.echo(
        f"{name}: {inputs:,} inputs, of which {reached / max(inputs, 1):.0%} reached the inside"
        f"{'' if enough else f'; FAILED: {MIN_REACHED_SHARE:.0%} must'}; at most {peak_kb() / 1024:,.0f} MB, "
        f"idle {idle_kb / 1024:,.0f} MB; {time.monotonic() - began:,.0f} s"
    )
    return enough


def peak_kb() -> int:
    """The most memory that this process ever needed, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()

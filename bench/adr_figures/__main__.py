"""Command ``python -m bench.adr_figures``: measure the alternatives of decisions and print their tables."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from bench.adr_figures.checkpoint import checkpoint
from bench.adr_figures.codec import codec
from bench.adr_figures.measurement import (
    PACKAGES,
    Result,
    environment,
    printed_tables,
)
from bench.adr_figures.partitions import partitions
from bench.adr_figures.ring import ring
from bench.adr_figures.round_trips import lockstep


class _Decision(NamedTuple):
    """An ADR with figures: the function that measures them, and the number of its page."""

    measure: Callable[[], Result]
    number: str


DECISIONS: Final[dict[str, _Decision]] = {
    "partitions": _Decision(partitions, "0012"),
    "ring": _Decision(ring, "0003"),
    "checkpoint": _Decision(checkpoint, "0004"),
    "codec": _Decision(codec, "0005"),
    "lockstep": _Decision(lockstep, "0009"),
}
ADR: Final = Path(__file__).parents[2] / "docs" / "adr"
FIGURES: Final = "## Figures\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the named decisions, print their tables and write their figures. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.adr_figures", description=__doc__.partition("\n")[0])
    parser.add_argument("name", nargs="+", choices=[*DECISIONS, "all"])
    parser.add_argument("--json", type=Path, help="file to write the figures to, as JSON")
    parser.add_argument("--adr", action="store_true", help="replace the tables in docs/adr by the new ones")
    chosen = parser.parse_args(arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("warning"))
    about = environment()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    results: Result = {}
    for name in DECISIONS if "all" in chosen.name else chosen.name:
        printed_tables.clear()
        results[name] = DECISIONS[name].measure()
        if chosen.adr:
            _write_figures(name, about)
    if chosen.json:
        record = {"environment": about, "choices": results}
        chosen.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def _write_figures(name: str, about: Result) -> None:
    [path] = ADR.glob(f"{DECISIONS[name].number}-*.md")
    text, _, _ = path.read_text(encoding="utf-8").partition(FIGURES)
    where = "; ".join(
        (
            f"Python {about['python']}, " + ", ".join(f"{one} {about[one]}" for one in PACKAGES),
            f"{about['cpus']} cores, load {about['load']:g} at the start",
            "compare within a table only",
        )
    )
    tables = "\n\n".join(printed_tables)
    path.write_text(f"{text}{FIGURES}\n`python -m bench.adr_figures {name}`. {where}.\n\n{tables}\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

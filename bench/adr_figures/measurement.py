"""How the figures of the ADRs are timed and printed: medians of processor time, and Markdown tables."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec

SEED: Final = 1
NODES: Final = 10_000
EPOCH: Final = 0x5EED
PACKAGES: Final = ("msgspec", "msgpack", "numpy", "xxhash")

Result = dict[str, Any]
pack_message = msgspec.msgpack.Encoder().encode


def median_us(call: Callable[[], object], *, rounds: int = 15, least_s: float = 0.01) -> float:
    """Return the median processor time of one call, in microseconds.

    Each of the ``rounds`` repeats the call until ``least_s`` seconds have passed and divides by the number of calls.
    """
    call()
    begin = time.process_time()
    call()
    count = max(1, int(least_s / max(1e-6, time.process_time() - begin)))
    times = []
    for _ in range(rounds):
        begin = time.process_time()
        for _ in range(count):
            call()
        times.append((time.process_time() - begin) / count)
    return statistics.median(times) * 1e6


def median_ms(call: Callable[[], object], rounds: int) -> float:
    """Return the median processor time of one call, in milliseconds, after one call that is not counted.

    Processor time is used because other programs of the machine hardly affect it.
    """
    call()
    times = []
    for _ in range(rounds):
        begin = time.process_time()
        call()
        times.append(time.process_time() - begin)
    return statistics.median(times) * 1e3


@contextmanager
def collector(*, on: bool) -> Iterator[None]:
    """Run a block with Python's cyclic garbage collector on or off, after one full collection."""
    gc.collect()
    if not on:
        gc.disable()
    try:
        yield
    finally:
        gc.enable()


printed_tables: list[str] = []


def table(title: str, rows: Sequence[Result]) -> list[Result]:
    """Print rows as the Markdown table of an ADR, and return the rows."""
    heads = list(rows[0])
    lines = [title, "", "| " + " | ".join(heads) + " |"]
    lines.append("|" + "|".join("---" if type(rows[0][head]) is str else "---:" for head in heads) + "|")
    lines += ["| " + " | ".join(_cell(row[head]) for head in heads) + " |" for row in rows]
    printed_tables.append("\n".join(lines))
    print("\n" + printed_tables[-1])
    return list(rows)


def _cell(value: object) -> str:
    if type(value) is float:
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if type(value) is int else str(value)


def environment() -> Result:
    """Describe the run: commit, Python, number of processors, load average and versions of the libraries."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607 - whichever git there is
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        "commit": commit,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        **{package: version(package) for package in PACKAGES},
    }

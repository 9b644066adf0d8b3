"""Functions that run in a new process, as a scheduler that has just been started.

The module imports only modules that a scheduler needs, and no server, broker or consumer, because Python's garbage
collector visits every object of an imported module.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module
from typing import Final

import psutil
import xxhash

from bench.baseline import BaselineClient
from bench.record import Timings
from bench.workload import require, view_digest
from nodestate import Reader
from nodestate.config import Config

MAX_AGE_S: Final = 3_600.0


@dataclass(frozen=True, slots=True)
class FirstView:
    """The figures of the first view in a process."""

    ms: dict[str, float]
    """Milliseconds, by name of the measure."""
    digest: int
    """The digest of the view."""
    resident_bytes: int
    """Growth of the process for the first view."""


def first_view(config: Config, imports: Sequence[str]) -> FirstView:
    """Create a reader and read, then do the same with a second reader, for which the process is warm.

    ``imports`` are modules to import before the clock starts.
    """
    for name in imports:
        import_module(name)
    timings = Timings()
    resident = psutil.Process().memory_info
    sizes = [resident().rss]

    def read(name: str) -> int:
        began = time.perf_counter()
        with Reader(config) as reader:
            view = reader.read(max_age=MAX_AGE_S, on_stale="flag")
            timings.note(name, (time.perf_counter() - began) * 1e3)
            sizes.append(resident().rss)
            timings.time(f"{name}'s columns", lambda: view.columns)
        return view_digest(view)

    first = read("first view")
    require(read("second reader") == first, "a second reader shows other states than the first")
    return FirstView({name: measure.p50 for name, measure in timings.measures.items()}, first, sizes[1] - sizes[0])


def bare_read(opener: Callable[[], BaselineClient], states: int, pieces: int) -> tuple[float, int]:
    """Return the milliseconds that reading all pieces takes, and the digest of their bytes.

    If ``pieces`` is 0, the copies of ``states`` states are read one by one instead.
    """
    with closing(opener()) as bare:
        began = time.perf_counter()
        values = bare.read(bare.pieces(pieces) if pieces else bare.states(range(states)))
        ms = (time.perf_counter() - began) * 1e3
    return ms, digest_of(values)


def digest_of(values: list[bytes]) -> int:
    """Return a number that is equal for two lists of values if their joined bytes are equal."""
    whole = xxhash.xxh3_64()
    for value in values:
        whole.update(value)
    return whole.intdigest()

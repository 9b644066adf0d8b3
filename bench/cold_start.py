"""What runs in a process that was just started. It imports what a scheduler would, and no server, broker or consumer:
the collector looks at everything that is imported.
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
    """Milliseconds by what was timed, what the view showed, and by how much the process grew for the first."""

    ms: dict[str, float]
    digest: int
    resident_bytes: int


def first_view(config: Config, imports: Sequence[str]) -> FirstView:
    """Make a reader and read, then again with a second one, to which the process is warm. ``imports`` come before."""
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
    require(read("second reader") == first, "a second reader shows something else")
    return FirstView({name: measure.p50 for name, measure in timings.measures.items()}, first, sizes[1] - sizes[0])


def bare_read(opener: Callable[[], BaselineClient], states: int, pieces: int) -> tuple[float, int]:
    """Milliseconds that it takes to read so many states, or (where there are any) pieces, and the digest of what came."""
    with closing(opener()) as bare:
        began = time.perf_counter()
        values = bare.read(bare.pieces(pieces) if pieces else bare.states(range(states)))
        ms = (time.perf_counter() - began) * 1e3
    return ms, digest_of(values)


def digest_of(values: list[bytes]) -> int:
    """A number that values share if they are the same bytes one after the other, however they are cut."""
    whole = xxhash.xxh3_64()
    for value in values:
        whole.update(value)
    return whole.intdigest()

"""The function that runs in a new process; like ``bench.cold_start``, the module imports as little as possible."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import import_module

from bench.peers.interfaces import Opener, digest


def first_read(opener: Opener, imports: Sequence[str]) -> tuple[float, int]:
    """Return the milliseconds of connecting and reading all nodes, and the digest of the nodes.

    ``imports`` are modules to import before the clock starts.
    """
    for name in imports:
        import_module(name)
    began = time.perf_counter()
    reader = opener()
    reader.cold()
    ms = (time.perf_counter() - began) * 1e3
    try:
        return ms, digest(map(reader.node, reader.names()))
    finally:
        reader.close()

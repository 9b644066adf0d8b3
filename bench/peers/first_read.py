"""What runs in a process that was just started; a module that imports little, as ``bench.cold_start``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import import_module

from bench.peers.interfaces import Opener, digest


def first_read(opener: Opener, imports: Sequence[str]) -> tuple[float, int]:
    """Milliseconds to connect and to read all nodes, and the digest of what came. ``imports`` come before."""
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

"""What runs in a process that was just started; a module that imports little, as ``bench.newcomer``."""

from __future__ import annotations

import time

from bench.peers.shape import Opener, digest


def first_read(opener: Opener) -> tuple[float, int]:
    """Milliseconds to connect and to read all nodes, and the digest of what came."""
    began = time.perf_counter()
    reader = opener()
    reader.cold()
    ms = (time.perf_counter() - began) * 1e3
    try:
        return ms, digest(map(reader.node, reader.names()))
    finally:
        reader.close()

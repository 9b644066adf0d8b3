"""An environment is where a design stores its data while it is measured: a memcached or a database.

The environment is the only thing that differs between designs for a scenario. It starts the server that the design
needs, gives nodestate's settings for that server, proves that nothing was lost, counts bytes if the server does, and
has a baseline client: the least that reading from the server can cost.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from bench.baseline import BaselineClient
from bench.scenario import Settings
from nodestate.config import Config, load

CELL: Final = "bench"
PATIENCE_S: Final = 60.0
"""Longest wait for something that normally takes a fraction of a second."""
BRIEF_S: Final = 1.0
"""A run with fewer seconds is brief: it shows that a scenario works, and its figures mean nothing."""
BRIEF_RENEW_S: Final = 0.1
"""``renew_s`` of brief runs: an owner reports that its partition is complete only when it renews its lease."""


class Environment(Protocol):
    """The server of one or more designs, as a scenario uses it."""

    designs: tuple[str, ...]
    label: str
    """The designs, as figures name them."""
    slug: str
    """The designs, as part of a cell's name."""
    versions: Mapping[str, str]
    """Versions of the server and of the libraries that connect to it."""
    imports: tuple[str, ...]
    """Modules that a reader imports when it first connects; a process imports them before its clock starts."""
    settings: Mapping[str, str]
    """nodestate's settings that lead to this server."""
    baseline: Callable[[], BaselineClient]
    """Connects a baseline client. The callable can be pickled."""

    def require_nothing_lost(self, nodes: int) -> str:
        """Raise ``WrongResultError`` if data of these nodes was lost; return a sentence that states the proof."""

    def bytes_sent(self) -> int | None:
        """Return the bytes that the server has sent, by its own count; None if it does not count them."""

    def bytes_received(self) -> int | None:
        """Return the bytes that the server has read from its clients, by its own count; None if it does not count."""

    def log_bytes(self) -> int | None:
        """Return the bytes that the server has written to its log on disk; None if it has none or does not count."""

    def bytes_held(self) -> Mapping[str, int]:
        """Return the bytes that the server holds: ``stored``, all of nodestate's data, and further counts by name."""

    def restart(self) -> None:
        """Kill the server, as a power failure would, and start it again."""


def config_for(environment: Environment, settings: Settings, **others: Any) -> Config:
    """Return nodestate's default settings for an environment, with short waits for agents.

    The fleet of a benchmark never answers a resync. So the owner of a partition need not wait for agents before it
    reports that the partition is complete.
    """
    return load(
        {
            **environment.settings,
            "cell": CELL,
            "designs": environment.designs,
            "read_design": environment.designs[0],
            "batch_events": settings.batch_events,
            "prefetch": settings.prefetch,
            "resync_jitter_s": 0.0,
            "heartbeat_s": 0.05,
            **({"renew_s": BRIEF_RENEW_S} if settings.seconds < BRIEF_S else {}),
            **others,
        },
        environ={},
        file=os.devnull,
    )


def bytes_sent_during(environment: Environment, call: Callable[[], object]) -> int | None:
    """Return the bytes that the server sends while ``call`` runs; None if the server does not count them."""
    first, before = environment.bytes_sent(), environment.bytes_sent()
    call()
    after = environment.bytes_sent()
    if first is None or before is None or after is None:
        return None
    return after - before - (before - first)  # less one answer to the question itself

"""A cell as an operator runs it: consumers, and the agents of a simulated fleet, as processes of their own."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, Self

from bench.consumer_process import settings_as_environment
from bench.workload import require
from harness.members import Member, Service
from nodestate import Reader
from nodestate.config import Config

MEMBERS_COUNT: Final = 2
PAUSE_S: Final = 0.1
LOAD_LIMIT_S: Final = 180.0
"""Longest wait for a whole view: owners give agents time to report, 25 s with the default settings."""


class RunningCell:
    """The processes of a cell, from ``with`` to its end. Its broker and its store are running already.

    Args:
        config: settings of the cell.
        nodes: number of simulated nodes.
        changes_per_s: changes per second in the whole fleet.
    """

    def __init__(self, config: Config, nodes: int, changes_per_s: float) -> None:
        self.config = config
        self.nodes = nodes
        self.names: Sequence[str] = ()
        """The names of the nodes; empty before ``wait_until_whole``."""
        self._changes_per_s = changes_per_s
        self._members: list[Member] = []
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nodestate-bench-")))
            settings = {**settings_as_environment(self.config), "NODESTATE_STATE_DIR": str(folder)}
            self._members = [Member(folder, number, MEMBERS_COUNT, settings) for number in (1, 2)]
            words = ["agent", "--source", "simulated", "--nodes", f"{self.nodes}", "--rate", f"{self._changes_per_s:g}"]
            self._agents = Service(folder, "agents", words, settings)
            for service in (*self._members, self._agents):
                service.start()
                stack.callback(service.kill)
            self._exits = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def wait_until_whole(self) -> None:
        """Wait until a view has every node, and the owner of each partition has declared it complete."""
        deadline = time.monotonic() + LOAD_LIMIT_S
        with Reader(self.config) as reader:
            while True:
                view = reader.read(max_age=LOAD_LIMIT_S, on_stale="flag")
                if len(view.nodes) == self.nodes and all(state.complete for state in view.partitions):
                    self.names = sorted(view.nodes)
                    return
                for service in (*self._members, self._agents):
                    service.require_alive()
                require(time.monotonic() < deadline, f"the view was not complete within {LOAD_LIMIT_S:g} s: {view}")
                time.sleep(PAUSE_S)

    @contextmanager
    def agents_paused(self) -> Iterator[None]:
        """Pause all agents in this context, so that the cell comes to rest."""
        self._agents.pause()
        try:
            yield
        finally:
            self._agents.resume()

    def stop_consumers(self) -> None:
        """Stop all consumers in order. No view is confirmed after that."""
        for member in self._members:
            member.stop()

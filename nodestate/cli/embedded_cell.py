"""A whole cell in one process: agents in one thread, a consumer in another. The caller's thread reads it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence

from nodestate.agent.agent import Agent
from nodestate.agent.sources import StateSource
from nodestate.broker import KombuResyncSender, KombuSink, KombuSource
from nodestate.config import Config
from nodestate.consumers.loop import Consumer
from nodestate.designs.connections import open_stores
from nodestate.model import Version
from nodestate.ports import SystemClock

STOP_TIMEOUT_S = 30.0
"""How long a thread may take to finish the step that it is in."""


class _CellThread:
    """Thread that repeats steps until it is stopped. If a step fails, ``stop`` and ``check`` raise its error."""

    def __init__(self, name: str, run: Callable[[Callable[[], bool]], None]) -> None:
        # True once the thread must end after the present step.
        self._stopping = False
        # The error that ended the thread.
        self._failure: BaseException | None = None
        # Repeats steps until the function that it is given returns True.
        self._run = run
        # Runs ``_main``.
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise the error that ended the thread, if there is one."""
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """End the thread after the present step. Raises the error of a step that failed."""
        self._stopping = True
        self._thread.join(STOP_TIMEOUT_S)
        self.check()

    def _main(self) -> None:
        try:
            self._run(lambda: self._stopping)
        except BaseException as failure:  # noqa: BLE001 - raised in the thread that calls check or stop
            self._failure = failure


class EmbeddedCell:
    """A cell that runs from its creation on: agents of some sources, and one consumer of all partitions.

    running --stop_agents--> agents stopped, all their events confirmed --close--> closed

    ``published`` and ``applied`` count events from the creation on.
    """

    def __init__(self, config: Config, sources: Sequence[StateSource]) -> None:
        clock = SystemClock()
        # Settings of the cell.
        self.config = config
        # Connection on which the agents publish.
        self._sink = KombuSink(config)
        # Connection on which the consumer asks agents for full reports.
        self._resync = KombuResyncSender(config)
        # The incarnation must be higher than that of any event which is still in the broker. A memory:// broker is
        # empty at the start, so the time will do; for a real broker, agents take the next number from their state
        # directory.
        incarnation = int(time.time()) if config.broker.startswith("memory:") else None
        # Reports all nodes of the sources.
        self.agent = Agent(
            config, sources, self._sink, clock, random.Random(), inbox=self._sink, incarnation=incarnation
        )
        # Owns all partitions.
        self.consumer = Consumer(
            config,
            KombuSource(config, range(config.partitions), clock=clock),
            open_stores(config, clock, config.designs, make_tables=True),
            self._resync,
            clock,
            random.Random(),
            "up",
        )
        # Thread of the consumer.
        self._consuming = _CellThread("consumer", self.consumer.run)
        # Thread of the agents; None once they are stopped.
        self._reporting: _CellThread | None = _CellThread("agents", self.agent.run)

    @property
    def published(self) -> int:
        """Number of events that the agents sent."""
        stats = self.agent.stats
        return stats.reports + stats.changes + stats.heartbeats

    @property
    def applied(self) -> int:
        """Number of events that the consumer processed, whether it applied or dropped them."""
        return sum(self.consumer.stats.counts.by_outcome.values())

    def check(self) -> None:
        """Raise the error that ended one of the threads, if there is one."""
        self._consuming.check()
        if self._reporting is not None:
            self._reporting.check()

    def versions(self) -> dict[str, Version]:
        """Return the present version of each node, from its agent."""
        return {name: publisher.version for name, publisher in list(self.agent.publishers.items())}

    def stop_agents(self) -> None:
        """Stop the agents, and return when the broker has confirmed all their events. Raises ``UnconfirmedError``."""
        reporting, self._reporting = self._reporting, None
        if reporting is not None:
            reporting.stop()
            self.agent.flush(self.config.broker_timeout_s)

    def close(self) -> None:
        """Stop agents and consumer, and close their connections."""
        try:
            self.stop_agents()
            self._consuming.stop()
        finally:
            self.agent.close()
            self._sink.close()
            self.consumer.close()
            self._resync.close()

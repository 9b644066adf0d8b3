"""A whole cell in one process: agents in one thread, a consumer in another, and whoever made it reads."""

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


class _CellThread:
    """Something that steps in a thread of its own until it is ended. Its failure is raised by ``end`` and ``check``."""

    def __init__(self, name: str, run: Callable[[Callable[[], bool]], None]) -> None:
        self._ending = False
        self._failure: BaseException | None = None
        self._run = run
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what made it fail."""
        if self._failure is not None:
            raise self._failure

    def end(self) -> None:
        """End it after the step under way."""
        self._ending = True
        self._thread.join(STOP_TIMEOUT_S)
        self.check()

    def _main(self) -> None:
        try:
            self._run(lambda: self._ending)
        except BaseException as failure:  # noqa: BLE001 - handed to the thread that asks
            self._failure = failure


class EmbeddedCell:
    """Begins to run when it is made. ``published`` and ``applied`` count events since then.

    running --end_agents--> agents silent, their last word confirmed --close--> over
    """

    def __init__(self, config: Config, sources: Sequence[StateSource]) -> None:
        clock = SystemClock()
        self.config = config
        self._sink = KombuSink(config)
        self._resync = KombuResyncSender(config)
        # A memory:// broker forgets with the process, and so may the agents' lives; a real one outlives them.
        incarnation = int(time.time()) if config.broker.startswith("memory:") else None
        self.agent = Agent(config, sources, self._sink, clock, random.Random(), incarnation=incarnation)
        self.consumer = Consumer(
            config,
            KombuSource(config, range(config.partitions), clock=clock),
            open_stores(config, clock, config.designs, make_tables=True),
            self._resync,
            clock,
            random.Random(),
            "up",
        )
        self._consuming = _CellThread("consumer", self.consumer.run)
        self._reporting: _CellThread | None = _CellThread("agents", self.agent.run)

    @property
    def published(self) -> int:
        """Events that agents sent."""
        stats = self.agent.stats
        return stats.reports + stats.changes + stats.heartbeats

    @property
    def applied(self) -> int:
        """Events that the consumer folded, whatever came of it."""
        return sum(self.consumer.stats.counts.by_outcome.values())

    def check(self) -> None:
        """Raise what made a thread fail."""
        self._consuming.check()
        if self._reporting is not None:
            self._reporting.check()

    def versions(self) -> dict[str, Version]:
        """What the agents say of their nodes, as of now."""
        return {name: publisher.version for name, publisher in list(self.agent.publishers.items())}

    def end_agents(self) -> None:
        """Nothing more happens on the nodes, and the broker has all that did. Raises ``UnconfirmedError``."""
        reporting, self._reporting = self._reporting, None
        if reporting is not None:
            reporting.end()
            self.agent.flush(self.config.broker_timeout_s)

    def close(self) -> None:
        """End everything."""
        try:
            self.end_agents()
            self._consuming.end()
        finally:
            self.agent.close()
            self._sink.close()
            self.consumer.close()
            self._resync.close()

"""The feeds of a service: one of the design that readers read, and one of each design that a request names."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, TypeVar

from nodestate.config import Config
from nodestate.designs.reader import Reader
from nodestate.designs.stored_design import StoredDesign, parse_stored_design
from nodestate.errors import BehindError, ConfigError, StaleViewError
from nodestate.serve.problems import problem
from nodestate.serve.view_feed import REFRESH_TIMEOUT_S, PublishedView, ViewFeed
from nodestate.view.view import View

R = TypeVar("R")

DESIGN_IDLE_S: Final = 60.0
"""The feed of a design that a request named ends after this many seconds without such requests."""
MAX_DESIGNS_COUNT: Final = 4
"""Most designs that are read besides the one that readers read."""


class Feeds:
    """All feeds of a service. Belongs to the event loop.

    Args:
        config: settings of the cell.
        open_reader: opens the reader of the main feed.
        on_view: as for ``ViewFeed``, of the main feed.
    """

    def __init__(
        self,
        config: Config,
        open_reader: Callable[[], Reader],
        on_view: Callable[[PublishedView | None, PublishedView], None],
    ) -> None:
        self.main = ViewFeed(open_reader, on_view)
        """The feed of the design that readers read."""
        self._config = config
        # The feeds of designs that requests named.
        self._by_design: dict[StoredDesign, ViewFeed] = {}
        # Tasks that end feeds.
        self._ending: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Start the main feed."""
        self.main.start()

    def end_waits(self) -> None:
        """Let no request wait for a refresh from now on."""
        for feed in (self.main, *self._by_design.values()):
            feed.end_waits()

    async def stop(self) -> None:
        """End all feeds."""
        feeds = [self.main, *self._by_design.values()]
        self._by_design.clear()
        await asyncio.gather(*(feed.stop() for feed in feeds), *self._ending)

    async def of(self, design: str | None) -> ViewFeed:
        """Return the feed of a design; None: of the design that readers read.

        Raises ``ProblemError``: not-found if the settings name no store of the design, overloaded if too many other
        designs are read.
        """
        if design is None:
            return self.main
        view = self.main.last().view
        stored = parse_stored_design(design, len(view.partitions))
        if stored == StoredDesign(view.design, len(view.partitions)):
            return self.main
        feed = self._by_design.get(stored)
        if feed is None:
            await self._end_idle()
            if len(self._by_design) >= MAX_DESIGNS_COUNT:
                raise problem(
                    "overloaded", f"{MAX_DESIGNS_COUNT} other designs are read at present; repeat the request later"
                )
            feed = ViewFeed(lambda: Reader(self._config, design=str(stored)))
            feed.start()
            self._by_design[stored] = feed
            asyncio.get_running_loop().call_later(DESIGN_IDLE_S, self._end_later)
        if feed.current is None:
            await feed.refreshed_since(0.0)
            if isinstance(feed.error, ConfigError):
                if self._by_design.pop(stored, None) is feed:
                    await feed.stop()
                raise problem("not-found", f"design {design}: {feed.error}")
        return feed

    def _end_later(self) -> None:
        task = asyncio.ensure_future(self._end_idle())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        if self._by_design:
            asyncio.get_running_loop().call_later(DESIGN_IDLE_S, self._end_later)

    async def _end_idle(self) -> None:
        """End the feeds that no request used for ``DESIGN_IDLE_S``."""
        oldest = time.monotonic() - DESIGN_IDLE_S
        idle = [stored for stored, feed in self._by_design.items() if feed.used_at < oldest]
        await asyncio.gather(*(self._by_design.pop(stored).stop() for stored in idle))


async def read_within(
    feed: ViewFeed, arrived_at: float, wait_s: float, judge: Callable[[View], tuple[R, bool]]
) -> tuple[PublishedView, R]:
    """Return a view that a request accepts, and what ``judge`` returns for it.

    The last view is judged first. If it is refused or judged as doubtful, a refresh that begins after the request
    arrived is awaited. After that, refreshes are awaited until one is accepted or ``wait_s`` seconds have passed.

    Args:
        feed: the feed.
        arrived_at: monotonic time at which the request arrived.
        wait_s: longest wait in seconds for a view that is accepted.
        judge: returns a result, and True if no fresher view could improve it. Raises ``StaleViewError`` or
            ``BehindError`` to refuse the view.
    """
    deadline, has_asked = arrived_at + wait_s, False
    while True:
        is_fresh = has_asked or (feed.current is not None and feed.current.begun_at >= arrived_at)
        refusal: StaleViewError | BehindError | None = None
        try:
            published = feed.last()
            result, is_good = judge(published.view)
            if is_good or is_fresh:
                return published, result
        except (StaleViewError, BehindError) as error:
            refusal = error
        if not is_fresh:
            has_asked = True
            await feed.refreshed_since(arrived_at, max(wait_s, REFRESH_TIMEOUT_S))
        elif refusal is not None:
            with feed.watched():
                if time.monotonic() >= deadline or not await feed.next_refresh(deadline):
                    if feed.reader is not None:
                        feed.reader.stats.count_refusal(refusal)
                    raise refusal

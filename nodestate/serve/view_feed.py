"""The view feed: a thread that refreshes a reader and publishes each view to the handlers of requests.

Handlers run in the event loop and must not wait for a store, which may not answer for seconds. So only this thread
reads stores. A handler takes the last view that was published and judges it by the bounds of its request; a view that
the thread could not refresh in time is refused by its age, because the ages of a view rise by themselves.

The pace: once a second (``IDLE_S``), every tenth of a second while requests wait for news (``WATCHED_S``), and at once
if a request needs a view that is fresher than the last one.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

import structlog

from nodestate.config import Config
from nodestate.designs.control import Control, record_from_settings
from nodestate.designs.reader import Reader
from nodestate.errors import NodestateError, StaleViewError
from nodestate.view.difference import ViewDifference, view_difference
from nodestate.view.documents import position_text
from nodestate.view.view import View

IDLE_S: Final = 1.0
"""Seconds between two refreshes while no request asks for a fresher view."""
WATCHED_S: Final = 0.1
"""Seconds between two refreshes while requests wait for news."""
MIN_PAUSE_S: Final = 0.01
"""Shortest pause between two refreshes, so that many requests share one."""
REFRESH_TIMEOUT_S: Final = 3.0
"""Longest wait of a request for a refresh. After it, the request is judged by the last view."""
STOP_TIMEOUT_S: Final = 15.0
"""Longest wait for the thread's end. A refresh that hangs in a store may take longer; the thread is then left alone."""

_log: Final = structlog.get_logger("nodestate.serve.view_feed")


class PublishedView(NamedTuple):
    """A view that the thread published."""

    view: View
    """The view, with signs of life, and judged by no bound."""
    position: str
    """Its position as text."""
    begun_at: float
    """Monotonic time at which its refresh began."""
    number: int
    """Rises with each refresh that found news: another position, or other incomplete nodes or partitions."""
    changes: ViewDifference
    """The difference to the view before; empty for the first view."""
    control: Control | None
    """The newest control record that the reader knows; None if there is none, or the feed reads a fixed design."""


class ViewFeed:
    """Refreshes one reader in a thread of its own, from ``start`` to ``stop``.

    Args:
        open_reader: opens the reader; called in the thread.
        on_view: called in the event loop after each refresh, with the view before and the present one; they have the
            same number if the refresh found no news.
    """

    def __init__(
        self,
        open_reader: Callable[[], Reader],
        on_view: Callable[[PublishedView | None, PublishedView], None] | None = None,
    ) -> None:
        self.current: PublishedView | None = None
        """The last view that was published; None before the first one."""
        self.error: NodestateError | None = None
        """Why the last refresh failed as a whole; None if it worked."""
        self.reader: Reader | None = None
        """The reader, for its counters; None before it is open."""
        self.used_at = time.monotonic()
        """Monotonic time at which a request last used this feed."""
        self._open_reader = open_reader
        self._on_view = on_view
        # Set to end the pause of the thread.
        self._wake = threading.Event()
        # True once ``stop`` was called.
        self._stopping = False
        # Number of requests that wait for news.
        self._watchers = 0
        # Resolved and replaced after each refresh. Belongs to the event loop.
        self._refreshed: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="nodestate-view", daemon=True)

    # -- in the event loop ------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread. Call it in the event loop."""
        self._loop = asyncio.get_running_loop()
        self._refreshed = self._loop.create_future()
        self._thread.start()

    def end_waits(self) -> None:
        """Let the thread end after its present refresh, and let no request wait for another one."""
        self._stopping = True
        self._wake.set()
        if self._refreshed is not None and not self._refreshed.done():
            self._refreshed.set_result(None)

    async def stop(self) -> None:
        """End the thread after its present refresh, and close the reader."""
        self.end_waits()
        await asyncio.to_thread(self._thread.join, STOP_TIMEOUT_S)

    @property
    def is_alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    def last(self) -> PublishedView:
        """Return the last view. Raises ``StaleViewError`` if there is none."""
        self.used_at = time.monotonic()
        if self.current is None:
            raise StaleViewError(math.inf, 0.0, (0,), cause=str(self.error) if self.error else "no view was read yet")
        return self.current

    def control_or_settings(self, config: Config) -> Control:
        """Return the control record that the reader knows, or the one that the settings describe."""
        known = self.current.control if self.current is not None else None
        return known or record_from_settings(config, 0.0)

    async def refreshed_since(self, since: float, timeout_s: float = REFRESH_TIMEOUT_S) -> None:
        """Wait until a refresh that began after the monotonic time ``since`` is done, at most ``timeout_s`` seconds."""
        deadline = time.monotonic() + timeout_s
        while self.current is None or self.current.begun_at < since:
            self._wake.set()
            if not await self.next_refresh(deadline) or self.error is not None:
                return

    async def news_after(self, number: int, deadline: float) -> None:
        """Wait for a view with a higher number than ``number``, or until the monotonic time ``deadline``."""
        with self.watched():
            while self.current is None or self.current.number <= number:
                if not await self.next_refresh(deadline):
                    return

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Refresh at the pace of requests that wait for news while this context is open."""
        self._watchers += 1
        self._wake.set()
        try:
            yield
        finally:
            self._watchers -= 1

    async def next_refresh(self, deadline: float) -> bool:
        """Wait for the end of the next refresh. Returns False if the monotonic ``deadline`` came first, or ``stop``."""
        if self._stopping or not self._thread.is_alive():
            return False
        assert self._refreshed is not None, "start() comes first"
        self.used_at = time.monotonic()
        done, _ = await asyncio.wait([self._refreshed], timeout=max(0.0, deadline - time.monotonic()))
        return bool(done) and not self._stopping

    def _announce(self, before: PublishedView | None, now: PublishedView | None) -> None:
        """Wake the waiting requests, and report the view."""
        assert self._loop is not None, "start() comes first"
        assert self._refreshed is not None, "start() comes first"
        if now is not None:
            self.current = now
            if self._on_view is not None:
                self._on_view(before, now)
        waited, self._refreshed = self._refreshed, self._loop.create_future()
        if not waited.done():
            waited.set_result(None)

    # -- in the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        published: PublishedView | None = None
        while not self._stopping:
            begun_at = time.monotonic()
            before = published
            try:
                if self.reader is None:
                    self.reader = self._open_reader()
                published = self._refresh(self.reader, published, begun_at)
                self.error = None
            except NodestateError as error:
                if self.error is None:
                    _log.warning("cannot refresh the view", why=str(error))
                self.error = error
            except Exception:  # noqa: BLE001  the thread must outlive every fault: its views show it by their age
                _log.exception("cannot refresh the view")
                self.error = NodestateError("the view cannot be refreshed: see the log of the service")
            with suppress(RuntimeError):  # the event loop has ended
                assert self._loop is not None, "start() comes first"
                self._loop.call_soon_threadsafe(self._announce, before, published)
            self._wake.wait(WATCHED_S if self._watchers else IDLE_S)
            self._wake.clear()
            if not self._stopping:
                time.sleep(MIN_PAUSE_S)
        if self.reader is not None:
            self.reader.close()

    def _refresh(self, reader: Reader, before: PublishedView | None, begun_at: float) -> PublishedView:
        """Refresh the reader and return its view."""
        view = reader.read(max_age=math.inf, node_max_age=math.inf, on_stale="flag")
        position = position_text(view)
        if before is None:
            return PublishedView(view, position, begun_at, 1, ViewDifference(), reader.control)
        if before.position == position and before.view.incomplete == view.incomplete:
            return PublishedView(view, position, begun_at, before.number, ViewDifference(), reader.control)
        return PublishedView(
            view, position, begun_at, before.number + 1, view_difference(before.view, view), reader.control
        )

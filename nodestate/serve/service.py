"""The service: the parts behind the HTTP API, which live from its start to its stop."""

from __future__ import annotations

import time
from collections.abc import Callable

from nodestate.config import Config
from nodestate.designs.reader import Reader
from nodestate.serve.feeds import Feeds
from nodestate.serve.node_history import NodeHistory
from nodestate.serve.responses import Responder
from nodestate.serve.view_feed import PublishedView
from nodestate.serve.workers import Workers


class Service:
    """The parts behind the HTTP API. Belongs to the event loop; parts with threads of their own say so.

    Args:
        config: settings of the cell.
        open_reader: opens the reader of the cell; None: by the settings.
    """

    def __init__(self, config: Config, open_reader: Callable[[], Reader] | None = None) -> None:
        self.config = config
        self.feeds = Feeds(config, open_reader or (lambda: Reader(config)), self._on_news)
        """The threads that read views."""
        self.history = NodeHistory()
        """The last events of each node."""
        self.responder = Responder()
        """Makes responses, and counts the bytes that clients have not taken."""
        self.workers = Workers()
        """Threads for encoding."""

    async def start(self) -> None:
        """Start all parts. Call it in the event loop."""
        self.feeds.start()

    async def stop(self) -> None:
        """Stop all parts, in the reverse order."""
        await self.feeds.stop()
        self.workers.close()

    def _on_news(self, before: PublishedView | None, now: PublishedView) -> None:
        """Take a view that differs from the view before."""
        del before
        self.history.add(now.changes, time.time())

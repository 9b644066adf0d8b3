"""The service: the parts behind the HTTP API, which live from its start to its stop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from nodestate.config import Config
from nodestate.designs.control import Control
from nodestate.designs.inspection import CellInspector
from nodestate.designs.reader import Reader
from nodestate.designs.stored_design import StoredDesign
from nodestate.findings import Finding
from nodestate.scheduling import Scheduler
from nodestate.serve.cell_examination import CellExamination
from nodestate.serve.cell_inspection import CellInspection
from nodestate.serve.event_hub import EventHub
from nodestate.serve.feeds import Feeds
from nodestate.serve.finding_events import FindingEvents
from nodestate.serve.fleet_events import FleetEvents
from nodestate.serve.limits import MAX_STREAMS_COUNT
from nodestate.serve.node_history import NodeHistory
from nodestate.serve.responses import Responder
from nodestate.serve.scheduling import Scheduling
from nodestate.serve.view_encoding import ViewEncoder
from nodestate.serve.view_feed import PublishedView
from nodestate.serve.workers import Workers


class Service:
    """The parts behind the HTTP API. Belongs to the event loop; parts with threads of their own say so.

    Args:
        config: settings of the cell.
        open_reader: opens the reader of the cell; None: by the settings.
        open_scheduler: opens the scheduler of the cell; None: by the settings.
        max_streams: clients of events at a time.
        open_inspector: opens the inspector of some designs; None: by the settings.
        examine: examines the cell; None: as ``nodestate doctor`` does.
    """

    def __init__(
        self,
        config: Config,
        open_reader: Callable[[], Reader] | None = None,
        open_scheduler: Callable[[], Scheduler] | None = None,
        *,
        max_streams: int = MAX_STREAMS_COUNT,
        open_inspector: Callable[[Sequence[StoredDesign]], CellInspector] | None = None,
        examine: Callable[[Config, Control], Iterable[Finding]] | None = None,
    ) -> None:
        self.config = config
        self.max_streams = max_streams
        self.feeds = Feeds(config, open_reader or (lambda: Reader(config)), self._on_view)
        """The threads that read views."""
        self.history = NodeHistory()
        """The last events of each node."""
        self.responder = Responder()
        """Makes responses, and counts the bytes that clients have not taken."""
        self.workers = Workers()
        """The thread that encodes."""
        self.view_encoder = ViewEncoder()
        """Encodes views in that thread."""
        self.inspection = CellInspection(config, open_inspector)
        """Reads heads and queues in a thread of its own."""
        self.hub = EventHub()
        """The events that clients follow."""
        self.finding_events = FindingEvents(self.hub)
        """Publishes the findings of examinations as events."""
        self.examination = CellExamination(config, examine, self.finding_events.on_examined)
        """Examines the cell in a thread of its own."""
        self.fleet_events = FleetEvents(self.hub, self.workers)
        """Publishes the changes of views as events."""
        self.scheduling = Scheduling(config, open_scheduler, self.hub)
        """The thread of the scheduler, its operations and its decisions."""
        # Tasks that run until the service stops.
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start all parts. Call it in the event loop."""
        self.feeds.start()
        self.scheduling.start()
        control = partial(self.feeds.main.control_or_settings, self.config)
        self._tasks = [
            asyncio.create_task(self.hub.end_withdrawn_streams()),
            asyncio.create_task(self.finding_events.examine(self.examination, control)),
        ]

    def end_waits(self) -> None:
        """End all streams, and let no request wait: the server is about to stop."""
        self.hub.close()
        self.feeds.end_waits()
        self.scheduling.end_waits()

    async def stop(self) -> None:
        """Stop all parts, in the reverse order."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(self.feeds.stop(), self.scheduling.stop())
        self.inspection.close()
        self.examination.close()
        self.workers.close()

    def _on_view(self, before: PublishedView | None, now: PublishedView) -> None:
        """Take a view after each refresh."""
        if before is None or before.number != now.number:
            self.history.add(now.changes.records, time.time())
            self.fleet_events.on_news(before, now)
        self.fleet_events.on_refresh(now.view)

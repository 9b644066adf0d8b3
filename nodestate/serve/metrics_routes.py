"""The routes of metrics: the page of the cell and of the service for Prometheus, and a page with each node.

Both pages are rendered in the thread that encodes, from the last view.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import Final

import msgspec

from nodestate.errors import NodestateError
from nodestate.metrics import (
    ClaimedAmounts,
    MetricsPage,
    cell_samples,
    node_page,
    reader_samples,
    scheduler_samples,
)
from nodestate.metrics.exposition import SampleSource
from nodestate.metrics.metric_table import Part, Sample
from nodestate.metrics.node_page import CONTENT_TYPE
from nodestate.scheduling import Scheduler
from nodestate.scheduling.capacity import claimed_by_node
from nodestate.serve.api_route import ApiCall, ApiRoute
from nodestate.serve.problems import ProblemError
from nodestate.serve.responses import ApiResponse

CLAIMS_TIMEOUT_S: Final = 3.0
"""Longest wait for the scheduler's thread. After it, the page has no claimed amounts."""


async def get_metrics(call: ApiCall[msgspec.Struct]) -> ApiResponse:
    """Answer with the page of metrics."""
    service, feed = call.service, call.service.feeds.main
    view = feed.last().view
    inspected = await service.inspection.latest(feed.control_or_settings(service.config))
    claimed = await _claimed(call)
    reader, scheduler = feed.reader, service.scheduling.thread.scheduler
    heartbeat_s = service.config.heartbeat_s
    sources: list[tuple[Part, SampleSource]] = [
        ("cell", lambda: cell_samples(view, inspected.designs, inspected.queues, heartbeat_s, claimed)),
        ("reader", partial(reader_samples, reader) if reader is not None else _no_samples),
        ("scheduler", partial(scheduler_samples, scheduler) if scheduler is not None else _no_samples),
    ]
    page = MetricsPage(sources)
    body, content_type = await service.workers.run(page.render, call.headers.get("accept", ""))
    return ApiResponse(encoded=body, media_type=content_type)


async def get_node_metrics(call: ApiCall[msgspec.Struct]) -> ApiResponse:
    """Answer with the page of metrics of each node."""
    view = call.service.feeds.main.last().view
    claimed = await _claimed(call)
    return ApiResponse(encoded=await call.service.workers.run(node_page, view, claimed), media_type=CONTENT_TYPE)


async def _claimed(call: ApiCall[msgspec.Struct]) -> ClaimedAmounts | None:
    """Return the claims that the scheduler of the service knows; None if it cannot tell them now."""

    def job(scheduler: Scheduler) -> ClaimedAmounts:
        scheduler.refresh()
        return claimed_by_node(scheduler.fleet)

    try:
        async with asyncio.timeout(CLAIMS_TIMEOUT_S):
            return await call.service.scheduling.thread.run(job)
    except (NodestateError, ProblemError, TimeoutError):
        return None


def _no_samples() -> Iterable[Sample]:
    return ()


ROUTES = (
    ApiRoute(
        "GET",
        "/metrics",
        "The metrics of the cell, and of the reader and the scheduler of the service, for Prometheus.",
        get_metrics,
        None,
        problems=("stale-view", "conflict"),
        media_types=("text/plain", "application/openmetrics-text"),
    ),
    ApiRoute(
        "GET",
        "/metrics/nodes",
        "The metrics of each node, for Prometheus: ten and more time series for each of them.",
        get_node_metrics,
        None,
        problems=("stale-view",),
        media_types=("text/plain",),
    ),
)

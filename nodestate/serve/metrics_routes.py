"""The route ``GET /metrics``: the page for Prometheus, with the metrics of the cell and of the service's reader."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nodestate.designs.reader import Reader
from nodestate.metrics import MetricsPage, cell_samples, reader_samples
from nodestate.serve.api_route import ApiCall, ApiRoute
from nodestate.serve.cell_inspection import InspectedCell
from nodestate.serve.responses import ApiResponse
from nodestate.serve.view_feed import PublishedView


async def get_metrics(call: ApiCall[msgspec.Struct]) -> ApiResponse:
    """Answer with the page of metrics."""
    service, feed = call.service, call.service.feeds.main
    published = feed.last()
    inspected = await service.inspection.latest(feed.control_or_settings(service.config))
    readers = [feed.reader] if feed.reader is not None else []
    body, content_type = await service.workers.run(
        _render, published, inspected, readers, service.config.heartbeat_s, call.headers.get("accept", "")
    )
    return ApiResponse(encoded=body, media_type=content_type)


def _render(
    published: PublishedView, inspected: InspectedCell, readers: Sequence[Reader], heartbeat_s: float, accept: str
) -> tuple[bytes, str]:
    page = MetricsPage(
        [
            ("cell", lambda: cell_samples(published.view, inspected.designs, inspected.queues, heartbeat_s)),
            ("reader", lambda: [sample for reader in readers for sample in reader_samples(reader)]),
        ]
    )
    return page.render(accept)


ROUTES = (
    ApiRoute(
        "GET",
        "/metrics",
        "The metrics of the cell and of the service's reader, for Prometheus.",
        get_metrics,
        None,
        problems=("stale-view", "conflict"),
        media_types=("text/plain", "application/openmetrics-text"),
    ),
)

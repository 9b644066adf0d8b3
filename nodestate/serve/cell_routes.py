"""The routes about the cell and the service: its designs, whether it lives and is ready, and the OpenAPI document."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from nodestate.errors import StaleViewError
from nodestate.serve.api_route import ApiCall, ApiRoute
from nodestate.serve.problems import problem
from nodestate.serve.responses import ApiResponse
from nodestate.view.documents import finite_or_none
from nodestate.view.view import View


class DesignDocument(msgspec.Struct):
    """The state of one design, as the service reads it."""

    nodes: Annotated[int, Meta(description="Number of nodes.")]
    age: Annotated[float | None, Meta(description="Age of its view in seconds; null if it was never confirmed.")]
    whole: Annotated[int, Meta(description="Number of complete partitions.")]
    partitions: Annotated[int, Meta(description="Number of partitions.")]


class DesignsDocument(msgspec.Struct):
    """The control record of the cell, and the state of its designs."""

    version: Annotated[int, Meta(description="Version of the control record; 0 if the cell has none.")]
    writes: Annotated[list[str], Meta(description="The designs that consumers write.")]
    reads: Annotated[str, Meta(description="The design that readers read.")]
    partitions: Annotated[int, Meta(description="Number of partitions of that design.")]
    former: Annotated[str, Meta(description="The design that a rollback returns to; empty if there is none.")]
    said_by: Annotated[str, Meta(description="Who made the last change.")]
    command: Annotated[str, Meta(description="The command that made the last change.")]
    changed_at: Annotated[float, Meta(description="When, in seconds since 1970; 0 if that is not known.")]
    key: Annotated[str, Meta(description="Id of the key that signed the record; empty if it is not signed.")]
    leaving: Annotated[list[str], Meta(description="Retired designs that consumers are leaving.")]
    designs: Annotated[
        dict[str, DesignDocument],
        Meta(description="By name, each design that consumers write and this service can read."),
    ]


class LiveDocument(msgspec.Struct):
    """The service lives."""

    status: Annotated[str, Meta(description="The word pass.")]


class ReadyDocument(msgspec.Struct):
    """The service can answer requests."""

    status: Annotated[str, Meta(description="The word pass.")]
    age: Annotated[float | None, Meta(description="Age of the view in seconds; null if it was never confirmed.")]


async def get_designs(call: ApiCall[msgspec.Struct]) -> ApiResponse:
    """Answer with the control record, as the reader of the service knows it, and the state of the designs."""
    feed = call.service.feeds.main
    feed.last()
    control = feed.control_or_settings(call.service.config)
    names = control.names
    inspected = await call.service.inspection.latest(control)
    designs = {status.name: _design_document(status.view) for status in inspected.designs}
    return ApiResponse(
        DesignsDocument(
            control.version,
            [names[design] for design in control.writes],
            names[control.reads],
            control.reads.partitions,
            names.get(control.former, str(control.former)) if control.former else "",
            control.said_by,
            control.command,
            control.changed_at,
            control.key_id,
            [names[design] for design in control.leaving],
            designs,
        )
    )


def _design_document(view: View) -> DesignDocument:
    return DesignDocument(
        len(view.nodes),
        finite_or_none(view.age),
        sum(1 for partition in view.partitions if partition.complete and not partition.lost),
        len(view.partitions),
    )


async def get_live(call: ApiCall[msgspec.Struct]) -> ApiResponse:
    """Answer 200 while the event loop and the service's threads run; an outage of a store does not change that."""
    if not call.service.feeds.main.is_alive:
        raise problem("overloaded", "the thread that reads views has ended: restart the service")
    if not call.service.scheduling.thread.is_alive:
        raise problem("overloaded", "the thread of the scheduler has ended: restart the service")
    return ApiResponse(LiveDocument("pass"))


async def get_ready(call: ApiCall[msgspec.Struct]) -> ApiResponse:
    """Answer 200 once a view of at least one partition was read."""
    if not call.service.scheduling.thread.is_alive:
        raise problem("overloaded", "the thread of the scheduler has ended: restart the service")
    view = call.service.feeds.main.last().view
    if all(partition.table is None for partition in view.partitions):
        raise StaleViewError(view.age, 0.0, [p.partition for p in view.partitions], cause=view.partitions[0].lost)
    return ApiResponse(ReadyDocument("pass", finite_or_none(view.age)))


ROUTES = (
    ApiRoute(
        "GET",
        "/v1/designs",
        "The designs that consumers write and readers read, from the control record.",
        get_designs,
        DesignsDocument,
        problems=("stale-view", "conflict"),
    ),
    ApiRoute("GET", "/livez", "Whether the service lives: restart it if not.", get_live, LiveDocument, role="open"),
    ApiRoute(
        "GET",
        "/readyz",
        "Whether the service can answer requests: it has read a view.",
        get_ready,
        ReadyDocument,
        problems=("stale-view",),
        role="open",
    ),
)

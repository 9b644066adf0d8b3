"""The routes about nodes: a page of them, one in full, and the last events of one."""

from __future__ import annotations

import bisect
import math
import time
from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from nodestate.errors import CorruptItemError, NotFoundError, StaleViewError
from nodestate.findings import FindingDocument, examine_node
from nodestate.model import NodeRecord
from nodestate.model.partitioning import partition_of
from nodestate.serve.api_route import VIEW_HEADERS, ApiCall, ApiRoute
from nodestate.serve.encoding import encode
from nodestate.serve.feeds import read_within
from nodestate.serve.node_history import NodeEvent
from nodestate.serve.parameters import BoundParameters, NodeNameParameter
from nodestate.serve.responses import ApiResponse
from nodestate.serve.view_routes import ZoneParameter, judge, view_headers
from nodestate.view.documents import (
    FreeState,
    PositionDocument,
    capacity_and_usage,
    finite_or_none,
    zone_of,
)
from nodestate.view.view import View

MAX_PAGE_NODES: int = 1_000
"""Nodes of one page at most."""
StatusParameter = Annotated[
    Literal["up", "draining", "maintenance", "down"], Meta(description="Return only nodes of this status.")
]
Amounts = dict[str, int]


class NodesParameters(BoundParameters, forbid_unknown_fields=True, kw_only=True):
    """The parameters of ``GET /v1/nodes``."""

    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE_NODES, description="Nodes of the page at most.")] = 100
    after: (
        Annotated[str, Meta(max_length=200, description="Begin after this name, the field next of the last page.")]
        | None
    ) = None
    zone: ZoneParameter | None = None
    status: StatusParameter | None = None


class NodeParameters(BoundParameters, forbid_unknown_fields=True, kw_only=True):
    """The parameters of ``GET /v1/nodes/{name}``."""

    name: NodeNameParameter


class NodeEventsParameters(msgspec.Struct, forbid_unknown_fields=True):
    """The parameters of ``GET /v1/nodes/{name}/events``."""

    name: NodeNameParameter


class NodeSummary(msgspec.Struct):
    """One node of a page."""

    name: Annotated[str, Meta(description="Name of the node.")]
    status: Annotated[str, Meta(description="up, draining, maintenance or down.")]
    zone: Annotated[str, Meta(description="Zone of the node; empty if it has none.")]
    incarnation: Annotated[int, Meta(description="Which life of the agent reported the state.")]
    generation: Annotated[int, Meta(description="Number of the event within that life.")]
    reported_at: Annotated[float, Meta(description="When the agent sent it, in seconds since 1970 by its own clock.")]
    last_seen: Annotated[
        float | None, Meta(description="Seconds since the node's last sign of life; null if none is known.")
    ]
    stale: Annotated[bool, Meta(description="True if the node is older than the request accepts.")]
    incomplete: Annotated[bool, Meta(description="True if a newer version is known to exist.")]
    capacity: Annotated[Amounts, Meta(description="By resource class, (total - reserved) x allocation_ratio.")]
    usage: Annotated[Amounts, Meta(description="By resource class, the amount that is in use.")]


class NodeDetail(NodeSummary):
    """One node in full."""

    free: Annotated[Amounts, Meta(description="By resource class, capacity minus usage; negative if overcommitted.")]
    position: Annotated[
        PositionDocument, Meta(description="The commit of the node's partition that the answer is as of.")
    ]
    age: Annotated[
        float | None,
        Meta(description="Seconds since the owner of the node's partition is known to have been caught up, or null."),
    ]
    damaged: Annotated[bool, Meta(description="True if the stored state is damaged; it is shown empty.")]
    findings: Annotated[list[FindingDocument], Meta(description="What is wrong with this node, with the remedy.")]
    state: FreeState


class NodePage(msgspec.Struct):
    """A page of nodes, in the order of their names."""

    age: Annotated[float | None, Meta(description="Age of the view in seconds; null if it was never confirmed.")]
    nodes: Annotated[list[NodeSummary], Meta(description="The nodes.")]
    next: Annotated[
        str | None, Meta(description="Give this as the parameter after to get the next page; null on the last one.")
    ]


class NodeEvents(msgspec.Struct):
    """The events of a node since the start of the service."""

    name: Annotated[str, Meta(description="Name of the node.")]
    events: Annotated[
        list[NodeEvent],
        Meta(description="The last 16 versions that appeared in the service's views, the oldest first."),
    ]


async def get_nodes(call: ApiCall[NodesParameters]) -> ApiResponse:
    """Answer with a page of nodes."""
    parameters = call.parameters
    feed = await call.service.feeds.of(parameters.design)
    published, view = await read_within(feed, call.arrived_at, parameters.wait_s, lambda view: judge(view, parameters))
    encoded = await call.service.workers.run(_encode_page, view, parameters, call.media_type)
    return ApiResponse(encoded=encoded, headers=view_headers(published))


def _encode_page(view: View, parameters: NodesParameters, media_type: str) -> bytes:
    found: list[NodeSummary] = []
    more = None
    for record in _records_after(view, parameters.after):
        if not record.live or record.name in view.left_out:
            continue
        if parameters.status is not None and record.status != parameters.status:
            continue
        if parameters.zone is not None and zone_of(record) != parameters.zone:
            continue
        if len(found) == parameters.limit:
            more = found[-1].name
            break
        found.append(_summary(view, record, is_stale=record.name in view.stale))
    return encode(NodePage(finite_or_none(view.age), found, more), media_type)


def _records_after(view: View, after: str | None) -> Iterator[NodeRecord]:
    """Yield the records of a view in the order of their names, from the first name after ``after`` on."""
    tables = [partition.table for partition in view.partitions if partition.table is not None]
    names = sorted(name for table in tables for name in table.names[: table.size])
    for name in names[bisect.bisect_right(names, after) if after is not None else 0 :]:
        record = view.nodes.record(name)
        if record is not None:
            yield record


def _summary(view: View, record: NodeRecord, *, is_stale: bool) -> NodeSummary:
    amounts = capacity_and_usage(record)
    return NodeSummary(
        record.name,
        record.status,
        zone_of(record),
        record.incarnation,
        record.generation,
        record.reported_at,
        finite_or_none(view.node_age(record.name)),
        is_stale,
        record.incomplete,
        {name: capacity for name, (capacity, _) in amounts.items()},
        {name: usage for name, (_, usage) in amounts.items()},
    )


async def get_node(call: ApiCall[NodeParameters]) -> ApiResponse:
    """Answer with one node in full. Only its own partition and its own age are judged by the bounds."""
    parameters = call.parameters
    feed = await call.service.feeds.of(parameters.design)
    published, (record, is_stale) = await read_within(
        feed, call.arrived_at, parameters.wait_s, lambda view: _judge_node(view, parameters)
    )
    view = published.view
    if record is None:
        raise _not_found(view, parameters.name)
    if parameters.on_stale == "exclude" and (is_stale or record.incomplete):
        reason = "stale" if is_stale else "incomplete"
        raise NotFoundError("name", f"{record.name} is left out because it is {reason}; on_stale=flag shows it")
    state, damaged = {}, False
    try:
        state = record.state()
    except CorruptItemError:
        damaged = True
    partition = view.partitions[partition_of(record.name, len(view.partitions))]
    assert partition.table is not None, f"{record.name} is in the view"
    document = NodeDetail(
        **msgspec.structs.asdict(_summary(view, record, is_stale=is_stale)),
        free={name: capacity - usage for name, (capacity, usage) in capacity_and_usage(record).items()},
        position=PositionDocument(f"{partition.table.epoch:x}", partition.table.offset),
        age=finite_or_none(view.partition_age(partition.partition)),
        damaged=damaged,
        findings=[one.document() for one in examine_node(call.service.config, view, record.name, time.time())],
        state=state,
    )
    return ApiResponse(document, headers=view_headers(published))


def _judge_node(view: View, parameters: NodeParameters) -> tuple[tuple[NodeRecord | None, bool], bool]:
    """Judge one node of a view by the bounds of a request.

    Returns its record and whether it is stale, and True if no fresher view could give a better answer. The record is
    None only if the view can vouch for it. A node that is missing in a partition which is too old or incomplete may
    exist; ``StaleViewError`` says so.
    """
    name, number = parameters.name, partition_of(parameters.name, len(view.partitions))
    partition, age = view.partitions[number], view.partition_age(number)
    is_late = age > parameters.max_age
    if (receipt := parameters.receipt) is not None:
        view.require(receipt, parameters.wait_s)
    record = view.nodes.record(name)
    if record is None or not record.live:
        if is_late:
            raise StaleViewError(age, parameters.max_age, (number,), cause=partition.lost)
        if partition.lost or not partition.complete or (record is not None and not record.gone):
            cause = partition.lost or f"its consumer does not know all nodes of partition {number} yet"
            raise StaleViewError(math.inf, parameters.max_age, (number,), cause=cause)
        return (None, False), False
    is_silent = parameters.node_max_age is not None and view.node_age(name) > parameters.node_max_age
    is_stale = is_late or is_silent
    if is_stale and parameters.on_stale == "refuse":
        if is_late:
            raise StaleViewError(age, parameters.max_age, (number,), cause=partition.lost)
        raise StaleViewError(age, parameters.node_max_age or 0.0, nodes=(name,))
    return (record, is_stale), not is_stale


def _not_found(view: View, name: str) -> NotFoundError:
    """Return the error for a node that the view does not have."""
    record = view.nodes.record(name)
    gone = f": it has left; its last version is {record.incarnation}.{record.generation}" if record else ""
    return NotFoundError("name", f"there is no node {name!r} in design {view.design}{gone}")


async def get_node_events(call: ApiCall[NodeEventsParameters]) -> ApiResponse:
    """Answer with the last events of a node; the view must have the node, or the service must have seen it."""
    name = call.parameters.name
    events = call.service.history.of(name)
    if not events and call.service.feeds.main.last().view.nodes.record(name) is None:
        raise NotFoundError("name", f"the service has not seen a node {name!r} since its start")
    return ApiResponse(NodeEvents(name, events))


ROUTES = (
    ApiRoute(
        "GET",
        "/v1/nodes",
        "A page of nodes, in the order of their names.",
        get_nodes,
        NodePage,
        NodesParameters,
        problems=("stale-view", "behind", "not-found"),
        headers=VIEW_HEADERS,
    ),
    ApiRoute(
        "GET",
        "/v1/nodes/{name}",
        "One node in full. Its bounds are judged for the node and its own partition alone.",
        get_node,
        NodeDetail,
        NodeParameters,
        problems=("stale-view", "behind", "not-found"),
        headers=VIEW_HEADERS,
    ),
    ApiRoute(
        "GET",
        "/v1/nodes/{name}/events",
        "The last versions of a node that the service has seen since its start.",
        get_node_events,
        NodeEvents,
        NodeEventsParameters,
        problems=("stale-view", "not-found"),
    ),
)

"""The routes that close nodes to new instances, open them again, and drain them."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from nodestate.errors import NotFoundError
from nodestate.scheduling import NodeDrain, NodeOrderResult, Scheduler, cordoning, draining, uncordoning
from nodestate.scheduling.session import Operation
from nodestate.serve.api_route import ApiCall
from nodestate.serve.deciding import begun, completed, deciding_route, holder_name
from nodestate.serve.operation_routes import NodeOperationParameters
from nodestate.serve.operations import NodeOrderDocument, OperationDocument, OperationRecord
from nodestate.serve.parameters import NodeNameParameter
from nodestate.serve.problems import problem
from nodestate.serve.responses import ApiResponse

MAX_TIMEOUT_S = 20.0
"""Longest wait for the answer of an agent; a request gets its answer in less than 30 s."""
AgentTimeoutField = Annotated[
    float, Meta(gt=0, le=MAX_TIMEOUT_S, description="Seconds to wait for the answer of the node's agent.")
]
ByField = Annotated[
    str,
    Meta(
        description="Name of the person or program that closes the node; empty: the name of the token, or "
        "'nodestate serve' without one.",
        max_length=255,
    ),
]
ReasonField = Annotated[str, Meta(description="Why the node is closed; may be empty.", max_length=255)]


class NodeOrderParameters(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The parameters of an order to one node. It rests on no view, so it has no bound."""

    name: NodeNameParameter


class CordonBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How to cordon a node."""

    reason: ReasonField = ""
    by: ByField = ""
    timeout_s: AgentTimeoutField = 10.0


class UncordonBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How to uncordon a node."""

    timeout_s: AgentTimeoutField = 10.0


class DrainBody(CordonBody, forbid_unknown_fields=True, kw_only=True):
    """How to drain a node."""

    deadline_s: Annotated[float, Meta(gt=0, le=86_400, description="Seconds after which no further move begins.")] = (
        600.0
    )
    max_parallel: Annotated[
        int,
        Meta(ge=1, le=1_000, description="Instances that move at a time; members of an affinity group move together."),
    ] = 10


def _by(call: ApiCall[Any]) -> str:
    return call.body.by or holder_name(call) or "nodestate serve"


def _node_order(steps: Operation[list[NodeOrderResult]]) -> Operation[NodeOrderDocument]:
    """Carry out an order to one node. Raises ``ProblemError`` if its agent refuses or does not answer."""
    [result] = yield from steps
    if result.refused:
        raise problem("conflict", f"{result.node}: {result.refused}: {result.detail}")
    return NodeOrderDocument.of(result)


async def cordon(call: ApiCall[NodeOrderParameters]) -> ApiResponse:
    """Close a node to new instances."""
    name, body, by = call.parameters.name, call.body, _by(call)
    return await completed(
        call,
        lambda scheduler: _node_order(
            cordoning(scheduler.session, [name], by=by, reason=body.reason, timeout_s=body.timeout_s)
        ),
    )


async def uncordon(call: ApiCall[NodeOrderParameters]) -> ApiResponse:
    """Open a node to new instances again."""
    name, body = call.parameters.name, call.body
    return await completed(
        call, lambda scheduler: _node_order(uncordoning(scheduler.session, [name], timeout_s=body.timeout_s))
    )


async def drain(call: ApiCall[NodeOperationParameters]) -> ApiResponse:
    """Begin to close a node and to move all its instances to other nodes."""
    name, body, by = call.parameters.name, call.body, _by(call)
    record = OperationRecord("drain", name, holder_name(call), {f"node {name}"}, body.deadline_s)

    def make(scheduler: Scheduler) -> Operation[list[NodeDrain]]:
        if name not in scheduler.fleet.rows:
            raise NotFoundError("name", f"no node {name} is known; /v1/nodes lists them")
        return draining(
            scheduler.session,
            scheduler.migrations,
            [name],
            by=by,
            reason=body.reason,
            timeout_s=body.timeout_s,
            deadline_s=body.deadline_s,
            max_parallel=body.max_parallel,
            on_progress=record.show_drains,
        )

    return await begun(call, record, make)


_order_route = partial(deciding_route, problems=("conflict",), role="operate")
ROUTES = (
    _order_route(
        "/v1/nodes/{name}/cordon",
        "Close a node to new instances until it is uncordoned; its agent stores that. 409 conflict if the agent "
        "refuses or does not answer in time: nothing is queued then.",
        cordon,
        NodeOrderDocument,
        NodeOrderParameters,
        CordonBody,
    ),
    _order_route(
        "/v1/nodes/{name}/uncordon",
        "Open a node to new instances again; 409 conflict as for cordon. A node that is not cordoned stays as it is.",
        uncordon,
        NodeOrderDocument,
        NodeOrderParameters,
        UncordonBody,
    ),
    deciding_route(
        "/v1/nodes/{name}/drain",
        "Cordon a node, and move all its instances to other nodes; the resource names each instance that is left, and "
        "why.",
        drain,
        OperationDocument,
        NodeOperationParameters,
        DrainBody,
        role="operate",
        status=202,
    ),
)

"""The routes that begin operations which take long: 202 with the address of a resource that shows their state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from nodestate.errors import NotFoundError
from nodestate.scheduling import Scheduler
from nodestate.scheduling.session import Operation
from nodestate.serve.api_route import ApiCall, ApiRoute
from nodestate.serve.decision_routes import MaxAgeParameters, holder_name, once
from nodestate.serve.operations import OperationDocument
from nodestate.serve.parameters import NodeNameParameter
from nodestate.serve.request_documents import RequestsBody, requests_of
from nodestate.serve.responses import ApiResponse

LOCATION = {"Location": "Path of the resource that shows the state of the operation."}
TimeoutField = Annotated[
    float, Meta(gt=0, le=86_400, description="Seconds to wait for the agents; then the state is timeout.")
]


class InstanceParameters(MaxAgeParameters, forbid_unknown_fields=True, kw_only=True):
    """The parameters of a route about one instance."""

    id: Annotated[str, Meta(description="Id of the instance.", min_length=1, max_length=255)]


class NodeOperationParameters(MaxAgeParameters, forbid_unknown_fields=True, kw_only=True):
    """The parameters of a route that changes one node."""

    name: NodeNameParameter


class OperationParameters(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The parameters of the resource of an operation."""

    id: Annotated[str, Meta(description="Id of the operation.", max_length=64)]
    wait: (
        Annotated[
            str,
            Meta(
                description="Longest wait in seconds for the end of the operation, such as 30s; at most 60s.",
                pattern=r"^([0-9]|[1-5][0-9]|60)s$",
            ),
        ]
        | None
    ) = None


class BootBody(RequestsBody, forbid_unknown_fields=True, kw_only=True):
    """Requests whose instances are to be booted."""

    timeout_s: TimeoutField = 60.0


class MigrateBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Where to migrate an instance."""

    to: Annotated[str, Meta(description="Move to this node only; empty: to the best node.", max_length=200)] = ""
    timeout_s: TimeoutField = 60.0


class ResizeBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """New resources of an instance."""

    resources: Annotated[
        dict[str, Annotated[int, Meta(ge=0)]],
        Meta(description="By resource class the new amount; 0 removes it, others stay.", min_length=1, max_length=64),
    ]
    timeout_s: TimeoutField = 60.0


class TimeoutBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How long an operation may take."""

    timeout_s: TimeoutField = 120.0


async def begun(
    call: ApiCall[Any],
    kind: str,
    subject: str,
    claims: Collection[str],
    make: Callable[[Scheduler], Operation[Any]],
) -> ApiResponse:
    """Begin an operation, once for each Idempotency-Key, and answer 202 with its address."""
    scheduling = call.service.scheduling

    async def work() -> ApiResponse:
        record = await scheduling.operations.begin(
            kind, subject, holder_name(call), claims, make, call.parameters.max_age
        )
        place = "boots" if kind == "boot" else "operations"
        return ApiResponse(record.document(), status=202, headers={"Location": f"/v1/{place}/{record.id}"})

    return await once(call, work)


async def boot(call: ApiCall[MaxAgeParameters]) -> ApiResponse:
    """Begin to boot instances."""
    body: BootBody = call.body
    requests = requests_of(body.requests, call.parameters.max_age)
    claims = {f"instance {instance}" for request in requests for instance in request.instances}
    return await begun(call, "boot", "", claims, lambda scheduler: scheduler.booting(requests, body.timeout_s))


async def migrate(call: ApiCall[InstanceParameters]) -> ApiResponse:
    """Begin to migrate an instance."""
    name, body = call.parameters.id, call.body
    return await begun(
        call,
        "migrate",
        name,
        {f"instance {name}"},
        lambda scheduler: scheduler.migrations.migration(name, to=body.to, timeout_s=body.timeout_s),
    )


async def resize(call: ApiCall[InstanceParameters]) -> ApiResponse:
    """Begin to resize an instance."""
    name, body = call.parameters.id, call.body
    return await begun(
        call,
        "resize",
        name,
        {f"instance {name}"},
        lambda scheduler: scheduler.migrations.resizing(name, body.resources, timeout_s=body.timeout_s),
    )


async def terminate(call: ApiCall[InstanceParameters]) -> ApiResponse:
    """Begin to terminate an instance."""
    name, body = call.parameters.id, call.body
    return await begun(
        call,
        "terminate",
        name,
        (),
        lambda scheduler: scheduler.terminations.termination([name], body.timeout_s),
    )


async def evacuate(call: ApiCall[NodeOperationParameters]) -> ApiResponse:
    """Begin to move all instances off a node."""
    name, body = call.parameters.name, call.body
    return await begun(
        call,
        "evacuate",
        name,
        {f"node {name}"},
        lambda scheduler: scheduler.migrations.evacuation(name, timeout_s=body.timeout_s),
    )


async def get_operation(call: ApiCall[OperationParameters]) -> ApiResponse:
    """Answer with the state of an operation, at once or at its end."""
    parameters = call.parameters
    record = call.service.scheduling.operations.find(parameters.id)
    if record is None:
        raise NotFoundError("id", f"there is no operation {parameters.id!r}, or it is no longer kept")
    if parameters.wait is not None:
        with suppress(TimeoutError):
            await asyncio.wait_for(record.end.wait(), float(parameters.wait.strip()[:-1]))
    return ApiResponse(record.document())


def _begin_route(path: str, summary: str, handler: Any, parameters: Any, body: Any, role: Any) -> ApiRoute:
    return ApiRoute(
        "POST",
        path,
        summary,
        handler,
        OperationDocument,
        parameters,
        body,
        problems=("stale-view", "not-found", "conflict"),
        role=role,
        status=202,
        headers=LOCATION,
        decides=True,
    )


ROUTES = (
    _begin_route(
        "/v1/boots",
        "Claim a node for each instance of the requests and have its agent build it.",
        boot,
        MaxAgeParameters,
        BootBody,
        "schedule",
    ),
    _begin_route(
        "/v1/instances/{id}/migrate",
        "Build an instance on another node, and terminate it on its present one.",
        migrate,
        InstanceParameters,
        MigrateBody,
        "schedule",
    ),
    _begin_route(
        "/v1/instances/{id}/resize",
        "Give an instance other resources, on its node if they fit there, otherwise on another one.",
        resize,
        InstanceParameters,
        ResizeBody,
        "schedule",
    ),
    _begin_route(
        "/v1/instances/{id}/terminate",
        "Terminate an instance on all nodes that report it.",
        terminate,
        InstanceParameters,
        TimeoutBody,
        "schedule",
    ),
    _begin_route(
        "/v1/nodes/{name}/evacuate",
        "Move all instances off a node.",
        evacuate,
        NodeOperationParameters,
        TimeoutBody,
        "operate",
    ),
    *(
        ApiRoute(
            "GET",
            path,
            summary,
            get_operation,
            OperationDocument,
            OperationParameters,
            problems=("not-found",),
        )
        for path, summary in (
            ("/v1/boots/{id}", "The state of a boot, for each of its instances."),
            ("/v1/operations/{id}", "The state of an operation, for each of its instances."),
        )
    ),
)

"""The routes that begin operations which take long: 202 with the address of a resource that shows their state."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Annotated

import msgspec
from msgspec import Meta

from nodestate.errors import NotFoundError
from nodestate.model import MAX_CLASSES_COUNT
from nodestate.serve.api_route import ApiCall, ApiRoute
from nodestate.serve.deciding import MaxAgeParameters, begun, deciding_route, holder_name
from nodestate.serve.operations import OperationDocument, OperationRecord
from nodestate.serve.parameters import NodeNameParameter
from nodestate.serve.request_documents import CLASS_NAMES, ClassAmount, RequestsBody, requests_of
from nodestate.serve.responses import ApiResponse

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
        dict[str, ClassAmount],
        Meta(
            description="By resource class the new amount; 0 removes it, others stay.",
            examples=[{"VCPU": 4}],
            min_length=1,
            max_length=MAX_CLASSES_COUNT,
            extra_json_schema=CLASS_NAMES,
        ),
    ]
    timeout_s: TimeoutField = 60.0


class TimeoutBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How long an operation may take."""

    timeout_s: TimeoutField = 120.0


async def boot(call: ApiCall[MaxAgeParameters]) -> ApiResponse:
    """Begin to boot instances."""
    body: BootBody = call.body
    requests = requests_of(body.requests, call.parameters.max_age)
    claims = {f"instance {instance}" for request in requests for instance in request.instances}
    record = OperationRecord("boot", "", holder_name(call), claims)
    return await begun(call, record, lambda scheduler: scheduler.booting(requests, body.timeout_s))


async def migrate(call: ApiCall[InstanceParameters]) -> ApiResponse:
    """Begin to migrate an instance."""
    name, body = call.parameters.id, call.body
    record = OperationRecord("migrate", name, holder_name(call), {f"instance {name}"})
    return await begun(
        call,
        record,
        lambda scheduler: scheduler.migrations.migration(name, to=body.to, timeout_s=body.timeout_s),
    )


async def resize(call: ApiCall[InstanceParameters]) -> ApiResponse:
    """Begin to resize an instance."""
    name, body = call.parameters.id, call.body
    record = OperationRecord("resize", name, holder_name(call), {f"instance {name}"})
    return await begun(
        call,
        record,
        lambda scheduler: scheduler.migrations.resizing(name, body.resources, timeout_s=body.timeout_s),
    )


async def terminate(call: ApiCall[InstanceParameters]) -> ApiResponse:
    """Begin to terminate an instance."""
    name, body = call.parameters.id, call.body
    record = OperationRecord("terminate", name, holder_name(call), ())
    return await begun(
        call,
        record,
        lambda scheduler: scheduler.terminations.termination([name], body.timeout_s),
    )


async def evacuate(call: ApiCall[NodeOperationParameters]) -> ApiResponse:
    """Begin to move all instances off a node."""
    name, body = call.parameters.name, call.body
    record = OperationRecord("evacuate", name, holder_name(call), {f"node {name}"})
    return await begun(
        call,
        record,
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


ROUTES = (
    deciding_route(
        "/v1/boots",
        "Claim a node for each instance of the requests and have its agent build it.",
        boot,
        OperationDocument,
        MaxAgeParameters,
        BootBody,
        status=202,
    ),
    deciding_route(
        "/v1/instances/{id}/migrate",
        "Build an instance on another node, and terminate it on its present one.",
        migrate,
        OperationDocument,
        InstanceParameters,
        MigrateBody,
        status=202,
    ),
    deciding_route(
        "/v1/instances/{id}/resize",
        "Give an instance other resources, on its node if they fit there, otherwise on another one.",
        resize,
        OperationDocument,
        InstanceParameters,
        ResizeBody,
        status=202,
    ),
    deciding_route(
        "/v1/instances/{id}/terminate",
        "Terminate an instance on all nodes that report it.",
        terminate,
        OperationDocument,
        InstanceParameters,
        TimeoutBody,
        status=202,
    ),
    deciding_route(
        "/v1/nodes/{name}/evacuate",
        "Move all instances off a node.",
        evacuate,
        OperationDocument,
        NodeOperationParameters,
        TimeoutBody,
        status=202,
        role="operate",
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

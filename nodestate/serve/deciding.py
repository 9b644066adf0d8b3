"""The path of all routes that decide: a request becomes work of the scheduler's thread, once for each Idempotency-Key.

The work is a job, whose result is the answer; an operation whose result is the answer; or an operation that takes
long, for which the answer is 202 with the address of its record.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from nodestate.scheduling import Scheduler
from nodestate.scheduling.session import Operation
from nodestate.serve.api_route import ApiCall, ApiRoute
from nodestate.serve.operations import OperationDocument, OperationRecord
from nodestate.serve.parameters import DEFAULT_MAX_AGE_S, SecondsBound
from nodestate.serve.repeated_requests import HEADER
from nodestate.serve.responses import ApiResponse
from nodestate.serve.tokens import Role

LOCATION = {"Location": "Path of the resource that shows the state of the operation."}


class MaxAgeParameters(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The bound of a route that decides."""

    max_age: Annotated[
        SecondsBound,
        Meta(description="Accepted age of the view in seconds, for requests that name no lower one."),
    ] = DEFAULT_MAX_AGE_S


class ChoiceParameters(MaxAgeParameters, forbid_unknown_fields=True, kw_only=True):
    """The bounds of a route that chooses nodes and answers at once."""

    node_max_age: (
        Annotated[
            SecondsBound,
            Meta(
                description="Choose no node without a sign of life for this many seconds; without it, three heartbeats "
                "and 5 s."
            ),
        ]
        | None
    ) = None


def holder_name(call: ApiCall[Any]) -> str:
    """Return the name of the token of a request; empty if the service has no tokens."""
    return call.holder.name if call.holder is not None else ""


@contextmanager
def node_bound(scheduler: Scheduler, node_max_age: float | None) -> Iterator[None]:
    """Let the scheduler choose no node without a sign of life for this many seconds while the block runs."""
    refresher = scheduler.refresher
    before = refresher.node_max_age
    if node_max_age is not None:
        refresher.node_max_age = node_max_age
    try:
        yield
    finally:
        refresher.node_max_age = before


async def answered(call: ApiCall[Any], job: Callable[[Scheduler], Any]) -> ApiResponse:
    """Answer with the result of a job in the scheduler's thread."""
    return await _once(call, lambda: _respond(call.service.scheduling.thread.run(job)))


async def completed(call: ApiCall[Any], make: Callable[[Scheduler], Operation[Any]], status: int = 200) -> ApiResponse:
    """Answer with the result of an operation in the scheduler's thread.

    Args:
        call: the request.
        make: makes the operation; called in the thread.
        status: HTTP status of the answer.
    """
    return await _once(call, lambda: _respond(call.service.scheduling.thread.complete(make), status))


async def begun(
    call: ApiCall[Any], record: OperationRecord, make: Callable[[Scheduler], Operation[Any]]
) -> ApiResponse:
    """Begin an operation, and answer 202 with the address of its record. ``make``: as for ``completed``."""

    async def work() -> ApiResponse:
        await call.service.scheduling.operations.begin(record, make, call.parameters.max_age)
        place = "boots" if record.kind == "boot" else "operations"
        return ApiResponse(record.document(), status=202, headers={"Location": f"/v1/{place}/{record.id}"})

    return await _once(call, work)


async def _respond(result: Coroutine[Any, Any, Any], status: int = 200) -> ApiResponse:
    return ApiResponse(await result, status=status)


async def _once(call: ApiCall[Any], work: Callable[[], Coroutine[Any, Any, ApiResponse]]) -> ApiResponse:
    """Do the work of a request, or return the answer of the request that it repeats."""
    key = call.headers.get(HEADER)
    content = (call.path, call.parameters, call.body)
    return await call.service.scheduling.repeats.once(key, holder_name(call), content, work)


def deciding_route(
    path: str,
    summary: str,
    handler: Any,
    response: Any,
    parameters: type[msgspec.Struct],
    body: type[msgspec.Struct],
    *,
    problems: tuple[str, ...] = ("stale-view", "not-found", "conflict"),
    role: Role = "schedule",
    status: int = 200,
) -> ApiRoute:
    """Return the route of a POST that decides."""
    return ApiRoute(
        "POST",
        path,
        summary,
        handler,
        response,
        parameters,
        body,
        problems=problems,
        role=role,
        status=status,
        headers=LOCATION if response is OperationDocument else {},
        decides="stale-view" in problems,
    )

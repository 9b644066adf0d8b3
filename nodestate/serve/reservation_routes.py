"""The routes about reservations: nodes that are held for all members of a group, or for none."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from nodestate.scheduling import NotReserved, Reservation, Scheduler
from nodestate.scheduling.request import MAX_HOLD_S, MIN_HOLD_S
from nodestate.scheduling.session import Operation
from nodestate.serve.api_route import ApiCall, ApiRoute
from nodestate.serve.deciding import MaxAgeParameters, answered, begun, completed, deciding_route, holder_name
from nodestate.serve.operation_routes import TimeoutField
from nodestate.serve.operations import OperationDocument, OperationRecord
from nodestate.serve.problems import no_host
from nodestate.serve.request_documents import GroupBody, group_of
from nodestate.serve.responses import ApiResponse

RESERVE_TIMEOUT_S = 15.0
"""Seconds for which a reservation is tried again while others take nodes."""


class ReservationParameters(MaxAgeParameters, forbid_unknown_fields=True, kw_only=True):
    """The parameters of a route about one reservation."""

    id: Annotated[str, Meta(description="Id of the reservation.", min_length=1, max_length=255)]


OwnerField = Annotated[
    str, Meta(description="Refuse if the reservation belongs to another owner; empty: any.", max_length=200)
]


class ConfirmBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How to confirm a reservation."""

    owner: OwnerField = ""
    timeout_s: TimeoutField = 60.0


class ExtendBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How long to hold a reservation."""

    hold_s: Annotated[
        float, Meta(ge=MIN_HOLD_S, le=MAX_HOLD_S, description="Hold the nodes until this many seconds from now.")
    ]
    owner: OwnerField = ""


class ReleaseBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Whose reservation to release."""

    owner: OwnerField = ""


class MemberDocument(msgspec.Struct):
    """One instance of a reservation."""

    instance: Annotated[str, Meta(description="Id of the instance.")]
    node: Annotated[str, Meta(description="The node that is held for it.")]
    resources: Annotated[dict[str, int], Meta(description="The amounts that are held, by resource class.")]
    group: Annotated[str | None, Meta(description="Name of its group; null if it has none.")]
    placed: Annotated[bool, Meta(description="True if the node reports that it was built.")]


class ReservationDocument(msgspec.Struct):
    """Nodes that are held for a group."""

    id: Annotated[str, Meta(description="Id of the reservation.")]
    owner: Annotated[str, Meta(description="Who may confirm, extend and release it.")]
    members: Annotated[list[MemberDocument], Meta(description="The members that have a claim.")]
    seconds: Annotated[float, Meta(description="Seconds until the first claim expires.")]
    whole: Annotated[bool, Meta(description="True if all members are held.")]


class ReservationsDocument(msgspec.Struct):
    """All reservations of the cell."""

    reservations: Annotated[list[ReservationDocument], Meta(description="The reservations, the oldest first.")]


class ReleasedDocument(msgspec.Struct):
    """A reservation that was released."""

    id: Annotated[str, Meta(description="Id of the reservation.")]
    released: Annotated[bool, Meta(description="The word true.")]


def _document(reservation: Reservation) -> ReservationDocument:
    return msgspec.convert(msgspec.to_builtins(reservation), ReservationDocument)


async def reserve(call: ApiCall[MaxAgeParameters]) -> ApiResponse:
    """Hold a node for every member of a group."""
    body: GroupBody = call.body
    wanted = group_of(body, call.parameters.max_age)
    owner = body.owner or holder_name(call)
    recorder, by = call.service.scheduling.recorder, holder_name(call)

    def reserving(scheduler: Scheduler) -> Operation[ReservationDocument]:
        found = yield from scheduler.reservations.reservation(wanted, owner=owner, timeout_s=RESERVE_TIMEOUT_S)
        recorder.record_reservation(scheduler, by, wanted, found)
        if isinstance(found, NotReserved):
            raise no_host(found.instance, found.reason)
        return _document(found)

    return await completed(call, reserving, status=201)


async def get_reservations(call: ApiCall[MaxAgeParameters]) -> ApiResponse:
    """Answer with all reservations of the cell."""

    def job(scheduler: Scheduler) -> ReservationsDocument:
        scheduler.refresh(call.parameters.max_age)
        return ReservationsDocument([_document(one) for one in scheduler.reservations.held()])

    return ApiResponse(await call.service.scheduling.thread.run(job))


async def confirm(call: ApiCall[ReservationParameters]) -> ApiResponse:
    """Begin to build every member of a reservation."""
    name, body = call.parameters.id, call.body
    record = OperationRecord("confirm", name, holder_name(call), {f"reservation {name}"})
    return await begun(
        call,
        record,
        lambda scheduler: scheduler.reservations.confirmation(name, owner=body.owner, timeout_s=body.timeout_s),
    )


async def extend(call: ApiCall[ReservationParameters]) -> ApiResponse:
    """Hold a reservation for longer."""
    parameters, body = call.parameters, call.body

    def job(scheduler: Scheduler) -> ReservationDocument:
        scheduler.refresh(parameters.max_age)
        return _document(scheduler.reservations.extend(parameters.id, body.hold_s, owner=body.owner))

    return await answered(call, job)


async def release(call: ApiCall[ReservationParameters]) -> ApiResponse:
    """Release the nodes of a reservation."""
    parameters, body = call.parameters, call.body

    def job(scheduler: Scheduler) -> ReleasedDocument:
        scheduler.refresh(parameters.max_age)
        scheduler.reservations.release(parameters.id, owner=body.owner)
        return ReleasedDocument(parameters.id, released=True)

    return await answered(call, job)


ROUTES = (
    deciding_route(
        "/v1/reservations",
        "Hold a node for every member of a group, or none; agents build nothing before confirm.",
        reserve,
        ReservationDocument,
        MaxAgeParameters,
        GroupBody,
        problems=("stale-view", "no-host", "conflict"),
        status=201,
    ),
    ApiRoute(
        "GET",
        "/v1/reservations",
        "All reservations of the cell, the oldest first.",
        get_reservations,
        ReservationsDocument,
        MaxAgeParameters,
        problems=("stale-view",),
        decides=True,
    ),
    deciding_route(
        "/v1/reservations/{id}/confirm",
        "Have agents build every member, on the nodes that are held for them.",
        confirm,
        OperationDocument,
        ReservationParameters,
        ConfirmBody,
        status=202,
    ),
    deciding_route(
        "/v1/reservations/{id}/extend",
        "Hold the nodes of a reservation until hold_s seconds from now, which may be sooner than before.",
        extend,
        ReservationDocument,
        ReservationParameters,
        ExtendBody,
    ),
    deciding_route(
        "/v1/reservations/{id}/release",
        "Release the nodes of a reservation; members that were built stay.",
        release,
        ReleasedDocument,
        ReservationParameters,
        ReleaseBody,
    ),
)

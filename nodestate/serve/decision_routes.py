"""The routes of decisions: which node each instance got, and why."""

from __future__ import annotations

import itertools
from typing import Annotated

import msgspec
from msgspec import Meta

from nodestate.errors import NotFoundError
from nodestate.serve.api_route import ApiCall, ApiRoute
from nodestate.serve.decisions import DecisionDocument
from nodestate.serve.responses import ApiResponse


class DecisionsParameters(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The parameters of ``GET /v1/decisions``."""

    limit: Annotated[int, Meta(ge=1, le=1_000, description="Decisions of the page at most.")] = 100
    before: (
        Annotated[str, Meta(description="Begin before this id, the field next of the last page.", max_length=64)] | None
    ) = None
    instance: Annotated[str, Meta(description="Only decisions about this instance.", max_length=255)] | None = None
    node: Annotated[str, Meta(description="Only decisions that chose this node.", max_length=200)] | None = None


class DecisionParameters(msgspec.Struct, forbid_unknown_fields=True):
    """The parameters of ``GET /v1/decisions/{id}``."""

    id: Annotated[str, Meta(description="Id of the decision.", max_length=64)]


class DecisionPage(msgspec.Struct):
    """A page of decisions, the newest first."""

    decisions: Annotated[list[DecisionDocument], Meta(description="The decisions.")]
    next: Annotated[
        str | None, Meta(description="Give this as the parameter before to get the next page; null on the last one.")
    ]


async def get_decisions(call: ApiCall[DecisionsParameters]) -> ApiResponse:
    """Answer with a page of decisions."""
    parameters, log = call.parameters, call.service.scheduling.decisions
    if parameters.before is not None and log.find(parameters.before) is None:
        raise NotFoundError("before", f"decision {parameters.before} is no longer kept; begin without before")
    fitting = (
        one
        for one in log.newest(parameters.before)
        if (parameters.instance is None or one.instance == parameters.instance)
        and (parameters.node is None or one.chosen == parameters.node)
    )
    found = list(itertools.islice(fitting, parameters.limit + 1))
    page = found[: parameters.limit]
    more = page[-1].id if len(found) > len(page) else None
    return ApiResponse(DecisionPage([one.document() for one in page], more))


async def get_decision(call: ApiCall[DecisionParameters]) -> ApiResponse:
    """Answer with one decision."""
    found = call.service.scheduling.decisions.find(call.parameters.id)
    if found is None:
        raise NotFoundError("id", f"there is no decision {call.parameters.id!r} among the last 10,000 of this service")
    return ApiResponse(found.document())


ROUTES = (
    ApiRoute(
        "GET",
        "/v1/decisions",
        "The last decisions of this service, the newest first.",
        get_decisions,
        DecisionPage,
        DecisionsParameters,
        problems=("not-found",),
    ),
    ApiRoute(
        "GET",
        "/v1/decisions/{id}",
        "One decision in full: what each filter left, the best nodes, and the outcome.",
        get_decision,
        DecisionDocument,
        DecisionParameters,
        problems=("not-found",),
    ),
)

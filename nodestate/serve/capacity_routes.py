"""The routes about room: how much the fleet has, how many instances of a request fit, and both after a change."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from nodestate.scheduling import RequestFit, Scheduler, capacity_of, fit_of, what_if
from nodestate.serve.api_route import ApiCall, ApiRoute
from nodestate.serve.deciding import ChoiceParameters, answered, deciding_route, node_bound
from nodestate.serve.parameters import NodeNameParameter
from nodestate.serve.problems import FilterCount, bad_request, filter_counts
from nodestate.serve.request_documents import RequestDocument, request_of
from nodestate.serve.responses import ApiResponse
from nodestate.serve.selection_routes import ExplanationDocument
from nodestate.view.documents import finite_or_none


class CapacityParameters(ChoiceParameters, forbid_unknown_fields=True, kw_only=True):
    """The parameters of ``GET /v1/capacity``."""

    request: (
        Annotated[RequestDocument, Meta(description="A request as JSON: count how many more of its instances fit.")]
        | None
    ) = None


class WhatIfBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A request, and the change after which it is asked."""

    request: Annotated[RequestDocument, Meta(description="The request.")]
    without: Annotated[
        list[NodeNameParameter],
        Meta(description="Answer as if these nodes were gone with their instances.", max_length=100_000),
    ] = []
    assume_empty: Annotated[bool, Meta(description="Answer as if no node had instances, usage or claims.")] = False


class ClassCapacityDocument(msgspec.Struct):
    """One resource class of some nodes. All amounts are in the unit of the class, such as MB for MEMORY_MB."""

    total: Annotated[int, Meta(description="The capacity, (total - reserved) x allocation_ratio, of all nodes.")]
    used: Annotated[int, Meta(description="The usage that the nodes report.")]
    claimed: Annotated[int, Meta(description="The claims that no report of the nodes includes.")]
    free: Annotated[int, Meta(description="The free amounts of the open nodes; overused nodes count as 0.")]


class CapacityPartDocument(msgspec.Struct):
    """Some nodes of the fleet."""

    nodes: Annotated[int, Meta(description="Number of nodes.")]
    open_nodes: Annotated[int, Meta(description="Number of nodes that may get instances now.")]
    classes: Annotated[dict[str, ClassCapacityDocument], Meta(description="By resource class, the sums of the nodes.")]


class FitDocument(msgspec.Struct):
    """How many more instances of a request fit."""

    fits: Annotated[
        int | None,
        Meta(description="The largest count for which each instance gets a node; null if there is no limit."),
    ]
    is_minimum: Annotated[bool, Meta(description="True if counting stopped, so that more may fit.")]
    nodes: Annotated[int, Meta(description="Number of nodes that can take at least one instance now.")]
    filters: Annotated[
        list[FilterCount], Meta(description="What each filter leaves for the next instance; empty without a limit.")
    ]
    why: Annotated[str, Meta(description="Why the next instance does not fit, for people; empty without a limit.")]

    @classmethod
    def of(cls, fit: RequestFit) -> FitDocument:
        """Return a fit as a document."""
        return cls(fit.fits, fit.is_minimum, fit.nodes, filter_counts(fit.remaining), fit.reason)


class CapacityDocument(msgspec.Struct):
    """The room of the fleet."""

    age: Annotated[float | None, Meta(description="Age of the view in seconds; null if it was never confirmed.")]
    whole: Annotated[CapacityPartDocument, Meta(description="All nodes.")]
    zones: Annotated[
        dict[str, CapacityPartDocument], Meta(description="By zone, its nodes; the empty name has those without one.")
    ]
    aggregates: Annotated[
        dict[str, CapacityPartDocument], Meta(description="By aggregate, its nodes. A node may be in several.")
    ]
    fit: Annotated[FitDocument | None, Meta(description="How many instances fit; null without the parameter request.")]


class WhatIfChoiceDocument(msgspec.Struct):
    """The node that an instance would get."""

    instance: Annotated[str, Meta(description="Id of the instance.")]
    node: Annotated[str | None, Meta(description="The node; null if there would be none.")]


class WhatIfDocument(msgspec.Struct):
    """The answer to a request after a change of the fleet. Nothing is claimed."""

    age: Annotated[float | None, Meta(description="Age of the view in seconds; null if it was never confirmed.")]
    without: Annotated[list[str], Meta(description="The nodes that were regarded as gone.")]
    assume_empty: Annotated[bool, Meta(description="Whether all other nodes were regarded as empty.")]
    choices: Annotated[list[WhatIfChoiceDocument], Meta(description="One for each instance of the request.")]
    explanation: Annotated[ExplanationDocument, Meta(description="How the nodes rank for the first instance.")]
    fit: Annotated[FitDocument, Meta(description="How many instances of the request fit.")]


async def get_capacity(call: ApiCall[CapacityParameters]) -> ApiResponse:
    """Answer with the room of the fleet."""
    parameters = call.parameters
    request = None
    if parameters.request is not None:
        request = request_of(parameters.request, "request", parameters.max_age)

    def job(scheduler: Scheduler) -> CapacityDocument:
        with node_bound(scheduler, parameters.node_max_age):
            view = scheduler.refresh(parameters.max_age if request is None else request.max_age)
        if request is not None:
            scheduler.selector.check(request)
        fit = FitDocument.of(fit_of(scheduler.selector, request)) if request is not None else None
        found = msgspec.to_builtins(capacity_of(scheduler.fleet))
        return msgspec.convert({"age": finite_or_none(view.age), **found, "fit": fit}, CapacityDocument)

    return ApiResponse(await call.service.scheduling.thread.run(job))


async def ask_what_if(call: ApiCall[ChoiceParameters]) -> ApiResponse:
    """Answer a request as if some nodes were gone, or as if all nodes were empty."""
    body: WhatIfBody = call.body
    if not body.without and not body.assume_empty:
        raise bad_request("without", "no change was given: name nodes here, or set assume_empty to true")
    request = request_of(body.request, "request", call.parameters.max_age)
    without = list(dict.fromkeys(body.without))

    def job(scheduler: Scheduler) -> WhatIfDocument:
        with node_bound(scheduler, call.parameters.node_max_age):
            answer = what_if(scheduler.session, request, without=without, assume_empty=body.assume_empty)
        return WhatIfDocument(
            finite_or_none(scheduler.view.age),
            without,
            body.assume_empty,
            [WhatIfChoiceDocument(choice.instance, choice.node) for choice in answer.choices],
            ExplanationDocument.of(answer.explanation),
            FitDocument.of(answer.fit),
        )

    return await answered(call, job)


ROUTES = (
    ApiRoute(
        "GET",
        "/v1/capacity",
        "Total, used, claimed and free amounts by resource class, zone and aggregate; with a request, how many more of "
        "its instances fit, and why the next one does not.",
        get_capacity,
        CapacityDocument,
        CapacityParameters,
        problems=("stale-view",),
        decides=True,
    ),
    deciding_route(
        "/v1/what-if",
        "Answer a request as if some nodes were gone, or as if all nodes were empty. Nothing is claimed.",
        ask_what_if,
        WhatIfDocument,
        ChoiceParameters,
        WhatIfBody,
        problems=("stale-view", "not-found", "conflict"),
    ),
)

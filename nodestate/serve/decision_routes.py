"""The routes that choose and claim nodes, and the routes of decisions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from nodestate.errors import NotFoundError
from nodestate.scheduling import NoHostFound, Scheduler
from nodestate.serve.api_route import ApiCall, ApiRoute
from nodestate.serve.decisions import BestNode, DecisionDocument
from nodestate.serve.parameters import DEFAULT_MAX_AGE_S, SecondsBound
from nodestate.serve.problems import FilterCount, filter_counts, no_host
from nodestate.serve.repeated_requests import HEADER
from nodestate.serve.request_documents import RequestsBody, SelectBody, requests_of
from nodestate.serve.responses import ApiResponse
from nodestate.view.documents import finite_or_none

MaxAgeParameter = Annotated[
    SecondsBound,
    Meta(description="Accepted age of the view in seconds, for requests that name no lower one."),
]


class MaxAgeParameters(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The bound of a route that decides."""

    max_age: MaxAgeParameter = DEFAULT_MAX_AGE_S


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


class ExplanationDocument(msgspec.Struct):
    """How the nodes rank for a request."""

    filters: Annotated[list[FilterCount], Meta(description="What each filter left, in their order.")]
    best: Annotated[list[BestNode], Meta(description="The five best nodes, the best first.")]


class ChoiceDocument(msgspec.Struct):
    """The choice for one instance."""

    instance: Annotated[str, Meta(description="Id of the instance.")]
    node: Annotated[str | None, Meta(description="The best node; null if there is none.")]
    alternates: Annotated[list[str], Meta(description="The next best nodes, as many as the request asked for.")]
    why: Annotated[str, Meta(description="Why there is no node, for people; empty if there is one.")]
    filters: Annotated[
        list[FilterCount], Meta(description="If there is no node, what each filter left; otherwise empty.")
    ]
    decision: Annotated[str, Meta(description="Id of the decision.")]


class ChoicesDocument(msgspec.Struct):
    """The choices of a request; nothing is claimed."""

    age: Annotated[float | None, Meta(description="Age of the view in seconds; null if it was never confirmed.")]
    choices: Annotated[list[ChoiceDocument], Meta(description="One for each instance, in the order of the requests.")]
    explanations: Annotated[
        list[ExplanationDocument], Meta(description="One for each request, if explain is true; otherwise empty.")
    ]


class ClaimDocument(msgspec.Struct):
    """The claim for one instance."""

    instance: Annotated[str, Meta(description="Id of the instance.")]
    node: Annotated[str | None, Meta(description="The claimed node; null if there is none.")]
    claim: Annotated[str | None, Meta(description="Id of the claim; null if there is none.")]
    why: Annotated[str, Meta(description="Why there is no node, for people; empty if there is one.")]
    filters: Annotated[
        list[FilterCount], Meta(description="If there is no node, what each filter left; otherwise empty.")
    ]
    conflicts: Annotated[int, Meta(description="How often the instance lost its node to another scheduler.")]
    decision: Annotated[str, Meta(description="Id of the decision.")]


class ClaimsDocument(msgspec.Struct):
    """The claims of a request."""

    age: Annotated[float | None, Meta(description="Age of the view in seconds; null if it was never confirmed.")]
    seconds: Annotated[float, Meta(description="Seconds until the claims expire.")]
    claims: Annotated[list[ClaimDocument], Meta(description="One for each instance, in the order of the requests.")]


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


async def once(call: ApiCall[Any], work: Callable[[], Coroutine[Any, Any, ApiResponse]]) -> ApiResponse:
    """Do the work of a request, or return the answer of the request that it repeats."""
    key = call.headers.get(HEADER)
    content = (call.path, call.parameters, call.body)
    return await call.service.scheduling.repeats.once(key, holder_name(call), content, work)


async def answered(
    call: ApiCall[Any], job: Callable[[Scheduler], Any], headers: dict[str, str] | None = None
) -> ApiResponse:
    """Run a job in the scheduler's thread, once for each Idempotency-Key, and answer with its result."""
    scheduling = call.service.scheduling

    async def work() -> ApiResponse:
        return ApiResponse(await scheduling.thread.run(job), headers=headers or {})

    return await once(call, work)


async def select(call: ApiCall[ChoiceParameters]) -> ApiResponse:
    """Choose a node for each instance, without claiming it."""
    body: SelectBody = call.body
    requests = requests_of(body.requests, call.parameters.max_age)
    recorder, by = call.service.scheduling.recorder, holder_name(call)

    def job(scheduler: Scheduler) -> ChoicesDocument:
        for request in requests:
            scheduler.selector.check(request)
        with node_bound(scheduler, call.parameters.node_max_age):
            scheduler.refresh(min(request.max_age or DEFAULT_MAX_AGE_S for request in requests))
        found = [(request, choice) for request in requests for choice in scheduler.selector.choices(request)]
        explained = [scheduler.explain(request) for request in requests] if body.explain else []
        if all(choice.node is None for _, choice in found):
            first = found[0][1]
            recorder.record_choices(scheduler, by, found)
            raise no_host(first.instance, NoHostFound(first.remaining, first.unknown, lacks=first.lacks))
        decisions = recorder.record_choices(scheduler, by, found)
        choices = [
            ChoiceDocument(
                choice.instance,
                choice.node,
                list(choice.alternates),
                "" if made.failure is None else str(made.failure),
                filter_counts(choice.remaining),
                made.id,
            )
            for (_, choice), made in zip(found, decisions, strict=True)
        ]
        explanations = [
            ExplanationDocument(
                filter_counts(one.remaining),
                [BestNode(node, round(sum(parts.values()), 4), parts) for node, parts in one.best],
            )
            for one in explained
        ]
        return ChoicesDocument(finite_or_none(scheduler.view.age), choices, explanations)

    return await answered(call, job)


async def claim(call: ApiCall[ChoiceParameters]) -> ApiResponse:
    """Choose and claim a node for each instance."""
    body: RequestsBody = call.body
    requests = requests_of(body.requests, call.parameters.max_age)
    recorder, by = call.service.scheduling.recorder, holder_name(call)

    def job(scheduler: Scheduler) -> ClaimsDocument:
        with node_bound(scheduler, call.parameters.node_max_age):
            placings = scheduler.claim(requests)
        decisions = recorder.record_claims(scheduler, "claim", by, placings)
        if all(placing.claim is None for placing in placings):
            raise no_host(placings[0].instance, placings[0].failure or NoHostFound(reason="no node"))
        claims = [
            ClaimDocument(
                placing.instance,
                placing.node,
                placing.claim.id if placing.claim is not None else None,
                str(placing.failure) if placing.failure is not None else "",
                filter_counts(placing.failure.remaining) if placing.failure is not None else [],
                placing.conflicts,
                made.id,
            )
            for placing, made in zip(placings, decisions, strict=True)
        ]
        return ClaimsDocument(finite_or_none(scheduler.view.age), scheduler.config.claim_ttl_s, claims)

    return await answered(call, job)


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
        "POST",
        "/v1/select",
        "Choose a node and alternates for each instance of the requests. Nothing is claimed.",
        select,
        ChoicesDocument,
        ChoiceParameters,
        SelectBody,
        problems=("stale-view", "no-host", "conflict"),
        role="schedule",
        decides=True,
    ),
    ApiRoute(
        "POST",
        "/v1/claims",
        "Choose and claim a node for each instance of the requests; 409 no-host if none gets a node.",
        claim,
        ClaimsDocument,
        ChoiceParameters,
        RequestsBody,
        problems=("stale-view", "no-host", "conflict"),
        role="schedule",
        decides=True,
    ),
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

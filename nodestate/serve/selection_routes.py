"""The routes that choose and claim nodes for requests."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from nodestate.scheduling import Explanation, NoHostFound, Scheduler
from nodestate.serve.api_route import ApiCall
from nodestate.serve.deciding import ChoiceParameters, answered, deciding_route, holder_name, node_bound
from nodestate.serve.decisions import BestNode, best_nodes
from nodestate.serve.parameters import DEFAULT_MAX_AGE_S
from nodestate.serve.problems import FilterCount, filter_counts, no_host
from nodestate.serve.request_documents import RequestsBody, SelectBody, requests_of
from nodestate.serve.responses import ApiResponse
from nodestate.view.documents import finite_or_none


class ExplanationDocument(msgspec.Struct):
    """How the nodes rank for a request."""

    filters: Annotated[list[FilterCount], Meta(description="What each filter left, in their order.")]
    best: Annotated[list[BestNode], Meta(description="The five best nodes, the best first.")]

    @classmethod
    def of(cls, explanation: Explanation) -> ExplanationDocument:
        """Return an explanation as a document."""
        return cls(filter_counts(explanation.remaining), best_nodes(explanation))


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
        found = [(request, choice) for request in requests for choice in scheduler.choose(request)]
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
        explanations = [ExplanationDocument.of(one) for one in explained]
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
        decisions = recorder.record_claims(scheduler, by, placings)
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


ROUTES = (
    deciding_route(
        "/v1/select",
        "Choose a node and alternates for each instance of the requests. Nothing is claimed.",
        select,
        ChoicesDocument,
        ChoiceParameters,
        SelectBody,
        problems=("stale-view", "no-host", "conflict"),
    ),
    deciding_route(
        "/v1/claims",
        "Choose and claim a node for each instance of the requests; 409 no-host if none gets a node.",
        claim,
        ClaimsDocument,
        ChoiceParameters,
        RequestsBody,
        problems=("stale-view", "no-host", "conflict"),
    ),
)

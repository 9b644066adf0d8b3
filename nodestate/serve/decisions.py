"""Decisions: which node an instance got and why; the last ones of the service's scheduler, in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from nodestate.scheduling import (
    Explanation,
    NoHostFound,
    Request,
)
from nodestate.serve.problems import FilterCount, filter_counts
from nodestate.serve.request_documents import RequestDocument
from nodestate.view.documents import finite_or_none

MAX_DECISIONS_COUNT: Final = 10_000
"""Decisions that are kept."""


class BestNode(msgspec.Struct):
    """One of the best nodes for a request."""

    node: Annotated[str, Meta(description="Name of the node.")]
    weight: Annotated[float, Meta(description="Sum of its weights; the highest wins.")]
    by: Annotated[dict[str, float], Meta(description="By weigher, its weight times the multiplier.")]


class RefusedNode(msgspec.Struct):
    """A node that did not take the instance."""

    node: Annotated[str, Meta(description="Name of the node.")]
    reason: Annotated[str, Meta(description="Frozen word of the agent; silent if it did not answer.")]


class DecisionDocument(msgspec.Struct):
    """One decision."""

    id: Annotated[str, Meta(description="Id of the decision.")]
    at: Annotated[float, Meta(description="When it was made, in seconds since 1970.")]
    kind: Annotated[str, Meta(description="select, claim, boot, migrate, resize, evacuate, reserve or confirm.")]
    instance: Annotated[str, Meta(description="Id of the instance.")]
    request: Annotated[RequestDocument, Meta(description="The request, without fields at their defaults.")]
    by: Annotated[str, Meta(description="Name of the token of the request; empty if the service has no tokens.")]
    position: Annotated[str, Meta(description="The commits that the view was as of, as one word.")]
    age: Annotated[float | None, Meta(description="Age of the view in seconds; null if it was never confirmed.")]
    design: Annotated[str, Meta(description="The design that was read.")]
    filters: Annotated[list[FilterCount], Meta(description="What each filter left, in their order.")]
    best: Annotated[list[BestNode], Meta(description="The five best nodes, the best first.")]
    explained: Annotated[
        bool, Meta(description="False if the scheduler had no time to count: filters and best may be empty then.")
    ]
    chosen: Annotated[str | None, Meta(description="The chosen node; null if there is none.")]
    alternates: Annotated[list[str], Meta(description="The next best nodes, as many as the request asked for.")]
    conflicts: Annotated[int, Meta(description="How often the instance lost its node to another scheduler.")]
    refused: Annotated[list[RefusedNode], Meta(description="Nodes that were asked and did not take the instance.")]
    outcome: Annotated[str, Meta(description="selected, claimed, reserved, booted or no-host.")]
    why: Annotated[str, Meta(description="Why there is no node, for people; empty if there is one.")]


class DecisionEvent(msgspec.Struct):
    """A decision was made; ``/v1/decisions/{id}`` tells all of it."""

    id: Annotated[str, Meta(description="Id of the decision.")]
    at: Annotated[float, Meta(description="When it was made, in seconds since 1970.")]
    kind: Annotated[str, Meta(description="As in the decision.")]
    instance: Annotated[str, Meta(description="Id of the instance.")]
    chosen: Annotated[str | None, Meta(description="The chosen node; null if there is none.")]
    outcome: Annotated[str, Meta(description="selected, claimed, reserved, booted or no-host.")]


@dataclass(slots=True, eq=False)
class DecisionBasis:
    """The basis of a decision: the view on which the node was chosen."""

    at: float
    """When, in seconds since 1970."""
    position: str
    """The position of the view."""
    age: float
    """Age of the view in seconds."""
    design: str
    """The design that was read."""
    explanation: Explanation | None = None
    """How the nodes ranked; set later, if at all."""


@dataclass(slots=True, eq=False)
class Decision:
    """A decision as the thread records it; only the explanation of its basis is set later."""

    id: str
    kind: str
    instance: str
    request: Request
    by: str
    basis: DecisionBasis
    chosen: str | None
    outcome: str
    alternates: Sequence[str] = ()
    conflicts: int = 0
    refused: Sequence[tuple[str, str]] = ()
    failure: NoHostFound | None = None

    def document(self) -> DecisionDocument:
        """Return the decision as a document."""
        explanation = self.basis.explanation
        remaining = explanation.remaining if explanation is not None else ()
        if self.failure is not None and self.failure.remaining:
            remaining = self.failure.remaining
        best = best_nodes(explanation) if explanation is not None else []
        others = [one.node for one in best if one.node != self.chosen]
        return DecisionDocument(
            self.id,
            self.basis.at,
            self.kind,
            self.instance,
            _request_document(self.request),
            self.by,
            self.basis.position,
            finite_or_none(self.basis.age),
            self.basis.design,
            filter_counts(remaining),
            best,
            explanation is not None or bool(remaining),
            self.chosen,
            list(self.alternates or others[: self.request.alternates]),
            self.conflicts,
            [RefusedNode(*one) for one in self.refused],
            self.outcome,
            str(self.failure) if self.failure is not None else "",
        )


def best_nodes(explanation: Explanation) -> list[BestNode]:
    """Return the best nodes of an explanation as documents."""
    return [BestNode(node, round(sum(parts.values()), 4), parts) for node, parts in explanation.best]


def _request_document(request: Request) -> RequestDocument:
    fields = {
        one.name: value
        for one in msgspec.structs.fields(Request)
        if (value := getattr(request, one.name)) and (one.required or value != one.default)
    }
    return msgspec.convert(msgspec.to_builtins({"resources": {}, **fields}), RequestDocument)


class DecisionLog:
    """The last decisions. Belongs to the event loop."""

    def __init__(self, on_decisions: Callable[..., None]) -> None:
        self._by_id: OrderedDict[str, Decision] = OrderedDict()
        self._on_decisions = on_decisions  # called with the events of the decisions of one call

    def add(self, decisions: Iterable[Decision]) -> None:
        """Add decisions, and forget the oldest."""
        new = {one.id: one for one in decisions}
        self._by_id.update(new)
        if new:
            self._on_decisions(
                *(
                    DecisionEvent(one.id, one.basis.at, one.kind, one.instance, one.chosen, one.outcome)
                    for one in new.values()
                )
            )
        while len(self._by_id) > MAX_DECISIONS_COUNT:
            self._by_id.popitem(last=False)

    def find(self, decision: str) -> Decision | None:
        """Return a decision; None if it is not kept."""
        return self._by_id.get(decision)

    def newest(self, before: str | None) -> Iterable[Decision]:
        """Yield the decisions, the newest first. ``before``: begin with the one before this id; None: with the last."""
        begun = before is None
        for name, one in reversed(self._by_id.items()):
            if begun:
                yield one
            begun = begun or name == before

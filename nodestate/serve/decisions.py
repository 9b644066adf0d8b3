"""Decisions: which node an instance got and why; the last ones of the service's scheduler, in memory.

The facts that the scheduler knows anyway are recorded at once: the basis of a decision when the node was chosen, which
for a boot is in a step of the scheduler, and the decision itself when its outcome is known. The number of nodes that
each filter left, and the weights of the best nodes, need a second pass over all nodes. The scheduler's thread makes it
after the answer or the step, on the nodes as they were for the decision: the claims of the request are subtracted for
the pass. It is made only if the nodes have not changed since, and only if the thread is idle or such passes took less
than ``EXPLAIN_SHARE`` of its time. For an instance without a node the filters are known without it.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta

from nodestate.scheduling import (
    Booted,
    BootOutcome,
    Choice,
    Explanation,
    GroupRequest,
    NoHostFound,
    NotReserved,
    Placing,
    Request,
    Reservation,
    Scheduler,
)
from nodestate.scheduling.fleet import OutstandingClaims
from nodestate.serve.problems import FilterCount, filter_counts
from nodestate.serve.request_documents import RequestDocument
from nodestate.view.documents import finite_or_none, position_text

MAX_DECISIONS_COUNT: Final = 10_000
"""Decisions that are kept."""
BEST_COUNT: Final = 5
"""Best nodes of a decision."""
EXPLAIN_SHARE: Final = 0.02
"""Share of the thread's time for explanations while jobs wait."""
MAX_SAVED_S: Final = 0.1
"""Most seconds for explanations that are saved up."""


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

    def __init__(self, on_decision: Callable[[DecisionEvent], None]) -> None:
        self._by_id: OrderedDict[str, Decision] = OrderedDict()
        self._on_decision = on_decision

    def add(self, decisions: Iterable[Decision]) -> None:
        """Add decisions, and forget the oldest."""
        for one in decisions:
            self._by_id[one.id] = one
            self._on_decision(DecisionEvent(one.id, one.basis.at, one.kind, one.instance, one.chosen, one.outcome))
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


class _PlacedRequest(NamedTuple):
    """The instances of one request that were placed in one call, and whose claims the fleet counts."""

    basis: DecisionBasis
    """The basis of the first one, which gets the explanation."""
    request: Request
    placings: list[Placing]


@dataclass
class DecisionRecorder:
    """Records the decisions of the scheduler's thread, and explains them when there is time. Belongs to the thread."""

    publish: Callable[[list[Decision]], None]
    """Called with new decisions; hands them to the log."""
    _run: str = field(default_factory=lambda: secrets.token_hex(4))
    _count: int = 0
    # By instance, the basis of the last choice of a node for it, until its decision is recorded.
    _bases: OrderedDict[str, DecisionBasis] = field(default_factory=OrderedDict)
    # Choices to explain, in the order in which they were made.
    _pending: list[_PlacedRequest] = field(default_factory=list)
    # The state of the fleet for which they can be explained.
    _changes: int = -1
    # Seconds that explanations may take, and when they were last counted.
    _saved_s: float = MAX_SAVED_S
    _saved_at: float = field(default_factory=time.monotonic)

    # -- choices ----------------------------------------------------------------------------------

    def note_placings(self, scheduler: Scheduler, placings: Sequence[Placing]) -> None:
        """Keep the basis of placings that were claimed or failed just now. Their decisions are recorded later."""
        new = _bases_of(scheduler)
        by_request: dict[int, _PlacedRequest] = {}
        for placing in placings:
            basis = self._bases[placing.instance] = new()
            if placing.claim is not None and not placing.in_place:  # in place, no other node was considered
                placed = by_request.setdefault(id(placing.request), _PlacedRequest(basis, placing.request, []))
                placed.placings.append(placing)
        while len(self._bases) > MAX_DECISIONS_COUNT:
            self._bases.popitem(last=False)
        self._pending, self._changes = list(by_request.values()), scheduler.fleet.changes

    def record_choices(self, scheduler: Scheduler, by: str, chosen: Sequence[tuple[Request, Choice]]) -> list[Decision]:
        """Record choices that claimed nothing."""
        decisions = []
        new = _bases_of(scheduler)
        pending: dict[int, _PlacedRequest] = {}
        for request, choice in chosen:
            made = self._new(new(), "select", by, request, choice.instance, choice.node)
            made.alternates = choice.alternates
            if choice.node is None:
                made.failure = NoHostFound(choice.remaining, choice.unknown, lacks=choice.lacks)
            made.outcome = "selected" if choice.node is not None else "no-host"
            decisions.append(made)
            pending.setdefault(id(request), _PlacedRequest(made.basis, request, []))
        self._pending, self._changes = list(pending.values()), scheduler.fleet.changes
        self.publish(decisions)
        return decisions

    # -- decisions --------------------------------------------------------------------------------

    def record_claims(self, scheduler: Scheduler, by: str, placings: Sequence[Placing]) -> list[Decision]:
        """Record placings that were claimed or failed."""
        decisions = []
        for placing in placings:
            made = self._new(
                self._basis(scheduler, placing.instance), "claim", by, placing.request, placing.instance, placing.node
            )
            made.outcome = "claimed" if placing.failure is None else "no-host"
            made.conflicts, made.failure = placing.conflicts, placing.failure
            decisions.append(made)
        self.publish(decisions)
        return decisions

    def record_reservation(
        self, scheduler: Scheduler, by: str, wanted: GroupRequest, found: Reservation | NotReserved
    ) -> None:
        """Record the members of a reservation, or the member that found no node."""
        requests = {name: request for request in wanted.members for name in request.instances}
        decisions = []
        for name, node in (
            [(found.instance, None)]
            if isinstance(found, NotReserved)
            else [(member.instance, member.node) for member in found.members]
        ):
            basis = self._basis(scheduler, name)
            made = self._new(basis, "reserve", by, requests.get(name, wanted.members[0]), name, node)
            made.outcome = "reserved" if node is not None else "no-host"
            made.failure = found.reason if isinstance(found, NotReserved) else None
            decisions.append(made)
        self.publish(decisions)

    def record_outcomes(
        self, scheduler: Scheduler, kind: str, by: str, ended: Iterable[tuple[Request, BootOutcome]]
    ) -> None:
        """Record how boots ended."""
        decisions = []
        for request, outcome in ended:
            node = outcome.node if isinstance(outcome, Booted) else None
            basis = self._basis(scheduler, outcome.instance)
            made = self._new(basis, kind, by, request, outcome.instance, node)
            made.outcome = "booted" if isinstance(outcome, Booted) else "no-host"
            made.conflicts = outcome.conflicts
            made.refused = [(one.node, one.reason) for one in outcome.refusals]
            made.failure = None if isinstance(outcome, Booted) else outcome.reason
            decisions.append(made)
        self.publish(decisions)

    def _basis(self, scheduler: Scheduler, instance: str) -> DecisionBasis:
        """Return the basis of the last choice for an instance; that of now if no node was looked for."""
        return self._bases.pop(instance, None) or _bases_of(scheduler)()

    def _new(
        self, basis: DecisionBasis, kind: str, by: str, request: Request, instance: str, chosen: str | None
    ) -> Decision:
        self._count += 1
        return Decision(f"{self._run}-{self._count}", kind, instance, request, by, basis, chosen, "")

    # -- explanations -----------------------------------------------------------------------------

    def explain_pending(self, scheduler: Scheduler, is_idle: bool) -> None:
        """Explain the last choices if that is exact, and if there is time."""
        pending = self._pending
        if not pending:
            return
        if scheduler.fleet.changes != self._changes:
            self._pending = []
            return
        now = time.monotonic()
        self._saved_s = min(MAX_SAVED_S, self._saved_s + EXPLAIN_SHARE * (now - self._saved_at))
        self._saved_at = now
        if not is_idle and self._saved_s <= 0:
            return
        self._pending = []
        replaced: dict[int, OutstandingClaims | None] = {}
        try:
            for placed in reversed(pending):
                for placing in placed.placings:
                    _subtract(scheduler, placing, replaced)
                placed.basis.explanation = _explanation(scheduler, placed)
                if time.monotonic() - now > self._saved_s:
                    break
        finally:
            for row, before in replaced.items():
                scheduler.fleet.overlay(row, before)
            self._saved_s -= time.monotonic() - now


def _bases_of(scheduler: Scheduler) -> Callable[[], DecisionBasis]:
    """Return a function that makes bases of the present view. They are the same for all instances of one call."""
    view = scheduler.view
    facts = scheduler.session.clock.time(), position_text(view), view.age, view.design
    return lambda: DecisionBasis(*facts)


def _explanation(scheduler: Scheduler, placed: _PlacedRequest) -> Explanation:
    """Return how the nodes that the first instance of a request was allowed to go to rank for it."""
    if not placed.placings:
        return scheduler.selector.explain(placed.request, BEST_COUNT)
    first, rows = placed.placings[0], range(len(scheduler.fleet))
    only = first.only_row
    exclude = first.avoided_rows if only is None else {row for row in rows if row != only}
    with scheduler.fleet.excluding(first.exclusions):
        return scheduler.selector.explain(placed.request, BEST_COUNT, exclude)


def _subtract(scheduler: Scheduler, placing: Placing, replaced: dict[int, OutstandingClaims | None]) -> None:
    """Let the fleet no longer count the claim of a placing; ``replaced`` gets what its row had before."""
    fleet = scheduler.fleet
    row = fleet.rows[placing.node or ""]
    before = fleet.claim_overlay.outstanding.get(row)
    replaced.setdefault(row, before)
    if before is None:
        return
    amounts = {name: amount - placing.request.resources.get(name, 0) for name, amount in before.amounts.items()}
    tenants = {name: group for name, group in before.tenants.items() if name != placing.instance}
    policies = {
        group: {name: policy for name, policy in members.items() if name != placing.instance}
        for group, members in before.policies.items()
    }
    policies = {group: members for group, members in policies.items() if members}
    amounts = {name: amount for name, amount in amounts.items() if amount > 0}
    fleet.overlay(
        row, OutstandingClaims(amounts, tenants, before.blocked, policies) if tenants or before.blocked else None
    )

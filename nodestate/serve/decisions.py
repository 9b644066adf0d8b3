"""Decisions: which node an instance got and why; the last ones of the service's scheduler, in memory.

The facts that the scheduler knows anyway are recorded at once. The number of nodes that each filter left, and the
weights of the best nodes, need a second pass over all nodes. The scheduler's thread makes it after the answer, on the
nodes as they were for the decision: the claims of the request are subtracted for the pass. It is made only if the nodes
have not changed since, and only if the thread is idle or such passes took less than ``EXPLAIN_SHARE`` of its time. For
an instance without a node the filters are known without it.
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

from nodestate.scheduling import Booted, BootOutcome, Choice, Explanation, NoHostFound, Placing, Request, Scheduler
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
    outcome: Annotated[str, Meta(description="selected, claimed, booted or no-host.")]
    why: Annotated[str, Meta(description="Why there is no node, for people; empty if there is one.")]


class DecisionEvent(msgspec.Struct):
    """A decision was made; ``/v1/decisions/{id}`` tells all of it."""

    id: Annotated[str, Meta(description="Id of the decision.")]
    at: Annotated[float, Meta(description="When it was made, in seconds since 1970.")]
    kind: Annotated[str, Meta(description="As in the decision.")]
    instance: Annotated[str, Meta(description="Id of the instance.")]
    chosen: Annotated[str | None, Meta(description="The chosen node; null if there is none.")]
    outcome: Annotated[str, Meta(description="selected, claimed, booted or no-host.")]


@dataclass(slots=True, eq=False)
class Decision:
    """A decision as the thread records it; only ``explanation`` is set later."""

    id: str
    at: float
    kind: str
    instance: str
    request: Request
    by: str
    position: str
    age: float
    design: str
    chosen: str | None
    outcome: str
    alternates: Sequence[str] = ()
    conflicts: int = 0
    refused: Sequence[tuple[str, str]] = ()
    failure: NoHostFound | None = None
    explanation: Explanation | None = None

    def document(self) -> DecisionDocument:
        """Return the decision as a document."""
        explanation = self.explanation
        remaining = explanation.remaining if explanation is not None else ()
        if self.failure is not None and self.failure.remaining:
            remaining = self.failure.remaining
        best = [
            BestNode(node, round(sum(parts.values()), 4), parts)
            for node, parts in (explanation.best if explanation is not None else ())
        ]
        others = [one.node for one in best if one.node != self.chosen]
        return DecisionDocument(
            self.id,
            self.at,
            self.kind,
            self.instance,
            _request_document(self.request),
            self.by,
            self.position,
            finite_or_none(self.age),
            self.design,
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
            self._on_decision(DecisionEvent(one.id, one.at, one.kind, one.instance, one.chosen, one.outcome))
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


class _Basis(NamedTuple):
    """When some decisions were made, and on which view. It is the same for all instances of one call."""

    at: float
    position: str
    age: float
    design: str

    @classmethod
    def of(cls, scheduler: Scheduler) -> _Basis:
        view = scheduler.view
        return cls(scheduler.session.clock.time(), position_text(view), view.age, view.design)


@dataclass
class DecisionRecorder:
    """Records the decisions of the scheduler's thread, and explains them when there is time. Belongs to the thread."""

    publish: Callable[[list[Decision]], None]
    """Called with new decisions; hands them to the log."""
    _run: str = field(default_factory=lambda: secrets.token_hex(4))
    _count: int = 0
    # Decisions to explain, each with the placings of its request, in the order in which they were made.
    _pending: list[tuple[Decision, Sequence[Placing]]] = field(default_factory=list)
    # The state of the fleet for which they can be explained.
    _changes: int = -1
    # Seconds that explanations may take, and when they were last counted.
    _saved_s: float = MAX_SAVED_S
    _saved_at: float = field(default_factory=time.monotonic)

    def record_claims(
        self, scheduler: Scheduler, kind: str, by: str, placings: Sequence[Placing], *, outcome: str = "claimed"
    ) -> list[Decision]:
        """Record placings that were claimed or failed just now."""
        decisions = []
        basis = _Basis.of(scheduler)
        by_request: dict[int, tuple[Decision, list[Placing]]] = {}
        for placing in placings:
            made = self._new(basis, kind, by, placing.request, placing.instance, placing.node)
            made.outcome = outcome if placing.failure is None else "no-host"
            made.conflicts, made.failure = placing.conflicts, placing.failure
            decisions.append(made)
            if placing.claim is not None:
                by_request.setdefault(id(placing.request), (made, []))[1].append(placing)
        self._pending, self._changes = list(by_request.values()), scheduler.fleet.changes
        self.publish(decisions)
        return decisions

    def record_choices(self, scheduler: Scheduler, by: str, chosen: Sequence[tuple[Request, Choice]]) -> list[Decision]:
        """Record choices that claimed nothing."""
        decisions = []
        basis = _Basis.of(scheduler)
        pending: dict[int, tuple[Decision, Sequence[Placing]]] = {}
        for request, choice in chosen:
            made = self._new(basis, "select", by, request, choice.instance, choice.node)
            made.alternates = choice.alternates
            if choice.node is None:
                made.failure = NoHostFound(choice.remaining, choice.unknown, lacks=choice.lacks)
            made.outcome = "selected" if choice.node is not None else "no-host"
            decisions.append(made)
            pending.setdefault(id(request), (made, ()))
        self._pending, self._changes = list(pending.values()), scheduler.fleet.changes
        self.publish(decisions)
        return decisions

    def record_outcomes(
        self, scheduler: Scheduler, kind: str, by: str, ended: Iterable[tuple[Request, BootOutcome]]
    ) -> None:
        """Record how boots ended."""
        decisions = []
        basis = _Basis.of(scheduler)
        for request, outcome in ended:
            node = outcome.node if isinstance(outcome, Booted) else None
            made = self._new(basis, kind, by, request, outcome.instance, node)
            made.outcome = "booted" if isinstance(outcome, Booted) else "no-host"
            made.conflicts = outcome.conflicts
            made.refused = [(one.node, one.reason) for one in outcome.refusals]
            made.failure = None if isinstance(outcome, Booted) else outcome.reason
            decisions.append(made)
        self.publish(decisions)

    def _new(self, basis: _Basis, kind: str, by: str, request: Request, instance: str, chosen: str | None) -> Decision:
        self._count += 1
        name = f"{self._run}-{self._count}"
        return Decision(
            name, basis.at, kind, instance, request, by, basis.position, basis.age, basis.design, chosen, "claimed"
        )

    def explain_pending(self, scheduler: Scheduler, is_idle: bool) -> None:
        """Explain the last decisions if that is exact, and if there is time."""
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
            for decision, placings in reversed(pending):
                for placing in placings:
                    _subtract(scheduler, placing, replaced)
                decision.explanation = scheduler.selector.explain(decision.request, BEST_COUNT)
                if time.monotonic() - now > self._saved_s:
                    break
        finally:
            for row, before in replaced.items():
                scheduler.fleet.overlay(row, before)
            self._saved_s -= time.monotonic() - now


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

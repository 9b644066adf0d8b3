"""The recorder of decisions: keeps their facts in the scheduler's thread, and explains them when there is time.

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
from typing import Final, NamedTuple

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
from nodestate.serve.decisions import MAX_DECISIONS_COUNT, Decision, DecisionBasis
from nodestate.view.documents import position_text

BEST_COUNT: Final = 5
"""Best nodes of a decision."""
EXPLAIN_SHARE: Final = 0.02
"""Share of the thread's time for explanations while jobs wait."""
MAX_SAVED_S: Final = 0.1
"""Most seconds for explanations that are saved up."""


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
        is_given_back = any(placing.claim is None for placed in pending for placing in placed.placings)
        if is_given_back or scheduler.fleet.changes != self._changes:
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

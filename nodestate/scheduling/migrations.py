"""Migrations: an instance goes elsewhere, or gets other resources, under the request that it was booted with.

What was asked for came back with every report of its node, so it is read from the view: hints, traits, the group and its
policy. Where the others of the group are is computed from the view as well, never stored. The instance itself is
thought away from where it is::

    on A --choose B, claim, Build on B--> on A and B --End on A--> on B         B's order is later than A's
    on A and B, and the scheduler died --tidying: what the later order built stays--> on B
    on A, ended there meanwhile --before B is chosen--> failed        --later--> on B --who ended it sees its life go on: End--> gone

A member of a reservation moves once all of them are placed, and says so from then on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from nodestate.errors import BadRequestError, NotFoundError
from nodestate.scheduling.claims.placing import NoHostFound, Placing
from nodestate.scheduling.fleet import Exclusion
from nodestate.scheduling.order_ids import lifetime_id_of, order_id_of
from nodestate.scheduling.orders.boots import Boot, Booted, Failed, Termination
from nodestate.scheduling.orders.reconciler import is_whole
from nodestate.scheduling.request import Request, request_of
from nodestate.scheduling.request.vocabulary import check_class
from nodestate.scheduling.selection import Explanation

if TYPE_CHECKING:
    from nodestate.scheduling.scheduler import Scheduler


FINAL: Final = frozenset({"silent", "no-agent", "not-here"})
"""Refusals after which nobody knows what the instance has where it was, or somebody else changed it: no second one is begun."""


class _Placed(NamedTuple):
    """An instance as its node reports it."""

    instance: str
    row: int
    request: Request
    hints: Mapping[str, Any]

    @property
    def exclusion(self) -> Exclusion:
        return Exclusion(self.row, self.instance, self.request.resources, order_id_of(self.hints))


class Migrations:
    """Migrations of one scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def move(self, instance: str, *, to: str = "", timeout_s: float = 60.0) -> Booted | Failed:
        """To another node: ``to``, or the best. Raises ``NotFoundError`` where no node reports the instance."""
        placed = self._placed(instance)
        if to == self._scheduler.fleet.names[placed.row]:
            raise BadRequestError("to", f"{instance} is on {to} already")
        boot = self._boot(placed, placed.request, (placed.exclusion,))
        boot.placing.avoid([placed.row])
        if to:
            boot.placing.restrict_to(self._row("to", to))
            boot.fixed = True
        [outcome] = self._run([boot], timeout_s)
        self._end_old([placed], [outcome])
        return outcome

    def resize(self, instance: str, resources: Mapping[str, int], *, timeout_s: float = 60.0) -> Booted | Failed:
        """Other resources: where it is if they fit there, else on another node. Classes that are not named stay as they
        are, and 0 takes one away. Raises ``NotFoundError``, and ``BadRequestError`` where resources can't be right.
        """
        placed = self._placed(instance)
        wanted = self._resized(placed, resources)
        boot = self._boot(placed, wanted, (placed.exclusion,))
        boot.placing.restrict_to(placed.row)
        boot.fixed = True
        [outcome] = self._run([boot], timeout_s)
        if isinstance(outcome, Booted) or any(refused.reason in FINAL for refused in outcome.refused):
            return outcome
        boot = self._boot(placed, wanted, (placed.exclusion,))
        boot.placing.avoid([placed.row])
        [outcome] = self._run([boot], timeout_s)
        self._end_old([placed], [outcome])
        return outcome

    def evacuate(self, node: str, *, timeout_s: float = 120.0) -> list[Booted | Failed]:
        """Everything off a node, also one that is dead: by what it reported last. What is elsewhere by now stays there, and is
        ended on the node. Raises ``NotFoundError``.
        """
        row = self._row("node", node)
        fleet = self._scheduler.fleet
        self._scheduler.hear()
        there: list[_Placed] = []
        unclear: list[Booted | Failed] = []
        elsewhere: list[Booted] = []
        for instance, allocation in fleet.reports.allocations(row).items():
            counting = fleet.authoritative_row(instance)
            if counting not in (row, None) and not fleet.is_responsive(counting):
                why = f"somebody moved it to {fleet.names[counting]}, and nothing is heard of that: what is here stays"
                unclear.append(Failed(instance, NoHostFound(reason=why)))
                continue
            if counting not in (row, None):
                elsewhere.append(Booted(instance, fleet.names[counting], fleet.version[counting]))
                continue
            try:
                there.append(self._as_placed(instance, row, allocation))
            except BadRequestError as error:
                unclear.append(
                    Failed(instance, NoHostFound(reason=f"what it was booted with can't be asked for again: {error}"))
                )
        exclusions = tuple(placed.exclusion for placed in there)
        boots = [self._boot(placed, placed.request, exclusions) for placed in there]
        for boot in boots:
            boot.placing.avoid([row])
        outcomes = self._run(boots, timeout_s)
        self._end_old(there, outcomes)
        self._scheduler.terminate_duplicates((node, outcome.instance) for outcome in elsewhere)
        return [*outcomes, *elsewhere, *unclear]

    def explain(self, instance: str, resources: Mapping[str, int] | None = None) -> Explanation:
        """Why it would go where it would go: the other nodes as a move sees them, or a resize to these resources."""
        placed = self._placed(instance)
        wanted = placed.request if resources is None else self._resized(placed, resources)
        with self._scheduler.fleet.excluding((placed.exclusion,)):
            return self._scheduler.selector.explain(_for_life(wanted), exclude={placed.row})

    # -- inside

    @staticmethod
    def _resized(placed: _Placed, resources: Mapping[str, int]) -> Request:
        for name in resources:
            check_class(f"resources.{name}", name)
        amounts = {**placed.request.resources, **resources}
        wanted = {name: amount for name, amount in amounts.items() if amount}
        return request_of(placed.instance, wanted, _group(placed.request), placed.hints)

    def _row(self, field: str, node: str) -> int:
        self._scheduler.refresh()
        row = self._scheduler.fleet.rows.get(node)
        if row is None:
            raise NotFoundError(field, f"no node {node} is known")
        return row

    def _placed(self, instance: str) -> _Placed:
        self._scheduler.refresh()
        fleet = self._scheduler.fleet
        row, rows = fleet.authoritative_row(instance), fleet.instances.reporting_rows(instance)
        if not rows:
            raise NotFoundError("instance", f"no node reports {instance}")
        if row is None:
            nodes = " and ".join(fleet.names[row] for row in rows)
            raise NotFoundError(
                "instance", f"{instance} is on {nodes}, and no scheduler put it there: which one is it?"
            )
        return self._as_placed(instance, row, fleet.reports.allocations(row)[instance])

    def _as_placed(self, instance: str, row: int, allocation: Mapping[str, Any]) -> _Placed:
        hints = allocation.get("hints") or {}
        request = request_of(instance, allocation["resources"], allocation.get("group"), hints)
        gang = self._scheduler.fleet.placement_marks.by_reservation.get(str(hints.get("reservation", "")), {})
        if (row, instance) in gang:
            if not is_whole(gang):
                why = f"{instance} is of reservation {hints['reservation']}, which is not all placed yet; try again"
                raise NotFoundError("instance", why)
            hints = {**hints, "placed": True}
        return _Placed(instance, row, request, hints)

    def _boot(self, placed: _Placed, request: Request, exclusions: tuple[Exclusion, ...]) -> Boot:
        claim_ttl_s = self._scheduler.config.claim_ttl_s
        placing = Placing(_for_life(request), placed.instance, claim_ttl_s, exclusions=exclusions)
        life = lifetime_id_of(placed.hints)
        hints = {**placed.hints, "boot": life} if life else dict(placed.hints)
        return Boot(placing, hints=hints, after=placed.exclusion.order)

    def _run(self, boots: list[Boot], timeout_s: float) -> list[Booted | Failed]:
        self._scheduler.begin(boots)
        self._scheduler.run(lambda: all(boot.outcome is not None for boot in boots), timeout_s)
        return [boot.outcome for boot in boots if boot.outcome is not None]

    def _end_old(self, there: list[_Placed], outcomes: list[Booted | Failed]) -> None:
        names = self._scheduler.fleet.names
        moved = {outcome.instance for outcome in outcomes if isinstance(outcome, Booted)}
        self._scheduler.terminate_orders(
            Termination(names[placed.row], placed.instance, placed.exclusion.order)
            for placed in there
            if placed.instance in moved
        )


def _for_life(request: Request) -> Request:
    """A name that was forced or ignored at the boot concerned the boot; what else was asked for holds for life."""
    return msgspec.structs.replace(request, force_nodes=(), ignore_nodes=())


def _group(request: Request) -> str | None:
    return request.group.name if request.group is not None else None

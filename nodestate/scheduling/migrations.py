r"""Migrations: an instance moves to another node, or gets other resources, under the request that it was booted with.

The agents report that request with every allocation: hints, traits, the group and its policy. So it is read from the
view. Where the other members of the group are is computed from the view as well and stored nowhere. While a node is
chosen, the instance itself is left out of the fleet::

    on A --choose B, claim, Build on B--> on A and B --End on A--> on B        B's order id is greater than A's
    on A and B, and the scheduler died --reconciler: the allocation with the greater order id stays--> on B
    on A, terminated there before B is chosen --> failed
    on A, terminated there after that --> on B --the terminating scheduler sees the same lifetime: End--> gone

A member of a reservation can be migrated once all members are placed; its allocation carries the hint ``placed`` from
then on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from nodestate.errors import BadRequestError, NotFoundError
from nodestate.scheduling.claims import NoHostFound, Placing
from nodestate.scheduling.fleet import Exclusion
from nodestate.scheduling.order_ids import lifetime_id_of, order_id_of
from nodestate.scheduling.orders import NO_ANSWER, Boot, Booted, BootOutcome, Failed, Termination, all_members_built
from nodestate.scheduling.request import Request, check_class, request_of
from nodestate.scheduling.selection import Explanation
from nodestate.scheduling.session import Session

FINAL_REFUSALS: Final = frozenset({NO_ANSWER, "no-agent", "not-here"})
"""Reasons for which a resize is not tried on another node: what the instance has now is unknown, or was changed."""


class Resident(NamedTuple):
    """An instance as its node reports it.

    ``row``: the node's row in the fleet. ``request``: what it was booted with. ``hints``: the hints of its allocation.
    """

    instance: str
    row: int
    request: Request
    hints: Mapping[str, Any]

    @property
    def exclusion(self) -> Exclusion:
        """The entry that takes the instance out of the fleet while a node is chosen for it."""
        return Exclusion(self.row, self.instance, self.request.resources, order_id_of(self.hints))


class Migrations:
    """Migrates, resizes and evacuates instances through one scheduler."""

    def __init__(self, session: Session) -> None:
        self._session = session  # the scheduler's parts

    def migrate(self, instance: str, *, to: str = "", timeout_s: float = 60.0) -> BootOutcome:
        """Migrate an instance to another node, and end it on the node where it was. If no node takes it, it stays.

        Args:
            instance: Its id.
            to: The node to migrate to; empty: the best one.
            timeout_s: Seconds to wait for the outcome.

        Raises ``NotFoundError`` if no node reports the instance or ``to`` is unknown, ``BadRequestError`` if the
        instance is on ``to`` already, ``StaleViewError``, and ``TimeoutError``; the migration then goes on with later
        steps.
        """
        resident = self.find(instance)
        if to == self._session.fleet.names[resident.row]:
            raise BadRequestError("to", f"{instance} is on {to} already")
        boot = self.boot_of(resident, resident.request)
        boot.avoid(resident.row)
        if to:
            boot.pin_to(self._row("to", to))
        [outcome] = self._session.run_boots([boot], timeout_s)
        self._end_originals([resident], [outcome])
        return outcome

    def resize(self, instance: str, resources: Mapping[str, int], *, timeout_s: float = 60.0) -> BootOutcome:
        """Give an instance other resources: on its node if they fit there, else on another node.

        Args:
            instance: Its id.
            resources: Amounts by resource class. Classes that are not named stay as they are; 0 takes a class away.
            timeout_s: Seconds to wait for the outcome, on each of the two ways.

        Raises ``NotFoundError`` if no node reports the instance, ``BadRequestError`` if the resources can't be right,
        ``StaleViewError``, and ``TimeoutError``; the resize then goes on with later steps.
        """
        resident = self.find(instance)
        request = self._resized(resident, resources)
        boot = self.boot_of(resident, request)
        boot.pin_to(resident.row)
        [outcome] = self._session.run_boots([boot], timeout_s)
        if isinstance(outcome, Booted) or any(refusal.reason in FINAL_REFUSALS for refusal in outcome.refusals):
            return outcome
        boot = self.boot_of(resident, request)
        boot.avoid(resident.row)
        [outcome] = self._session.run_boots([boot], timeout_s)
        self._end_originals([resident], [outcome])
        return outcome

    def evacuate(self, node: str, *, timeout_s: float = 120.0) -> list[BootOutcome]:
        """Migrate all instances off a node, also off one that is down; then its last report counts.

        An instance whose authoritative allocation is on another node stays there, and is ended on this node.

        Args:
            node: Its name.
            timeout_s: Seconds to wait for all outcomes.

        Raises ``NotFoundError`` if the node is unknown, ``StaleViewError``, and ``TimeoutError``; the evacuation then
        goes on with later steps.
        """
        row = self._row("node", node)
        fleet = self._session.fleet
        self._session.refresher.refresh_unresponsive_nodes()
        residents: list[Resident] = []
        failed: list[BootOutcome] = []
        elsewhere: list[Booted] = []
        for instance, allocation in fleet.reports.allocations(row).items():
            authoritative = fleet.authoritative_row(instance)
            if authoritative not in (row, None):
                if fleet.is_responsive(authoritative):
                    elsewhere.append(Booted(instance, fleet.names[authoritative], fleet.version[authoritative]))
                else:
                    reason = (
                        f"its newest allocation is on {fleet.names[authoritative]}, which is unresponsive; "
                        f"the one on {node} stays"
                    )
                    failed.append(Failed(instance, NoHostFound(reason=reason)))
                continue
            try:
                residents.append(self._resident(instance, row, allocation))
            except BadRequestError as error:
                reason = f"it can't be migrated under the request that it was booted with: {error}"
                failed.append(Failed(instance, NoHostFound(reason=reason)))
        exclusions = tuple(resident.exclusion for resident in residents)
        boots = [self.boot_of(resident, resident.request, exclusions) for resident in residents]
        for boot in boots:
            boot.avoid(row)
        outcomes = self._session.run_boots(boots, timeout_s)
        self._end_originals(residents, outcomes)
        self._session.orders.terminations.terminate_duplicates((node, outcome.instance) for outcome in elsewhere)
        return [*outcomes, *elsewhere, *failed]

    def explain(self, instance: str, resources: Mapping[str, int] | None = None) -> Explanation:
        """Explain the ranking of the other nodes for a migration, or for a resize to ``resources``.

        Raises ``NotFoundError``, ``BadRequestError`` and ``StaleViewError`` as ``resize`` does.
        """
        resident = self.find(instance)
        request = resident.request if resources is None else self._resized(resident, resources)
        with self._session.fleet.excluding((resident.exclusion,)):
            return self._session.selector.explain(_without_nodes(request), exclude={resident.row})

    # -- the parts of a migration, for callers that run it step by step

    def find(self, instance: str) -> Resident:
        """Return an instance as a new view shows it.

        Raises ``NotFoundError`` if no node reports it, if several do and no scheduler booted it, or if its reservation
        is not placed in full; ``BadRequestError`` if its hints are no valid request; ``StaleViewError``.
        """
        self._session.refresh()
        fleet = self._session.fleet
        row, rows = fleet.authoritative_row(instance), fleet.instances.reporting_rows(instance)
        if not rows:
            raise NotFoundError("instance", f"no node reports {instance}")
        if row is None:
            nodes = " and ".join(fleet.names[row] for row in rows)
            raise NotFoundError(
                "instance",
                f"{instance} is on {nodes}, and no scheduler booted it, so it is unclear which of them counts; "
                "end all but one on their nodes",
            )
        return self._resident(instance, row, fleet.reports.allocations(row)[instance])

    def boot_of(self, resident: Resident, request: Request, exclusions: tuple[Exclusion, ...] = ()) -> Boot:
        """Return the boot that migrates or resizes an instance.

        Args:
            resident: The instance as it is.
            request: The resources and constraints of its new allocation.
            exclusions: The instances to leave out of the fleet while a node is chosen; empty: the instance alone.
        """
        placing = Placing(
            _without_nodes(request),
            resident.instance,
            self._session.config.claim_ttl_s,
            exclusions=exclusions or (resident.exclusion,),
        )
        lifetime_id = lifetime_id_of(resident.hints)
        hints = {**resident.hints, "boot": lifetime_id} if lifetime_id else dict(resident.hints)
        return Boot(placing, hints=hints, after=resident.exclusion.order)

    # -- inside

    def _row(self, field: str, node: str) -> int:
        self._session.refresh()
        row = self._session.fleet.rows.get(node)
        if row is None:
            raise NotFoundError(field, f"no node {node} is known")
        return row

    def _resident(self, instance: str, row: int, allocation: Mapping[str, Any]) -> Resident:
        hints = allocation.get("hints") or {}
        request = request_of(instance, allocation["resources"], allocation.get("group"), hints)
        marks = self._session.fleet.placement_marks.by_reservation.get(str(hints.get("reservation", "")), {})
        if (row, instance) in marks:
            if not all_members_built(marks):
                why = f"{instance} is of reservation {hints['reservation']}, which is not all placed yet; try again"
                raise NotFoundError("instance", why)
            hints = {**hints, "placed": True}
        return Resident(instance, row, request, hints)

    @staticmethod
    def _resized(resident: Resident, resources: Mapping[str, int]) -> Request:
        for name in resources:
            check_class(f"resources.{name}", name)
        amounts = {**resident.request.resources, **resources}
        wanted = {name: amount for name, amount in amounts.items() if amount}
        group = resident.request.group.name if resident.request.group is not None else None
        return request_of(resident.instance, wanted, group, resident.hints)

    def _end_originals(self, residents: list[Resident], outcomes: list[BootOutcome]) -> None:
        """End the instances that are on another node now where they were before."""
        names = self._session.fleet.names
        migrated = {outcome.instance for outcome in outcomes if isinstance(outcome, Booted)}
        self._session.orders.terminations.terminate_orders(
            Termination(names[resident.row], resident.instance, resident.exclusion.order)
            for resident in residents
            if resident.instance in migrated
        )


def _without_nodes(request: Request) -> Request:
    """Return the request without the nodes that it forced or ignored, which concerned the boot alone."""
    return msgspec.structs.replace(request, force_nodes=(), ignore_nodes=())

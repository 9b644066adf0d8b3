r"""Migrations: an instance moves to another node, or gets other resources, under the request that it was booted with.

Each agent reports that request with the allocation: hints, traits, the group and its policy. So the scheduler reads the
request from the view. The nodes of the group's other members are computed from the view, too. Nothing is stored for
migrations. While a node is chosen, the fleet counts the instance's own allocation as absent::

    on A --choose B, claim, Build on B--> on A and B --End on A--> on B        B's order id is greater than A's
    on A and B, and the scheduler died --reconciler: the allocation with the greater order id stays--> on B
    on A, terminated there before B is chosen --> failed
    on A, terminated there after that --> on B --the terminating scheduler sees the same lifetime: End--> gone

A member of a reservation can be migrated once all members are built. Its new allocation has the hint ``placed``, which
says that.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from nodestate.errors import BadRequestError, NotFoundError
from nodestate.scheduling.claims import NoHostFound, Placing, join_groups
from nodestate.scheduling.fleet import Exclusion
from nodestate.scheduling.order_ids import lifetime_id_of, order_id_of
from nodestate.scheduling.orders import NO_ANSWER, Boot, Booted, BootOutcome, Failed, Termination, all_members_built
from nodestate.scheduling.request import Request, check_class, request_of
from nodestate.scheduling.selection import Explanation
from nodestate.scheduling.session import Operation, Session

FINAL_REFUSALS: Final = frozenset({NO_ANSWER, "no-agent", "not-here"})
"""Reasons of a node's refusal after which a resize is not tried on another node.

After these refusals the present allocation of the instance is unknown, or is no longer the one that the view showed.
"""


class Resident(NamedTuple):
    """An instance as its node reports it."""

    instance: str
    """The instance's id."""
    row: int
    """The node's row in the fleet."""
    request: Request
    """The request with which the instance was booted, with its present resources."""
    hints: Mapping[str, Any]
    """The hints that the node keeps with the allocation."""

    @property
    def exclusion(self) -> Exclusion:
        """The exclusion by which the fleet counts this allocation as absent while a node is chosen."""
        return Exclusion(self.row, self.instance, self.request.resources, order_id_of(self.hints))


class Migrations:
    """Migrates, resizes and evacuates instances through one scheduler."""

    def __init__(self, session: Session) -> None:
        self._session = session  # the parts of the scheduler

    def migrate(self, instance: str, *, to: str = "", timeout_s: float = 60.0) -> BootOutcome:
        """Migrate an instance to another node, and end it on its present node.

        Args:
            instance: The instance's id.
            to: The node to migrate to; empty: the best node.
            timeout_s: Seconds to wait for the outcome.

        Returns ``Booted`` with the new node, or ``Failed``: the instance then stays on its present node.

        Raises:
            NotFoundError: If no node reports the instance, or ``to`` is unknown. Nothing was changed.
            BadRequestError: If the instance is on ``to`` already. Nothing was changed.
            StaleViewError: If no view is fresh enough. Nothing was changed.
            TimeoutError: If there is no outcome in time. The migration is not cancelled: later calls of
                ``Scheduler.step`` go on with it. If it succeeds then, the instance is on both nodes until ``step`` of
                any scheduler sees both and ends the older one.
        """
        return self._session.complete(self.migration(instance, to=to, timeout_s=timeout_s))

    def migration(self, instance: str, *, to: str = "", timeout_s: float = 60.0) -> Operation[BootOutcome]:
        """Migrate an instance as ``migrate`` does, as an operation that other work of the scheduler can interleave."""
        resident = self.find(instance)
        if to == self._session.fleet.names[resident.row]:
            raise BadRequestError("to", f"{instance} is on {to} already")
        boot = self.boot_of(resident, resident.request)
        boot.avoid(resident.row)
        if to:
            boot.pin_to(self._row("to", to))
        [outcome] = yield from self._session.boot([boot], timeout_s)
        self._end_originals([resident], [outcome])
        return outcome

    def resize(self, instance: str, resources: Mapping[str, int], *, timeout_s: float = 60.0) -> BootOutcome:
        """Give an instance other resources. Its node is tried first, and then other nodes.

        On its node only the growth must fit: a class of which the instance needs no more may be overused there, the
        node may drain, and it need not meet the constraints of the boot. Another node must meet all of them.

        Args:
            instance: The instance's id.
            resources: The new amounts by resource class. Classes that are not named stay as they are. The amount 0
                removes a class.
            timeout_s: Seconds to wait for the outcome on the instance's node, and again for the outcome on other nodes.

        Returns ``Booted`` with the node, or ``Failed``: the instance then keeps its node and its resources.

        Raises:
            NotFoundError: If no node reports the instance. Nothing was changed.
            BadRequestError: If ``resources`` is invalid. Nothing was changed.
            StaleViewError: If no view is fresh enough. Nothing was changed.
            TimeoutError: If there is no outcome in time. Later steps go on with the resize.
        """
        return self._session.complete(self.resizing(instance, resources, timeout_s=timeout_s))

    def resizing(
        self, instance: str, resources: Mapping[str, int], *, timeout_s: float = 60.0
    ) -> Operation[BootOutcome]:
        """Resize an instance as ``resize`` does, as an operation that other work of the scheduler can interleave."""
        resident = self.find(instance)
        request = self._resized(resident, resources)
        boot = self.boot_of(resident, request)
        boot.pin_to(resident.row)
        [outcome] = yield from self._session.boot([boot], timeout_s)
        if isinstance(outcome, Booted) or any(refusal.reason in FINAL_REFUSALS for refusal in outcome.refusals):
            return outcome
        boot = self.boot_of(resident, request)
        boot.avoid(resident.row)
        [outcome] = yield from self._session.boot([boot], timeout_s)
        self._end_originals([resident], [outcome])
        return outcome

    def evacuate(
        self, node: str, *, timeout_s: float = 120.0, only: Collection[str] | None = None
    ) -> list[BootOutcome]:
        """Migrate all instances of a node to other nodes.

        The members of an affinity group on the node are migrated to one node together, or all of them stay.

        If the node is down, its last report tells which instances it has. If the authoritative allocation of an
        instance is on another node, the instance stays there and is only ended on this node.

        Args:
            node: The node's name.
            timeout_s: Seconds to wait for all outcomes.
            only: The instances to migrate; None: all instances of the node.

        Returns one outcome for each instance of the node, or of ``only``.

        Raises:
            NotFoundError: If the node is unknown.
            StaleViewError: If no view is fresh enough. Nothing was changed.
            TimeoutError: If some outcomes are missing after the time. Later steps go on with the migrations, but do not
                end the instances on this node. The reconciler ends them.
        """
        return self._session.complete(self.evacuation(node, timeout_s=timeout_s, only=only))

    def evacuation(
        self, node: str, *, timeout_s: float = 120.0, only: Collection[str] | None = None
    ) -> Operation[list[BootOutcome]]:
        """Evacuate a node as ``evacuate`` does, as an operation that other work of the scheduler can interleave."""
        row = self._row("node", node)
        fleet = self._session.fleet
        self._session.refresher.refresh_unresponsive_nodes()
        residents: list[Resident] = []
        failed: list[BootOutcome] = []
        elsewhere: list[Booted] = []
        for instance, allocation in fleet.reports.allocations(row).items():
            if only is not None and instance not in only:
                continue
            if not fleet.reports.is_believed(row, instance):
                failed.append(Failed(instance, NoHostFound(reason=self._unbelieved_text(instance, row))))
                continue
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
        join_groups((boot.placing for boot in boots), "affinity")
        outcomes = yield from self._session.boot(boots, timeout_s)
        self._end_originals(residents, outcomes)
        self._session.orders.terminations.terminate_duplicates((node, outcome.instance) for outcome in elsewhere)
        return [*outcomes, *elsewhere, *failed]

    def explain(self, instance: str, resources: Mapping[str, int] | None = None) -> Explanation:
        """Explain how the other nodes rank for a migration of an instance, or for a resize on another node.

        Args:
            instance: The instance's id.
            resources: The new amounts by resource class, as in ``resize``; None: explain a migration.

        Raises ``NotFoundError``, ``BadRequestError`` and ``StaleViewError`` as ``resize`` does.
        """
        resident = self.find(instance)
        request = resident.request if resources is None else self._resized(resident, resources)
        with self._session.fleet.excluding((resident.exclusion,)):
            return self._session.selector.explain(_without_nodes(request), exclude={resident.row})

    # -- the parts of a migration, for callers that do not want to wait for its outcome

    def find(self, instance: str) -> Resident:
        """Read a view, and return the authoritative allocation of an instance.

        Raises:
            NotFoundError: If no node reports the instance; if several nodes report it and no scheduler booted it, so
                that no allocation is authoritative; if the cell requires tags and the allocation has no valid one; or
                if the instance belongs to a reservation of which not all members are built.
            BadRequestError: If the hints of its allocation are no valid request.
            StaleViewError: If no view is fresh enough.
        """
        row, allocation = self.locate(instance)
        return self._resident(instance, row, allocation)

    def locate(self, instance: str) -> tuple[int, Mapping[str, Any]]:
        """Read a view, and return the row and the content of the authoritative allocation of an instance.

        The hints of the allocation may be no valid request. Raises ``NotFoundError`` and ``StaleViewError`` as ``find``
        does.
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
        if not fleet.reports.is_believed(row, instance):
            raise NotFoundError("instance", self._unbelieved_text(instance, row))
        allocation = fleet.reports.allocations(row).get(instance)
        if allocation is None:
            node = fleet.names[row]
            reason = f"the stored state of {node}, which has {instance}, is damaged; 'nodestate resync --node {node}'"
            raise NotFoundError("instance", f"{reason} asks its agent for a report")
        return row, allocation

    def boot_of(self, resident: Resident, request: Request, exclusions: tuple[Exclusion, ...] = ()) -> Boot:
        """Return the boot that migrates or resizes an instance.

        Args:
            resident: The instance with its present allocation.
            request: The resources and constraints of its new allocation.
            exclusions: The allocations that count as absent while a node is chosen; empty: only the instance's own.
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
        """Read a view, and return the row of a node.

        Args:
            field: The name of the parameter that names the node, for the error.
            node: The node.

        Raises ``NotFoundError`` if the node is unknown, and ``StaleViewError``.
        """
        self._session.refresh()
        row = self._session.fleet.rows.get(node)
        if row is None:
            raise NotFoundError(field, f"no node {node} is known; 'nodestate view' lists them")
        return row

    def _unbelieved_text(self, instance: str, row: int) -> str:
        """Return why an allocation without a valid tag is not moved, and the remedy."""
        node = self._session.fleet.names[row]
        return (
            f"the allocation of {instance} on {node} has no valid tag of a scheduler, so it is not moved; if the "
            f"instance is on {node}, adopt it with 'nodestate retag {node} --adopt', or if the node is dead, move the "
            "instance by a command with NODESTATE_AUTH_ORDERS=accept"
        )

    def _resident(self, instance: str, row: int, allocation: Mapping[str, Any]) -> Resident:
        """Return an instance from the allocation that a row's node reports.

        Raises ``BadRequestError`` if the allocation's hints are no valid request, and ``NotFoundError`` if the instance
        belongs to a reservation of which not all members are built.
        """
        hints = allocation.get("hints") or {}
        request = request_of(instance, allocation["resources"], allocation.get("group"), hints)
        return Resident(instance, row, request, self.settled_hints(instance, row, hints))

    def settled_hints(self, instance: str, row: int, hints: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the hints of an allocation, with the hint ``placed`` if it is a member of a reservation.

        Raises ``NotFoundError`` if not all members of the reservation are built.
        """
        marks = self._session.fleet.placement_marks.by_reservation.get(str(hints.get("reservation", "")), {})
        if (row, instance) in marks:
            if not all_members_built(marks):
                why = f"{instance} is of reservation {hints['reservation']}, which is not all placed yet; try again"
                raise NotFoundError("instance", why)
            hints = {**hints, "placed": True}
        return hints

    @staticmethod
    def _resized(resident: Resident, resources: Mapping[str, int]) -> Request:
        """Return the request of an instance with other resources. Raises ``BadRequestError`` if they are invalid."""
        for name in resources:
            check_class(f"resources.{name}", name)
        amounts = {**resident.request.resources, **resources}
        wanted = {name: amount for name, amount in amounts.items() if amount}
        group = resident.request.group.name if resident.request.group is not None else None
        return request_of(resident.instance, wanted, group, resident.hints)

    def _end_originals(self, residents: list[Resident], outcomes: list[BootOutcome]) -> None:
        """End the original allocations of the instances that were migrated successfully."""
        names = self._session.fleet.names
        migrated = {outcome.instance for outcome in outcomes if isinstance(outcome, Booted)}
        self._session.orders.terminations.terminate_orders(
            Termination(names[resident.row], resident.instance, resident.exclusion.order)
            for resident in residents
            if resident.instance in migrated
        )


def _without_nodes(request: Request) -> Request:
    """Return the request without ``force_nodes`` and ``ignore_nodes``, which apply only to the first boot."""
    return msgspec.structs.replace(request, force_nodes=(), ignore_nodes=())

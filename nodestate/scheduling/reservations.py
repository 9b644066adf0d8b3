r"""Reservations: nodes for all members of a group or for none; then all members are built, or none.

::

    wanted --all claimed--> claimed --all claims kept--> held --confirm: all are built--> placed --hints say so--> done
      ^  |                    |                           |             |
      |  \--some find no node--> not reserved             |             \--one is refused everywhere: all are ended
      |                       |                           |--extend--> held for longer
      |                       |                           \--release, or its time is over--> nothing is held
      \--rivals, too, have claimed and not kept: the elder keeps its claims, the younger gives them back;
         both try again until timeout_s

A reservation is held while every one of its members' claims exists (``reservation_claims``). If a scheduler dies before
it has kept all claims, they expire within ``claim_ttl_s``, or within ``hold_s`` if it had begun to keep them. If it
dies while members are built, their allocations carry hints by which any other scheduler can finish the reservation: if
all members are there, they get the hint ``placed``; if some are missing and no hint says that all were there once, the
others are ended (``orders.reconciler``).

A reservation waits only for younger ones while it holds claims; for an elder one it gives its claims back first. So
there is no deadlock, and no livelock either: the eldest of all that compete never gives back.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final

import msgspec

from nodestate.errors import BadRequestError, BehindError, NotFoundError, StaleViewError
from nodestate.model import Receipt
from nodestate.scheduling.claims import NoHostFound, Placing
from nodestate.scheduling.order_ids import lifetime_id_of, new_order_id, order_id_of
from nodestate.scheduling.orders import Boot, Booted, BootOutcome, Failed
from nodestate.scheduling.request import GroupRequest, Request, check_hold
from nodestate.scheduling.reservation_claims import Reservation, ReservationClaims
from nodestate.scheduling.session import Session

PAUSE_S: Final = (0.005, 0.05)
"""The shortest and the longest pause between two tries to claim nodes for a reservation."""
CATCH_UP_S: Final = 2.0
"""How long to wait for a view that shows an allocation which an agent has confirmed."""
MAX_AFFINITY_NODES_COUNT: Final = 8
"""Nodes that are tried, one after the other, for all members of an affinity group."""
MAX_ANNOUNCEMENTS_COUNT: Final = 3
"""How often agents are told that a reservation is placed; after that the reconciler does it."""


class NotReserved(msgspec.Struct, frozen=True):
    """Nothing is held: ``instance`` is a member that found no node, for this ``reason``."""

    instance: str
    reason: NoHostFound


class Confirmed(msgspec.Struct, frozen=True):
    """All members of the reservation ``id`` are built."""

    id: str
    members: tuple[Booted, ...]


class NotConfirmed(msgspec.Struct, frozen=True):
    """No member of the reservation ``id`` is built, and nothing is held for it any longer.

    ``failed``: the members that no node took, or that were terminated meanwhile.
    """

    id: str
    failed: tuple[Failed, ...]


class Reservations:
    """Reserves nodes for groups, and builds the members, through one scheduler."""

    def __init__(self, session: Session) -> None:
        self._session = session  # the scheduler's parts
        self._claims = ReservationClaims(session)  # finds and renews the claims of members

    # -- reserving

    def reserve(self, wanted: GroupRequest, *, owner: str = "", timeout_s: float = 15.0) -> Reservation | NotReserved:
        """Hold nodes for all members, for the request's ``hold_s``, or for none.

        Waits for competitors, and for claim records that were created less than ``UNSURE_S`` ago.

        Args:
            wanted: The members.
            owner: The user who may confirm, extend and release the reservation; empty: this scheduler's name.
            timeout_s: Seconds after which no further try is made.

        Raises ``BadRequestError`` if a member names a weigher that is not installed, and ``StaleViewError``.
        """
        session = self._session
        for number, member in enumerate(wanted.members):
            try:
                session.selector.check(member)
            except BadRequestError as error:
                raise BadRequestError(f"members[{number}].{error.field}", error.reason) from None
        deadline = session.clock.monotonic() + timeout_s
        session.refresh(wanted.max_age)
        reservation = new_order_id(session.clock, session.ids)
        placings = self._placings(wanted, reservation, owner or session.name)
        for placing in placings:
            node = session.fleet.instances.reporting_node(placing.instance)
            if node:
                return NotReserved(placing.instance, NoHostFound(reason=f"{placing.instance} is on {node} already"))
        while True:
            self._place(placings, wanted)
            failed = next((placing for placing in placings if placing.failure is not None), None)
            if failed is None:
                held = self._claims.keep(placings, reservation, wanted.hold_s)
                if held is not None:
                    return held
                failed = placings[0]
            reason = failed.failure or NoHostFound(
                reason="claims of the reservation were lost before all were in place"
            )
            rivals = self._claims.rivals(reservation)
            may_succeed_later = bool(rivals) or bool(session.claim_table.unsure_nodes())
            if not may_succeed_later or session.clock.monotonic() >= deadline:
                session.placer.give_back(placings)
                return NotReserved(failed.instance, reason)
            if not rivals or min(rivals) < reservation:
                session.placer.give_back(placings)
            for placing in placings:
                placing.restart()
            session.clock.sleep(session.random.uniform(*PAUSE_S))
            session.step()
            session.refresh(wanted.max_age)

    def _placings(self, wanted: GroupRequest, reservation: str, owner: str) -> list[Placing]:
        """Return a placing for each instance, the largest first, as small ones fit into the remaining room."""
        members = [
            (instance, self._member_request(member, wanted, instance))
            for member in wanted.members
            for instance in member.instance_ids(self._session.ids)
        ]
        members.sort(key=lambda member: (-self._share(member[1]), member[0]))
        return [
            Placing(
                request,
                instance,
                self._session.config.claim_ttl_s,
                avoid_unsure=True,
                reservation=reservation,
                members=len(members),
                owner=owner,
            )
            for instance, request in members
        ]

    @staticmethod
    def _member_request(member: Request, wanted: GroupRequest, instance: str) -> Request:
        group = wanted.group if wanted.group is not None else member.group
        return msgspec.structs.replace(member, group=group, count=1, instances=(instance,), alternates=0)

    def _share(self, request: Request) -> float:
        """Return the largest share that the request takes of a resource class on the node with most of that class."""
        amounts = self._session.fleet.amounts
        return max(
            amount / max(1, int(amounts[name][0].max())) if name in amounts else 1.0
            for name, amount in request.resources.items()
        )

    def _place(self, placings: list[Placing], wanted: GroupRequest) -> None:
        """Claim a node for each member; one node for all members of an affinity group."""
        placer = self._session.placer
        if wanted.group is None or wanted.group.policy != "affinity":
            placer.place(placings)
            return
        for row in self._rows_for_all(placings):
            for placing in placings:
                placing.restrict_to(row)
            placer.place(placings)
            if all(placing.claim is not None for placing in placings):
                return
            placer.give_back(placings)
        for placing in placings:
            if placing.failure is None:
                placing.fail(NoHostFound(reason="no node has room for all of an affinity group"))

    def _rows_for_all(self, placings: list[Placing]) -> list[int]:
        """Return the best rows whose nodes have room for all members together."""
        total: dict[str, int] = {}
        for placing in placings:
            for name, amount in placing.request.resources.items():
                total[name] = total.get(name, 0) + amount
        together = msgspec.structs.replace(placings[0].request, resources=total)
        unsure = self._session.claim_table.unsure_nodes()
        rows = self._session.fleet.rows
        exclude = {rows[node] for node in unsure if node in rows}
        return self._session.selector.best(together, MAX_AFFINITY_NODES_COUNT, exclude)

    # -- what is held

    def held(self) -> list[Reservation]:
        """Return all reservations of the cell, the eldest first, from the claims on every node.

        Raises ``StaleViewError``, and ``StoreUnavailableError`` if a claim server does not answer.
        """
        return self._claims.held()

    def extend(self, reservation: str, hold_s: float, *, owner: str = "") -> Reservation:
        """Hold a reservation for ``hold_s`` seconds from now on.

        Raises ``BadRequestError`` if ``hold_s`` is out of bounds, ``NotFoundError`` if the reservation is not held or
        not the owner's, ``StaleViewError``, and ``StoreUnavailableError``.
        """
        check_hold(hold_s)
        placings = self._claims.find(reservation, owner)
        extended = self._claims.keep(placings, reservation, hold_s)
        if extended is None:
            raise NotFoundError("reservation", f"{reservation} could not be extended: claims of it were lost meanwhile")
        return extended

    def release(self, reservation: str, *, owner: str = "") -> None:
        """Give back the nodes that a reservation holds.

        Raises ``NotFoundError`` if it is not held or not the owner's, ``StaleViewError``, and
        ``StoreUnavailableError``.
        """
        self._session.placer.give_back(self._claims.find(reservation, owner, allow_part=True))

    # -- building

    def confirm(self, reservation: str, *, owner: str = "", timeout_s: float = 60.0) -> Confirmed | NotConfirmed:
        """Build every member, on its node or (if the agent refuses) on another that fits: all, or none.

        Raises ``NotFoundError`` if the reservation is not held or not the owner's, or if a member is on a node already;
        ``StaleViewError``; ``StoreUnavailableError``; and ``TimeoutError`` if agents, or views that show the members,
        take longer than ``timeout_s`` seconds. After a ``TimeoutError`` call ``confirm`` again, or leave it to
        the reconciler, which decides as after the death of a scheduler.
        """
        session = self._session
        deadline = session.clock.monotonic() + timeout_s
        placings = self._claims.find(reservation, owner)
        if any(mark.placed for mark in session.fleet.placement_marks.by_reservation.get(reservation, {}).values()):
            raise NotFoundError("reservation", f"{reservation} was confirmed already")
        earlier = [self._hints_of_earlier_build(placing, reservation) for placing in placings]
        if self._claims.keep(placings, reservation, session.config.claim_ttl_s + timeout_s) is None:
            raise NotFoundError("reservation", f"{reservation} is no longer whole: claims of it were lost meanwhile")
        mark = {"reservation": reservation, "members": len(placings), "placed": False}
        boots = [_member_boot(placing, mark, hints) for placing, hints in zip(placings, earlier, strict=True)]
        outcomes = [self._adopt_other_confirm(one, reservation) for one in session.run_boots(boots, timeout_s)]
        failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
        booted = [outcome for outcome in outcomes if isinstance(outcome, Booted)]
        if not failed:
            failed = self._terminated_meanwhile(booted, deadline)
        built = [boot for boot in boots if isinstance(boot.outcome, Booted)]
        if failed:
            session.orders.terminations.roll_back(boot.order for boot in built if boot.order is not None)
            self._drop_claims(built)
            return NotConfirmed(reservation, tuple(failed))
        # From here on, each member may be terminated by itself. The reconciler tells agents that do not answer.
        self._announce_placement(boots, {**mark, "placed": True})
        self._drop_claims(built)
        return Confirmed(reservation, tuple(booted))

    def boot_member(self, reservation: str, instance: str, *, owner: str = "", timeout_s: float = 60.0) -> BootOutcome:
        """Build one member by itself, on the node that is held for it.

        Raises ``NotFoundError`` if the member is not held, if the reservation is not the owner's, or if the instance is
        on a node already; ``StaleViewError``; ``StoreUnavailableError``; and ``TimeoutError``.
        """
        found = self._claims.find(reservation, owner, allow_part=True)
        placings = [placing for placing in found if placing.instance == instance]
        if not placings:
            raise NotFoundError("instance", f"{instance} is no member of reservation {reservation} that is still held")
        self._hints_of_earlier_build(placings[0], "")
        [outcome] = self._session.run_boots([Boot(placings[0])], timeout_s)
        return outcome

    def _hints_of_earlier_build(self, placing: Placing, reservation: str) -> Mapping[str, Any]:
        """Return the hints of a member if an earlier ``confirm`` built it on the node that is held for it, else none.

        Raises ``NotFoundError`` if the instance is on a node for another reason.
        """
        fleet = self._session.fleet
        row = fleet.rows.get(placing.node or "", -1)
        hints = (
            fleet.reports.hints(row, placing.instance)
            if row in fleet.instances.reporting_rows(placing.instance)
            else {}
        )
        earlier = hints if reservation and hints.get("reservation") == reservation else {}
        node = fleet.instances.reporting_node(placing.instance, {row} if earlier else ())
        if node:
            raise NotFoundError("instance", f"{placing.instance} of {placing.reservation} is on {node} already")
        return earlier

    def _adopt_other_confirm(self, outcome: BootOutcome, reservation: str) -> BootOutcome:
        """Count a member as booted if its node refused it because another ``confirm`` built it there.

        That is so if a view shows it there within ``CATCH_UP_S`` seconds.
        """
        if isinstance(outcome, Booted) or not outcome.refusals or outcome.refusals[-1].reason != "here":
            return outcome
        session, fleet = self._session, self._session.fleet
        row = fleet.rows[outcome.refusals[-1].node]

        def is_shown() -> bool:
            with suppress(StaleViewError):
                session.refresh()
            return fleet.reports.hints(row, outcome.instance).get("reservation") == reservation

        with suppress(TimeoutError):
            session.run(is_shown, CATCH_UP_S)
            return Booted(outcome.instance, fleet.names[row], fleet.version[row], outcome.refusals[:-1])
        return outcome

    def _terminated_meanwhile(self, booted: list[Booted], deadline: float) -> list[Failed]:
        """Return the members that were built and no longer exist, by one view that is newer than all builds.

        Raises ``TimeoutError`` if there is no such view by the deadline, in monotonic seconds.
        """
        session = self._session
        try:
            for outcome in booted:
                left_s = max(0.0, deadline - session.clock.monotonic())
                session.refresher.wait_for_receipt(Receipt(outcome.node, outcome.version), left_s)
            session.refresh()
        except (BehindError, StaleViewError) as error:
            raise TimeoutError(f"all members are built, and no view shows it: {error}") from error
        return [
            Failed(outcome.instance, NoHostFound(reason=f"it was terminated on {outcome.node} meanwhile"))
            for outcome in booted
            if not session.fleet.instances.reporting_node(outcome.instance)
        ]

    def _announce_placement(self, boots: list[Boot], hints: Mapping[str, object]) -> None:
        """Tell the agents that all members are placed, by these hints, until all have answered.

        Gives up after ``MAX_ANNOUNCEMENTS_COUNT`` times; the reconciler does the rest.
        """
        session, updates = self._session, self._session.orders.hint_updates
        orders = [boot.order for boot in boots if boot.order is not None]
        for _ in range(MAX_ANNOUNCEMENTS_COUNT):
            order_by_update = {updates.update_hints(order, hints): order for order in orders}
            with suppress(TimeoutError):
                session.run(partial(updates.acknowledged, order_by_update), session.config.answer_timeout_s)
            orders = [order for update, order in order_by_update.items() if not updates.acknowledged([update])]
            updates.abandon(order_by_update)
            if not orders:
                return

    def _drop_claims(self, boots: list[Boot]) -> None:
        """Drop the claims of members that were built, so that the reservation can't be confirmed again."""
        table = self._session.claim_table
        for boot in boots:
            assert isinstance(boot.outcome, Booted), "only what was built"
            if boot.placing.claim is not None:
                table.drop_claim(boot.outcome.node, boot.placing.claim.id, boot.outcome.version)
        table.flush_all()


def _member_boot(placing: Placing, mark: Mapping[str, object], earlier: Mapping[str, Any]) -> Boot:
    """Return the boot of a member. It replaces an allocation of an earlier ``confirm``, if that left these hints."""
    lifetime = {"boot": lifetime_id_of(earlier)} if earlier else {}
    return Boot(placing, hints={**mark, **lifetime}, replaces=order_id_of(earlier))

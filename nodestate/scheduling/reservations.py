r"""Reservations: nodes for all members of a group, or for none. Later all members are built, or none.

To *keep* a claim means to write it again with the flag ``kept`` and the deadline of the reservation::

    begun --all claimed--> claimed --all claims kept--> held --confirm: all are built--> placed --hints say so--> done
      ^ |                    |                           |             |
      | \--some find no node--> not reserved             |             \--one is refused everywhere: all are ended
      |                      |                           |--extend--> held for longer
      |                      |                           \--release, or its time is over--> nothing is held
      \--other reservations are in the same state: the elder one keeps its claims, the younger one drops its claims;
         both try again until timeout_s

A reservation is held as long as the claims of all its members exist (``reservation_claims``). If its scheduler dies
while it claims nodes, the claims expire within ``claim_ttl_s``, or within ``hold_s`` if they were kept already. If the
scheduler dies while members are built, any other scheduler finishes the reservation (``orders.reconciler``), by the
hints of the members that were built. If all members are built, they get the hint ``placed``. If some are missing, and
no member has the hint ``placed``, the members that were built are ended.

Two reservations that compete for nodes cannot block each other forever. While a reservation has claims, it waits only
for younger reservations. Before it waits for an elder one, it drops its claims, so there is no deadlock. The eldest of
all competing reservations never drops its claims, so it succeeds or fails by itself, and there is no livelock.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final

import msgspec

from nodestate.errors import BadRequestError, BehindError, NotFoundError, StaleViewError, StoreUnavailableError
from nodestate.model import Receipt
from nodestate.scheduling.claims import NoHostFound, Placing, join_groups
from nodestate.scheduling.order_ids import lifetime_id_of, new_order_id, order_id_of
from nodestate.scheduling.orders import Boot, Booted, BootOutcome, Failed
from nodestate.scheduling.request import GroupRequest, Request, check_hold
from nodestate.scheduling.reservation_claims import Reservation, ReservationClaims
from nodestate.scheduling.session import Operation, Session, Wait

PAUSE_S: Final = (0.005, 0.05)
"""The shortest and the longest pause in seconds between two tries to claim nodes for a reservation."""
CATCH_UP_S: Final = 2.0
"""Seconds to wait for a view with an instance that its agent refused because it is there already."""
MAX_ANNOUNCEMENTS_COUNT: Final = 3
"""Maximum number of times that ``confirm`` sends agents the hint ``placed``; after that the reconciler sends it."""


class NotReserved(msgspec.Struct, frozen=True):
    """The result of ``reserve`` if nothing is held."""

    instance: str
    """The id of a member that found no node."""
    reason: NoHostFound
    """Why that member found no node."""


class Confirmed(msgspec.Struct, frozen=True):
    """The result of ``confirm`` if all members are built."""

    id: str
    """The reservation's id."""
    members: tuple[Booted, ...]
    """The members with their nodes."""


class NotConfirmed(msgspec.Struct, frozen=True):
    """The result of ``confirm`` if a member could not be built. Members that were built are being ended again."""

    id: str
    """The reservation's id."""
    failed: tuple[Failed, ...]
    """The members that no node took, or that were terminated meanwhile."""


class Reservations:
    """Reserves nodes for groups, and builds the members, through one scheduler."""

    def __init__(self, session: Session) -> None:
        self._session = session  # the parts of the scheduler
        self._claims = ReservationClaims(session)  # finds and renews the claims of members

    # -- reserving

    def reserve(self, wanted: GroupRequest, *, owner: str = "", timeout_s: float = 15.0) -> Reservation | NotReserved:
        """Find a node for each member, and hold the nodes for the ``hold_s`` of the request.

        If a member finds no node, tries again as long as the claims of other reservations that are being made, or
        unsure claim records, may be the cause.

        Args:
            wanted: The members, the group that they may form, and ``hold_s``.
            owner: The user who may confirm, extend and release the reservation; empty: this scheduler's name.
            timeout_s: Seconds after which no further try begins.

        Returns the reservation, or ``NotReserved`` with a member that found no node: then nothing is held.

        Raises ``BadRequestError`` if a member names a weigher that is not installed, and ``StaleViewError`` if no view
        is fresh enough. Claims that were written before a ``StaleViewError`` expire by themselves.
        """
        return self._session.complete(self.reservation(wanted, owner=owner, timeout_s=timeout_s))

    def reservation(
        self, wanted: GroupRequest, *, owner: str = "", timeout_s: float = 15.0
    ) -> Operation[Reservation | NotReserved]:
        """Reserve nodes as ``reserve`` does, as an operation that other work of the scheduler can interleave."""
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
            # Asked before placing as well: a record may stop being unsure, or a rival's claim may expire, between a
            # failed placement and the question, and the next try would succeed.
            may_succeed_later = self._may_succeed_later(reservation)
            session.placer.place(placings)
            failed = next((placing for placing in placings if placing.failure is not None), None)
            lost = NoHostFound(reason="claims of the reservation were lost before all were in place")
            if failed is None:
                try:
                    held = self._claims.keep(placings, reservation, wanted.hold_s, avoid_unsure=True)
                except StoreUnavailableError as error:
                    held, lost = None, NoHostFound(reason=f"no claim can be written: {error}", is_temporary=True)
                    session.placer.give_back(placings)
                if held is not None:
                    return held
                failed = placings[0]
            reason = failed.failure or lost
            rivals = self._claims.rivals(reservation)
            may_succeed_later = may_succeed_later or self._may_succeed_later(reservation)
            if not may_succeed_later or session.clock.monotonic() >= deadline:
                session.placer.give_back(placings)
                return NotReserved(failed.instance, reason)
            if not rivals or min(rivals) < reservation:
                session.placer.give_back(placings)
            for placing in placings:
                placing.restart()
            session.clock.sleep(session.random.uniform(*PAUSE_S))
            yield Wait(lambda: True, 0.0)
            session.refresh(wanted.max_age)

    def _may_succeed_later(self, reservation: str) -> bool:
        """True if other reservations may give back their nodes, or if a claim record is still unsure."""
        return bool(self._claims.rivals(reservation)) or bool(self._session.claim_table.unsure_nodes())

    def _placings(self, wanted: GroupRequest, reservation: str, owner: str) -> list[Placing]:
        """Return a placing for each instance, the largest first, because small ones fit into the remaining room."""
        members = [
            (instance, self._member_request(member, wanted, instance))
            for member in wanted.members
            for instance in member.instance_ids(self._session.ids)
        ]
        members.sort(key=lambda member: (-self._share(member[1]), member[0]))
        placings = [
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
        join_groups(placings, "affinity")
        return placings

    @staticmethod
    def _member_request(member: Request, wanted: GroupRequest, instance: str) -> Request:
        """Return the request for one instance of a member.

        If ``wanted`` has a group, that group replaces the group of ``member``.
        """
        group = wanted.group if wanted.group is not None else member.group
        return msgspec.structs.replace(member, group=group, count=1, instances=(instance,), alternates=0)

    def _share(self, request: Request) -> float:
        """Return the size of a request, to compare it with others.

        The size is the largest quotient, over all requested resource classes, of the requested amount and the largest
        amount that any usable node has.
        """
        amounts, usable = self._session.fleet.amounts, self._session.fleet.usable
        shares = (
            amount / max(1, int(amounts[name][0][usable].max(initial=0))) if name in amounts else 1.0
            for name, amount in request.resources.items()
        )
        return max(shares, default=0.0)

    # -- reservations that are held

    def held(self) -> list[Reservation]:
        """Read the claim records of all nodes, and return all reservations of the cell, the eldest first.

        Raises ``StaleViewError`` if no view is fresh enough, and ``StoreUnavailableError`` if a claim server does not
        answer.
        """
        return self._claims.held()

    def extend(self, reservation: str, hold_s: float, *, owner: str = "") -> Reservation:
        """Set the time at which a reservation expires to ``hold_s`` seconds from now.

        Args:
            reservation: The reservation's id.
            hold_s: Seconds.
            owner: The user who must own the reservation; empty: any user.

        Raises:
            BadRequestError: If ``hold_s`` is out of bounds.
            NotFoundError: If not all members are held, or if another user owns the reservation. Also if claims were
                lost during this call: the claims of all members have been dropped then.
            StaleViewError: If no view is fresh enough.
            StoreUnavailableError: If a claim server does not answer, so that it is unknown whether all members are
                held, and until when. Their claims are not dropped, so the call may be repeated.
        """
        check_hold(hold_s)
        placings = self._claims.find(reservation, owner)
        extended = self._claims.keep(placings, reservation, hold_s)
        if extended is None:
            raise NotFoundError("reservation", f"{reservation} could not be extended: claims of it were lost meanwhile")
        return extended

    def release(self, reservation: str, *, owner: str = "") -> None:
        """Drop all claims of a reservation, also if only some members are held.

        Args:
            reservation: The reservation's id.
            owner: The user who must own the reservation; empty: any user.

        Raises:
            NotFoundError: If no member is held, or if another user owns the reservation.
            StaleViewError: If no view is fresh enough.
            StoreUnavailableError: If a claim server does not answer, so that members may still be held. The claims of
                the other members are dropped. Call ``release`` again.
        """
        self._claims.drop(self._claims.find(reservation, owner, allow_part=True))

    # -- building

    def confirm(self, reservation: str, *, owner: str = "", timeout_s: float = 60.0) -> Confirmed | NotConfirmed:
        """Build every member on the node that is held for it, or on another node if the agent refuses.

        If one member cannot be built, all members that were built are ended again.

        Args:
            reservation: The reservation's id.
            owner: The user who must own the reservation; empty: any user.
            timeout_s: Seconds to wait for the agents, and for views that show the members.

        Returns ``Confirmed`` if all members are built. Returns ``NotConfirmed`` if a member could not be built: all
        built members are being ended, and the reservation is over.

        Raises:
            NotFoundError: If not all members are held, if another user owns the reservation, if it was confirmed
                already, or if a member is on a node for another reason. No order has been sent. Also if claims were
                lost during this call: the claims of all members have been dropped then.
            StaleViewError: If no view is fresh enough. No order has been sent.
            StoreUnavailableError: If a claim server does not answer, so that it is unknown whether all members are
                held. No order has been sent.
            TimeoutError: If agents, or views that show the members, take too long. Some or all members may be built.
                Call ``confirm`` again, or leave the decision to the reconciler, as after the death of a scheduler.
        """
        return self._session.complete(self.confirmation(reservation, owner=owner, timeout_s=timeout_s))

    def confirmation(
        self, reservation: str, *, owner: str = "", timeout_s: float = 60.0
    ) -> Operation[Confirmed | NotConfirmed]:
        """Build all members as ``confirm`` does, as an operation that other work of the scheduler can interleave."""
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
        outcomes = yield from session.boot(boots, timeout_s)
        for number, own in enumerate(outcomes):
            outcomes[number] = yield from self._adopt_other_confirm(own, reservation)
        failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
        booted = [outcome for outcome in outcomes if isinstance(outcome, Booted)]
        if not failed:
            failed = self._terminated_meanwhile(booted, deadline)
        built = [boot for boot in boots if isinstance(boot.outcome, Booted)]
        if failed:
            session.orders.terminations.roll_back(boot.order for boot in built if boot.order is not None)
            self._drop_claims(built)
            return NotConfirmed(reservation, tuple(failed))
        # From here on, each member may be terminated by itself. If agents do not answer, the reconciler tells them.
        yield from self._announce_placement(boots, {**mark, "placed": True})
        self._drop_claims(built)
        return Confirmed(reservation, tuple(booted))

    def boot_member(self, reservation: str, instance: str, *, owner: str = "", timeout_s: float = 60.0) -> BootOutcome:
        """Build one member by itself, on the node that is held for it or on another node if the agent refuses.

        Args:
            reservation: The reservation's id.
            instance: The member's id.
            owner: The user who must own the reservation; empty: any user.
            timeout_s: Seconds to wait for the outcome.

        Raises:
            NotFoundError: If the member is not held, if another user owns the reservation, or if the instance is on a
                node already.
            StaleViewError: If no view is fresh enough.
            StoreUnavailableError: If a claim server does not answer, so that it is unknown whether the member is held.
            TimeoutError: If there is no outcome in time. Later steps go on with the boot.
        """
        found = self._claims.find(reservation, owner, allow_part=True)
        placings = [placing for placing in found if placing.instance == instance]
        if not placings:
            self._session.claim_table.servers.require_all()
            raise NotFoundError("instance", f"{instance} is no member of reservation {reservation} that is still held")
        self._hints_of_earlier_build(placings[0], "")
        claim_ttl_s = self._session.config.claim_ttl_s
        is_ending = self._claims.seconds_left(placings[0]) < claim_ttl_s  # no order is sent at the end of a claim
        if is_ending and self._claims.keep(placings, reservation, claim_ttl_s) is None:
            raise NotFoundError("instance", f"the claim of {instance} was lost meanwhile, and nothing was built")
        [outcome] = self._session.run_boots([Boot(placings[0])], timeout_s)
        return outcome

    def _hints_of_earlier_build(self, placing: Placing, reservation: str) -> Mapping[str, Any]:
        """Return the hints of a member that an earlier ``confirm`` built on the node that is held for the member.

        Args:
            placing: The member.
            reservation: The id of the reservation that the hints must name; empty: accept no earlier build.

        Returns no hints if the member was not built. Raises ``NotFoundError`` if an instance with the member's id is on
        a node, and was not built there by an earlier ``confirm``.
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

    def _adopt_other_confirm(self, outcome: BootOutcome, reservation: str) -> Operation[BootOutcome]:
        """Turn the failure of a member into success if another ``confirm`` built the member on the same node.

        The node has then refused the member because it is there already. Waits up to ``CATCH_UP_S`` seconds for a view
        that shows the member on that node with the hints of this reservation. Returns the outcome as it was if there is
        no such view.
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
            yield Wait(is_shown, CATCH_UP_S)
            return Booted(outcome.instance, fleet.names[row], fleet.version[row], outcome.refusals[:-1])
        return outcome

    def _terminated_meanwhile(self, booted: list[Booted], deadline: float) -> list[Failed]:
        """Return the members that were terminated right after they were built.

        Waits for one view that contains the effect of every build, and looks for members that no node reports.

        Args:
            booted: The members that were built.
            deadline: The time, in monotonic seconds, until which to wait.

        Raises ``TimeoutError`` if there is no such view by the deadline.
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

    def _announce_placement(self, boots: list[Boot], hints: Mapping[str, object]) -> Operation[None]:
        """Send the agents the hints which say that all members are built.

        The update is sent again to agents that have not answered, up to ``MAX_ANNOUNCEMENTS_COUNT`` times in all. After
        that the reconciler repeats it.

        Args:
            boots: The members.
            hints: The hints, with ``placed`` set.
        """
        session, updates = self._session, self._session.orders.hint_updates
        orders = [boot.order for boot in boots if boot.order is not None]
        for _ in range(MAX_ANNOUNCEMENTS_COUNT):
            order_by_update = {updates.update_hints(order, hints): order for order in orders}
            with suppress(TimeoutError):
                yield Wait(partial(updates.acknowledged, order_by_update), session.config.answer_timeout_s)
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
    """Return the boot of a member.

    Args:
        placing: The member, with its claim.
        mark: The hints that name the reservation and its number of members.
        earlier: The hints of the allocation that an earlier ``confirm`` built on the claimed node; the boot replaces
            that allocation. Empty if there is none.
    """
    lifetime = {"boot": lifetime_id_of(earlier)} if earlier else {}
    return Boot(placing, hints={**mark, **lifetime}, replaces=order_id_of(earlier))

r"""Groups: nodes for all members of a reservation, or for none; then all of them placed, or none.

::

    wanted --all claimed--> claimed --all kept--> held --confirm: all built--> placed --every mark says so--> done
      ^ |                     |                    |             \--one refused everywhere: all ended, nothing is held
      | |                     |                    |--extend--> held for longer
      | \--some have no node--+                    \--release, or its time is over--> nothing is held
      |                       |
      \--claims of others that may go yet: the elder keeps its own, the younger gives back; both try again, in bounded time

A reservation is its members' claims and nothing beside: there is no record of it that could say something else. It is held
while every one of them is there. So a scheduler that dies before all are kept leaves claims that expire within
``claim_ttl_s``, or ``hold_s`` where it had begun to keep them; one that dies while members are built leaves marks on the allocations, from which any scheduler finds out
what was meant: members that are all there are marked as placed; where some are missing, and no mark says that they were all
there once, the others are ended (``tidying``).

Nobody waits while holding what an elder waits for, so there is neither deadlock nor livelock: of all that compete, the
eldest never gives back.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from nodestate.errors import BadRequestError, BehindError, NodestateError, NotFoundError, StaleViewError
from nodestate.model import Receipt
from nodestate.ports import WriteStatus
from nodestate.scheduling import order_ids
from nodestate.scheduling.claims import Claim, claims_by_reservation
from nodestate.scheduling.claims.placing import NoHostFound, Placing
from nodestate.scheduling.order_ids import lifetime_id_of, order_id_of
from nodestate.scheduling.orders.boots import Boot, Booted, Failed
from nodestate.scheduling.request import GroupRequest, Request, check_hold

if TYPE_CHECKING:
    from nodestate.scheduling.scheduler import Scheduler

PAUSE_S = (0.005, 0.05)
MAX_KEEPS_COUNT = 8
CATCH_UP_S = 2.0
"""How long a view may take to show what an agent says that it has."""


class Member(msgspec.Struct, frozen=True):
    """One instance of a reservation, and the node that is held for it. ``placed``: the node reports it."""

    instance: str
    node: str
    resources: dict[str, int]
    group: str | None
    placed: bool = False


class Reservation(msgspec.Struct, frozen=True):
    """What is held. ``seconds``: for how long yet. ``whole``: whether every member is."""

    id: str
    owner: str
    members: tuple[Member, ...]
    seconds: float
    whole: bool = True


class NotReserved(msgspec.Struct, frozen=True):
    """Nothing is held; ``instance`` is a member that found no node, and ``why``."""

    instance: str
    why: NoHostFound


class Confirmed(msgspec.Struct, frozen=True):
    """All members are built."""

    id: str
    members: tuple[Booted, ...]


class NotConfirmed(msgspec.Struct, frozen=True):
    """No member is built, and nothing is held any more; ``failed`` says whom no agent took."""

    id: str
    failed: tuple[Failed, ...]


class Groups:
    """Reservations of one scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    # -- reserving

    def reserve(self, wanted: GroupRequest, *, owner: str = "", timeout_s: float = 15.0) -> Reservation | NotReserved:
        """Hold nodes for all members, for ``hold_s``, or for none. ``owner``: who alone may confirm, extend and release it.

        It waits up to ``timeout_s`` for competitors, and for records that were just begun (``UNSURE_S``).
        """
        scheduler = self._scheduler
        for place, member in enumerate(wanted.members):
            try:
                scheduler.selector.check(member)
            except BadRequestError as error:
                raise BadRequestError(f"members[{place}].{error.field}", error.why) from None
        deadline = scheduler.clock.monotonic() + timeout_s
        scheduler.refresh(wanted.max_age)
        number = order_ids.new_order_id(scheduler.clock, scheduler.ids)
        placings = self._placings(wanted, number, owner or scheduler.name)
        for placing in placings:
            there = scheduler.fleet.instances.reporting_node(placing.instance)
            if there:
                return NotReserved(placing.instance, NoHostFound(reason=f"{placing.instance} is on {there} already"))
        while True:
            self._place(placings, wanted)
            failed = next((placing for placing in placings if placing.failure is not None), None)
            if failed is None:
                held = self._keep(placings, number, wanted.hold_s)
                if held is not None:
                    return held
                failed = placings[0]
            why = failed.failure or NoHostFound(reason="claims of it were lost before all were in place")
            rivals = self._rivals(number)
            waiting = bool(rivals) or bool(scheduler.claim_table.unsure_nodes())
            if not waiting or scheduler.clock.monotonic() >= deadline:
                scheduler.placer.give_back(placings)
                return NotReserved(failed.instance, why)
            if not rivals or min(rivals) < number:
                scheduler.placer.give_back(placings)
            for placing in placings:
                placing.restart()
            scheduler.clock.sleep(scheduler.random.uniform(*PAUSE_S))
            scheduler.step()
            scheduler.refresh(wanted.max_age)

    def _placings(self, wanted: GroupRequest, number: str, owner: str) -> list[Placing]:
        members = [
            (instance, self._member_request(member, wanted, instance))
            for member in wanted.members
            for instance in member.instance_ids(self._scheduler.ids)
        ]
        # The largest first: what is left over suits the small ones.
        members.sort(key=lambda member: (-self._share(member[1]), member[0]))
        claim_ttl_s = self._scheduler.config.claim_ttl_s
        return [
            Placing(
                request, instance, claim_ttl_s, avoid_unsure=True, reservation=number, members=len(members), owner=owner
            )
            for instance, request in members
        ]

    @staticmethod
    def _member_request(member: Request, wanted: GroupRequest, instance: str) -> Request:
        group = wanted.group if wanted.group is not None else member.group
        return msgspec.structs.replace(member, group=group, count=1, instances=(instance,), alternates=0)

    def _share(self, request: Request) -> float:
        """The largest share of any node's capacity that it wants of a class."""
        fleet = self._scheduler.fleet
        return max(
            amount / max(1, int(fleet.amounts[name][0].max())) if name in fleet.amounts else 1.0
            for name, amount in request.resources.items()
        )

    def _place(self, placings: list[Placing], wanted: GroupRequest) -> None:
        if wanted.group is None or wanted.group.policy != "affinity":
            self._scheduler.placer.place(placings)
            return
        # All on one node: one that has room for the sum.
        for row in self._rows_for_all(placings):
            for placing in placings:
                placing.restrict_to(row)
            self._scheduler.placer.place(placings)
            if all(placing.claim is not None for placing in placings):
                return
            self._scheduler.placer.give_back(placings)
        for placing in placings:
            if placing.failure is None:
                placing.fail(NoHostFound(reason="no node has room for all of an affinity group"))

    def _rows_for_all(self, placings: list[Placing]) -> list[int]:
        total: dict[str, int] = {}
        for placing in placings:
            for name, amount in placing.request.resources.items():
                total[name] = total.get(name, 0) + amount
        together = msgspec.structs.replace(placings[0].request, resources=total)
        unsure = self._scheduler.claim_table.unsure_nodes()
        rows = self._scheduler.fleet.rows
        return self._scheduler.selector.best(together, MAX_KEEPS_COUNT, {rows[node] for node in unsure if node in rows})

    def _keep(self, placings: list[Placing], number: str, hold_s: float) -> Reservation | None:
        """All are claimed: make that last for ``hold_s``. None, and nothing claimed, where one is not there any more."""
        claim_table = self._scheduler.claim_table
        waiting = list(placings)
        try:
            for _ in range(MAX_KEEPS_COUNT):
                for placing in waiting:
                    assert placing.node is not None, "claimed"
                    assert placing.claim is not None, "claimed"
                    until = claim_table.servers.time(placing.node) + hold_s
                    claim = msgspec.structs.replace(placing.claim, until=until, kept=True)
                    placing.renew(claim)
                    claim_table.add_claim(placing.node, claim)
                outcomes = claim_table.flush()
                waiting = [placing for placing in waiting if outcomes[placing.node or ""] is not WriteStatus.STORED]
                if not waiting:
                    members = tuple(_member(placing.node or "", placing.claim) for placing in placings if placing.claim)
                    return Reservation(number, placings[0].owner, members, hold_s)
        except NodestateError:
            pass
        self._scheduler.placer.give_back(placings)
        return None

    def _rivals(self, number: str) -> list[str]:
        """Other reservations that have claimed, and not yet kept: their claims may go."""
        scheduler = self._scheduler
        found = set()
        for node, known in scheduler.claim_table.records.known.items():
            if not known.record.claims:
                continue
            with suppress(NodestateError):  # a server that does not answer: nobody waits for what is claimed there
                now = scheduler.claim_table.servers.time(node)
                found |= {
                    claim.reservation
                    for claim in known.record.claims
                    if claim.reservation and not claim.kept and claim.until > now
                }
        return sorted(found - {number})

    # -- what is held

    def reservations(self) -> list[Reservation]:
        """All that are held in the cell, the eldest first; read from the claims of every node. Raises ``StaleViewError``, and
        ``StoreUnavailableError`` where a server of claims does not answer.
        """
        scheduler = self._scheduler
        scheduler.refresh()
        scheduler.claim_table.read_records(list(scheduler.fleet.names))
        scheduler.claim_table.servers.require_all()
        return [self._held(number, claims) for number, claims in sorted(self._claims().items())]

    def extend(self, number: str, hold_s: float, *, owner: str = "") -> Reservation:
        """Hold it for ``hold_s`` from now on. Raises ``NotFoundError`` where it is not held, or not the owner's, and as
        ``reservations`` does.
        """
        check_hold(hold_s)
        placings = self._found(number, owner)
        held = self._keep(placings, number, hold_s)
        if held is None:
            raise NotFoundError("reservation", f"{number} could not be extended: claims of it were lost meanwhile")
        return held

    def release(self, number: str, *, owner: str = "") -> None:
        """Give back what it holds. Raises ``NotFoundError`` where it is not held, or not the owner's, and as ``reservations`` does."""
        self._scheduler.placer.give_back(self._found(number, owner, part=True))

    # -- building

    def confirm(self, number: str, *, owner: str = "", timeout_s: float = 60.0) -> Confirmed | NotConfirmed:
        """Build every member, on its node or (where the agent refuses) on another that fits: all, or none.

        Raises ``NotFoundError`` where it is not held, or not the owner's; as ``reservations`` does; and ``TimeoutError`` where
        agents, or views that show what they built, are too slow: what became of it is then settled as after the death of a
        scheduler, or by another ``confirm``.
        """
        scheduler = self._scheduler
        deadline = scheduler.clock.monotonic() + timeout_s
        placings = self._found(number, owner)
        if any(one.placed for one in scheduler.fleet.placement_marks.by_reservation.get(number, {}).values()):
            raise NotFoundError("reservation", f"{number} was confirmed already")
        before = [self._built_before(placing, number) for placing in placings]
        if self._keep(placings, number, scheduler.config.claim_ttl_s + timeout_s) is None:
            raise NotFoundError("reservation", f"{number} is not whole any more: claims of it were lost meanwhile")
        mark = {"reservation": number, "members": len(placings), "placed": False}
        boots = [
            Boot(
                placing, hints={**mark, **({"boot": lifetime_id_of(there)} if there else {})}, again=order_id_of(there)
            )
            for placing, there in zip(placings, before, strict=True)
        ]
        outcomes = [self._of_another_confirm(outcome, number) for outcome in self._run(boots, timeout_s)]
        failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
        booted = [outcome for outcome in outcomes if isinstance(outcome, Booted)]
        if not failed:
            failed = self._ended_meanwhile(booted, deadline)
        if failed:
            self._undo([boot for boot in boots if isinstance(boot.outcome, Booted)])
            return NotConfirmed(number, tuple(failed))
        # From here on each may end by itself; who does not hear it is told by ``tidying``.
        scheduler.announce_placement(boots, {**mark, "placed": True})
        self._drop_claims([boot for boot in boots if isinstance(boot.outcome, Booted)])
        return Confirmed(number, tuple(booted))

    def _built_before(self, placing: Placing, number: str = "") -> Mapping[str, Any]:
        """The hints of what was built of a member where it is held, when the reservation ``number`` was to be confirmed before; empty
        where there is none. Raises ``NotFoundError`` where the instance is there otherwise.
        """
        fleet = self._scheduler.fleet
        row = fleet.rows.get(placing.node or "", -1)
        hints = (
            fleet.reports.hints(row, placing.instance)
            if row in fleet.instances.reporting_rows(placing.instance)
            else {}
        )
        before = hints if number and hints.get("reservation") == number else {}
        there = fleet.instances.reporting_node(placing.instance, {row} if before else ())
        if there:
            raise NotFoundError("instance", f"{placing.instance} of {placing.reservation} is on {there} already")
        return before

    def _of_another_confirm(self, outcome: Booted | Failed, number: str) -> Booted | Failed:
        """A member whose agent has it already may be of somebody who confirms at the same time, or did; a view will show it."""
        if isinstance(outcome, Booted) or outcome.refused[-1:] == () or outcome.refused[-1].reason != "here":
            return outcome
        scheduler, fleet = self._scheduler, self._scheduler.fleet
        row = fleet.rows[outcome.refused[-1].node]

        def shown() -> bool:
            with suppress(StaleViewError):
                scheduler.refresh()
            return fleet.reports.hints(row, outcome.instance).get("reservation") == number

        with suppress(TimeoutError):
            scheduler.run(shown, CATCH_UP_S)
            return Booted(outcome.instance, fleet.names[row], fleet.version[row], outcome.refused[:-1])
        return outcome

    def _ended_meanwhile(self, booted: list[Booted], deadline: float) -> list[Failed]:
        """Members that were built and that no node reports any more, by one view that has all that was built. Raises
        ``TimeoutError`` where there is none by the deadline.
        """
        scheduler = self._scheduler
        try:
            for outcome in booted:
                left_s = max(0.0, deadline - scheduler.clock.monotonic())
                scheduler.reader.read(at_least=Receipt(outcome.node, outcome.version), on_stale="flag", timeout=left_s)
            scheduler.refresh()
        except (BehindError, StaleViewError) as error:
            raise TimeoutError(f"all members are built, and no view shows it: {error}") from error
        return [
            Failed(outcome.instance, NoHostFound(reason=f"somebody ended it on {outcome.node} meanwhile"))
            for outcome in booted
            if not scheduler.fleet.instances.reporting_node(outcome.instance)
        ]

    def _undo(self, boots: list[Boot]) -> None:
        """End what was built, and hold nothing for it any more."""
        self._scheduler.undo(boots)
        self._drop_claims(boots)

    def _drop_claims(self, boots: list[Boot]) -> None:
        """Their allocations are what counts; and what is held no more is not confirmed again."""
        claim_table = self._scheduler.claim_table
        for boot in boots:
            assert isinstance(boot.outcome, Booted), "only what was built"
            if boot.placing.claim is not None:
                claim_table.drop_claim(boot.outcome.node, boot.placing.claim.id, boot.outcome.version)
        claim_table.flush_all()

    def boot(self, number: str, instance: str, *, owner: str = "", timeout_s: float = 60.0) -> Booted | Failed:
        """Build one member by itself, where it is held. Raises ``NotFoundError`` as ``confirm`` does."""
        placings = [placing for placing in self._found(number, owner, part=True) if placing.instance == instance]
        if not placings:
            raise NotFoundError("instance", f"{instance} is no member of reservation {number} that is still held")
        self._built_before(placings[0])
        [outcome] = self._run([Boot(placings[0])], timeout_s)
        return outcome

    def _run(self, boots: list[Boot], timeout_s: float) -> list[Booted | Failed]:
        self._scheduler.begin(boots)
        self._scheduler.run(lambda: all(boot.outcome is not None for boot in boots), timeout_s)
        return [boot.outcome for boot in boots if boot.outcome is not None]

    # -- finding

    def _found(self, number: str, owner: str, *, part: bool = False) -> list[Placing]:
        """Its members, from the claims. Raises ``NotFoundError``, ``StaleViewError``, and ``StoreUnavailableError`` where members
        are missing and a server of claims does not answer.
        """
        scheduler = self._scheduler
        scheduler.refresh()
        own = [node for node, claim in scheduler.claim_table.own if claim.reservation == number]
        scheduler.claim_table.read_records(own)
        claims = self._claims().get(number, [])
        if not claims or len(claims) < claims[0][1].members:
            scheduler.claim_table.read_records(list(scheduler.fleet.names))
            claims = self._claims().get(number, [])
        if not claims or (not part and len(claims) < claims[0][1].members):
            scheduler.claim_table.servers.require_all()
        if not claims:
            raise NotFoundError("reservation", f"no {number} is held in cell {scheduler.config.cell}: it expired, was "
                                  "released or confirmed, or is another cell's")  # fmt: skip
        owners = {claim.owner for _, claim in claims}
        if owner and owners != {owner}:
            raise NotFoundError("owner", f"reservation {number} is not {owner}'s")
        if not part and (len(claims) < claims[0][1].members or not all(claim.kept for _, claim in claims)):
            raise NotFoundError(
                "reservation", f"{number} is not whole: {len(claims)} of {claims[0][1].members} members are held"
            )
        return [self._placing(node, claim) for node, claim in claims]

    def _placing(self, node: str, claim: Claim) -> Placing:
        return Placing.from_claim(node, claim, self._scheduler.config.claim_ttl_s)

    def _claims(self) -> dict[str, list[tuple[str, Claim]]]:
        claim_table = self._scheduler.claim_table
        found: dict[str, list[tuple[str, Claim]]] = {}
        for node, known in claim_table.records.known.items():
            if not known.record.claims:
                continue
            with suppress(NodestateError):  # what lives on a server that does not answer is not at hand
                for number, claims in claims_by_reservation(
                    {node: known.record}, claim_table.servers.time(node)
                ).items():
                    found.setdefault(number, []).extend(claims)
        return found

    def _held(self, number: str, claims: list[tuple[str, Claim]]) -> Reservation:
        left = min(claim.until - self._scheduler.claim_table.servers.time(node) for node, claim in claims)
        whole = len(claims) == claims[0][1].members and all(claim.kept for _, claim in claims)
        members = tuple(
            _member(node, claim, placed=self._scheduler.claim_table.is_allocated(node, claim)) for node, claim in claims
        )
        return Reservation(number, claims[0][1].owner, members, max(0.0, left), whole)


def _member(node: str, claim: Claim, *, placed: bool = False) -> Member:
    return Member(claim.instance, node, claim.resources, claim.group, placed)

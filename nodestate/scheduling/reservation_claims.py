"""Reservations as claims: finds the reservations of a cell in the claim records of all nodes, and renews their claims.

A reservation consists only of the claims of its members. It is stored nowhere else, so no second record can contradict
the claims.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Final

import msgspec

from nodestate.errors import NodestateError, NotFoundError, StoreUnavailableError
from nodestate.ports import WriteStatus
from nodestate.scheduling.claims import Claim, Placing, claims_by_reservation
from nodestate.scheduling.session import Session
from nodestate.text import count_text

MAX_KEEP_TRIES_COUNT: Final = 8
"""Maximum number of times that claims are written again because other schedulers changed the same records first."""


class ReservationMember(msgspec.Struct, frozen=True):
    """One instance of a reservation, and the node that is held for it."""

    instance: str
    """The instance's id."""
    node: str
    """The node's name."""
    resources: dict[str, int]
    """The amounts that are held, by resource class."""
    group: str | None
    """The name of the instance's group; None if it has none."""
    placed: bool = False
    """Whether the node reports that the instance was built."""


class Reservation(msgspec.Struct, frozen=True):
    """Nodes that are held for a set of instances, the reservation's members."""

    id: str
    """The reservation's id. Of two reservations, the one that was begun earlier has the smaller id."""
    owner: str
    """The user who may confirm, extend and release the reservation."""
    members: tuple[ReservationMember, ...]
    """The members that have a claim."""
    seconds: float
    """The number of seconds until the first claim expires."""
    whole: bool = True
    """Whether all members are held. False while nodes are being claimed, and after a claim was lost or removed."""


class ReservationClaims:
    """Finds and renews the claims of reservations, for one scheduler."""

    def __init__(self, session: Session) -> None:
        self._session = session  # the parts of the scheduler

    def held(self) -> list[Reservation]:
        """Read the claim records of all nodes, and return all reservations of the cell, the eldest first.

        Raises ``StaleViewError`` if no view is fresh enough, and ``StoreUnavailableError`` if a claim server does not
        answer.
        """
        table = self._session.claim_table
        self._session.refresh()
        table.read_records(list(self._session.fleet.names))
        table.servers.require_all()
        return [self._reservation(one, claims) for one, claims in sorted(self._claims_by_reservation().items())]

    def find(self, reservation: str, owner: str, *, allow_part: bool = False) -> list[Placing]:
        """Return the members of a reservation as placings, each with its node and claim.

        Args:
            reservation: The reservation's id.
            owner: The user who must own the reservation; empty: any user.
            allow_part: Whether to accept a reservation of which only some members are held.

        Raises:
            NotFoundError: If no member is held, if another user owns the reservation, or if only some members are held
                and ``allow_part`` is False.
            StaleViewError: If no view is fresh enough.
            StoreUnavailableError: If members are missing and a claim server does not answer, so that their claims may
                be stored there.
        """
        session, table = self._session, self._session.claim_table
        session.refresh()
        # Another scheduler may have released the reservation since these records were read, or they were lost.
        own = [(node, claim) for node, claim in table.own if claim.reservation == reservation]
        table.read_records(dict(own + self._claims_by_reservation().get(reservation, [])))
        table.flush_all()
        claims = self._claims_by_reservation().get(reservation, [])
        if not claims or len(claims) < claims[0][1].members:
            table.read_records(list(session.fleet.names))
            claims = self._claims_by_reservation().get(reservation, [])
        if not claims or (not allow_part and len(claims) < claims[0][1].members):
            table.servers.require_all()
        if not claims:
            raise NotFoundError(
                "reservation",
                f"no reservation {reservation} is held in cell {session.config.cell}: it expired, was released "
                "or confirmed, or belongs to another cell",
            )
        if owner and {claim.owner for _, claim in claims} != {owner}:
            raise NotFoundError("owner", f"reservation {reservation} is not {owner}'s")
        if not allow_part and (len(claims) < claims[0][1].members or not all(claim.kept for _, claim in claims)):
            raise NotFoundError(
                "reservation",
                f"{reservation} is not whole: {len(claims)} of {count_text(claims[0][1].members, 'member')} are held",
            )
        return [Placing.from_claim(node, claim, session.config.claim_ttl_s) for node, claim in claims]

    def keep(
        self, placings: list[Placing], reservation: str, hold_s: float, *, avoid_unsure: bool = False
    ) -> Reservation | None:
        """Renew the claims of all members, so that they expire ``hold_s`` seconds from now.

        Args:
            placings: The members, each with its node and claim.
            reservation: The reservation's id.
            hold_s: Seconds.
            avoid_unsure: Whether all copies of the claims must be written, because their deadlines so far are near.

        Returns the reservation. Returns None if a claim could not be renewed, because another scheduler has removed it,
        other schedulers have taken its room or kept changing its record, or because of ``avoid_unsure``. The
        reservation is given up then: the claims of all members have been dropped.

        Raises ``StoreUnavailableError`` if no server with a copy of some claim answers. All claims are held then, until
        their former or their new deadline.
        """
        table, waiting, failure = self._session.claim_table, list(placings), None
        for placing in placings:
            assert placing.node is not None, "claimed"
            assert placing.claim is not None, "claimed"
            table.hold_claim(placing.node, placing.claim)
        for _ in range(MAX_KEEP_TRIES_COUNT):
            try:
                outcomes = self._renew(waiting, hold_s, avoid_unsure=avoid_unsure)
            except StoreUnavailableError as error:
                outcomes = dict.fromkeys((placing.node or "" for placing in waiting), error)
            waiting = [placing for placing in waiting if outcomes[placing.node or ""] is not WriteStatus.STORED]
            if not waiting:
                members = tuple(_member(one.node or "", one.claim) for one in placings if one.claim)
                return Reservation(reservation, placings[0].owner, members, hold_s)
            if not all(map(self._is_held, waiting)):
                failure = None
                break
            failure = next((one for one in outcomes.values() if isinstance(one, StoreUnavailableError)), None)
            # A record may demand a newer view, because another claim on the node became an allocation.
            self._session.refresher.refresh_for_retry()
        if failure is not None:
            raise failure
        self._session.placer.give_back(placings)
        return None

    def drop(self, placings: list[Placing]) -> None:
        """Drop the claims of all members of a reservation.

        Args:
            placings: The members that were found, each with its node and claim.

        Raises ``StoreUnavailableError`` if a claim server does not answer that may have the claim of a member.
        """
        table, nodes = self._session.claim_table, {placing.node for placing in placings}
        self._session.placer.give_back(placings)
        if len(placings) < placings[0].members:
            table.servers.require_all()
        if table.edited:
            for node, outcome in table.flush().items():
                if node in nodes and isinstance(outcome, StoreUnavailableError):
                    raise outcome

    def _is_held(self, placing: Placing) -> bool:
        """Return whether no other scheduler removed the claim of a member, as far as its record was read."""
        return placing.claim is not None and placing.claim.id in self._session.claim_table.own.on(placing.node or "")

    def _renew(
        self, placings: list[Placing], hold_s: float, *, avoid_unsure: bool
    ) -> Mapping[str, WriteStatus | NodestateError]:
        """Write the claims of these members with another deadline. Returns the outcome by node.

        Raises ``StoreUnavailableError`` if no server tells the time of some claim. Nothing has been written then.
        """
        table = self._session.claim_table
        times = {placing.node: table.servers.time(placing.node or "") for placing in placings}
        for placing in placings:
            assert placing.node is not None, "claimed"
            assert placing.claim is not None, "claimed"
            claim = msgspec.structs.replace(placing.claim, until=times[placing.node] + hold_s, kept=True)
            placing.renew(claim)
            table.add_claim(placing.node, claim, avoid_unsure=avoid_unsure, is_renewal=True)
        return table.flush()

    def seconds_left(self, placing: Placing) -> float:
        """Return the seconds until the claim of a member expires. Raises ``StoreUnavailableError``."""
        assert placing.node is not None, "claimed"
        assert placing.claim is not None, "claimed"
        return placing.claim.until - self._session.claim_table.servers.time(placing.node)

    def rivals(self, reservation: str) -> list[str]:
        """Return the ids of other reservations that are still being made, the eldest first.

        They have claims on some nodes, but not on nodes for all members. These claims may be dropped soon, so a retry
        may find room.
        """
        table = self._session.claim_table
        found = set()
        for node, known in table.records.known.items():
            if not known.record.claims:
                continue
            with suppress(NodestateError):  # the server does not answer, so waiting for its claims is of no use
                now = table.servers.time(node)
                found |= {
                    claim.reservation
                    for claim in known.record.claims
                    if claim.reservation and not claim.kept and claim.until > now
                }
        return sorted(found - {reservation})

    def _claims_by_reservation(self) -> dict[str, list[tuple[str, Claim]]]:
        """Return by the reservation's id its live claims in the known records, as (node, claim)."""
        table = self._session.claim_table
        found: dict[str, list[tuple[str, Claim]]] = {}
        for node, known in table.records.known.items():
            if not known.record.claims:
                continue
            with suppress(NodestateError):  # the server does not answer: its time is unknown, so its claims are skipped
                for reservation, claims in claims_by_reservation(
                    {node: known.record}, table.servers.time(node)
                ).items():
                    found.setdefault(reservation, []).extend(claims)
        return found

    def _reservation(self, reservation: str, claims: list[tuple[str, Claim]]) -> Reservation:
        """Return a reservation from its claims, as (node, claim)."""
        table = self._session.claim_table
        left_s = min(claim.until - table.servers.time(node) for node, claim in claims)
        whole = len(claims) == claims[0][1].members and all(claim.kept for _, claim in claims)
        members = tuple(_member(node, claim, placed=table.is_allocated(node, claim)) for node, claim in claims)
        return Reservation(reservation, claims[0][1].owner, members, max(0.0, left_s), whole)


def _member(node: str, claim: Claim, *, placed: bool = False) -> ReservationMember:
    """Return a member from its claim on a node."""
    return ReservationMember(claim.instance, node, claim.resources, claim.group, placed)

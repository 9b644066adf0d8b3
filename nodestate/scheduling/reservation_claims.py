"""Reservations as claims: the holders and members of reservations, read from the claim records of all nodes.

A reservation is its members' claims and nothing beside them: no other record could contradict them.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import msgspec

from nodestate.errors import NodestateError, NotFoundError
from nodestate.ports import WriteStatus
from nodestate.scheduling.claims import Claim, Placing, claims_by_reservation
from nodestate.scheduling.session import Session

MAX_KEEP_TRIES_COUNT: Final = 8
"""How often the claims of a reservation are written again if other schedulers change the same records."""


class ReservationMember(msgspec.Struct, frozen=True):
    """One instance of a reservation, and the node that is held for it.

    ``instance``: its id. ``node``: the node. ``resources``: amounts by resource class. ``group``: the name of its
    group, or None. ``placed``: whether the node reports the instance.
    """

    instance: str
    node: str
    resources: dict[str, int]
    group: str | None
    placed: bool = False


class Reservation(msgspec.Struct, frozen=True):
    """Nodes that are held for the members of a group.

    ``id``: its id; of two reservations, the one that was begun earlier has the smaller id. ``owner``: the user who may
    confirm, extend and release it. ``members``: its instances. ``seconds``: how long it is still held. ``whole``:
    whether all members are held.
    """

    id: str
    owner: str
    members: tuple[ReservationMember, ...]
    seconds: float
    whole: bool = True


class ReservationClaims:
    """Finds, renews and gives back the claims of reservations, for one scheduler."""

    def __init__(self, session: Session) -> None:
        self._session = session  # the scheduler's parts

    def held(self) -> list[Reservation]:
        """Return all reservations of the cell, the eldest first.

        Raises ``StaleViewError``, and ``StoreUnavailableError`` if a claim server does not answer.
        """
        table = self._session.claim_table
        self._session.refresh()
        table.read_records(list(self._session.fleet.names))
        table.servers.require_all()
        return [self._reservation(one, claims) for one, claims in sorted(self._claims_by_reservation().items())]

    def find(self, reservation: str, owner: str, *, allow_part: bool = False) -> list[Placing]:
        """Return the members of a reservation, each with its node and claim.

        Args:
            reservation: Its id.
            owner: Fail if the reservation is not this user's; empty: accept any owner.
            allow_part: Accept a reservation of which some members are no longer held.

        Raises ``NotFoundError`` if it is not held, not held in whole or not the owner's; ``StaleViewError``; and
        ``StoreUnavailableError`` if members are missing and a claim server does not answer.
        """
        session, table = self._session, self._session.claim_table
        session.refresh()
        table.read_records([node for node, claim in table.own if claim.reservation == reservation])
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
                f"{reservation} is not whole: {len(claims)} of {claims[0][1].members} members are held",
            )
        return [Placing.from_claim(node, claim, session.config.claim_ttl_s) for node, claim in claims]

    def keep(self, placings: list[Placing], reservation: str, hold_s: float) -> Reservation | None:
        """Renew the claims of all members, so that they last for ``hold_s`` seconds from now on.

        Returns None if a claim was lost or a server does not answer; then all claims have been given back.
        """
        table = self._session.claim_table
        waiting = list(placings)
        with suppress(NodestateError):
            for _ in range(MAX_KEEP_TRIES_COUNT):
                for placing in waiting:
                    assert placing.node is not None, "claimed"
                    assert placing.claim is not None, "claimed"
                    until = table.servers.time(placing.node) + hold_s
                    claim = msgspec.structs.replace(placing.claim, until=until, kept=True)
                    placing.renew(claim)
                    table.add_claim(placing.node, claim)
                outcomes = table.flush()
                waiting = [placing for placing in waiting if outcomes[placing.node or ""] is not WriteStatus.STORED]
                if not waiting:
                    members = tuple(_member(one.node or "", one.claim) for one in placings if one.claim)
                    return Reservation(reservation, placings[0].owner, members, hold_s)
        self._session.placer.give_back(placings)
        return None

    def rivals(self, reservation: str) -> list[str]:
        """Return the ids of other reservations that have claimed nodes and not yet all of them: their claims may go."""
        table = self._session.claim_table
        found = set()
        for node, known in table.records.known.items():
            if not known.record.claims:
                continue
            with suppress(NodestateError):  # the server does not answer: waiting for its claims is of no use
                now = table.servers.time(node)
                found |= {
                    claim.reservation
                    for claim in known.record.claims
                    if claim.reservation and not claim.kept and claim.until > now
                }
        return sorted(found - {reservation})

    def _claims_by_reservation(self) -> dict[str, list[tuple[str, Claim]]]:
        table = self._session.claim_table
        found: dict[str, list[tuple[str, Claim]]] = {}
        for node, known in table.records.known.items():
            if not known.record.claims:
                continue
            with suppress(
                NodestateError
            ):  # the server does not answer: its time is unknown, so its claims are left out
                for reservation, claims in claims_by_reservation(
                    {node: known.record}, table.servers.time(node)
                ).items():
                    found.setdefault(reservation, []).extend(claims)
        return found

    def _reservation(self, reservation: str, claims: list[tuple[str, Claim]]) -> Reservation:
        table = self._session.claim_table
        left_s = min(claim.until - table.servers.time(node) for node, claim in claims)
        whole = len(claims) == claims[0][1].members and all(claim.kept for _, claim in claims)
        members = tuple(_member(node, claim, placed=table.is_allocated(node, claim)) for node, claim in claims)
        return Reservation(reservation, claims[0][1].owner, members, max(0.0, left_s), whole)


def _member(node: str, claim: Claim, *, placed: bool = False) -> ReservationMember:
    return ReservationMember(claim.instance, node, claim.resources, claim.group, placed)

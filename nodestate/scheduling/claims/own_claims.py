"""The claims that this scheduler wrote and still holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from nodestate.model import Version
from nodestate.scheduling.claims.record import CLOCK_S, Claim, ClaimRecord


class OwnClaim(NamedTuple):
    """A claim of this scheduler, with the creation time of the record that it was written to."""

    claim: Claim
    record_born: float


class OwnClaims:
    """The claims of one scheduler, by node and id. A claim is held from the write that stored it until it is dropped,
    expires, or is removed from its record by another scheduler.
    """

    def __init__(self) -> None:
        self._by_node: dict[str, dict[str, OwnClaim]] = {}
        """The claims by node and id."""
        self._allocated: dict[str, Version] = {}
        """For each claim that became an allocation the version of the node's state that shows so."""

    def __iter__(self) -> Iterator[tuple[str, Claim]]:
        """All claims, as (node, claim)."""
        return ((node, own.claim) for node, claims in self._by_node.items() for own in claims.values())

    def nodes(self) -> list[str]:
        """The nodes on which claims are held."""
        return [node for node, claims in self._by_node.items() if claims]

    def on(self, node: str) -> Mapping[str, OwnClaim]:
        """The claims on one node, by id."""
        return self._by_node.get(node, {})

    def add(self, node: str, claims: Mapping[str, Claim], record_born: float) -> int:
        """Hold claims that were just stored in a record. Returns how many had been in a record that was lost."""
        own = self._by_node.setdefault(node, {})
        restored = sum(own[claim_id].record_born != record_born for claim_id in claims.keys() & own.keys())
        own.update({claim_id: OwnClaim(claim, record_born) for claim_id, claim in claims.items()})
        return restored

    def drop(self, node: str, claim_id: str) -> None:
        """Hold a claim no longer."""
        self._by_node.get(node, {}).pop(claim_id, None)
        self._allocated.pop(claim_id, None)

    def expire(self, node: str, now: float) -> None:
        """Hold the claims on a node whose deadline has passed no longer."""
        before = self._by_node.pop(node, {})
        left = {claim_id: own for claim_id, own in before.items() if own.claim.until + CLOCK_S > now}
        for claim_id in before.keys() - left.keys():
            self._allocated.pop(claim_id, None)
        if left:
            self._by_node[node] = left

    def compare(self, node: str, record: ClaimRecord) -> list[Claim]:
        """Compare the claims held on a node with the record that was read, and return those to write again.

        A claim that is in the record is held as the record has it: another scheduler may have extended it, or written
        it again. A claim that is missing from a newly created record was lost and is to be written again. A claim that
        is missing from the record it was written to was removed by another scheduler, which released the claim or saw
        its allocation; it is held no longer.
        """
        here = {claim.id: claim for claim in record.claims}
        lost: list[Claim] = []
        for claim, record_born in list(self._by_node.get(node, {}).values()):
            there = here.get(claim.id)
            if there is not None:
                self._by_node[node][claim.id] = OwnClaim(there, record.born)
            elif record_born != record.born:
                lost.append(claim)
            else:
                del self._by_node[node][claim.id]
        return lost

    def mark_allocated(self, node: str, claim_id: str, version: Version) -> None:
        """Note that a claim held on a node is an allocation, which the node's state of this version shows."""
        if claim_id in self._by_node.get(node, {}):
            self._allocated[claim_id] = version

    def allocated_version(self, claim_id: str) -> Version | None:
        """The version of the node's state that shows the claim's allocation; None if none was noted."""
        return self._allocated.get(claim_id)

"""The claims that this scheduler wrote and still holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from nodestate.model import Version
from nodestate.scheduling.claims.record import CLOCK_S, Claim, ClaimRecord


class OwnClaim(NamedTuple):
    """A claim of this scheduler, and the record that it was written to."""

    claim: Claim
    """The claim."""
    record_born: float
    """The creation time (``born``) of that record. A record with another creation time replaced it after a loss."""


class OwnClaims:
    """The claims that one scheduler holds, by node and id.

    The scheduler holds a claim from the write that stored it until the claim is dropped, expires, or is removed from
    its record by another scheduler.
    """

    def __init__(self) -> None:
        self._by_node: dict[str, dict[str, OwnClaim]] = {}
        """The claims by node and id."""
        self._allocated: dict[str, Version] = {}
        """By claim id, for the claims that became allocations: the version of the node's state that shows it."""

    def __iter__(self) -> Iterator[tuple[str, Claim]]:
        """Yield all claims, as (node, claim)."""
        return ((node, own.claim) for node, claims in self._by_node.items() for own in claims.values())

    def nodes(self) -> list[str]:
        """Return the nodes on which the scheduler holds claims."""
        return [node for node, claims in self._by_node.items() if claims]

    def on(self, node: str) -> Mapping[str, OwnClaim]:
        """Return the claims that are held on one node, by id."""
        return self._by_node.get(node, {})

    def add(self, node: str, claims: Mapping[str, Claim], record_born: float) -> int:
        """Hold claims that were just stored in a node's record.

        Args:
            node: The node.
            claims: The claims by id.
            record_born: The creation time of the record.

        Returns how many of these claims were held before in an older record that was lost.
        """
        own = self._by_node.setdefault(node, {})
        restored = sum(own[claim_id].record_born != record_born for claim_id in claims.keys() & own.keys())
        own.update({claim_id: OwnClaim(claim, record_born) for claim_id, claim in claims.items()})
        return restored

    def drop(self, node: str, claim_id: str) -> None:
        """Stop holding a claim."""
        self._by_node.get(node, {}).pop(claim_id, None)
        self._allocated.pop(claim_id, None)

    def expire(self, node: str, now: float) -> None:
        """Stop holding the claims on a node whose deadline has passed.

        Args:
            node: The node.
            now: Seconds of the clock of the node's server.
        """
        before = self._by_node.pop(node, {})
        left = {claim_id: own for claim_id, own in before.items() if own.claim.until + CLOCK_S > now}
        for claim_id in before.keys() - left.keys():
            self._allocated.pop(claim_id, None)
        if left:
            self._by_node[node] = left

    def shift(self, node: str, by_s: float) -> None:
        """Move the deadlines of the claims on a node by some seconds, because the clock of its server was set."""
        own = self._by_node[node]
        for claim_id, (claim, record_born) in own.items():
            own[claim_id] = OwnClaim(msgspec.structs.replace(claim, until=max(0.0, claim.until + by_s)), record_born)

    def compare(self, node: str, record: ClaimRecord, *, is_whole: bool) -> list[Claim]:
        """Compare the claims that are held on a node with the record that was read.

        Args:
            node: The node.
            record: Its record.
            is_whole: Whether all copies of the record were read.

        Returns the lost claims, which the caller writes again. There are four cases:

        - The claim is in the record. It is held with the record's content, because another scheduler may have extended
          it or written it again.
        - The claim is in one copy with an earlier deadline, and the other copy was not read. The copy missed an
          extension, which may be lost with the other copy. So the claim is returned with its later deadline.
        - The claim is missing, and the record was created after the claim was written. The claim was lost with the
          earlier record, and is returned.
        - The claim is missing from the record that it was written to, or the record says that it was removed. Another
          scheduler removed it, because it released the claim or saw its allocation. The claim is held no longer.
        """
        here = {claim.id: claim for claim in record.claims}
        lost: list[Claim] = []
        for claim, record_born in list(self._by_node.get(node, {}).values()):
            there = here.get(claim.id)
            if there is not None and not is_whole and (there.kept, there.until) < (claim.kept, claim.until):
                lost.append(claim)
            elif there is not None:
                self._by_node[node][claim.id] = OwnClaim(there, record.born)
            elif record_born != record.born and claim.id not in record.removed:
                lost.append(claim)
            else:
                self.drop(node, claim.id)
        return lost

    def mark_allocated(self, node: str, claim_id: str, version: Version) -> None:
        """Note that a claim became an allocation, if the claim is held.

        Args:
            node: The node.
            claim_id: The claim's id.
            version: The version of the node's state that shows the allocation.
        """
        if claim_id in self._by_node.get(node, {}):
            self._allocated[claim_id] = version

    def allocated_version(self, claim_id: str) -> Version | None:
        """Return the version of the node's state that shows the claim's allocation; None if it is not known."""
        return self._allocated.get(claim_id)

"""Changes to claim records that are to be written, and those whose write was not answered."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from nodestate.model import NEVER, Version
from nodestate.scheduling.claims.record import Claim, ClaimRecord, with_changes


@dataclass(slots=True)
class Edit:
    """The changes that are to be written to one node's record."""

    add: dict[str, Claim] = field(default_factory=dict)
    """Claims to add or replace, by id."""
    drop: set[str] = field(default_factory=set)
    """Ids of claims to remove."""
    seen: Version = NEVER
    """The version of the node's state that shows the allocations of removed claims."""
    avoid_unsure: bool = False
    """Whether the write must fail if claims may be missing from the record."""

    def apply(self, record: ClaimRecord) -> ClaimRecord:
        """The record with these changes."""
        return with_changes(record, add=self.add.values(), drop=self.drop, seen=self.seen)


class PendingEdits:
    """The edits of each node since the last flush."""

    def __init__(self) -> None:
        self._by_node: dict[str, Edit] = {}
        """The edit of each node that has any."""

    def __bool__(self) -> bool:
        return bool(self._by_node)

    def of(self, node: str) -> Edit | None:
        """The edit of a node; None if there is none."""
        return self._by_node.get(node)

    def add_claim(self, node: str, claim: Claim, *, avoid_unsure: bool) -> None:
        """Add a claim with the next write, in place of one with the same id."""
        edit = self._by_node.setdefault(node, Edit())
        edit.add[claim.id] = claim
        edit.avoid_unsure |= avoid_unsure

    def drop_claim(self, node: str, claim_id: str, seen: Version) -> None:
        """Remove a claim with the next write."""
        edit = self._by_node.setdefault(node, Edit())
        edit.add.pop(claim_id, None)
        edit.drop.add(claim_id)
        edit.seen = max(edit.seen, seen)

    def take_all(self) -> dict[str, Edit]:
        """All edits by node; there are none afterwards."""
        edits, self._by_node = self._by_node, {}
        return edits


class UnknownOutcomes:
    """New claims whose write was not answered: they may be stored or not, and nothing is built on them."""

    def __init__(self) -> None:
        self._by_node: dict[str, set[str]] = {}
        """The ids of such claims, by node."""

    def add(self, node: str, claim_ids: Iterable[str]) -> None:
        """Note that the write of these claims was not answered."""
        self._by_node.setdefault(node, set()).update(claim_ids)

    def discard(self, node: str, claim_id: str) -> None:
        """Note that a claim is written again, so that it is wanted if it is found."""
        self._by_node.get(node, set()).discard(claim_id)

    def resolve(self, node: str, found: Collection[str]) -> set[str]:
        """The ids of such claims among those ``found`` in the record that was read: the caller drops them. The others
        were not written, and are forgotten.
        """
        return self._by_node.pop(node, set()).intersection(found)

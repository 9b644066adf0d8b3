"""Changes to claim records: the ones that the next flush writes, and new claims whose write was not answered."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from nodestate.model import NEVER, Version
from nodestate.scheduling.claims.record import Claim, ClaimRecord, with_changes, with_fault


@dataclass(slots=True)
class Edit:
    """The changes that the next flush makes to one node's record."""

    add: dict[str, Claim] = field(default_factory=dict)
    """Claims to add or replace, by id."""
    drop: set[str] = field(default_factory=set)
    """Ids of claims to remove."""
    seen: Version = NEVER
    """The new minimum of the record's ``seen``: the newest version given for one of the removed claims."""
    avoid_unsure: set[str] = field(default_factory=set)
    """Ids of added claims that must not be written if the record is unsure, so that claims may be missing from it."""
    renewed: set[str] = field(default_factory=set)
    """Ids of added claims that the scheduler holds, with another deadline."""
    clock_was_set: bool = False
    """Whether the clock of the server was set, so that the deadlines of the added claims are wrong."""
    fault: str = ""
    """Why the node's agent did not take an instance; empty if it has no new fault."""
    fault_at: float = 0.0
    """The time of that fault, in seconds of the server's clock."""

    def apply(self, record: ClaimRecord) -> ClaimRecord:
        """Return a copy of the record with these changes."""
        changed = with_changes(record, add=self.add.values(), drop=self.drop, seen=self.seen)
        return with_fault(changed, self.fault, self.fault_at) if self.fault else changed

    def new_ids(self) -> set[str]:
        """Return the ids of the added claims that the record did not have."""
        return self.add.keys() - self.renewed


class PendingEdits:
    """The edits of each node since the last flush."""

    def __init__(self) -> None:
        self._by_node: dict[str, Edit] = {}
        """The edits by node; a node without an edit is missing."""

    def __bool__(self) -> bool:
        return bool(self._by_node)

    def __iter__(self) -> Iterator[tuple[str, Edit]]:
        """Yield all edits, as (node, edit)."""
        return iter(self._by_node.items())

    def of(self, node: str) -> Edit | None:
        """Return the edit of a node; None if there is none."""
        return self._by_node.get(node)

    def rewrite(self, node: str) -> None:
        """Write the node's record again with the next flush, also without a change."""
        self._by_node.setdefault(node, Edit())

    def add_claim(self, node: str, claim: Claim, *, avoid_unsure: bool, is_renewal: bool) -> None:
        """Add a claim with the next flush. It replaces a claim with the same id."""
        edit = self._by_node.setdefault(node, Edit())
        edit.add[claim.id] = claim
        if avoid_unsure:
            edit.avoid_unsure.add(claim.id)
        if is_renewal:
            edit.renewed.add(claim.id)

    def drop_claim(self, node: str, claim_id: str, seen: Version) -> None:
        """Remove a claim with the next flush, and raise the record's ``seen`` to at least this version."""
        edit = self._by_node.setdefault(node, Edit())
        edit.add.pop(claim_id, None)
        edit.avoid_unsure.discard(claim_id)
        edit.renewed.discard(claim_id)
        edit.drop.add(claim_id)
        edit.seen = max(edit.seen, seen)

    def keep_written(self, node: str, written: Collection[str]) -> None:
        """Do not write claims again that the node's record has, because they were lost before.

        Another write of the same claim came first, and may have given it a later deadline.

        Args:
            node: The node.
            written: The ids of claims in the record. The ones that the next flush would renew are renewed.
        """
        edit = self._by_node.get(node)
        if edit is not None:
            for claim_id in edit.new_ids().intersection(written):
                del edit.add[claim_id]
                edit.avoid_unsure.discard(claim_id)

    def add_fault(self, node: str, reason: str, at: float) -> None:
        """Write a fault of the node with the next flush.

        Args:
            node: The node.
            reason: Why its agent did not take an instance.
            at: The time in seconds of the server's clock.
        """
        edit = self._by_node.setdefault(node, Edit())
        edit.fault, edit.fault_at = reason, at

    def take_all(self) -> dict[str, Edit]:
        """Remove all edits, and return them by node."""
        edits, self._by_node = self._by_node, {}
        return edits


class UnknownOutcomes:
    """New claims whose write was not answered, so that they may be stored or not.

    Their placings have chosen again meanwhile. So the claims that turn out to be stored are to be dropped.
    """

    def __init__(self) -> None:
        self._by_node: dict[str, set[str]] = {}
        """The ids of these claims, by node."""

    def add(self, node: str, claim_ids: Iterable[str]) -> None:
        """Note that the write of these claims was not answered."""
        self._by_node.setdefault(node, set()).update(claim_ids)

    def discard(self, node: str, claim_id: str) -> None:
        """Remove a claim from these claims, because it is about to be written again.

        If a later read finds the claim in its record, the claim is kept.
        """
        self._by_node.get(node, set()).discard(claim_id)

    def resolve(self, node: str, found: Collection[str], *, is_whole: bool) -> set[str]:
        """Compare the unanswered claims of a node with the node's record, and forget them.

        Args:
            node: The node.
            found: The ids of the claims in the record that was just read.
            is_whole: Whether all copies were read. Otherwise no claim is forgotten: the other copy may have it.

        Returns the ids of the unanswered claims that were stored after all. The caller drops these claims.
        """
        unanswered = self._by_node.get(node, set())
        if is_whole and unanswered:
            del self._by_node[node]
        return unanswered.intersection(found)

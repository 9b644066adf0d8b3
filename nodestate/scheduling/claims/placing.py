"""A placing: one instance that needs a node, together with its claim on a node, or the reason why it got none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from nodestate.scheduling.claims.record import Claim
from nodestate.scheduling.fleet import Exclusion
from nodestate.scheduling.request import Policy, Request, request_of
from nodestate.scheduling.selection import Lack, Remaining
from nodestate.text import count_text


@dataclass(frozen=True, slots=True)
class NoHostFound:
    """Why an instance got no node. Its ``str`` is a sentence with the filter that no node passed, or with the cause."""

    remaining: tuple[Remaining, ...] = ()
    """How many nodes were left after each filter; empty if the cause is no filter."""
    reason: str = ""
    """The cause in words, if it is no filter; else empty."""
    node: str = ""
    """The only node that the instance was allowed to go to; empty if it was not restricted to one node."""
    lacks: tuple[Lack, ...] = ()
    """The resource classes that no node had enough of; filled only if no node passed the filter ``resources``."""
    is_temporary: bool = False
    """True if the claim servers are the cause: they do not answer, or may have lost claims. Try again later."""
    known: int = 0
    """How many nodes the fleet had, with the excluded ones, which ``remaining`` does not count; 0 if not counted."""

    def __str__(self) -> str:
        if self.reason:
            return self.reason
        last = next((step for step in self.remaining if not step.nodes), None)
        before = next((step for step in reversed(self.remaining) if step.nodes), None)
        if last is None or before is None:
            return self._nothing_to_filter()
        if self.node:
            return f"{self.node} does not pass {last.filter}{self._lacking(last.filter)}"
        all_nodes = self.remaining[0].nodes
        count = f"{before.nodes:,} of {count_text(all_nodes, 'node')}"
        return f"the filter {last.filter} removed the last {count}{self._lacking(last.filter)}"

    def _nothing_to_filter(self) -> str:
        """Return a sentence for the case that there was no node before the first filter."""
        if self.node:
            return f"{self.node} was tried before or is excluded"
        if not self.known:
            return "no node is known"
        nodes = "the only known node was" if self.known == 1 else f"all {self.known:,} known nodes were"
        return f"no node is left to try: {nodes} tried before or excluded"

    def _lacking(self, refused_by: str) -> str:
        """Return a phrase about the missing resource classes, worded to follow the name of the filter."""
        if refused_by == "resources" and not self.lacks and not self.node:
            return "; there is enough of each, and nowhere of all at once"
        most, where = ("", "") if self.node else ("at most ", " on a node")
        return "".join(
            f"; {lack.resource}: {lack.wanted:,} wanted, {most}{lack.free:,} free{where}" for lack in self.lacks
        )


@dataclass(slots=True)
class Placing:
    """One instance that needs a node. Any module may read the fields; only the methods below assign to them::

        unplaced --assign--> claimed --renew--> claimed, by the same claim with another deadline
        claimed --release: the node refused, or another scheduler was faster--> unplaced
        unplaced --fail--> failed --retry, restart, restrict_to--> unplaced

    *Unplaced* means that the placing has neither a claim nor a failure. The placer works on unplaced placings only.
    """

    request: Request
    """The resources and constraints that the node must meet."""
    instance: str
    """The instance's id."""
    claim_ttl_s: float
    """Seconds from the claim to its deadline."""
    avoided_rows: set[int] = field(default_factory=set)
    """Rows of the fleet whose nodes the instance must not go to, for example because they refused it."""
    only_row: int | None = None
    """The row of the only node that the instance may go to; None if any node will do."""
    avoid_unsure: bool = False
    """Whether to avoid nodes whose claim record is unsure, so that claims may be missing from it."""
    exclusions: tuple[Exclusion, ...] = ()
    """Allocations that count as absent while a node is chosen: the instance's own, if it is migrated or resized."""
    reservation: str = ""
    """The id of the reservation that the instance belongs to; empty if none."""
    members: int = 1
    """How many members that reservation has."""
    owner: str = ""
    """The user who owns that reservation."""
    node: str | None = None
    """The node on which the instance has its claim, or on which a view shows it; else None."""
    claim: Claim | None = None
    """The claim on that node; None if there is none."""
    failure: NoHostFound | None = None
    """Why the instance got no node; None unless the placing failed."""
    conflicts: int = 0
    """How many times the instance lost its chosen node to another scheduler."""
    removed: Mapping[str, int] = field(default_factory=dict)
    """By filter, the nodes that it excluded when a node was chosen last; for counters."""
    seeds_group: bool = False
    """Whether the instance is the first member of an affinity group, as far as its scheduler knows."""
    together: list[Placing] = field(default_factory=list, compare=False, repr=False)
    """All placings, this one included, that get nodes together, or none of them; empty if the placing is alone."""

    @classmethod
    def from_claim(cls, node: str, claim: Claim, claim_ttl_s: float) -> Placing:
        """Make the placing of a reservation's member from the member's claim. The placing is claimed already.

        Args:
            node: The node that the claim is on.
            claim: The member's claim.
            claim_ttl_s: Seconds from a new claim to its deadline.
        """
        request = request_of(claim.instance, claim.resources, claim.group, claim.hints)
        return cls(
            request,
            claim.instance,
            claim_ttl_s,
            reservation=claim.reservation,
            members=claim.members,
            owner=claim.owner,
            node=node,
            claim=claim,
        )

    @property
    def original(self) -> Exclusion | None:
        """The allocation that the instance has already, if it is migrated or resized; else None."""
        return next((one for one in self.exclusions if one.instance == self.instance), None)

    @property
    def in_place(self) -> bool:
        """Whether the instance is resized on the node that it is on."""
        return self.original is not None and self.original.row == self.only_row

    @property
    def settled(self) -> bool:
        """Whether the placing has a claim or a failure, so that the placer has nothing to do for it."""
        return self.claim is not None or self.failure is not None

    def avoid(self, rows: Iterable[int]) -> None:
        """Exclude the nodes of these rows from now on."""
        self.avoided_rows.update(rows)

    def restrict_to(self, row: int | None) -> None:
        """Allow only the node of this row; None: any node. A placing that has failed is tried again."""
        self.only_row = row
        self.failure = None

    def note_removed(self, removed: Mapping[str, int]) -> None:
        """Set how many nodes each filter excluded."""
        self.removed = removed

    def assign(self, node: str, claim: Claim, *, seeds_group: bool = False) -> None:
        """Set the chosen node, and the claim that is about to be written on it.

        Args:
            node: The node.
            claim: The claim.
            seeds_group: Whether the instance is the first member of an affinity group.
        """
        self.node, self.claim, self.seeds_group = node, claim, seeds_group

    def renew(self, claim: Claim) -> None:
        """Replace the claim by one with the same id and another deadline."""
        assert self.claim is not None, "only a claim that is held can be renewed"
        assert claim.id == self.claim.id, "a renewed claim keeps its id"
        self.claim = claim

    def release(self) -> None:
        """Clear the node and the claim. The caller drops the claim from the claim table."""
        self.node = self.claim = None

    def locate(self, node: str) -> None:
        """Set the node, because a view shows the instance there. No claim is needed on it."""
        self.node = node

    def fail(self, reason: NoHostFound) -> None:
        """Fail for this reason: the instance gets no node."""
        self.failure = reason

    def count_conflict(self) -> None:
        """Count that the instance lost its chosen node to another scheduler."""
        self.conflicts += 1

    def retry(self) -> None:
        """Clear the failure, so that the placer tries again in its next round."""
        self.failure = None

    def restart(self) -> None:
        """Clear the failure and the count of conflicts, so that the placer has its full number of tries again."""
        self.failure = None
        self.conflicts = 0


def join_groups(placings: Iterable[Placing], *policies: Policy) -> None:
    """Let the members of each group among these placings get nodes together, or none of them (``together``).

    Args:
        placings: The placings.
        policies: The policies of the groups that are joined.
    """
    by_group: dict[str, list[Placing]] = {}
    for placing in placings:
        group = placing.request.group
        if group is not None and group.policy in policies:
            by_group.setdefault(group.name, []).append(placing)
    for members in by_group.values():
        if len(members) > 1:
            for placing in members:
                placing.together = members

"""One instance's way to a node: what the instance needs, the node and claim that were found, or why there are none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from nodestate.scheduling.claims.record import Claim
from nodestate.scheduling.fleet import Exclusion
from nodestate.scheduling.request import Request, request_of
from nodestate.scheduling.selection import Lack, Remaining


@dataclass(frozen=True, slots=True)
class NoHostFound:
    """Why an instance got no node. As text, a sentence that names the filter that left no node, or the cause."""

    remaining: tuple[Remaining, ...] = ()
    """How many nodes each filter left; empty if ``reason`` says all."""
    reason: str = ""
    """The cause in words if no filter is the cause; else empty."""
    node: str = ""
    """The only node that was allowed, if the instance was restricted to one; else empty."""
    lacks: tuple[Lack, ...] = ()
    """The resource classes that no node had enough of, if the filter ``resources`` left no node."""

    def __str__(self) -> str:
        if self.reason:
            return self.reason
        last = next((step for step in self.remaining if not step.nodes), None)
        before = next((step for step in reversed(self.remaining) if step.nodes), None)
        if last is None or before is None:
            return f"{self.node} is passed over" if self.node else "no node is known"
        if self.node:
            return f"{self.node} does not pass {last.filter}{self._lacking(last.filter)}"
        left = f"{before.nodes:,} {'was' if before.nodes == 1 else 'were'} left before it"
        return f"no node passes {last.filter}: of {self.remaining[0].nodes:,}, {left}{self._lacking(last.filter)}"

    def _lacking(self, refused_by: str) -> str:
        """The resource classes that were missing, worded to follow the filter's name."""
        if refused_by == "resources" and not self.lacks and not self.node:
            return "; there is enough of each, and nowhere of all at once"
        most, where = ("", "") if self.node else ("at most ", " on a node")
        return "".join(
            f"; {lack.resource}: {lack.wanted:,} wanted, {most}{lack.free:,} free{where}" for lack in self.lacks
        )


@dataclass(slots=True)
class Placing:
    """One instance on its way to a node. The fields are read everywhere and assigned by the methods below alone::

        wanted --assign--> claimed --renew--> claimed, by the same claim with another deadline
        claimed --release: the node refused, or another scheduler was faster--> wanted
        wanted --fail--> failed --retry, restart, restrict_to--> wanted

    A placing is *settled* if it is claimed or failed; a placer leaves settled ones alone.
    """

    request: Request
    """The resources and constraints that the node must meet."""
    instance: str
    """The instance's id."""
    claim_ttl_s: float
    """Seconds from the claim to its deadline."""
    avoided_rows: set[int] = field(default_factory=set)
    """Rows of the fleet that the instance must not go to (again)."""
    only_row: int | None = None
    """The one row that the instance may go to; None if any row will do."""
    avoid_unsure: bool = False
    """Pass over nodes from whose claim record claims may be missing."""
    exclusions: tuple[Exclusion, ...] = ()
    """Instances to leave out of the fleet while a node is chosen: the instance itself, if it migrates."""
    reservation: str = ""
    """The id of the reservation that the instance belongs to; empty if none."""
    members: int = 1
    """How many members that reservation has."""
    owner: str = ""
    """The user who owns that reservation."""
    node: str | None = None
    """The node on which the instance is claimed."""
    claim: Claim | None = None
    """The claim on that node."""
    failure: NoHostFound | None = None
    """Why no node was found; None until then."""
    conflicts: int = 0
    """How many times another scheduler took the chosen node first."""
    seeds_group: bool = False
    """Whether the instance is the first of an affinity group, as far as its scheduler sees."""

    @classmethod
    def from_claim(cls, node: str, claim: Claim, claim_ttl_s: float) -> Placing:
        """A placing that is claimed already: the member of a reservation that ``claim`` holds on ``node``."""
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
        """The allocation that the instance has already, if it migrates or is resized; else None."""
        return next((one for one in self.exclusions if one.instance == self.instance), None)

    @property
    def settled(self) -> bool:
        """Whether the instance is claimed, or failed."""
        return self.claim is not None or self.failure is not None

    def avoid(self, rows: Iterable[int]) -> None:
        """Do not go to these rows from now on."""
        self.avoided_rows.update(rows)

    def restrict_to(self, row: int) -> None:
        """Go to this row or to none; an earlier failure is cleared."""
        self.only_row = row
        self.failure = None

    def assign(self, node: str, claim: Claim, *, seeds_group: bool = False) -> None:
        """Take the node and the claim that is about to be written on it."""
        self.node, self.claim, self.seeds_group = node, claim, seeds_group

    def renew(self, claim: Claim) -> None:
        """Replace the claim by the same one with another deadline."""
        assert self.claim is not None, "only a claim that is held can be renewed"
        assert claim.id == self.claim.id, "a renewed claim keeps its id"
        self.claim = claim

    def release(self) -> None:
        """Let go of the node and the claim; the caller drops the claim from the claim table."""
        self.node = self.claim = None

    def locate(self, node: str) -> None:
        """Note that a view shows the instance on ``node``; no claim is needed there."""
        self.node = node

    def fail(self, reason: NoHostFound) -> None:
        """End without a node."""
        self.failure = reason

    def count_conflict(self) -> None:
        """Note that another scheduler took the chosen node first."""
        self.conflicts += 1

    def retry(self) -> None:
        """Clear the failure, so that the next round chooses again."""
        self.failure = None

    def restart(self) -> None:
        """Clear the failure and the count of conflicts, so that all tries are available again."""
        self.failure = None
        self.conflicts = 0

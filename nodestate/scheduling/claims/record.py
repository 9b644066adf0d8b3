r"""The record of all claims on one node, and the pure functions that read and change it.

A claim is room that a scheduler takes on a node before the node's agent reports the allocation. One claim, from the
choice of a node to its end::

    claim --all members of its reservation are claimed--> reservation --the agent reports the instance--> allocation
      |                                                        |
      \--dropped, refused, or past its deadline--> gone        \--released, or not extended by its deadline--> gone

All claims on one node are in one record, which is changed by compare-and-swap only. If two schedulers take the same
room, the second write fails: that scheduler reads the first one's claim and chooses again. The room left on a node is
its capacity, less the usage in the view, less the live claims that are not yet among the node's allocations.

Three rules make this sound:

- **A claim that became an allocation.** Once a claim has become an allocation it no longer counts, also after the
  allocation has ended, and may be removed from the record. A scheduler with an older view would then count the instance
  neither as a claim nor as an allocation, and overcommit the node. So the record keeps ``seen``, the node version that
  showed the allocation: a scheduler with an older view must refresh before it claims there.
- **Deadlines.** A deadline is a time of the memcached server on which the record lives, because all schedulers share
  that clock. Each client knows that clock only to the second, so a scheduler that ignored a claim right at its deadline
  could take room that the holder still counts on. So a claim counts for ``CLOCK_S`` longer.
- **Missing records.** If a record is missing, a scheduler cannot tell whether it was lost or never existed. So the
  scheduler creates a new one, with its time of creation in ``born``. For ``UNSURE_S`` after that the record is
  *unsure*: claims from before may be missing. A reservation promises the node without asking its agent, so it passes
  over nodes with an unsure record. A boot goes on, because the agent knows its node. Meanwhile the holders of
  lost claims write them again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

import msgspec

from nodestate.model import NEVER, Version
from nodestate.scheduling.fleet import OutstandingClaims
from nodestate.store.wire import Codec

CLOCK_S: Final = 1.0
"""Largest difference in seconds between two clients' readings of one server's clock."""
UNSURE_S: Final = 10.0
"""Seconds after a record's creation for which claims may be missing from it."""
REASSERT_S: Final = UNSURE_S / 3
"""Seconds between two checks of a scheduler that its own claims are still in their records."""
MAX_CLAIMS_COUNT: Final = 1_000
"""Most claims on one node."""
assert REASSERT_S + CLOCK_S < UNSURE_S, "a lost claim is written again before its record stops being unsure"


class Claim(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Room on one node that a scheduler takes for one instance. The order of the fields is the wire format."""

    id: str
    """The claim's id, which sorts by time (``order_ids``)."""
    instance: str
    """The id of the instance that is to be built."""
    holder: str
    """The name of the scheduler that wrote the claim."""
    until: float
    """The deadline, in seconds of the server's clock."""
    resources: dict[str, int]
    """The claimed amounts by resource class; for a resize only the amounts beyond the instance's allocation."""
    group: str | None = None
    """The instance's group; the agent stores it with the allocation."""
    hints: dict[str, Any] = {}
    """The constraints of the request; the agent stores them with the allocation."""
    reservation: str = ""
    """The id of the reservation that the instance belongs to; empty if none."""
    members: int = 1
    """How many members that reservation has."""
    kept: bool = False
    """Whether the claims of all members were in place, so that this one holds for the reservation's time."""
    resize: bool = False
    """Whether the instance has an allocation on this node already."""
    owner: str = ""
    """The user who owns the reservation."""


class ClaimRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """All claims on one node. The order of the fields is the wire format."""

    born: float
    """When the record was created, in seconds of the server's clock."""
    seen_incarnation: int = 0
    """The incarnation of ``seen``."""
    seen_generation: int = 0
    """The generation of ``seen``."""
    claims: tuple[Claim, ...] = ()
    """The claims, the oldest first."""

    @property
    def seen(self) -> Version:
        """The version of the node's state that a scheduler must have read, or a newer one, to claim on the node."""
        return Version(self.seen_incarnation, self.seen_generation)


CLAIMS: Final = Codec(ClaimRecord)
"""Records to bytes and back."""


def live_claims(claims: Iterable[Claim], now: float) -> list[Claim]:
    """The claims that still count at ``now``, in seconds of the server's clock."""
    return [claim for claim in claims if claim.until + CLOCK_S > now]


def is_unsure(record: ClaimRecord, now: float) -> bool:
    """Whether the record was created so recently that claims may be missing from it."""
    return now < record.born + UNSURE_S


def outstanding_claims(claims: Iterable[Claim], now: float, allocated: Collection[str]) -> OutstandingClaims:
    """Add up the live claims that the node's allocations do not include.

    Args:
        claims: The claims of one record.
        now: Seconds of the server's clock.
        allocated: The ids of the claims that are, or were, allocations of the node.
    """
    found = OutstandingClaims()
    for claim in live_claims(claims, now):
        if claim.id in allocated:
            continue
        for name, amount in claim.resources.items():
            found.amounts[name] = found.amounts.get(name, 0) + amount
        if not claim.resize:
            found.tenants[claim.instance] = claim.group
    return found


def without_ended_claims(record: ClaimRecord, now: float, allocated: Collection[str], version: Version) -> ClaimRecord:
    """The record without the claims that no longer count: expired claims, and claims that became allocations.

    Args:
        record: The record as it was read.
        now: Seconds of the server's clock.
        allocated: The ids of the claims that are, or were, allocations of the node.
        version: The version of the node's state that shows so. If a claim is removed for it, the new record's ``seen``
            is at least this version.
    """
    kept: list[Claim] = []
    seen = record.seen
    for claim in live_claims(record.claims, now):
        if claim.id in allocated:
            seen = max(seen, version)
        else:
            kept.append(claim)
    if len(kept) == len(record.claims):
        return record
    return ClaimRecord(record.born, *seen, tuple(kept))


def with_changes(
    record: ClaimRecord, *, add: Iterable[Claim] = (), drop: Collection[str] = (), seen: Version = NEVER
) -> ClaimRecord:
    """The record without the claims whose ids are in ``drop``, with the claims in ``add``, and with ``seen`` if it is
    newer. An added claim replaces one with the same id.
    """
    added = {claim.id: claim for claim in add}
    kept = [claim for claim in record.claims if claim.id not in drop and claim.id not in added]
    return ClaimRecord(record.born, *max(record.seen, seen), (*kept, *added.values()))


def claims_by_reservation(records: Mapping[str, ClaimRecord], now: float) -> dict[str, list[tuple[str, Claim]]]:
    """The live claims of each reservation, as (node, claim), from the records of these nodes."""
    found: dict[str, list[tuple[str, Claim]]] = {}
    for node, record in records.items():
        for claim in live_claims(record.claims, now):
            if claim.reservation:
                found.setdefault(claim.reservation, []).append((node, claim))
    return found


def max_group_members(claim: Claim) -> int | None:
    """How many members of the claim's group may be on one node; None unless the group's policy is anti-affinity."""
    if claim.group is None or claim.hints.get("group_policy") != "anti-affinity":
        return None
    limit = claim.hints.get("max_per_node", 1)
    return limit if isinstance(limit, int) else 1

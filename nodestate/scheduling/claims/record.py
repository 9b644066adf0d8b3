r"""Claims: what schedulers take of a node before its agent has said so. The record of a node, and its pure functions.

One claim, from the choice of a node to its end::

    claim --the others of its reservation are claimed, too--> reservation --its agent reports the instance--> allocation
      |                                                            |
      \--undone, refused, or not confirmed by its deadline--> gone \--released, or not extended by its deadline--> gone

All claims on a node stand in one record, which changes by compare-and-swap alone; so of two schedulers that take the
same room one sees the other's claim and looks again. A node has room for what it has left of its capacity after usage
(as the view says) and after the live claims that its allocations do not show yet.

Three things make that sound:

- **A claim that became an allocation** counts no more, also after that ended, and may be dropped from the record. But a scheduler whose view is older would then count it
  neither here nor there; so the record keeps ``seen``, the version of the node that showed it, and who has an older state
  must read a newer one before it claims.
- **Deadlines** are times of the memcached server that the record lives on: all sides share that clock. A claim counts for a
  further ``CLOCK_S``, as each knows that clock only to the second, so nobody drops what its holder still counts on.
- **A record that is missing** was lost, or never was: nobody can tell. So it is begun anew with ``born``, and until
  ``UNSURE_S`` later it is *unsure*: claims from before may be missing from it. Who promises a node without asking its agent (a
  reservation) passes over it; who asks the agent goes on, as the agent knows. Holders put their claims back meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

import msgspec

from nodestate.model import NEVER, Version
from nodestate.scheduling.fleet import OutstandingClaims
from nodestate.store.wire import Codec

CLOCK_S: Final = 1.0
"""What clients may differ in about the server's clock."""
UNSURE_S: Final = 10.0
REASSERT_S: Final = UNSURE_S / 3
"""Holders look so often whether their claims are still there."""
MAX_CLAIMS_COUNT: Final = 1_000
"""Claims on one node."""
assert REASSERT_S + CLOCK_S < UNSURE_S, "a lost claim is back before its node passes for sure"


class Claim(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """``until``: its deadline. ``holder``: the scheduler. ``reservation``: its id, with the number of members it has in all,
    or empty, and ``owner`` whose it is. ``kept``: all of them are in place. ``resize``: the instance has an allocation on the node, and ``resources``
    are what it takes beyond that. ``hints`` and ``group``: what travels on to the agent.
    """

    id: str
    instance: str
    holder: str
    until: float
    resources: dict[str, int]
    group: str | None = None
    hints: dict[str, Any] = {}
    reservation: str = ""
    members: int = 1
    kept: bool = False
    resize: bool = False
    owner: str = ""


class ClaimRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """All claims on one node. ``born``: when the record began; ``seen_*``: how new a state of the node one must have to claim
    on it.
    """

    born: float
    seen_incarnation: int = 0
    seen_generation: int = 0
    claims: tuple[Claim, ...] = ()

    @property
    def seen(self) -> Version:
        """How new a state of the node one must have to claim on it."""
        return Version(self.seen_incarnation, self.seen_generation)


CLAIMS: Final = Codec(ClaimRecord)


def live(claims: Iterable[Claim], now: float) -> list[Claim]:
    """Those that count still."""
    return [claim for claim in claims if claim.until + CLOCK_S > now]


def unsure(record: ClaimRecord, now: float) -> bool:
    """Whether claims may be missing from a record."""
    return now < record.born + UNSURE_S


def outstanding(claims: Iterable[Claim], now: float, shown: Collection[str]) -> OutstandingClaims:
    """What is claimed beyond what the node's allocations show; ``shown`` are the ids of claims that they do, or did."""
    found = OutstandingClaims()
    for claim in live(claims, now):
        if claim.id in shown:
            continue
        for name, amount in claim.resources.items():
            found.amounts[name] = found.amounts.get(name, 0) + amount
        if not claim.resize:
            found.tenants[claim.instance] = claim.group
    return found


def settled(record: ClaimRecord, now: float, shown: Collection[str], version: Version) -> ClaimRecord:
    """The record without claims that are over, or ``shown`` by the node at ``version``: who has less must not claim on it."""
    kept: list[Claim] = []
    seen = record.seen
    for claim in live(record.claims, now):
        if claim.id in shown:
            seen = max(seen, version)
        else:
            kept.append(claim)
    if len(kept) == len(record.claims):
        return record
    return ClaimRecord(record.born, *seen, tuple(kept))


def changed(
    record: ClaimRecord, *, add: Iterable[Claim] = (), drop: Collection[str] = (), seen: Version = NEVER
) -> ClaimRecord:
    """With these claims added (in place of those with the same ids), and those of the ids in ``drop`` gone."""
    fresh = {claim.id: claim for claim in add}
    kept = [claim for claim in record.claims if claim.id not in drop and claim.id not in fresh]
    return ClaimRecord(record.born, *max(record.seen, seen), (*kept, *fresh.values()))


def by_reservation(records: Mapping[str, ClaimRecord], now: float) -> dict[str, list[tuple[str, Claim]]]:
    """Live claims with their nodes, by reservation."""
    found: dict[str, list[tuple[str, Claim]]] = {}
    for node, record in records.items():
        for claim in live(record.claims, now):
            if claim.reservation:
                found.setdefault(claim.reservation, []).append((node, claim))
    return found


def group_limit(claim: Claim) -> int | None:
    """How many of its group a node may have, where its policy sets a bound."""
    if claim.group is None or claim.hints.get("group_policy") != "anti-affinity":
        return None
    limit = claim.hints.get("max_per_node", 1)
    return limit if isinstance(limit, int) else 1

r"""The record of all claims on one node, and the pure functions that read and change it.

With a claim a scheduler reserves room on a node before the node's agent reports the allocation. The states of a claim,
from the choice of a node to the claim's end (a claim without a reservation skips the state in the middle)::

    claim --all members of its reservation are claimed--> reservation --the agent reports the instance--> allocation
      |                                                        |
      \--dropped, refused, or past its deadline--> gone        \--released, or not extended by its deadline--> gone

All claims on one node are in one record, which is changed by compare-and-swap only. If two schedulers claim the same
room, the second write fails. The second scheduler then reads the record with the first one's claim, and chooses again.
The room left on a node is its capacity, less the usage in the view, less the live claims that are not yet among the
node's allocations.

Three rules make this sound:

- **A claim that became an allocation.** Once a claim has become an allocation, the claim no longer counts, not even
  after the allocation has ended, and may be removed from the record. A scheduler with an older view would then count
  the instance neither as a claim nor as an allocation, and overcommit the node. So the record keeps ``seen``, the node
  version that showed the allocation. A scheduler with an older view must refresh before it claims on the node.
- **Deadlines.** A deadline is a time of the memcached server on which the record lives, because all schedulers share
  that clock. Each client knows that clock only to the second, so a scheduler that ignored a claim right at its deadline
  could take room that the holder still counts on. So a claim counts for ``CLOCK_S`` longer.
- **Two copies.** With ``replicas = 2`` a record has a copy on a second server. A claim is written to the first copy and
  then to the second one, each by compare-and-swap. So two schedulers that each read one copy at least see each other's
  claims, if one of them wrote both copies. A copy that missed a write, because its server was away, is merged with the
  other one (``record_copies``): both have some of the claims, and ``removed`` tells which ones were removed since.
  While only one copy can be read, the record is *unsure*, see below.
- **Missing records.** If a record is missing, a scheduler cannot tell whether it was lost or never existed. So the
  scheduler creates a new record, with its time of creation in ``born``. For ``UNSURE_S`` seconds after that the record
  is *unsure*: older claims may be missing from it, until their holders have written them again. A reservation avoids
  nodes with an unsure record, because it promises the node without asking the agent. A boot may use them, because
  the agent refuses the order if the node is full. A copy that is missing is created again with the content of the other
  copy, and the record is unsure as well: the other copy may have missed a write.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta

from nodestate.model import MAX_CLASSES_COUNT, MAX_COUNTER, MAX_WORD_CHARS, NEVER, Amount, Seconds, Version
from nodestate.model.group_policy import group_policy_of
from nodestate.scheduling.fleet import OutstandingClaims
from nodestate.store.head import WrittenMs
from nodestate.store.wire import Codec

CLOCK_S: Final = 1.0
"""Maximum difference in seconds between two clients' readings of one server's clock."""
UNSURE_S: Final = 10.0
"""Seconds after a record's creation for which it is unsure: older claims may be missing from it."""
REASSERT_S: Final = UNSURE_S / 3
"""Interval in seconds at which a scheduler checks that its own claims are still in their records."""
MAX_CLAIMS_COUNT: Final = 1_000
"""Maximum number of claims on one node."""
MAX_LIFETIME_S: Final = 2 * 24 * 3600.0
"""Longest time from now to the deadline of a claim: twice the longest time for which a reservation may be held.

A record with a later deadline is damaged: it would block its node for ever.
"""
MAX_BORN_AHEAD_S: Final = 60.0
"""A record that was created more than this number of seconds in the future is damaged: it would stay unsure."""
MAX_MEMBERS_COUNT: Final = 1_000_000
MAX_AHEAD_S: Final = 10**10
"""Largest difference of two servers' clocks, in seconds."""
MAX_COPIES_COUNT: Final = 2
IN_FLIGHT_S: Final = 1.0
"""Copies that differ for longer than this number of seconds are written again: no writer is between the two."""
assert REASSERT_S + CLOCK_S < UNSURE_S, "a lost claim is written again before its record stops being unsure"

Word = Annotated[str, Meta(max_length=MAX_WORD_CHARS)]
StoredVersionPart = Annotated[int, Meta(ge=0, le=MAX_COUNTER)]


class Claim(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Room on one node that a scheduler reserves for one instance. The order of the fields is the wire format."""

    id: str
    """The claim's id. Ids sort by the time at which they were made, see ``order_ids``."""
    instance: str
    """The id of the instance that is to be built."""
    holder: str
    """The name of the scheduler that wrote the claim."""
    until: Seconds
    """The deadline, in seconds of the server's clock."""
    resources: Annotated[dict[str, Amount], Meta(max_length=MAX_CLASSES_COUNT)]
    """The claimed amounts by resource class; for a resize only the amounts beyond the instance's allocation."""
    group: str | None = None
    """The instance's group; the agent stores it with the allocation."""
    hints: dict[str, Any] = {}
    """The constraints of the request; the agent stores them with the allocation."""
    reservation: str = ""
    """The id of the reservation that the instance belongs to; empty if none."""
    members: Annotated[int, Meta(ge=1, le=MAX_MEMBERS_COUNT)] = 1
    """How many members that reservation has."""
    kept: bool = False
    """False while the scheduler still claims nodes for the reservation's members. True once every member had a claim;
    the deadline is then the deadline of the reservation.
    """
    resize: bool = False
    """Whether the claim enlarges an allocation that the instance has on this node already."""
    owner: str = ""
    """The user who owns the reservation."""


class ClaimRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """All claims on one node. The order of the fields is the wire format."""

    born: Seconds
    """When the record was created, in seconds of the server's clock."""
    seen_incarnation: StoredVersionPart = 0
    """The incarnation of ``seen``."""
    seen_generation: StoredVersionPart = 0
    """The generation of ``seen``."""
    claims: Annotated[tuple[Claim, ...], Meta(max_length=MAX_CLAIMS_COUNT)] = ()
    """The claims, in the order in which they were written."""
    fault: Word = ""
    """Why the agent did not take an instance the last time that it was gone, failed or did not answer; empty if never.
    Earlier schedulers ignore this field and the next two.
    """
    fault_at: Seconds = 0.0
    """The time of that fault, in seconds of the server's clock."""
    written_ms: WrittenMs = 0
    """The time of this write by the server's clock, later than that of every write of the record before.

    0: an earlier scheduler wrote the record, which does not know the field.
    """
    removed: Annotated[dict[str, Seconds], Meta(max_length=MAX_CLAIMS_COUNT)] = {}
    """Claims that were removed from the record, with their deadlines, while the other copy may still have them."""
    ahead_s: Annotated[int, Meta(ge=-MAX_AHEAD_S, le=MAX_AHEAD_S)] = 0
    """In the second copy: by how many seconds the clock of the first copy's server is ahead of this server's clock.

    All times in the record are times of the first copy's server, in both copies. If that server was restarted with
    another clock since, a scheduler that reads the second copy shifts its times.
    """
    copies: Annotated[int, Meta(ge=1, le=MAX_COPIES_COUNT)] = 1
    """How many copies the writers know and write. In the first copy, 1: the writer left the second copy behind.

    A writer whose setting is ``replicas = 1`` leaves it behind. A server that does not answer changes nothing.
    """

    @property
    def seen(self) -> Version:
        """The oldest version of the node's state with which a scheduler may claim on the node."""
        return Version(self.seen_incarnation, self.seen_generation)

    @classmethod
    def created_at(cls, now: float, copies: int = 1) -> ClaimRecord:
        """Return an empty record that is created at ``now``, in seconds of the server's clock."""
        return cls(now, copies=copies).written_at(now)

    def written_at(self, now: float) -> ClaimRecord:
        """Return a copy to write at ``now``, with a time of writing that is later than that of each write before.

        A scheduler of an earlier version writes no time. After its write, one second more is added: the clock of the
        scheduler that wrote before it may have been ahead by that.
        """
        now_ms = max(1, int(now * 1000))
        written_ms = max(self.written_ms + 1, now_ms) if self.written_ms else now_ms + int(CLOCK_S * 1000)
        return msgspec.structs.replace(self, written_ms=written_ms)

    def shifted(self, by_s: int) -> ClaimRecord:
        """Return a copy with all times ``by_s`` seconds later: its clock was set, or another clock tells the times."""
        return msgspec.structs.replace(
            self,
            born=max(0.0, self.born + by_s),
            claims=tuple(msgspec.structs.replace(one, until=max(0.0, one.until + by_s)) for one in self.claims),
            fault_at=max(0.0, self.fault_at + by_s) if self.fault else 0.0,
            written_ms=max(1, self.written_ms + by_s * 1000) if self.written_ms else 0,
            removed={key: max(0.0, until + by_s) for key, until in self.removed.items()},
            ahead_s=self.ahead_s + by_s,
        )


class LastWrite(NamedTuple):
    """The last write of a node's record that a scheduler knows of."""

    born: float
    """``ClaimRecord.born``."""
    written_ms: int
    """``ClaimRecord.written_ms``."""

    def is_after(self, record: ClaimRecord) -> bool:
        """True if a record was written before this one. A record without a time of writing may be a later one."""
        if record.born != self.born:
            return record.born < self.born - CLOCK_S
        return 0 < record.written_ms < self.written_ms

    def is_of_another_clock(self, now: float) -> bool:
        """True if this write lies in the future, so the server was restarted, with its clock set back.

        Its times say nothing about later records then. A minute is more than the clocks of schedulers can differ by.

        Args:
            now: Seconds of the server's clock; 0 if the server does not answer.
        """
        return now > 0 and max(self.born, self.written_ms / 1000) > now + MAX_BORN_AHEAD_S


CLAIMS: Final = Codec(ClaimRecord, optional=("fault", "fault_at", "written_ms", "removed", "ahead_s", "copies"))
"""Converts claim records to bytes and back. Optional fields are not stored while they have their defaults."""


def damage_of(record: ClaimRecord, now: float, distrusted: Version | None, known: LastWrite | None) -> str:
    """Return why a record counts as damaged; empty if it is sound.

    A record with a time too far in the future is damaged, and so is one with the ``seen`` that is distrusted, or one
    that is earlier than a record that was read before: another program has stored it again.

    Args:
        record: The record as it was decoded.
        now: Seconds of the server's clock; 0 if the server does not answer.
        distrusted: A version that no view shows, although it should; None if there is none.
        known: The last write of the node's record that was read or made; None if there is none.
    """
    if record.seen == distrusted:
        return f"a version of the node that no view shows: {record.seen_incarnation}.{record.seen_generation}"
    if now and record.born > now + MAX_BORN_AHEAD_S:
        return f"created {record.born - now:,.0f} s in the future"
    if now and any(claim.until > now + MAX_LIFETIME_S for claim in record.claims):
        return f"a claim that ends later than {MAX_LIFETIME_S:,.0f} s from now"
    if now and record.removed and max(record.removed.values()) > now + MAX_LIFETIME_S:
        return f"a removed claim that ends later than {MAX_LIFETIME_S:,.0f} s from now"
    if known is not None and not known.is_of_another_clock(now) and known.is_after(record):
        return "an earlier record than the one that was read before"
    return ""


def max_view_age_s(claim_ttl_s: float, answer_timeout_s: float) -> float:
    """Return the maximum age in seconds of a view on which a scheduler may decide.

    Agents refuse an order when less than this time of its claim is left. So a view within the bound shows every
    instance whose claim has expired. In an older view such an instance could be missing, and would not count at all.

    Args:
        claim_ttl_s: Seconds from a claim to its deadline.
        answer_timeout_s: Seconds after which an order counts as unanswered.
    """
    return claim_ttl_s - answer_timeout_s - CLOCK_S


def live_claims(claims: Iterable[Claim], now: float) -> list[Claim]:
    """Return the claims that still count: their deadline is less than ``CLOCK_S`` in the past.

    Args:
        claims: The claims of one record.
        now: Seconds of the server's clock.
    """
    return [claim for claim in claims if claim.until + CLOCK_S > now]


def is_unsure(record: ClaimRecord, now: float) -> bool:
    """Return whether a record was created so recently that claims may be missing from it.

    Args:
        record: The record.
        now: Seconds of the server's clock.
    """
    return now < record.born + UNSURE_S


def outstanding_claims(claims: Iterable[Claim], now: float, allocated: Collection[str]) -> OutstandingClaims:
    """Add up the live claims that have not become allocations.

    Args:
        claims: The claims of one record.
        now: Seconds of the server's clock.
        allocated: The ids of the claims that became allocations, also of those whose allocation has ended since.
    """
    found = OutstandingClaims()
    amounts, tenants = found.amounts, found.tenants
    for claim in live_claims(claims, now):
        if claim.id in allocated:
            continue
        for name, amount in claim.resources.items():
            amounts[name] = amounts.get(name, 0) + amount
        if claim.resize:
            continue
        tenants[claim.instance] = claim.group
        if claim.group is not None and (policy := group_policy_of(claim.hints)) is not None:
            found.policies.setdefault(claim.group, {})[claim.instance] = policy
    return found


def without_ended_claims(record: ClaimRecord, now: float, allocated: Collection[str], version: Version) -> ClaimRecord:
    """Return the record without the claims that no longer count: expired claims, and claims that became allocations.

    Args:
        record: The record as it was read.
        now: Seconds of the server's clock.
        allocated: The ids of the claims that became allocations, also of those whose allocation has ended since.
        version: The version of the node's state from which ``allocated`` was computed. If a claim is removed because it
            became an allocation, the new record's ``seen`` is at least this version.
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
    return _with_claims(record, kept, seen)


def with_changes(
    record: ClaimRecord, *, add: Iterable[Claim] = (), drop: Collection[str] = (), seen: Version = NEVER
) -> ClaimRecord:
    """Return a copy of a record with changes.

    Args:
        record: The record.
        add: Claims to add. An added claim replaces one with the same id.
        drop: The ids of the claims to remove.
        seen: The new record's ``seen`` is at least this version.
    """
    added = {claim.id: claim for claim in add}
    kept = [claim for claim in record.claims if claim.id not in drop and claim.id not in added]
    return _with_claims(record, [*kept, *added.values()], max(record.seen, seen))


def with_fault(record: ClaimRecord, fault: str, at: float) -> ClaimRecord:
    """Return a copy of a record with a fault, unless it has a later one.

    Args:
        record: The record.
        fault: Why the node's agent did not take an instance.
        at: The time of that, in seconds of the server's clock.
    """
    known = fault_of(record)
    if known is not None and known[1] >= at:
        return record
    return msgspec.structs.replace(record, fault=fault, fault_at=at)


def fault_of(record: ClaimRecord) -> tuple[str, float] | None:
    """Return the fault in a record, and its time in seconds of the server's clock; None if there is none."""
    return (record.fault, record.fault_at) if record.fault else None


def _with_claims(record: ClaimRecord, claims: Iterable[Claim], seen: Version) -> ClaimRecord:
    """Return a copy of a record with other claims and another ``seen``."""
    return ClaimRecord(
        record.born,
        *seen,
        tuple(claims),
        record.fault,
        record.fault_at,
        record.written_ms,
        record.removed,
        copies=record.copies,
    )


def claims_by_reservation(records: Mapping[str, ClaimRecord], now: float) -> dict[str, list[tuple[str, Claim]]]:
    """Collect the live claims of reservations.

    Args:
        records: Claim records by node.
        now: Seconds of the server's clock.

    Returns by the reservation's id its claims, as (node, claim).
    """
    found: dict[str, list[tuple[str, Claim]]] = {}
    for node, record in records.items():
        for claim in live_claims(record.claims, now):
            if claim.reservation:
                found.setdefault(claim.reservation, []).append((node, claim))
    return found


def max_group_members(claim: Claim) -> int | None:
    """Return how many members of the claim's group may be on one node.

    Returns None if there is no limit, because the claim has no group or the group's policy is not anti-affinity.
    """
    if claim.group is None or claim.hints.get("group_policy") != "anti-affinity":
        return None
    limit = claim.hints.get("max_per_node", 1)
    return limit if isinstance(limit, int) else 1

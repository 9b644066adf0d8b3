"""The two copies of a claim record: their common content, and the removals that both must know."""

from __future__ import annotations

import msgspec

from nodestate.scheduling.claims.record import (
    CLOCK_S,
    MAX_CLAIMS_COUNT,
    MAX_LIFETIME_S,
    Claim,
    ClaimRecord,
    is_unsure,
    live_claims,
)


def content_of(first: ClaimRecord, second: ClaimRecord) -> ClaimRecord:
    """Return the content of both copies of a record.

    Schedulers with ``replicas = 1`` write the first copy alone. Claims that they removed are in the second copy still,
    so the second copy does not count if the first one was written by them, and later. Its claims count as removed.
    """
    if first.copies > 1 or first.written_ms <= second.written_ms:
        return merged(first, second)
    there = {claim.id for claim in first.claims}
    left = {claim.id: claim.until for claim in second.claims if claim.id not in there}
    incarnation, generation = max(first.seen, second.seen)
    return msgspec.structs.replace(
        first,
        born=max(first.born, second.born),
        seen_incarnation=incarnation,
        seen_generation=generation,
        removed={**first.removed, **left},
    )


def merged(first: ClaimRecord, second: ClaimRecord) -> ClaimRecord:
    """Return the content of two copies of a record, of which each one may have missed writes of the other.

    A claim is in the result if one copy has it, and no copy says that it was removed. If both have it, one of them may
    have missed that the claim was extended. So a kept claim counts rather than one that is not kept, and then the one
    with the later deadline. The order of the arguments matters only for the order of the claims.
    """
    removed = {**first.removed, **second.removed}
    claims = dict[str, Claim]()
    for claim in (*first.claims, *second.claims):
        other = claims.get(claim.id, claim)
        if claim.id not in removed and (claim.kept, claim.until) >= (other.kept, other.until):
            claims[claim.id] = claim
    fault, fault_at = max((first.fault_at, first.fault), (second.fault_at, second.fault))[::-1]
    return ClaimRecord(
        max(first.born, second.born),
        *max(first.seen, second.seen),
        tuple(claims.values()),
        fault,
        fault_at,
        max(first.written_ms, second.written_ms),
        removed,
        copies=min(first.copies, second.copies),
    )


def with_removals(record: ClaimRecord, before: ClaimRecord, now: float, *, settled: bool, copies: int) -> ClaimRecord:
    """Return a copy of a record whose ``removed`` names the claims that a change took out of it.

    Claims that expired are not named: the other copy may have an extension of theirs. The claim of a reservation is
    named for half of ``MAX_LIFETIME_S``: the other copy may have it with a later deadline.

    Args:
        record: The record with the change.
        before: The record without the change.
        now: Seconds of the server's clock.
        settled: Whether both copies of ``before`` are known, with the same claims and removals. Earlier removals are
            left out then, unless a copy was lost just now: holders would take the removed claims for lost ones.
        copies: The number of copies that are known, so that all of them are written.
    """
    there = {claim.id for claim in record.claims}
    removed = {key: until for key, until in before.removed.items() if key not in there}
    if settled and not is_unsure(before, now):
        removed = {}
    for claim in live_claims(before.claims, now):
        if claim.id not in there:
            removed[claim.id] = now + MAX_LIFETIME_S / 2 if claim.reservation else claim.until
    if removed:
        live = sorted((until, key) for key, until in removed.items() if until + CLOCK_S > now)
        removed = {key: until for until, key in live[-MAX_CLAIMS_COUNT:]}
    copies = max(copies, before.copies)
    if removed == record.removed and copies == record.copies:
        return record
    return msgspec.structs.replace(record, removed=removed, copies=copies)

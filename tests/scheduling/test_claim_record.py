"""The record of a node's claims: which claims count, for how long, and when they may be removed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nodestate.model import NEVER, Version
from nodestate.scheduling.claims.record import (
    CLAIMS,
    CLOCK_S,
    UNSURE_S,
    Claim,
    ClaimRecord,
    claims_by_reservation,
    is_unsure,
    live_claims,
    max_group_members,
    outstanding_claims,
    with_changes,
    without_ended_claims,
)
from nodestate.scheduling.fleet import OutstandingClaims

ids = st.sampled_from(["1", "2", "3", "4"])
claims = st.builds(
    lambda number, until, vcpu, group, resize: Claim(
        number, f"vm{number}", "me", until, {"VCPU": vcpu}, group, resize=resize
    ),
    ids,
    st.floats(90, 110),
    st.integers(1, 4),
    st.sampled_from([None, "web"]),
    st.booleans(),
)
records = st.builds(
    lambda born, seen, found: ClaimRecord(born, 1, seen, tuple({one.id: one for one in found}.values())),
    st.floats(50, 100),
    st.integers(0, 9),
    st.lists(claims, max_size=4),
)


def claim(number: str = "1", until: float = 110.0, vcpu: int = 1, **more: object) -> Claim:
    return Claim(number, f"vm{number}", "me", until, {"VCPU": vcpu}, **more)  # type: ignore[arg-type]


def test_claim_counts_until_its_deadline_has_passed_by_every_clock() -> None:
    """Each client knows the server's clock to the second. A claim that its holder still counts on must not be ignored
    by others.
    """
    assert live_claims([claim(until=100.0)], 100.0 + CLOCK_S / 2) == [claim(until=100.0)]
    assert live_claims([claim(until=100.0)], 100.0 + CLOCK_S) == []


def test_record_is_unsure_for_a_while_after_its_creation() -> None:
    """Claims from before may be missing until their holders have written them again."""
    assert is_unsure(ClaimRecord(100.0), 100.0)
    assert is_unsure(ClaimRecord(100.0), 100.0 + UNSURE_S - 0.1)
    assert not is_unsure(ClaimRecord(100.0), 100.0 + UNSURE_S)


def test_claim_that_became_an_allocation_no_longer_counts() -> None:
    """The node's usage includes the instance. Counted twice, the node would look full."""
    two = [claim("1", vcpu=2, group="web"), claim("2", vcpu=3)]
    assert outstanding_claims(two, 100.0, ()) == OutstandingClaims({"VCPU": 5}, {"vm1": "web", "vm2": None})
    assert outstanding_claims(two, 100.0, {"1"}) == OutstandingClaims({"VCPU": 3}, {"vm2": None})
    assert outstanding_claims(two, 120.0, ()) == OutstandingClaims()


def test_claim_of_a_resize_adds_resources_and_no_instance() -> None:
    """The instance is on the node and in its group already, and must not count twice."""
    assert outstanding_claims([claim(vcpu=2, resize=True, group="web")], 100.0, ()) == OutstandingClaims(
        {"VCPU": 2}, {}
    )


@given(records, st.sets(ids), st.integers(0, 9))
def test_removal_of_ended_claims_changes_nothing_for_schedulers_with_the_same_view(
    record: ClaimRecord, shown: set[str], generation: int
) -> None:
    """The removed claims did not count. A scheduler with an older view must refresh before it claims on the node."""
    before = outstanding_claims(record.claims, 100.0, shown)
    after = without_ended_claims(record, 100.0, shown, Version(1, generation))
    assert outstanding_claims(after.claims, 100.0, shown) == outstanding_claims(after.claims, 100.0, ()) == before
    assert after.born == record.born
    dropped = {one.id for one in live_claims(record.claims, 100.0)} & shown
    assert after.seen == (max(record.seen, Version(1, generation)) if dropped else record.seen)
    assert without_ended_claims(after, 100.0, shown, Version(1, generation)) == after


@given(records, st.lists(claims, max_size=2), st.sets(ids))
def test_changes_replace_and_remove_claims_by_id(record: ClaimRecord, add: list[Claim], drop: set[str]) -> None:
    """An extended claim must not count as a second one. A claim that is both removed and added is in the record."""
    fresh = {one.id: one for one in add}
    after = with_changes(record, add=add, drop=drop, seen=Version(1, 5))
    expected = {one.id: one for one in record.claims if one.id not in drop} | fresh
    assert {one.id: one for one in after.claims} == expected
    assert len(after.claims) == len(expected)
    assert after.seen == max(record.seen, Version(1, 5))
    assert with_changes(record) == record
    assert with_changes(record, seen=NEVER).seen == record.seen


@given(records)
def test_record_survives_encoding_and_decoding(record: ClaimRecord) -> None:
    """Other schedulers read the bytes."""
    assert CLAIMS.unpack(CLAIMS.pack(record)) == record


def test_claims_of_a_reservation_are_found_on_all_nodes() -> None:
    """A reservation has no record but its claims. Expired claims do not count."""
    found = claims_by_reservation(
        {
            "a": ClaimRecord(1.0, claims=(claim("1", reservation="r1"), claim("2"))),
            "b": ClaimRecord(1.0, claims=(claim("3", reservation="r1"), claim("4", reservation="r2", until=98.0))),
        },
        100.0,
    )
    assert {number: [(node, one.id) for node, one in members] for number, members in found.items()} == {
        "r1": [("a", "1"), ("b", "3")]
    }


def test_only_anti_affinity_limits_the_members_on_a_node() -> None:
    """Hints may come from other services: a limit that is no number is ignored, and the policy's default holds."""
    assert max_group_members(claim()) is None
    assert max_group_members(claim(group="web")) is None
    assert max_group_members(claim(group="web", hints={"group_policy": "affinity"})) is None
    assert max_group_members(claim(group="web", hints={"group_policy": "anti-affinity"})) == 1
    assert max_group_members(claim(group="web", hints={"group_policy": "anti-affinity", "max_per_node": 3})) == 3
    assert max_group_members(claim(group="web", hints={"group_policy": "anti-affinity", "max_per_node": "3"})) == 1

"""AffinitySeed: schedulers that begin the same affinity group at the same time agree on one node."""

from __future__ import annotations

from nodestate.scheduling.claims.affinity_seed import AffinitySeed, SeedNode
from nodestate.testing import Fault, ManualClock, MemoryServer
from tests.scheduling.claim_tables import Connection


def two(servers: int = 1) -> tuple[ManualClock, list[Connection], AffinitySeed, AffinitySeed]:
    """The anchors of two schedulers, and the connections of the first."""
    clock = ManualClock()
    there = [MemoryServer(f"m{number}", clock=clock) for number in range(servers)]
    connections = [Connection(server) for server in there]
    return (
        clock,
        connections,
        AffinitySeed("cell1", connections),
        AffinitySeed("cell1", [Connection(server) for server in there]),
    )


def test_who_comes_second_is_told_where_the_first_began() -> None:
    """Neither sees the other's claim yet."""
    _, _, one, other = two(servers=3)
    for group in ("web", "db", "a group of any name, äöü", "g" * 255):
        first = one.claim_or_get(group, "a", 30.0)
        assert first.node == "a"
        assert other.claim_or_get(group, "b", 30.0) == first
        assert one.claim_or_get(group, "c", 30.0) == first


def test_an_anchor_is_over_after_its_time() -> None:
    """It bridges the time until the first member is seen, and no longer: the group may be gone."""
    clock, _, one, other = two()
    one.claim_or_get("web", "a", 29.5)
    clock.advance(28.0)
    assert other.claim_or_get("web", "b", 30.0).node == "a"
    clock.advance(2.0)
    assert other.claim_or_get("web", "b", 30.0).node == "b"


def test_a_group_that_can_t_begin_there_begins_elsewhere_by_who_is_first() -> None:
    """Two find that the node can't take it: one of them says where to, the other looks again."""
    _, _, one, other = two()
    one.claim_or_get("web", "a", 30.0)
    there, also = one.claim_or_get("web", "b", 30.0), other.claim_or_get("web", "c", 30.0)
    assert one.replace("web", there, "b", 30.0)
    assert not other.replace("web", also, "c", 30.0)
    assert other.claim_or_get("web", "c", 30.0).node == "b"


def test_a_server_that_does_not_answer_has_no_say() -> None:
    """Then the policy holds as far as this scheduler sees; a boot must not fail for an anchor."""
    _, [connection], one, _ = two()
    connection.faults.append(Fault(0))
    assert one.claim_or_get("web", "a", 30.0) == SeedNode("a", 0)
    one.claim_or_get("web", "a", 30.0)
    connection.faults += [None, Fault(0)]
    assert one.claim_or_get("web", "b", 30.0) == SeedNode("b", 0)
    connection.faults.append(Fault(0))
    assert not one.replace("web", SeedNode("a", 1), "b", 30.0)


def test_what_nobody_said_can_t_be_moved() -> None:
    """The anchor is gone, or was never heard of: there is nothing to compare with."""
    clock, _, one, _ = two()
    there = one.claim_or_get("web", "a", 5.0)
    clock.advance(6.0)
    assert not one.replace("web", there, "b", 30.0)
    assert not one.replace("web", SeedNode("a", 0), "b", 30.0)

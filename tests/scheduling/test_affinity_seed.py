"""The affinity seed: schedulers that begin the same affinity group at the same time agree on one node."""

from __future__ import annotations

from nodestate.model.partitioning import partition_of
from nodestate.scheduling.claims.affinity_seed import AffinitySeed, SeedNode
from nodestate.testing import Fault, ManualClock, MemoryServer
from tests.scheduling.claim_tables import CountingConnection


def two_schedulers(servers: int = 1) -> tuple[ManualClock, list[CountingConnection], AffinitySeed, AffinitySeed]:
    """The clock, the connections of the first scheduler, and the affinity seeds of two schedulers."""
    clock = ManualClock()
    there = [MemoryServer(f"m{number}", clock=clock) for number in range(servers)]
    connections = [CountingConnection(server) for server in there]
    return (
        clock,
        connections,
        AffinitySeed("cell1", connections),
        AffinitySeed("cell1", [CountingConnection(server) for server in there]),
    )


def test_second_scheduler_gets_the_node_that_the_first_one_chose() -> None:
    """At that time neither scheduler has seen the other's claim."""
    _, _, one, other = two_schedulers(servers=3)
    for group in ("web", "db", "a group of any name, äöü", "g" * 255):
        first = one.claim_or_get(group, "a", 30.0)
        assert first.node == "a"
        assert other.claim_or_get(group, "b", 30.0) == first
        assert one.claim_or_get(group, "c", 30.0) == first


def test_seed_is_gone_after_its_time_to_live() -> None:
    """The seed bridges the time until the first member is seen. It must not outlive that: the group may have ended."""
    clock, _, one, other = two_schedulers()
    one.claim_or_get("web", "a", 29.5)
    clock.advance(28.0)
    assert other.claim_or_get("web", "b", 30.0).node == "a"
    clock.advance(2.0)
    assert other.claim_or_get("web", "b", 30.0).node == "b"


def test_one_of_two_schedulers_replaces_a_seed_on_a_full_node() -> None:
    """Two schedulers find that the seed's node cannot take a member. One replaces the seed, the other one fails to and
    reads it again.
    """
    _, _, one, other = two_schedulers()
    one.claim_or_get("web", "a", 30.0)
    there, also = one.claim_or_get("web", "b", 30.0), other.claim_or_get("web", "c", 30.0)
    assert one.replace("web", there, "b", 30.0)
    assert not other.replace("web", also, "c", 30.0)
    assert other.claim_or_get("web", "c", 30.0).node == "b"


def test_with_copies_the_next_server_has_the_seed_while_one_is_away() -> None:
    clock = ManualClock()
    servers = [MemoryServer(f"m{number}", clock=clock) for number in range(3)]
    one, other = ([CountingConnection(server) for server in servers] for _ in range(2))
    for connections in (one, other):
        away = connections[partition_of("web", len(servers))]
        away.clock_away, away.plan = True, lambda _operation, _count: Fault(0)
    assert AffinitySeed("cell1", one, copies=2).claim_or_get("web", "a", 30.0).cas
    assert AffinitySeed("cell1", other, copies=2).claim_or_get("web", "b", 30.0).node == "a"


def test_group_begins_anywhere_if_the_server_does_not_answer() -> None:
    """The policy then holds as far as this scheduler sees: a boot must not fail for want of a seed."""
    _, [connection], one, _ = two_schedulers()
    connection.faults.append(Fault(0))
    assert one.claim_or_get("web", "a", 30.0) == SeedNode("a", 0)
    one.claim_or_get("web", "a", 30.0)
    connection.faults += [None, Fault(0)]
    assert one.claim_or_get("web", "b", 30.0) == SeedNode("b", 0)
    connection.faults.append(Fault(0))
    assert not one.replace("web", SeedNode("a", 1), "b", 30.0)


def test_seed_that_does_not_exist_is_not_replaced() -> None:
    """The seed is gone, or was never written: there is nothing to compare with."""
    clock, _, one, _ = two_schedulers()
    there = one.claim_or_get("web", "a", 5.0)
    clock.advance(6.0)
    assert not one.replace("web", there, "b", 30.0)
    assert not one.replace("web", SeedNode("a", 0), "b", 30.0)

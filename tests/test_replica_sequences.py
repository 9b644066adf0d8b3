"""Two replicas of each partition: sequences of faults in which one server at a time is away.

``tests/test_replicas.py`` has the single faults.
"""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from nodestate.config import Config
from nodestate.consumers.member import Member
from nodestate.consumers.partition import OwnedPartition
from nodestate.consumers.watermarks import is_marker
from nodestate.designs.control import Control, prepared, retired
from nodestate.designs.control_store import ControlStore, newest
from nodestate.designs.stored_design import StoredDesign
from nodestate.testing import Fault, Plan
from tests.machines.replica_reader import ReplicaReader
from tests.machines.simulated_cell import JudgedReader, SimulatedCell
from tests.test_replicas import (
    NODES,
    all_die,
    begun,
    changes_of,
    copies,
    head_of,
    require_current,
    start_all,
)

DESIGNS = ["journal", "snapshot"]
thorough = pytest.mark.thorough


@pytest.fixture(params=DESIGNS)
def world(request: pytest.FixtureRequest) -> SimulatedCell:
    """See ``tests.test_replicas``."""
    return begun(request.param)


def change_record(cell: SimulatedCell, step: str, design: str) -> None:
    """An operator prepares or retires a design."""
    operator = ControlStore(cell.config.cell, JudgedReader(cell, cell.config.read_design)._reader._stores)
    found = operator.read()
    known = newest(found)
    assert known is not None
    stored, steps = StoredDesign(design, cell.config.partitions), {"prepare": prepared, "retire": retired}
    after: Control = steps[step](known, stored, "test")
    operator.change(found, after)


def leave(cell: SimulatedCell, node: str) -> None:
    """A node leaves, its leave is confirmed and stored, and its agent ends."""
    cell.agents[node].publisher.leave()
    cell.run_well(5)
    del cell.agents[node]


def require_that_what_may_be_left_says_2(cell: SimulatedCell) -> None:
    """A replica whose head says 1 is known as such to its owner."""
    letters = {cell.config.read_design: 0, f"{cell.config.read_design}_replica": 1}
    for member in cell.members:
        for partition in member.held:
            for design in partition.writers.keys() - partition.joining:
                head = head_of(cell, partition.number, letters[design])
                if head is not None and head.copies == 1 and len(partition.writers) == 2:
                    assert design in partition.alone, f"{design} of {partition.number} says 1, and may be left behind"


def test_replica_whose_late_renewal_says_that_it_is_alone_is_not_left_behind(world: SimulatedCell) -> None:
    """The owner's renewal got no reply. It arrives after the other replica was filled, and before the next renewal."""
    world.servers[1].stop()
    world.change_some(1.0)
    world.run_well(5)
    owner = next(member for member in world.members if any(held.number == 0 for held in member.held))
    partition = next(held for held in owner.held if held.number == 0)
    survivor = owner.stores[0]
    for _ in range(100):
        world.pass_time(0.25)
        late = [False]

        def plan(operation: str, count: int, late: list[bool] = late) -> Fault | None:
            """Delay the renewal, which is a write of three items."""
            if operation == "write" and count >= 3 and not late[0]:
                late[0] = True
                return Fault(done=0, late=True)
            return None

        survivor.plan = plan
        owner.runs.step()
        survivor.plan = lambda _operation, _count: None
        if survivor.late:
            break
    else:
        pytest.fail("no renewal was delayed")
    world.servers[1].start()
    for _ in range(40):
        if not partition.joining:
            break
        world.pass_time(0.1)
        owner.runs.step()
    while survivor.late:
        survivor.arrive()
    for _ in range(20):
        world.pass_time(0.25)
        owner.runs.step()
        require_that_what_may_be_left_says_2(world)


@pytest.mark.parametrize("design", DESIGNS)
def test_first_copy_is_not_left_behind_before_it_says_that_there_is_a_replica(design: str) -> None:
    """An operator prepares the replica. The server of the first copy fails right after the replica was begun."""
    cell = SimulatedCell(
        servers=2, config=Config(partitions=2, designs=(design,), read_design=design), follows_control=True
    )
    start_all(cell)
    cell.readers = [ReplicaReader(cell)]
    for name in NODES:
        cell.start_agent(name, {"usage": {"VCPU": 1}})
    cell.run_well(60)
    change_record(cell, "prepare", f"{design}_replica")
    for member in cell.members:
        while not any(partition.joining for partition in member.held):
            cell.pass_time(0.05)
            assert isinstance(member.runs, Member)
            member.runs._follow_control()
    cell.servers[0].stop()
    for _ in range(40):
        cell.pass_time(0.1)
        for member in cell.members:
            member.step()
    cell.change_some(1.0)
    cell.run_well(5)
    all_die(cell)
    cell.servers[0].start()
    cell.servers[1].stop()
    start_all(cell)
    cell.readers = [ReplicaReader(cell)]
    cell.run_well(2)  # each view is judged
    cell.servers[1].start()
    cell.run_well(2 * cell.config.settle_s)
    require_current(cell)
    assert copies(cell) == [2, 2, 2, 2]


def test_old_claim_to_be_alone_is_not_trusted_after_another_owner_went_on_without_it(world: SimulatedCell) -> None:
    """Each replica in turn goes on alone under an owner that cannot see the other one."""
    world.servers[0].stop()
    world.change_some(1.0)
    world.run_well(5)
    all_die(world)
    world.servers[0].start()
    world.servers[1].stop()
    start_all(world)
    world.run_well(2 * world.config.settle_s)
    leave(world, NODES[0])
    all_die(world)
    world.servers[1].start()
    world.servers[0].stop()
    world.pass_time(5)
    start_all(world)
    world.readers = [ReplicaReader(world)]
    world.run_well(5)  # each view is judged
    world.servers[0].start()
    world.run_well(2 * world.config.settle_s)
    assert NODES[0] not in world.readers[0].read(5.0).nodes, "the leave was lost for good"
    require_current(world)


def test_replica_that_returns_after_a_doubt_gives_back_what_only_it_has(world: SimulatedCell) -> None:
    """A node leaves while server 0 is away. Its owner dies as server 0 returns without that, and server 1 goes."""
    world.servers[0].stop()
    world.run_well(5)
    leave(world, NODES[0])
    all_die(world)
    world.servers[0].start()
    world.servers[1].stop()
    world.pass_time(20)
    start_all(world)
    world.readers = [ReplicaReader(world)]
    world.run_well(5)
    world.servers[1].start()
    world.run_well(3 * world.config.settle_s)
    assert NODES[0] not in world.readers[0].read(5.0).nodes, "the leave was lost for good"
    require_current(world)


def test_takeover_of_both_replicas_drops_nothing_that_only_the_older_one_has(
    world: SimulatedCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first owner acknowledged a leave, and died before the head of its replica could say 1."""
    with monkeypatch.context() as patch:
        patch.setattr(OwnedPartition, "copies", lambda _partition, _design: 2)
        world.servers[0].stop()
        world.run_well(2)
        leave(world, NODES[0])
        all_die(world)
    world.servers[0].start()
    world.servers[1].stop()
    world.pass_time(10)
    start_all(world)
    world.run_well(5)
    all_die(world)
    world.servers[1].start()
    start_all(world)
    world.readers = [ReplicaReader(world)]
    world.run_well(3 * world.config.settle_s)
    assert NODES[0] not in world.readers[0].read(5.0).nodes, "the leave was lost for good"


def test_doubt_outlives_the_owner_that_had_it(world: SimulatedCell) -> None:
    """A state that only server 1 had is lost with its memory; two owners die before all agents could answer."""
    world.servers[0].stop()
    world.run_well(5)
    leave(world, NODES[0])
    for away_s in (10, 1):
        all_die(world)
        world.servers[0].start()
        world.restart_server(1)
        world.servers[1].stop()
        world.pass_time(away_s)
        start_all(world)
        world.readers = [ReplicaReader(world)]
        world.run_well(5)
    world.run_well(3 * world.config.settle_s)  # each view is judged
    assert world.readers[0].read(5.0).incomplete == {NODES[0]}


def test_reader_of_a_replica_that_is_retired_returns_to_the_first_copy(world: SimulatedCell) -> None:
    world.servers[0].stop()
    world.change_some(1.0)
    world.run_well(10)
    world.servers[0].start()
    world.run_well(10)
    assert changes_of(world) > 0
    change_record(world, "retire", f"{world.config.read_design}_replica")
    world.run_well(10)
    world.change_some(1.0)
    world.run_well(10)
    require_current(world)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("away", [0, 1, 2])
def test_server_that_returns_is_filled_while_another_one_is_away(design: str, away: int) -> None:
    """Each partition with both servers has two replicas in sync, however often the begin of other ones fails."""
    config = Config(partitions=3, designs=(design, f"{design}_replica"), read_design=design)
    cell = SimulatedCell(servers=3, config=config, follows_control=True)
    cell.start_member([0, 1, 2], [])
    for name in NODES:
        cell.start_agent(name, {"usage": {"VCPU": 1}})
    cell.run_well(60)
    cell.servers[away].stop()
    cell.run_well(5)
    emptied = (away + 1) % 3
    cell.servers[emptied].flush()
    cell.run_well(30)
    both = next(number for number in range(3) if away not in (number, (number + 1) % 3))
    held = next(held for held in cell.members[0].held if held.number == both)
    assert not held.joining, f"partition {both} has a replica that was not begun again"


QUICK = {"heartbeat_s": 0.5, "resync_jitter_s": 0.0, "renew_s": 2.0}
"""Settings with which a partition may be complete before a replica is no longer recent."""


def be_succeeded(cell: SimulatedCell, away: int) -> None:
    """All consumers die. New ones start, which see all servers but one."""
    all_die(cell)
    for number, server in enumerate(cell.servers):
        if number == away:
            server.stop()
        else:
            server.start()
    start_all(cell)


@pytest.mark.parametrize(
    ("design", "doubting_s", "settings"),
    [("journal", [1.5], {}), ("snapshot", [1.5, 1.5], {}), ("journal", [4.5, 0.5], QUICK)],
)
def test_owners_in_quick_succession_lose_no_event(
    design: str, doubting_s: list[float], settings: dict[str, float]
) -> None:
    """A replica went on alone. Within seconds owners see only the other one, and then only the first one again."""
    world = begun(design, **settings)
    world.servers[0].stop()
    world.run_well(5)
    for seconds in doubting_s:
        be_succeeded(world, away=1)
        world.run_well(seconds)
    world.agents[NODES[0]].publisher.leave()
    world.run_well(1)
    del world.agents[NODES[0]]
    be_succeeded(world, away=0)
    world.readers = [ReplicaReader(world)]
    world.run_well(10)  # each view is judged
    world.servers[1].start()
    world.servers[0].start()
    world.run_well(3 * world.config.settle_s)
    assert NODES[0] not in world.readers[0].read(5.0).nodes, "the leave was lost for good"
    require_current(world)


def test_owner_that_doubts_its_replica_acknowledges_after_some_seconds() -> None:
    """More messages wait than the broker delivers without an acknowledgement, and one of them is refused."""
    world = begun("snapshot")
    world.broker.prefetch = 4
    be_succeeded(world, away=1)
    world.run_well(0.5)
    world.poisoned(0, b"no event")
    for _ in range(3):
        world.change_some(1.0)
    world.run_well(4)
    held = [held for member in world.members for held in member.held]
    assert all(one.processed for one in held)
    assert any(one.refused for one in held)
    assert not world.broker.dead_letters, "the effect of a refused message may be lost as well"
    world.run_well(2 * world.config.settle_s)
    assert len(world.broker.dead_letters) == 1
    assert not any(not is_marker(body) for partition in (0, 1) for body in world.broker.queued(partition))
    require_current(world)


def test_owner_that_filled_the_other_replica_again_acknowledges_at_once() -> None:
    world = begun("journal")
    be_succeeded(world, away=1)
    world.change_some(1.0)
    world.run_well(1)
    world.servers[1].start()
    world.run_well(3)
    assert not any(held.processed or held.doubted for member in world.members for held in member.held)


def at_write(number: int, fault: Fault) -> Plan:
    """Return a plan with one fault, at the write with this number, counted from 0."""
    writes = iter(range(1_000_000))
    return lambda operation, _count: fault if operation == "write" and next(writes) == number else None


@pytest.mark.parametrize(
    ("design", "write"),
    [
        pytest.param(design, write, marks=[] if (design, write) in {("journal", 10), ("snapshot", 8)} else thorough)
        for design in DESIGNS
        for write in range(14)
    ],
)
def test_owner_that_dies_while_it_takes_nodes_back_loses_none(design: str, write: int) -> None:
    """Only the replica that was away has a leave. Its owner dies at a write before, while or after it begins it."""
    world = begun(design)
    world.servers[0].stop()
    leave(world, NODES[0])
    all_die(world)
    world.pass_time(10)
    be_succeeded(world, away=1)
    world.run_well(1)
    world.servers[1].start()
    bucket = world.agents[NODES[1]].publisher.bucket
    [owner] = [member for member in world.members for held in member.held if held.number == bucket % 2]
    plan = at_write(write, Fault())
    for _ in range(12):
        world.pass_time(0.2)
        if owner in world.members:
            owner.step(plan, dies=True)
    assert owner not in world.members
    world.readers = [ReplicaReader(world)]
    world.run_well(10)
    assert NODES[0] not in world.readers[0].read(5.0).nodes, "the leave was lost for good"


def doubts(logs: list[Any]) -> list[Any]:
    """The entries of the log in which an owner doubts its replica."""
    return [entry for entry in logs if "the other one may have more" in entry["event"]]


def test_replica_that_is_retired_while_no_consumer_runs_causes_no_doubt() -> None:
    world = begun("snapshot")
    all_die(world)
    change_record(world, "retire", f"{world.config.read_design}_replica")
    start_all(world)
    with capture_logs() as logs:
        for _ in range(4):
            world.run_well(0.5)
            assert not world.readers[0].read(5.0).incomplete
    assert not doubts(logs)
    assert [head is None for head in (head_of(world, 0, 1), head_of(world, 1, 1))] == [True, True]
    require_current(world)


@pytest.mark.parametrize(("design", "is_away"), [("journal", False), ("snapshot", True)])
def test_replica_that_is_retired_while_no_consumer_runs_may_have_more(design: str, is_away: bool) -> None:
    """The owner went on with it alone. The next owner reads it, or the partition is incomplete."""
    world = begun(design)
    world.servers[0].stop()
    world.run_well(5)
    leave(world, NODES[-1])  # a node of partition 0
    all_die(world)
    world.servers[0].start()
    change_record(world, "retire", f"{world.config.read_design}_replica")
    if is_away:
        world.servers[1].stop()
    start_all(world)
    world.readers = [ReplicaReader(world)]
    with capture_logs() as logs:
        world.run_well(3 * world.config.settle_s)  # each view is judged
    left = world.readers[0].read(5.0)
    assert bool(doubts(logs)) == is_away
    assert (NODES[-1] in left.nodes) == (NODES[-1] in left.incomplete) == is_away

"""Two replicas of each partition: one server less costs nothing, and a server that returns is filled again.

``tests/machines/test_replicas.py`` takes such steps in any order.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from nodestate.config import Config, load
from nodestate.designs.control import Control
from nodestate.designs.stored_design import StoredDesign
from nodestate.errors import ConfigError
from nodestate.findings.design_checks import examine_single_replica
from nodestate.findings.finding import WARN
from nodestate.ports import Item
from nodestate.store import keys
from nodestate.store.head import Head, read_head
from nodestate.store.round_trips import run_one
from nodestate.testing import MemoryStore
from tests.machines.replica_reader import ReplicaReader
from tests.machines.simulated_cell import CELL, SimulatedCell

NODES = [f"node-{n}" for n in range(6)]
DESIGNS = ["journal", "snapshot"]
LETTERS = {"journal": "j", "snapshot": "s"}


@pytest.fixture(params=DESIGNS)
def world(request: pytest.FixtureRequest) -> SimulatedCell:
    """A cell of two partitions and two servers, with two consumers and one reader, that has run for a minute."""
    return begun(request.param)


def begun(design: str, servers: int = 2, **settings: Any) -> SimulatedCell:
    """See ``world``. ``settings`` are fields of ``Config``."""
    config = Config(partitions=2, designs=(design, f"{design}_replica"), read_design=design, **settings)
    cell = SimulatedCell(servers=servers, config=config, follows_control=True)
    start_all(cell)
    cell.readers = [ReplicaReader(cell)]
    for name in NODES:
        cell.start_agent(name, {"usage": {"VCPU": 1}})
    cell.run_well(60)
    return cell


def head_of(cell: SimulatedCell, partition: int, replica: int) -> Head | None:
    """The stored head of a partition in its first or second replica; None if there is none."""
    found = stored_head(cell, partition, replica)
    return found[0] if found is not None else None


def stored_head(cell: SimulatedCell, partition: int, replica: int) -> tuple[Head, Item] | None:
    """As ``head_of``, with its item. Raises ``StoreUnavailableError``."""
    letter = LETTERS[cell.config.read_design] + (keys.REPLICA if replica else "")
    store = MemoryStore(cell.servers[(partition + replica) % len(cell.servers)])
    return run_one(store, read_head(keys.prefix(CELL, 2, partition, letter), None))


def copies(cell: SimulatedCell) -> list[int]:
    """The number of replicas in sync, from the head of each replica of each partition; 0: there is no head."""
    heads = [head_of(cell, partition, replica) for partition in (0, 1) for replica in (0, 1)]
    return [head.copies if head is not None else 0 for head in heads]


def all_die(cell: SimulatedCell) -> None:
    """All consumers die, and none takes their place."""
    for member in list(cell.members):
        for source in member.sources.values():
            source.inner.crash()
        cell.members.remove(member)


def start_all(cell: SimulatedCell) -> None:
    """Two new consumers start."""
    cell.start_member([0], [1])
    cell.start_member([1], [0])


def changes_of(cell: SimulatedCell) -> int:
    """How often the reader of the cell went over to the other replica of a partition."""
    [reader] = cell.readers
    assert isinstance(reader, ReplicaReader)
    return reader.changes


def require_current(cell: SimulatedCell) -> None:
    """Require that the reader's next view is whole and has the newest version of every node."""
    view = cell.readers[0].read(5.0)
    assert not view.stale, "a node is stale"
    assert not view.incomplete, "a node or a partition is incomplete"
    for name, agent in cell.agents.items():
        record = view.nodes.record(name)
        assert record is not None, f"{name} is missing"
        assert record.version == agent.publisher.version, f"{name} is old"


def test_each_partition_is_on_two_servers(world: SimulatedCell) -> None:
    assert copies(world) == [2, 2, 2, 2]
    require_current(world)
    assert changes_of(world) == 0, "a reader reads one replica while it is well"


@pytest.mark.parametrize("gone", [0, 1])
def test_one_server_less_costs_nothing(world: SimulatedCell, gone: int) -> None:
    """Events go on to be stored and acknowledged, and readers see them at their next read."""
    world.servers[gone].stop()
    for _ in range(20):
        world.change_some(0.5)
        world.run_well(0.5)
        world.readers[0].read(3.0)
    world.run_well(2)
    require_current(world)
    assert all(not world.broker.queued(partition) for partition in (0, 1)), "an event waits for the server"
    well = [head_of(world, partition, replica) for partition, replica in ((1 - gone, 0), (gone, 1))]
    assert [head.copies for head in well if head is not None] == [1, 1], (
        "the other replicas do not say that they are alone"
    )


def test_new_reader_reads_the_other_replica_at_its_first_read(world: SimulatedCell) -> None:
    world.servers[0].stop()
    world.change_some(1.0)
    world.run_well(2)
    world.readers = [ReplicaReader(world)]
    require_current(world)


@pytest.mark.parametrize("is_empty", [False, True])
def test_server_that_returns_is_filled_before_it_counts(world: SimulatedCell, is_empty: bool) -> None:
    """It may return with old contents or empty. Then the other server may go."""
    world.servers[0].stop()
    world.change_some(1.0)
    world.run_well(5)
    if is_empty:
        world.restart_server(0)
    world.servers[0].start()
    world.run_well(5)
    assert copies(world) == [2, 2, 2, 2]
    require_current(world)
    world.servers[1].stop()
    world.change_some(1.0)
    world.run_well(5)
    require_current(world)


def test_flushed_server_makes_no_partition_incomplete(world: SimulatedCell) -> None:
    """The other replica proves that the owner still owns the partition, so nothing has to be asked for."""
    world.servers[1].flush()
    for _ in range(10):
        world.change_some(0.5)
        world.run_well(0.5)
        assert not world.readers[0].read(5.0).incomplete
    require_current(world)
    assert copies(world) == [2, 2, 2, 2]


def test_new_owner_knows_all_from_the_replica_that_was_alone(world: SimulatedCell) -> None:
    world.servers[0].stop()
    world.change_some(1.0)
    world.run_well(5)
    with capture_logs() as logs:
        world.members[0].die()
        world.members[0].die()
        for _ in range(10):
            world.run_well(0.5)
            assert not world.readers[0].read(5.0).incomplete
    assert not [entry for entry in logs if "the other one may have more" in entry["event"]]
    require_current(world)


def test_new_owner_doubts_a_replica_that_may_lack_events(world: SimulatedCell) -> None:
    """Server 0 has all; it goes away as server 1 returns, and no owner that remembers is alive."""
    world.servers[1].stop()
    world.change_some(1.0)
    world.run_well(5)
    all_die(world)
    world.servers[1].start()
    world.servers[0].stop()
    with capture_logs() as logs:
        start_all(world)
        world.run_well(3)
        assert world.readers[0].read(5.0).incomplete, "a state that may lack acknowledged events passes for complete"
        world.run_well(2 * world.config.settle_s)
    assert [entry for entry in logs if "the other one may have more" in entry["event"]]
    require_current(world)


def test_replica_that_says_that_it_is_alone_is_not_left_behind(world: SimulatedCell) -> None:
    """It fails after the other one was filled, and before its own head says so. Later an owner reads it alone."""
    world.servers[1].stop()
    world.change_some(1.0)
    world.run_well(5)
    world.servers[1].start()
    for _ in range(400):
        world.pass_time(0.05)
        for member in world.members:
            member.step()
        said = copies(world)
        joining = [partition.joining for member in world.members for partition in member.held]
        if said[0] == 1 and not any(joining):
            break
    else:
        pytest.fail("the first replica never said 1 while the second one was filled")
    world.servers[0].stop()
    world.change_some(1.0)
    world.run_well(3)
    all_die(world)
    world.servers[0].start()
    world.servers[1].stop()
    start_all(world)
    world.run_well(5)  # each view is judged
    require_current(world)


def test_nothing_is_acknowledged_while_both_servers_are_away(world: SimulatedCell) -> None:
    for server in world.servers:
        server.stop()
    world.change_some(1.0)
    world.run_well(5)
    waiting = [message for held in world.members for partition in held.held for message in partition.backlog]
    pending = [partition.pending for member in world.members for partition in member.held if partition.pending]
    assert waiting or pending
    for server in world.servers:
        server.start()
    world.run_well(5)
    require_current(world)
    assert copies(world) == [2, 2, 2, 2]


FOUR = ("journal", "snapshot", "journal_replica", "snapshot_replica")


@pytest.mark.parametrize(
    ("flags", "count", "designs"),
    [
        ({"store": "memcached://a,b"}, 2, FOUR),
        ({"store": "memcached://a,b", "replicas": "0"}, 2, FOUR),
        ({"store": "memcached://a"}, 1, ("journal", "snapshot")),
        ({}, 1, ("journal", "snapshot")),
        ({"store": "memcached://a,b", "replicas": "1"}, 1, ("journal", "snapshot")),
        ({"store": "memcached://a,b", "designs": "snapshot"}, 2, ("snapshot",)),
        ({"store": "memcached://a,b", "designs": "snapshot", "replicas": "2"}, 2, ("snapshot", "snapshot_replica")),
    ],
)
def test_a_new_cell_has_two_replicas_if_it_has_two_servers(
    flags: dict[str, str], count: int, designs: tuple[str, ...]
) -> None:
    """The setting may say otherwise. A command line that names the designs names all of them."""
    config = load(environ={}, flags=flags)
    assert (config.replicas_count, config.designs) == (count, designs)


def test_two_replicas_need_two_servers() -> None:
    with pytest.raises(ConfigError, match="replicas 2 needs as many memcached servers"):
        load(environ={}, flags={"store": "memcached://a:1", "replicas": "2"})


def test_designs_of_the_settings_get_replicas() -> None:
    config = load(environ={"NODESTATE_DESIGNS": "snapshot,sql", "NODESTATE_STORE": "memcached://a,b"})
    assert config.designs == ("snapshot", "sql", "snapshot_replica")


@pytest.mark.parametrize(("replicas", "levels"), [("0", [WARN]), ("1", [])])
def test_running_cell_keeps_one_replica_and_the_doctor_offers_a_second_one(replicas: str, levels: list[str]) -> None:
    """The control record of an earlier version names one replica, and the settings do not change it."""
    config = load(environ={}, flags={"store": "memcached://a,b", "replicas": replicas})
    snapshot, other = StoredDesign("snapshot", 8), StoredDesign("snapshot_replica", 8)
    control = Control(1, (snapshot,), snapshot)
    findings = list(examine_single_replica(config, control))
    assert [one.level for one in findings] == levels
    assert all("nodestate design prepare snapshot_replica'" in one.advice for one in findings)
    assert not list(examine_single_replica(config, Control(1, (snapshot, other), other)))


def test_consumers_of_a_running_cell_begin_no_replica_by_themselves() -> None:
    cell = SimulatedCell(
        servers=2, config=Config(partitions=2, designs=("snapshot",), read_design="snapshot"), follows_control=True
    )
    start_all(cell)
    cell.run_well(3)
    all_die(cell)
    cell.config = msgspec.structs.replace(cell.config, designs=("snapshot", "snapshot_replica"))
    start_all(cell)
    cell.run_well(10)
    assert {design for member in cell.members for held in member.held for design in held.writers} == {"snapshot"}
    assert copies(cell) == [1, 0, 1, 0]

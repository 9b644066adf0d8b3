"""Reads within bounds: which nodes are refused, left out or named, and that ages err on the old side."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from nodestate.designs.reader import Reader
from nodestate.errors import BehindError, ConfigError, StaleViewError
from nodestate.model import Receipt, Version
from nodestate.model.partitioning import partition_of
from nodestate.ports import Store
from nodestate.store.round_trips import Stores
from nodestate.testing import Fault, FaultyStore, MemoryStore, script
from tests.machines.simulated_cell import SimulatedCell

NODES = [f"node-{n}" for n in range(6)]


class Wired(Reader):
    """A reader whose connections can be made to fail."""

    def __init__(self, world: SimulatedCell, design: str) -> None:
        self.wires = [FaultyStore(MemoryStore(server), script()) for server in world.places]
        super().__init__(world.config, design=design, stores=stores_of(world, self.wires), clock=world.clock)


def stores_of(world: SimulatedCell, connections: Sequence[Store]) -> Stores:
    """Connections to the world's stores, as a reader uses them."""
    return Stores((), connections[0]) if world.places[0] is world.database else Stores(connections)


@pytest.fixture(params=["journal", "snapshot", "sql"])
def design(request: pytest.FixtureRequest) -> str:
    return str(request.param)


IN_MEMCACHED = pytest.mark.parametrize("design", ["journal", "snapshot"], indirect=True)


@pytest.fixture
def world(design: str) -> SimulatedCell:
    """A cell of two partitions, on two servers or in a database, that has run for a minute."""
    world = SimulatedCell(designs=("sql",) if design == "sql" else ("journal", "snapshot"))
    world.start_member([0, 1], [])
    for name in NODES:
        world.start_agent(name, {"usage": {"VCPU": 1}})
    world.run_well(60)
    return world


@pytest.fixture
def reader(world: SimulatedCell, design: str) -> Reader:
    return Wired(world, design)


def of_partition(number: int) -> list[str]:
    return [name for name in NODES if partition_of(name, 2) == number]


def test_read_needs_a_bound(reader: Reader) -> None:
    """There is no default of "whatever is there" (DESIGN.md section 6)."""
    with pytest.raises(TypeError, match="max_age"):
        reader.read()
    with pytest.raises(TypeError, match="on_stale"):
        reader.read(max_age=1.0, on_stale="whatever")  # type: ignore[arg-type]


def test_healthy_cell_is_read_completely(reader: Reader) -> None:
    """Every node, nothing stale, nothing incomplete."""
    view = reader.read(max_age=5.0, node_max_age=15.0)
    assert sorted(view.nodes) == NODES
    assert (view.stale, view.incomplete) == (frozenset(), frozenset())
    assert view.nodes["node-0"].state["usage"] == {"VCPU": 1}


def test_too_old_view_is_refused_with_its_age(world: SimulatedCell, reader: Reader) -> None:
    """A refusal says what would satisfy it (house rule 8)."""
    before = reader.read(max_age=5.0).age
    world.pass_time(30)
    with pytest.raises(StaleViewError) as caught:
        reader.read(max_age=5.0)
    assert caught.value.age == pytest.approx(before + 30)
    assert (caught.value.max_age, caught.value.partitions) == (5.0, (0, 1))
    assert reader.read(max_age=math.ceil(caught.value.age)).stale == frozenset()


@pytest.mark.parametrize("takeovers", [0, 1])
def test_a_view_that_no_owner_ever_confirmed_has_an_infinite_age_and_says_so(takeovers: int) -> None:
    """The head then says that its owner is behind by a number which stands for "unknown", and a takeover adds to it."""
    world = SimulatedCell(servers=1)
    world.start_member([0, 1], [])
    world.start_agent("node-0", {"usage": {"VCPU": 1}})
    world.members[0].step()
    for _ in range(takeovers):
        world.clock.advance(3.0)
        world.members[0].die()
        world.members[0].step()
    reader = Reader(world.config, stores=world.connected(MemoryStore)[1], clock=world.clock)
    view = reader.read(max_age=1e12, on_stale="flag")
    assert len(view.nodes) == 1
    assert view.age == math.inf
    assert "never confirmed" in repr(view)
    with pytest.raises(StaleViewError, match="was never confirmed") as caught:
        reader.read(max_age=1e12)
    assert caught.value.age == math.inf


def test_stale_nodes_are_left_out_or_named_as_asked(world: SimulatedCell, reader: Reader) -> None:
    """The same view with each value of ``on_stale``."""
    world.pass_time(30)
    excluding = reader.read(max_age=5.0, on_stale="exclude")
    assert (len(excluding.nodes), sorted(excluding.stale)) == (0, NODES)
    assert excluding.columns.status.tolist() == [255] * len(NODES)
    flagging = reader.read(max_age=5.0, on_stale="flag")
    assert (sorted(flagging.nodes), sorted(flagging.stale)) == (NODES, NODES)


def test_silent_node_is_stale_by_itself(world: SimulatedCell, reader: Reader) -> None:
    """``node_max_age`` bounds each node by its own last sign of life."""
    del world.agents["node-3"]
    world.run_well(60)
    view = reader.read(max_age=5.0, node_max_age=15.0, on_stale="exclude")
    assert view.stale == {"node-3"}
    assert sorted(view.nodes) == [name for name in NODES if name != "node-3"]
    assert view.node_age("node-3") >= 60
    assert view.node_age("node-4") <= 15
    with pytest.raises(StaleViewError) as caught:
        reader.read(node_max_age=15.0)
    assert caught.value.nodes == ("node-3",)


def test_a_silent_node_is_told_while_the_view_is_refused_for_its_own_age(world: SimulatedCell, reader: Reader) -> None:
    """One dead node must not cost a scheduler all others, and an old view must not pass for a new one."""
    del world.agents["node-3"]
    world.run_well(60)
    view = reader.read(max_age=5.0, node_max_age=15.0, on_unresponsive="flag")
    assert (view.stale, sorted(view.nodes)) == ({"node-3"}, NODES)
    view = reader.read(max_age=5.0, node_max_age=15.0, on_unresponsive="exclude")
    assert (view.stale, sorted(view.nodes)) == ({"node-3"}, [name for name in NODES if name != "node-3"])
    world.pass_time(30)
    for decision in ("flag", "exclude"):
        with pytest.raises(StaleViewError) as caught:
            reader.read(max_age=5.0, node_max_age=15.0, on_unresponsive=decision)
        assert (caught.value.max_age, caught.value.partitions, caught.value.nodes) == (5.0, (0, 1), ())


def test_a_silent_node_refuses_a_view_that_may_be_old(world: SimulatedCell, reader: Reader) -> None:
    """The other way round: old partitions are accepted, and the error names the node and its bound."""
    del world.agents["node-3"]
    world.run_well(60)
    for decision in ("flag", "exclude"):
        with pytest.raises(StaleViewError) as caught:
            reader.read(max_age=0.0, node_max_age=15.0, on_stale=decision, on_unresponsive="refuse")
        assert (caught.value.max_age, caught.value.partitions, caught.value.nodes) == (15.0, (), ("node-3",))
    with pytest.raises(TypeError, match="on_unresponsive"):
        reader.read(max_age=5.0, on_unresponsive="whatever")  # type: ignore[arg-type]


def test_incomplete_nodes_are_left_out_by_the_decision_on_partitions(world: SimulatedCell, reader: Reader) -> None:
    """A node whose newest state is not known may well be alive."""
    publisher = world.agents["node-4"].publisher
    publisher.change({"usage": {"VCPU": 2}})
    world.lose_message(partition_of("node-4", 2), 0)
    publisher.change({"usage": {"VCPU": 3}})
    world.members[0].step()
    told = reader.read(max_age=5.0, node_max_age=60.0, on_unresponsive="exclude")
    assert (told.incomplete, told.left_out) == ({"node-4"}, ())
    excluding = reader.read(max_age=5.0, node_max_age=60.0, on_stale="exclude", on_unresponsive="flag")
    assert (excluding.incomplete, excluding.left_out) == ({"node-4"}, {"node-4"})


def test_a_node_that_was_just_reported_counts_as_heard_from(world: SimulatedCell, reader: Reader, design: str) -> None:
    """Regression: its age was infinite until the next renewal, so a scheduler took a new node for a dead one."""
    reader.read(max_age=5.0, node_max_age=15.0)
    del world.agents["node-3"]
    world.run_well(60)
    world.start_agent("node-new", {"usage": {"VCPU": 1}})
    world.start_agent("node-3", {"usage": {"VCPU": 2}})
    world.members[0].step()
    for one in (reader, Wired(world, design)):
        view = one.read(max_age=5.0, node_max_age=15.0)
        assert view.nodes["node-3"].state["usage"] == {"VCPU": 2}
        assert sorted(view.nodes) == [*NODES, "node-new"]


def test_nodes_keep_their_signs_of_life_when_an_epoch_begins(world: SimulatedCell, reader: Reader, design: str) -> None:
    """Regression: at the loss of a store, every node had an infinite age until the renewal after the first commit."""
    reader.read(max_age=5.0, node_max_age=15.0)
    for place in world.places:
        place.flush()
    for _ in range(20):
        world.run_well(0.25)
        for one in (reader, Wired(world, design)):
            view = one.read(max_age=60.0, node_max_age=30.0, on_stale="flag", on_unresponsive="refuse")
    assert sorted(view.nodes) == NODES


def test_messages_that_waited_in_the_queue_are_no_new_signs_of_life(world: SimulatedCell, reader: Reader) -> None:
    """Regression (I5): a node that died while no consumer ran counted as alive when its heartbeats were delivered."""
    silent = world.clock.monotonic()
    world.pass_time(20)
    del world.agents["node-3"]
    world.pass_time(300)
    world.run_well(12)
    view = reader.read(max_age=5.0, node_max_age=60.0, on_stale="flag")
    assert view.stale == {"node-3"}
    assert view.node_age("node-3") >= world.clock.monotonic() - silent - 20


def test_backlog_does_not_look_fresh_after_a_takeover(world: SimulatedCell, reader: Reader) -> None:
    """Regression (I5): the head of a takeover repeated the statements of the owner before, as of now."""
    reader.read(max_age=5.0)
    world.members[0].die()
    world.pass_time(120)
    world.agents["node-0"].publisher.change({"zone": "unseen"})
    world.confirm()
    member = world.members[0]
    member.consumer._session.receive(limit=1_000, flush_s=0.0)
    member.consumer._takeover.take_due(member.consumer.designs)
    assert 0 in member.consumer.owned, "the takeover wrote part of the backlog"
    with pytest.raises(StaleViewError) as caught:
        reader.read(max_age=60.0)
    assert caught.value.age >= 120


def test_consumer_that_froze_does_not_make_its_partition_look_fresh(world: SimulatedCell, reader: Reader) -> None:
    """I5: it froze between computing its status and writing it, without a standby, while the queue filled."""
    reader.read(max_age=5.0)
    calls = iter(range(1_000))

    def sleep(operation: str, _count: int) -> None:
        if operation == "write" and next(calls) == 0:
            world.pass_time(120)

    world.run_well(1)
    reader.read(max_age=5.0)
    world.clock.advance(1.5)
    world.members[0].step(sleep)
    world.agents["node-0"].publisher.change({"zone": "unseen"})
    assert reader.read(max_age=1e9, on_stale="flag").age >= 120


def test_read_waits_for_a_receipt(world: SimulatedCell, reader: Reader) -> None:
    """Read your own writes: the view contains the publish, or the error names the version that was reached."""
    receipt = world.agents["node-2"].publisher.change({"zone": "mine"})
    with pytest.raises(BehindError) as caught:
        reader.read(at_least=receipt, timeout=0.5)
    assert (caught.value.wanted, caught.value.reached) == (
        receipt.version,
        (receipt.version[0], receipt.version[1] - 1),
    )
    world.run_well(1)
    assert reader.read(at_least=receipt).nodes["node-2"].state["zone"] == "mine"


def test_receipt_of_an_unknown_node_is_behind(world: SimulatedCell, reader: Reader) -> None:
    """No version was reached, and the wait ends in time."""
    began_at = world.clock.monotonic()
    with pytest.raises(BehindError) as caught:
        reader.read(at_least=Receipt("nobody", Version(1, 1)), timeout=0.5)
    assert caught.value.reached is None
    assert world.clock.monotonic() - began_at == pytest.approx(0.5, abs=0.02)


def test_receipt_of_a_node_that_left_is_reached(world: SimulatedCell, reader: Reader) -> None:
    """A tombstone has a version like any other state."""
    receipt = world.agents["node-2"].publisher.leave()
    world.run_well(1)
    assert "node-2" not in reader.read(at_least=receipt).nodes


@IN_MEMCACHED
def test_server_down_costs_only_the_freshness_of_its_partitions(world: SimulatedCell, reader: Reader) -> None:
    """The other half of the fleet stays within every bound; the state that was read before can still be read."""
    reader.read(max_age=5.0)
    world.servers[1].stop()
    world.agents[of_partition(0)[0]].publisher.change({"zone": "seen"})
    world.run_well(30)
    view = reader.read(max_age=5.0, on_stale="exclude")
    assert sorted(view.nodes) == of_partition(0)
    assert sorted(view.stale) == of_partition(1)
    assert view.nodes[of_partition(0)[0]].state["zone"] == "seen"
    assert "partition 1" in view.incomplete
    with pytest.raises(StaleViewError) as caught:
        reader.read(max_age=5.0)
    assert caught.value.partitions == (1,)
    assert "store-1" in caught.value.cause
    world.servers[1].start()
    world.run_well(5)
    assert sorted(reader.read(max_age=5.0).nodes) == NODES


@pytest.mark.parametrize(
    ("design", "lose"),
    [("journal", "flush"), ("journal", "restart"), ("snapshot", "flush"), ("snapshot", "restart"), ("sql", "flush")],
    indirect=["design"],
)
def test_store_that_lost_everything_is_reported_as_a_loss(
    world: SimulatedCell, reader: Reader, lose: str, design: str
) -> None:
    """I5: the state that was read before can still be read, but it ages, and the view names its partitions as
    incomplete.
    """
    reader.read(max_age=5.0)
    for server in world.places:
        getattr(server, lose)()
    world.pass_time(10)
    view = reader.read(max_age=5.0, on_stale="flag")
    assert {"partition 0", "partition 1"} <= view.incomplete
    assert sorted(view.stale) == NODES
    fresh = Wired(world, design).read(max_age=5.0, on_stale="flag")
    assert (len(fresh.nodes), fresh.age) == (0, math.inf)


def test_ages_err_on_the_old_side(world: SimulatedCell, reader: Reader) -> None:
    """At any moment, everything that was in the queue as long ago as the view is old must be in the view (I5)."""
    published: dict[int, float] = {}
    for n in range(60):
        world.agents["node-1"].publisher.change({"usage": {"VCPU": n}})
        published[n] = world.clock.monotonic()
        world.pass_time(0.37)
        if n % 3:
            world.members[0].step()
        view = reader.read(max_age=60.0)
        seen = view.nodes["node-1"].state["usage"]["VCPU"]
        for number, at in published.items():
            if at <= world.clock.monotonic() - view.age:
                assert seen >= number


def test_database_down_makes_all_partitions_age() -> None:
    """All partitions are stored there, and no other error is raised."""
    world = SimulatedCell(designs=("sql",))
    world.start_member([0, 1], [])
    for name in NODES:
        world.start_agent(name, {})
    world.run_well(60)
    reader = Wired(world, "sql")
    reader.read(max_age=5.0)
    world.places[0].stop()
    world.run_well(30)
    view = reader.read(max_age=5.0, on_stale="flag")
    assert (sorted(view.nodes), sorted(view.stale)) == (NODES, NODES)
    with pytest.raises(StaleViewError) as caught:
        reader.read(max_age=5.0)
    assert caught.value.partitions == (0, 1)
    assert "database" in caught.value.cause
    world.places[0].start()
    world.run_well(5)
    assert sorted(reader.read(max_age=5.0).nodes) == NODES


def test_view_never_changes(world: SimulatedCell, reader: Reader) -> None:
    """It is cheap to keep, whatever happens later."""
    view = reader.read(max_age=5.0)
    before = {name: (node.version, dict(node.state)) for name, node in view.nodes.items()}
    columns = {name: array.tolist() for name, array in view.columns.usage.items()}
    for name in NODES:
        world.agents[name].publisher.change({"usage": {"VCPU": 7}})
    world.start_agent("node-new", {})
    world.run_well(2)
    after = reader.read(max_age=5.0)
    assert "node-new" in after.nodes
    assert {name: (node.version, dict(node.state)) for name, node in view.nodes.items()} == before
    assert {name: array.tolist() for name, array in view.columns.usage.items()} == columns
    with pytest.raises(TypeError):
        view.nodes["node-0"].state["usage"] = {}  # type: ignore[index]


def test_failed_read_leaves_the_reader_unchanged(world: SimulatedCell, design: str) -> None:
    """Any call may be unanswered; the next read continues from there."""
    for call in range(4):
        reader = Wired(world, design)
        reader.read(max_age=5.0)
        for name in NODES:
            world.agents[name].publisher.change({"usage": {"VCPU": call}})
        world.run_well(1)
        for wire in reader.wires:
            wire.plan = script(*[None] * call, Fault())
        reader.read(max_age=60.0, on_stale="flag")
        for wire in reader.wires:
            wire.plan = script()
        view = reader.read(max_age=5.0)
        assert {name: node.state["usage"]["VCPU"] for name, node in view.nodes.items()} == dict.fromkeys(NODES, call)


def test_unknown_design_is_refused(world: SimulatedCell) -> None:
    """By its name, with the names that exist."""
    with pytest.raises(ConfigError, match="journal, snapshot"):
        Reader(world.config, design="tape", stores=Stores([MemoryStore()]), clock=world.clock)

"""The consumer: acks after the write, stops for nobody's poison, and knows when a partition is no longer its own."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from nodestate import Reader
from nodestate.consumers.partition import MAX_CLOCK_AHEAD_S
from nodestate.consumers.watermarks import is_marker, watermark_message
from nodestate.errors import DeadLetterError
from nodestate.model import MAX_EVENT_BYTES
from nodestate.model.partitioning import partition_of
from nodestate.ports import Delivery
from nodestate.store import keys
from nodestate.testing import Fault
from tests.machines.world import JudgedReader, Member, World, at_call

NODES = [f"node-{n}" for n in range(6)]
ZERO = [name for name in NODES if partition_of(name, 2) == 0]
NOW_S = 1_763_787_600


IN = {"memcached": ("journal", "snapshot"), "database": ("sql",)}


@pytest.fixture(params=IN)
def world(request: pytest.FixtureRequest) -> World:
    """A cell of two partitions in one place, with one consumer, that has run for a while."""
    return begun(designs=IN[request.param])


@pytest.fixture
def two_designs() -> World:
    """The same with both designs of memcached."""
    return begun()


def begun(**settings: Any) -> World:
    world = World(servers=1, **settings)
    world.start_member([0, 1], [])
    world.readers = [JudgedReader(world, design) for design in world.config.designs]
    for name in NODES:
        world.start_agent(name, {"usage": {"VCPU": 1}})
    world.run_well(60)
    return world


def waiting(world: World, partition: int) -> list[bytes]:
    """What is in a queue, or delivered and not acked, but for probes."""
    unacked = [
        message.body
        for queue_consumer in world.broker.queue(partition).consumers
        for message in queue_consumer._unacked.get(partition, {}).values()
    ]
    return [body for body in (*unacked, *world.broker.queued(partition)) if not is_marker(body)]


def counted(member: Member) -> dict[str, int]:
    return member.consumer.stats.counts.dead_letters


# -- poison ---------------------------------------------------------------------------------------


def an_event(**wrong: Any) -> bytes:
    fields = {"kind": "heartbeat", "node": ZERO[0], "incarnation": NOW_S, "generation": 1, "reported_at": float(NOW_S)}
    return msgspec.msgpack.encode({**fields, **wrong})


DEEP = {"namespaces": {"a": [[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]}}
POISON: list[tuple[str, bytes | dict[str, Any]]] = [
    ("undecodable", b""),
    ("undecodable", b"\xc1"),
    ("undecodable", b"\x81\xa4kind"),
    ("wrong-type", b"7"),
    ("too-large", b"\x00" * (MAX_EVENT_BYTES + 1)),
    ("unknown-version", {"v": 2}),
    ("bad-name", {"node": "a b"}),
    ("wrong-type", {"kind": "rumour"}),
    ("wrong-type", {"kind": "report", "state": {"usage": {"VCPU": -1}}}),
    ("wrong-type", {"kind": "change", "patch": {"usage": {"VCPU": -1}}}),
    ("too-deep", {"kind": "report", "state": DEEP}),
    ("clock", {"incarnation": NOW_S + int(MAX_CLOCK_AHEAD_S) + 3_600}),
    ("clock", {"reported_at": 12.0}),
    ("clock", {"incarnation": 7}),
    ("wrong-partition", {"node": next(name for name in NODES if name not in ZERO)}),
]


@pytest.mark.parametrize(("reason", "wrong"), POISON, ids=[f"{n} {reason}" for n, (reason, _) in enumerate(POISON)])
def test_poison_ends_in_the_dead_letters_with_its_reason_and_stops_nothing(
    world: World, reason: str, wrong: bytes | dict[str, Any]
) -> None:
    """One bad message never stops its partition, and nothing is dropped silently."""
    publisher = world.agents[ZERO[0]].publisher
    body = wrong if isinstance(wrong, bytes) else an_event(**{"generation": publisher.version.generation + 1, **wrong})
    world.poisoned(0, body)
    publisher.change({"zone": "after"})
    world.run_well(1)
    assert [(letter.partition, letter.body, letter.reason) for letter in world.broker.dead_letters] == [
        (0, body, reason)
    ]
    assert counted(world.members[0]) == {reason: 1}
    assert waiting(world, 0) == []
    for reader in world.readers:
        assert reader.read(5.0).nodes[ZERO[0]].state["zone"] == "after"
    assert world.converge() < 5


def test_an_event_that_was_refused_is_known_to_have_been(world: World) -> None:
    """I5: the agent thinks that it said something newer, so what is held must not pass for its newest."""
    publisher = world.agents[ZERO[0]].publisher
    generation = publisher.version.generation + 1
    world.poisoned(0, an_event(kind="report", state={"usage": {"VCPU": -1}}, generation=generation))
    world.members[0].step()
    for reader in world.readers:
        assert reader.read(1e9).incomplete == {ZERO[0]}
    assert world.converge() < 15


def test_a_state_that_fits_no_item_of_this_store_is_a_dead_letter(world: World) -> None:
    """A full item limit says which limit, and costs one node; the event is kept for the operator."""
    world.places[0].max_value_bytes = 20_000
    publisher = world.agents[ZERO[0]].publisher
    big = an_event(
        kind="report", generation=publisher.version.generation + 1, state={"namespaces": {"x": "y" * 25_000}}
    )
    world.poisoned(0, big)
    publisher.change({"zone": "after"})
    world.run_well(2)
    letter = world.broker.dead_letters[0]
    assert (letter.body, letter.reason) == (big, "too-large")
    assert "-I" in letter.detail
    assert world.readers[0].read(5.0).nodes[ZERO[0]].state["zone"] == "after"


def test_poison_is_not_acked_before_it_is_kept(world: World) -> None:
    """The broker goes between the two: it comes again, and is kept then."""
    world.poisoned(0, b"poison")
    member = world.members[0]
    member.source.dies_before_ack = True
    member.step()
    assert b"poison" in waiting(world, 0)
    world.run_well(2)
    assert [letter.body for letter in world.broker.dead_letters] == [b"poison", b"poison"]
    assert waiting(world, 0) == []


# -- acks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("designs", [("journal", "snapshot"), ("sql",), ("journal", "sql")], ids=" ".join)
@pytest.mark.parametrize("call", range(8))
def test_nothing_is_acked_before_every_design_has_it(call: int, designs: tuple[str, ...]) -> None:
    """I6: whatever call of a store fails, an event is either still in the broker's hands or in all designs."""
    world = begun(designs=designs)
    world.agents[ZERO[0]].publisher.change({"zone": "new"})
    world.confirm()
    world.members[0].step(at_call(call, Fault()))
    if not waiting(world, 0):
        for reader in world.readers:
            assert reader.read(1e9).nodes[ZERO[0]].state["zone"] == "new"
    world.run_well(2)
    assert waiting(world, 0) == []
    for reader in world.readers:
        assert reader.read(5.0).nodes[ZERO[0]].state["zone"] == "new"


def test_while_the_store_is_away_nothing_is_acked_and_then_all_is_written(world: World) -> None:
    """An outage of the store costs freshness; the queue holds what is on its way."""
    world.places[0].stop()
    for name in NODES:
        world.agents[name].publisher.change({"zone": "during"})
    world.confirm()
    before = world.members[0].consumer.stats.acked
    for _ in range(10):
        world.members[0].step()
    assert len(waiting(world, 0)) + len(waiting(world, 1)) == len(NODES)
    assert world.members[0].consumer.stats.acked - before == 0
    world.places[0].start()
    assert world.converge() < 5


def test_a_full_store_loses_nothing_and_goes_on_when_there_is_room() -> None:
    """Under -M a write is refused: what was there stays, the event stays in the queue, the consumer says why."""
    world = begun(no_evict=True)
    server = world.servers[0]
    server._max_bytes = server._used_bytes
    world.agents[ZERO[0]].publisher.change({"namespaces": {"x": "y" * 3_000}})
    world.confirm()
    world.members[0].step()
    assert len(waiting(world, 0)) == 1
    for design in world.config.designs:
        assert "x" not in JudgedReader(world, design).read(1e9).nodes[ZERO[0]].state.get("namespaces", {})
    assert world.converge() < 5


def test_a_full_database_loses_nothing_and_goes_on_when_there_is_room() -> None:
    """The transaction is refused, the event stays in the queue; signs of life, which take the room of those before, go on."""
    world = begun(designs=("sql",))
    assert world.database is not None
    world.database._max_bytes = world.database._used_bytes + 500
    world.agents[ZERO[0]].publisher.change({"namespaces": {"x": "y" * 3_000}})
    world.confirm()
    world.members[0].step()
    assert len(waiting(world, 0)) == 1
    assert "x" not in JudgedReader(world, "sql").read(1e9).nodes[ZERO[0]].state.get("namespaces", {})
    world.database._max_bytes = None
    assert world.converge() < 5


def test_a_database_that_was_set_back_is_written_anew_by_who_holds_its_partitions() -> None:
    """I5: without a question to any agent, as all that was lost is in the consumer's memory; and it vouches again as soon
    as the queue proves that nobody else took over meanwhile."""
    world = begun(designs=("sql",))
    [member] = world.members
    world.back_up_database()
    for name in NODES:
        world.agents[name].publisher.change({"zone": "after the backup"})
    world.run_well(2)
    resyncs, begun_before = member.consumer.stats.resyncs, member.consumer.stats.epochs_begun
    world.restore_database()
    assert world.converge() < 10
    assert member.consumer.stats.epochs_begun == begun_before + 2, "one for each partition"
    assert member.consumer.stats.resyncs == resyncs


def test_a_database_that_was_set_back_while_no_consumer_ran_is_asked_for_again() -> None:
    """I5: what was acked after the backup is in no queue, so whoever comes next believes nothing before all agents spoke."""
    world = begun(designs=("sql",))
    world.back_up_database()
    for name in NODES:
        world.agents[name].publisher.change({"zone": "after the backup"})
    world.run_well(2)
    world.members[0].source.inner.crash()
    world.members.clear()
    world.restore_database()
    world.start_member([0, 1], [])
    world.members[0].step()
    world.members[0].step()
    view = world.readers[0].read(1e9)
    assert {"partition 0", "partition 1"} <= view.incomplete
    assert world.converge() < world.config.settle_s + 5
    assert world.members[0].consumer.stats.resyncs >= 1


def test_a_batch_waits_no_longer_than_its_first_event_may(world: World) -> None:
    """What came while the batch before was written has waited for that long already."""
    [member] = world.members
    receive, write = member.source.receive, member.stores[-1].inner.write
    waits: list[float] = []

    def note(limit: int, timeout_s: float) -> list[Delivery]:
        waits.append(timeout_s)
        return receive(limit, timeout_s)

    def slowly(writes: Any) -> Any:
        world.clock.advance(0.004)
        return write(writes)

    member.source.receive = note  # type: ignore[method-assign]
    member.stores[-1].inner.write = slowly  # type: ignore[method-assign]
    member.step()
    world.agents[ZERO[0]].publisher.change({"zone": "new"})
    world.confirm()
    member.step()
    member.step()
    assert 0 < waits[-1] < world.config.flush_s - 0.003


def test_death_before_the_ack_makes_duplicates_and_nothing_else(world: World) -> None:
    """The successor folds the same events again, onto the state that has them."""
    world.agents[ZERO[0]].publisher.change({"zone": "new"})
    world.confirm()
    world.members[0].source.dies_before_ack = True
    world.members[0].step()
    world.run_well(2)
    counts = world.members[0].consumer.stats.counts.by_outcome
    assert (counts["applied"], counts["duplicate"]) == (0, 1)
    assert world.converge() < 5


# -- ownership ------------------------------------------------------------------------------------


def test_a_member_that_was_overtaken_drops_what_it_holds(world: World) -> None:
    """I7: frozen in the midst of a commit, it finds another's term, gives up its session, and stands in line again."""
    world.start_member([0, 1], [])
    old, new = world.members
    world.agents[ZERO[0]].publisher.change({"zone": "new"})
    world.overtaken(old, 0, lambda: (new.step(), new.step()))  # type: ignore[arg-type, return-value, func-returns-value]
    assert old.consumer.stats.fenced == 1
    assert old.consumer.owned == {}
    assert set(new.consumer.owned) == {0, 1}
    assert world.converge() < 5


def test_a_member_whose_session_ended_at_the_ack_takes_its_partitions_anew(world: World) -> None:
    """Regression (I5): only ``receive`` was listened to. What another wrote and acked meanwhile was unknown to it, and
    when the store then lost everything, its old memory became the new epoch, vouched for and fresh."""
    world.start_member([0, 1], [])
    first, second = world.members
    node = world.agents[ZERO[0]].publisher
    ack = first.source.ack

    def ack_late(deliveries: Any) -> None:
        first.source.ack = ack  # type: ignore[method-assign]
        first.source.inner.disconnect()
        first.source.inner.ack(deliveries)

    first.source.ack = ack_late  # type: ignore[method-assign]
    node.change({"zone": "first"})
    world.confirm()
    first.step()
    assert first.consumer.owned == {}
    node.change({"zone": "second"})
    world.confirm()
    second.step()
    second.step()
    assert waiting(world, 0) == []
    second.source.inner.crash()
    world.members.remove(second)
    world.places[0].flush()
    world.run_well(5)
    assert world.converge() < 60


def test_a_broken_session_is_begun_again(world: World) -> None:
    """The broker restarts: partitions are taken from the stores, and nothing is asked of the agents."""
    resyncs = world.members[0].consumer.stats.resyncs
    world.broker.stop()
    world.members[0].step()
    assert world.members[0].consumer.owned == {}
    world.broker.start()
    world.run_well(15)
    assert world.members[0].consumer.stats.resyncs == resyncs
    assert world.converge() < 5


def test_a_partition_is_vouched_for_through_a_takeover(world: World) -> None:
    """A healthy handover must not make every scheduler doubt its view for half a minute."""
    world.members[0].die()
    world.run_well(2)
    for reader in world.readers:
        assert reader.read(5.0).incomplete == frozenset()


def test_an_owner_whose_epoch_was_lost_first_proves_that_nobody_went_past_it(world: World) -> None:
    """I5: with the store its term is gone. If it had been frozen, another could have taken the partition and acked events
    that it never saw; its old memory must not begin an epoch that is vouched for.
    """
    [member] = world.members
    resyncs, begun_before = member.consumer.stats.resyncs, member.consumer.stats.epochs_begun
    for server in world.places:
        server.flush()
    while member.consumer.stats.epochs_begun == begun_before:
        world.clock.advance(world.config.renew_s)
        member.step()
    assert not any(held.complete for held in member.consumer.owned.values() if not held.lost)
    assert "partition 0" in world.readers[0].read(1e9).incomplete
    world.run_well(2 * world.config.renew_s)
    for reader in world.readers:
        assert reader.read(5.0).incomplete == frozenset()
    assert member.consumer.stats.resyncs == resyncs


def test_heads_that_ran_out_are_as_a_store_that_was_lost(world: World) -> None:
    """Nobody consumed for longer than a lease: what is stored is of unknown age, so whoever takes it asks all agents."""
    world.members[0].die()
    world.pass_time(world.config.lease_s + 2)
    for reader in world.readers:
        view = reader.read(5.0)
        assert view.incomplete == {"partition 0", "partition 1"}
        assert view.stale == set(NODES)
    world.start_member([0, 1], [])
    assert world.converge() < world.config.settle_s + 5


def test_an_agent_whose_life_is_older_than_the_last_goes_stale_and_heals_with_the_clock(world: World) -> None:
    """Its clock was set back and its incarnation file is lost: all it says is of a life that is over. Not even its signs
    of life count, so ``node_max_age`` tells.
    """
    node, now = ZERO[0], int(world.clock.time())
    del world.agents[node]
    world._incarnations[node] = now - 10 * 86_400
    world.clock.step_time(-3_600)
    world.start_agent(node, {"usage": {"VCPU": 7}})
    reader = Reader(
        world.config, design=world.config.designs[0], stores=world.readers[0]._reader._stores, clock=world.clock
    )
    bound_s = 2 * world.config.heartbeat_s
    for _ in range(int(2 * bound_s)):
        world.run_well(1)
    view = reader.read(max_age=5.0, node_max_age=bound_s, on_stale="flag")
    assert view.stale == {node}
    assert view.nodes[node].state["usage"] == {"VCPU": 1}
    assert world.members[0].consumer.stats.counts.by_outcome["duplicate"] > 0


def test_doubt_counts_also_before_the_first_vouching() -> None:
    """I5: settled, and frozen just before the renewal that would vouch. Another took over, wrote, acked and died, the store
    was flushed; what the first then wakes to in its buffers proves nothing.
    """
    world = World(servers=1)
    first = world.start_member([0, 1], [])
    world.start_agent(ZERO[0], {"usage": {"VCPU": 1}})
    node = world.agents[ZERO[0]].publisher

    def settled() -> bool:
        held = first.consumer.owned.get(0)
        return held is not None and not held.complete and held.caught_up_at >= held.complete_after

    while not settled():
        world.pass_time(0.05)
        first.step()
    node.change({"zone": "first"})
    world.confirm()
    buffered = [first.source.inner.receive(100, 0)]
    first.source.inner.disconnect()
    second = world.start_member([0, 1], [])
    for zone in ("first", "second"):
        node.change({"zone": zone})
        world.confirm()
        second.step()
        second.step()
    second.source.inner.crash()
    world.members.remove(second)
    world.servers[0].flush()

    source = first.source
    real = source.receive, source.send_marker, source.ack

    def receive_buffered(_limit: int, timeout_s: float) -> list[Delivery]:
        world.clock.advance(timeout_s)
        return buffered.pop() if buffered else []

    source.receive = receive_buffered  # type: ignore[method-assign]
    source.send_marker = source.ack = lambda *_: None  # type: ignore[method-assign]
    first.consumer._renewal.due_at = world.clock.monotonic() + 0.5
    for _ in range(25):
        first.step()
    source.receive, source.send_marker, source.ack = real  # type: ignore[method-assign]
    world.readers = [JudgedReader(world, design) for design in world.config.designs]
    assert world.converge() < 60


def test_a_design_that_lost_a_node_lends_no_claim(two_designs: World) -> None:
    """I5: the snapshot had a batch and its probe, the journal did not, and the node's item is gone. Caught up is only who
    has what the claim was about.
    """
    world = two_designs
    [member] = world.members
    wire = member.stores[0].inner
    write = wire.write
    world.agents[ZERO[0]].publisher.change({"zone": "new"})
    world.confirm()
    world.clock.advance(3)
    member.source.inner.send_marker(0, watermark_message(member.consumer._storage.owner, world.clock.monotonic()))

    def all_but_the_journals_heads(writes: Any) -> Any:
        passed = [one for one in writes if not (":head:" in one.key and ":j:" in one.key)]
        return write(passed) if len(passed) == len(writes) else _die(write, passed)

    wire.write = all_but_the_journals_heads  # type: ignore[method-assign]
    with pytest.raises(_Death):
        member.consumer.step()
    wire.write = write  # type: ignore[method-assign]
    member.die()
    prefix = keys.prefix(world.config.cell, 2, 0, keys.SNAPSHOT)
    assert world.servers[0].evict(keys.node(prefix, ZERO[0]))
    [heir] = world.members
    write_due = heir.consumer._commits.write_due
    looked: list[str] = []

    def look_first() -> None:
        if 0 in heir.consumer.owned and not looked:
            looked.extend(world.config.designs)
            for design in world.config.designs:
                JudgedReader(world, design).read(5.0)
        write_due()

    heir.consumer._commits.write_due = look_first  # type: ignore[method-assign]
    for _ in range(5):
        heir.step()
    assert looked
    assert world.converge() < 60


def test_an_item_limit_that_was_lowered_stops_no_consumer(world: World) -> None:
    """What is held of a node fits no more, and an event comes that can't be kept: a dead letter, as any other."""
    node = world.agents[ZERO[0]].publisher
    node.change({"namespaces": {"x": "y" * 25_000}})
    world.run_well(2)
    world.places[0].max_value_bytes = 20_000
    world.poisoned(0, an_event(generation=node.version.generation + 5))
    for _ in range(3):
        world.members[0].step()
    assert counted(world.members[0]) == {"too-large": 1}


def test_dead_letters_that_can_not_be_given_stop_nothing_else(world: World) -> None:
    """The way to the dead-letter queue is blocked: what was refused stays unacked, and everything else goes on."""
    [member] = world.members
    bury = member.source.dead_letter

    def blocked(*_: Any) -> None:
        raise DeadLetterError("memory://", "it takes no messages")

    member.source.dead_letter = blocked  # type: ignore[method-assign]
    world.poisoned(0, b"poison")
    world.agents[ZERO[0]].publisher.change({"zone": "new"})
    world.run_well(10)
    assert waiting(world, 0) == [b"poison"]
    assert world.readers[0].read(5.0).nodes[ZERO[0]].state["zone"] == "new"
    member.source.dead_letter = bury  # type: ignore[method-assign]
    assert world.converge() < 5
    assert counted(member) == {"wrong-type": 1}


def test_who_begins_with_nothing_vouches_only_after_every_agent_could_have_spoken() -> None:
    """I5: an empty cell and a cell whose store was lost look alike from inside."""
    world = World(servers=1)
    world.start_member([0, 1], [])
    world.readers = [JudgedReader(world, "journal")]
    began_at = world.clock.monotonic()
    while world.readers[0].read(1e9).incomplete:
        world.run_well(0.5)
    assert world.clock.monotonic() - began_at == pytest.approx(world.config.settle_s, abs=2.0)


# -- two designs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("design", ["journal", "snapshot"])
def test_a_design_that_a_crash_left_one_behind_is_written_anew(two_designs: World, design: str) -> None:
    """The events come again, but the fold of the design that has them would drop them as duplicates."""
    world = two_designs
    key = f":{'j' if design == 'journal' else 's'}:"
    world.agents[ZERO[0]].publisher.change({"zone": "new"})
    world.confirm()
    member = world.members[0]
    wire = member.stores[0].inner
    write = wire.write

    def without(writes: Any) -> Any:
        heads = [w for w in writes if ":head:" in w.key and key in w.key]
        return (
            write([w for w in writes if w not in heads])
            if not heads
            else _die(write, [w for w in writes if w not in heads])
        )

    wire.write = without  # type: ignore[method-assign]
    with pytest.raises(_Death):
        member.consumer.step()
    wire.write = write  # type: ignore[method-assign]
    member.die()
    world.run_well(2)
    views = {reader.design: reader.read(5.0) for reader in world.readers}
    assert {name: view.nodes[ZERO[0]].state["zone"] for name, view in views.items()} == {
        "journal": "new",
        "snapshot": "new",
    }
    assert world.converge() < 5


class _Death(BaseException):
    """The process ends here."""


def _die(write: Any, writes: Any) -> Any:
    write(writes)
    raise _Death


def test_a_design_that_is_no_longer_written_is_seen_as_lost(two_designs: World) -> None:
    """Its last state must not go on passing for fresh to readers that were not told."""
    world = two_designs
    view = next(reader for reader in world.readers if reader.design == "snapshot").read(5.0)
    assert view.incomplete == frozenset()
    object.__setattr__(world, "config", msgspec.structs.replace(world.config, designs=("journal",)))
    world.members[0].die()
    reader = world.readers.pop()
    assert reader.design == "snapshot"
    world.run_well(20)
    view = reader.read(5.0)
    assert view.stale == set(NODES)
    assert keys.epoch(keys.prefix("cell1", 2, 0, keys.SNAPSHOT)) not in world.servers[0].keys()  # noqa: SIM118
    fresh = JudgedReader(world, "snapshot").read(5.0)
    assert {"partition 0", "partition 1"} <= fresh.incomplete


def test_one_lost_key_of_each_kind_is_healed_without_asking_the_fleet() -> None:
    """Evictions are everyday; a resync of everything is not the answer to one."""
    for kind in (":epoch", ":life:", ":log:", ":ckpt:", ":node:", ":index:", ":repair"):
        world = begun()
        for name in NODES:
            world.agents[name].publisher.change({"usage": {"VCPU": 2}})
        world.run_well(1)
        for key in [key for key in world.servers[0].keys() if kind in key]:  # noqa: SIM118 - not a dict
            world.servers[0].evict(key)
            world.readers += [JudgedReader(world, design) for design in world.config.designs]
            resyncs = world.members[0].consumer.stats.resyncs
            assert world.converge() < 6, key
            assert world.members[0].consumer.stats.resyncs == resyncs, key
            del world.readers[2:]

"""The consumer: it acks after the write, goes on after invalid messages, and notices when it has lost a partition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from nodestate import Reader
from nodestate.consumers.pending_work import MAX_DEAD_LETTER_BYTES
from nodestate.consumers.watermarks import is_marker
from nodestate.designs.inspection import DesignStatus, head_status
from nodestate.errors import DeadLetterError
from nodestate.findings.design_checks import examine_design
from nodestate.model import MAX_CLOCK_AHEAD_S, MAX_EVENT_BYTES
from nodestate.model.partitioning import partition_of
from nodestate.ports import ACTIVATION, QUEUE_BEGAN, Delivery, RefusedDelivery
from nodestate.store import keys
from nodestate.store.head import read_head
from nodestate.store.round_trips import run_one
from nodestate.testing import Fault, MemoryStore
from tests.machines.simulated_cell import CELL, JudgedReader, SimulatedCell, SimulatedMember, at_call

NODES = [f"node-{n}" for n in range(6)]
ZERO = [name for name in NODES if partition_of(name, 2) == 0]
NOW_S = 1_763_787_600
PLACES = {"memcached": ("journal", "snapshot"), "database": ("sql",)}


@pytest.fixture(params=PLACES)
def world(request: pytest.FixtureRequest) -> SimulatedCell:
    """A cell of two partitions in one kind of store, with one consumer, that has run for a minute."""
    return begun(designs=PLACES[request.param])


@pytest.fixture
def two_designs() -> SimulatedCell:
    """The same cell with both designs of memcached."""
    return begun()


def begun(**settings: Any) -> SimulatedCell:
    world = SimulatedCell(servers=1, **settings)
    world.start_member([0, 1], [])
    world.readers = [JudgedReader(world, design) for design in world.config.designs]
    for name in NODES:
        world.start_agent(name, {"usage": {"VCPU": 1}})
    world.run_well(60)
    return world


def waiting(world: SimulatedCell, partition: int) -> list[bytes]:
    """The events of a queue that are not acknowledged, delivered or not; without markers."""
    unacked = [
        message.body
        for queue_consumer in world.broker.queue(partition).consumers
        for message in queue_consumer._unacked.get(partition, {}).values()
    ]
    return [body for body in (*unacked, *world.broker.queued(partition)) if not is_marker(body)]


def dead_letters(member: SimulatedMember) -> dict[str, int]:
    return member.consumer.stats.counts.dead_letters


# -- invalid messages -----------------------------------------------------------------------------


def an_event(**wrong: Any) -> bytes:
    fields = {"kind": "heartbeat", "node": ZERO[0], "incarnation": NOW_S, "generation": 1, "reported_at": float(NOW_S)}
    return msgspec.msgpack.encode({**fields, **wrong})


DEEP = {"namespaces": {"a": [[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]}}
INVALID: list[tuple[str, bytes | dict[str, Any]]] = [
    ("undecodable", b""),
    ("undecodable", b"\xc1"),
    ("undecodable", b"\x81\xa4kind"),
    ("wrong-type", b"7"),
    ("wrong-type", {"generation": 1e300}),
    ("unknown-version", {"v": -1e300}),
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


@pytest.mark.parametrize(("reason", "wrong"), INVALID, ids=[f"{n} {reason}" for n, (reason, _) in enumerate(INVALID)])
def test_an_invalid_message_becomes_a_dead_letter_with_its_reason_and_later_events_are_written(
    world: SimulatedCell, reason: str, wrong: bytes | dict[str, Any]
) -> None:
    """An invalid message never stops its partition, and is never dropped silently."""
    publisher = world.agents[ZERO[0]].publisher
    body = wrong if isinstance(wrong, bytes) else an_event(**{"generation": publisher.version.generation + 1, **wrong})
    world.poisoned(0, body)
    publisher.change({"zone": "after"})
    world.run_well(1)
    assert [(letter.partition, letter.body, letter.reason) for letter in world.broker.dead_letters] == [
        (0, body[:MAX_DEAD_LETTER_BYTES], reason)
    ]
    cut = f"the first 65,536 of {len(body):,} bytes are kept" in world.broker.dead_letters[0].detail
    assert cut == (len(body) > MAX_DEAD_LETTER_BYTES)
    assert dead_letters(world.members[0]) == {reason: 1}
    assert waiting(world, 0) == []
    for reader in world.readers:
        assert reader.read(5.0).nodes[ZERO[0]].state["zone"] == "after"
    assert world.converge() < 5


def test_an_event_of_another_node_than_its_user_becomes_a_dead_letter_and_changes_nothing(world: SimulatedCell) -> None:
    """A report that replaced the state of another node would be believed by all readers."""
    one, other = ZERO[:2]
    before = {reader: reader.read(5.0).nodes[one].version for reader in world.readers}
    generation = world.agents[one].publisher.version.generation + 1
    body = an_event(kind="report", state={"zone": "forged"}, generation=generation)
    world.poisoned(0, body, node=other)
    world.poisoned(0, an_event(node=other), node=other)
    world.run_well(1)
    assert [(letter.body, letter.reason) for letter in world.broker.dead_letters] == [(body, "wrong-user")]
    assert other in world.broker.dead_letters[0].detail
    assert dead_letters(world.members[0]) == {"wrong-user": 1}
    for reader, version in before.items():
        view = reader.read(5.0)
        assert (view.nodes[one].version, view.incomplete) == (version, set())


@pytest.mark.parametrize("body", [QUEUE_BEGAN, ACTIVATION, b"\xc1nodestate poke handover \x90"])
def test_the_bytes_of_a_marker_that_came_through_an_exchange_are_a_dead_letter(
    world: SimulatedCell, body: bytes
) -> None:
    """An agent may publish any bytes to the exchange for events. Markers go straight to the queue of a partition."""
    world.poisoned(0, body)
    world.run_well(1)
    assert [(letter.body, letter.reason) for letter in world.broker.dead_letters] == [(body, "undecodable")]
    for reader in world.readers:
        assert reader.read(5.0).incomplete == set()


def test_a_refused_event_makes_its_node_incomplete(world: SimulatedCell) -> None:
    """I5: the agent published a newer state, so the state before must not pass for the newest one."""
    publisher = world.agents[ZERO[0]].publisher
    generation = publisher.version.generation + 1
    world.poisoned(0, an_event(kind="report", state={"usage": {"VCPU": -1}}, generation=generation))
    world.members[0].step()
    for reader in world.readers:
        assert reader.read(1e9).incomplete == {ZERO[0]}
    assert world.converge() < 15


def test_a_state_that_fits_no_item_of_the_store_is_a_dead_letter(world: SimulatedCell) -> None:
    """The dead letter names the limit, only this node is affected, and the event is kept for the operator."""
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


def test_an_invalid_message_is_not_acked_before_it_is_a_dead_letter(world: SimulatedCell) -> None:
    """The broker fails between the dead letter and the ack. The message comes again and makes a second dead letter."""
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
def test_no_event_is_acked_before_every_design_has_it(call: int, designs: tuple[str, ...]) -> None:
    """I6: whichever call of a store fails, each event is either still in its queue or in all designs."""
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


def test_while_the_store_is_down_no_event_is_acked_and_afterwards_all_are_written(world: SimulatedCell) -> None:
    """An outage of the store costs only freshness: the queue keeps the events."""
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


def test_events_wait_while_the_store_is_full_and_are_written_when_it_has_room() -> None:
    """Under -M memcached refuses the write: the stored state stays, and the event stays in the queue."""
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


def test_events_wait_while_the_database_is_full_and_are_written_when_it_has_room() -> None:
    """The transaction is refused and the event stays in the queue. Signs of life go on: they replace earlier ones."""
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


def test_the_owner_of_a_partition_rewrites_a_database_that_was_restored_from_a_backup() -> None:
    """I5: no agent is asked, because the consumer has everything in memory. The partition is complete again once a
    watermark proves that no other consumer has taken it meanwhile.
    """
    world = begun(designs=("sql",))
    [member] = world.members
    world.back_up_database()
    for name in NODES:
        world.agents[name].publisher.change({"zone": "after the backup"})
    world.run_well(2)
    resyncs, begun_before = member.consumer.stats.resyncs, member.consumer.stats.epochs_begun
    world.restore_database()
    assert world.converge() < 10
    assert member.consumer.stats.epochs_begun == begun_before + 2, "one new epoch for each partition"
    assert member.consumer.stats.resyncs == resyncs


def test_a_consumer_that_starts_on_a_restored_database_asks_all_agents() -> None:
    """I5: events that were acked after the backup are in no queue, so the next consumer has to hear from all agents."""
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


def test_the_time_of_writing_a_batch_counts_towards_the_wait_for_the_next(world: SimulatedCell) -> None:
    """Events that came while the last batch was written have waited for that long already."""
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


def test_death_before_the_ack_causes_only_duplicates(world: SimulatedCell) -> None:
    """The next consumer folds the same events again, onto the state that has them already."""
    world.agents[ZERO[0]].publisher.change({"zone": "new"})
    world.confirm()
    world.members[0].source.dies_before_ack = True
    world.members[0].step()
    world.run_well(2)
    counts = world.members[0].consumer.stats.counts.by_outcome
    assert (counts["applied"], counts["duplicate"]) == (0, 1)
    assert world.converge() < 5


# -- ownership ------------------------------------------------------------------------------------


def test_a_fenced_consumer_drops_all_its_partitions(world: SimulatedCell) -> None:
    """I7: a consumer that was frozen during a commit finds a newer term, gives up its session, and joins again."""
    world.start_member([0, 1], [])
    old, new = world.members
    world.agents[ZERO[0]].publisher.change({"zone": "new"})

    def step_twice() -> None:
        new.step()
        new.step()

    world.overtaken(old, 0, step_twice)
    assert old.consumer.stats.fenced == 1
    assert old.consumer.owned == {}
    assert set(new.consumer.owned) == {0, 1}
    assert world.converge() < 5


def test_a_consumer_whose_session_ends_at_an_ack_takes_its_partitions_over_again(world: SimulatedCell) -> None:
    """Regression (I5): only a failure of ``receive`` dropped the partitions. The consumer did not know events that
    another one wrote and acked meanwhile. When the store then lost everything, the old memory became the new epoch,
    complete and fresh.
    """
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


def test_a_consumer_recovers_from_a_lost_session_without_a_resync(world: SimulatedCell) -> None:
    """The broker restarts. The partitions are taken over from the stores, and no agent is asked."""
    resyncs = world.members[0].consumer.stats.resyncs
    world.broker.stop()
    world.members[0].step()
    assert world.members[0].consumer.owned == {}
    world.broker.start()
    world.run_well(15)
    assert world.members[0].consumer.stats.resyncs == resyncs
    assert world.converge() < 5


def test_a_partition_stays_complete_through_a_takeover(world: SimulatedCell) -> None:
    """A normal handover must not make every scheduler's view incomplete for half a minute."""
    world.members[0].die()
    world.run_well(2)
    for reader in world.readers:
        assert reader.read(5.0).incomplete == frozenset()


def test_a_partition_whose_epoch_was_lost_is_incomplete_until_a_watermark_comes_back(world: SimulatedCell) -> None:
    """I5: the store lost the owner's term as well. If the owner had been frozen, another consumer could have taken the
    partition and acked events that the owner never saw, so its old memory must not become a complete epoch.
    """
    [member] = world.members
    resyncs, begun_before = member.consumer.stats.resyncs, member.consumer.stats.epochs_begun
    for server in world.places:
        server.flush()
    while member.consumer.stats.epochs_begun == begun_before:
        world.clock.advance(world.config.renew_s)
        member.step()
    assert not any(partition.complete for partition in member.consumer.owned.values() if not partition.lost)
    assert "partition 0" in world.readers[0].read(1e9).incomplete
    world.run_well(2 * world.config.renew_s)
    for reader in world.readers:
        assert reader.read(5.0).incomplete == frozenset()
    assert member.consumer.stats.resyncs == resyncs


def test_partitions_whose_heads_expired_are_filled_by_a_resync(world: SimulatedCell) -> None:
    """No consumer ran for longer than a lease. The age of the stored state is unknown, so the next consumer asks all
    agents.
    """
    world.members[0].die()
    world.pass_time(world.config.lease_s + 2)
    for reader in world.readers:
        view = reader.read(5.0)
        assert view.incomplete == {"partition 0", "partition 1"}
        assert view.stale == set(NODES)
    world.start_member([0, 1], [])
    assert world.converge() < world.config.settle_s + 5


def test_a_node_whose_new_incarnation_is_older_goes_stale(world: SimulatedCell) -> None:
    """The agent's clock was set back and its incarnation file was lost, so its events count as old duplicates. Its
    heartbeats do not count as signs of life either, so ``node_max_age`` shows the node as stale.
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


def test_a_watermark_from_before_a_lost_epoch_never_makes_a_partition_complete() -> None:
    """I5: the consumer was frozen just before the renewal that would have made its partition complete. Another one took
    the partition, wrote, acked and died, and the store was flushed. The watermark in the first consumer's buffers
    proves nothing.
    """
    world = SimulatedCell(servers=1)
    first = world.start_member([0, 1], [])
    world.start_agent(ZERO[0], {"usage": {"VCPU": 1}})
    node = world.agents[ZERO[0]].publisher

    def has_settled() -> bool:
        partition = first.consumer.owned.get(0)
        return partition is not None and not partition.complete and partition.caught_up_at >= partition.complete_after

    while not has_settled():
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


def test_a_design_that_lost_a_node_does_not_prove_that_the_partition_was_caught_up(two_designs: SimulatedCell) -> None:
    """I5: the snapshot had a batch and its watermark, the journal did not, and the snapshot then lost the node's item.
    Only a design that still has the batch may say that the partition has caught up to the watermark.
    """
    world = two_designs
    [member] = world.members
    wire = member.stores[0].inner
    write = wire.write
    world.agents[ZERO[0]].publisher.change({"zone": "new"})
    world.confirm()
    world.clock.advance(3)
    watermarks = member.consumer._session._watermarks
    member.source.inner.send_marker(0, watermarks.message(0, world.clock.monotonic()))

    def write_all_but_journal_heads(writes: Any) -> Any:
        passed = [one for one in writes if not (":head:" in one.key and ":j:" in one.key)]
        return write(passed) if len(passed) == len(writes) else _die(write, passed)

    wire.write = write_all_but_journal_heads  # type: ignore[method-assign]
    with pytest.raises(_Death):
        member.consumer.step()
    wire.write = write  # type: ignore[method-assign]
    member.die()
    prefix = keys.prefix(world.config.cell, 2, 0, keys.SNAPSHOT)
    assert world.servers[0].evict(keys.node(prefix, ZERO[0]))
    [successor] = world.members
    write_due = successor.consumer._commits.write_due
    looked: list[str] = []

    def look_first() -> None:
        if 0 in successor.consumer.owned and not looked:
            looked.extend(world.config.designs)
            for design in world.config.designs:
                JudgedReader(world, design).read(5.0)
        write_due()

    successor.consumer._commits.write_due = look_first  # type: ignore[method-assign]
    for _ in range(5):
        successor.step()
    assert looked
    assert world.converge() < 60


def test_a_consumer_goes_on_after_the_item_limit_was_lowered(world: SimulatedCell) -> None:
    """The node's state no longer fits an item, and an event comes that can't be stored: it becomes a dead letter."""
    node = world.agents[ZERO[0]].publisher
    node.change({"namespaces": {"x": "y" * 25_000}})
    world.run_well(2)
    world.places[0].max_value_bytes = 20_000
    world.poisoned(0, an_event(generation=node.version.generation + 5))
    for _ in range(3):
        world.members[0].step()
    assert dead_letters(world.members[0]) == {"too-large": 1}


def test_a_blocked_dead_letter_queue_does_not_stop_other_events(world: SimulatedCell) -> None:
    """The broker takes no dead letters: the refused message stays unacked, and everything else goes on."""
    [member] = world.members
    dead_letter = member.source.dead_letter

    def blocked(*_: Any) -> None:
        raise DeadLetterError("memory://", "it takes no messages")

    member.source.dead_letter = blocked  # type: ignore[method-assign]
    world.poisoned(0, b"poison")
    world.agents[ZERO[0]].publisher.change({"zone": "new"})
    world.run_well(10)
    assert waiting(world, 0) == [b"poison"]
    assert world.readers[0].read(5.0).nodes[ZERO[0]].state["zone"] == "new"
    member.source.dead_letter = dead_letter  # type: ignore[method-assign]
    assert world.converge() < 5
    assert dead_letters(member) == {"wrong-type": 1}


def test_a_consumer_without_stored_state_is_complete_only_after_every_agent_could_have_reported() -> None:
    """I5: a consumer can't tell an empty cell from a cell whose store was lost."""
    world = SimulatedCell(servers=1)
    world.start_member([0, 1], [])
    world.readers = [JudgedReader(world, "journal")]
    began_at = world.clock.monotonic()
    while world.readers[0].read(1e9).incomplete:
        world.run_well(0.5)
    assert world.clock.monotonic() - began_at == pytest.approx(world.config.settle_s, abs=2.0)


# -- two designs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("design", ["journal", "snapshot"])
def test_a_design_that_a_crash_left_behind_begins_a_new_epoch(two_designs: SimulatedCell, design: str) -> None:
    """The events come again, but folded into the state of the design that has them they are duplicates."""
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
    """Ends the process at this point."""


def _die(write: Any, writes: Any) -> Any:
    write(writes)
    raise _Death


@pytest.mark.parametrize("fault", ["flush", "evicted item"])
def test_a_design_whose_store_fails_does_not_keep_the_others_from_being_repaired(fault: str) -> None:
    """The database is away for long. memcached loses its contents meanwhile, and its design is written again at once,
    although events wait for the database: its head is renewed, so its owner notices.
    """
    world = begun(designs=("journal", "sql"))
    assert world.database is not None
    world.database.stop()
    for name in NODES:
        world.agents[name].publisher.change({"zone": "last"})
    world.run_well(3)
    beat = max(head.beat for (_, letter, _), head in world.truth.heads.items() if letter == "j")
    world.run_well(3)
    assert max(head.beat for (_, letter, _), head in world.truth.heads.items() if letter == "j") > beat
    if fault == "flush":
        world.servers[0].flush()
    else:
        for key in [key for key in world.servers[0].keys() if ":log:" in key or ":ckpt:" in key]:  # noqa: SIM118
            world.servers[0].evict(key)
    world.readers = [JudgedReader(world, "journal")]
    world.run_well(5)
    view = world.readers[0].read(1e9)
    assert {name: view.nodes[name].state["zone"] for name in NODES} == dict.fromkeys(NODES, "last")
    assert not any(partition.lost for partition in view.partitions)
    world.database.start()
    world.readers.append(JudgedReader(world, "sql"))
    assert world.converge() < 60


def test_readers_see_a_design_that_is_no_longer_written_as_lost(two_designs: SimulatedCell) -> None:
    """Readers that still use the design must not take its last state for fresh."""
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


def test_a_lost_key_of_each_kind_is_restored_without_a_resync() -> None:
    """Evictions are frequent, and one lost key must not cause a resync of all nodes."""
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


def test_a_partition_full_of_refused_messages_stops_alone(two_designs: SimulatedCell) -> None:
    """The dead-letter queue is full. Up to ``prefetch`` refused messages wait; then their partition alone ages."""
    world = two_designs
    world.broker.prefetch = 20
    world.broker.dead_letter_limit = 0
    for number in range(30):
        world.poisoned(0, b"poison %d" % number)
    world.run_well(30)
    view = world.readers[0].read(1e9)
    by_number = {partition.partition: partition for partition in view.partitions}
    assert world.clock.monotonic() - by_number[1].confirmed_at < 3
    assert world.clock.monotonic() - by_number[0].confirmed_at > 25
    assert len(waiting(world, 0)) >= 30
    store = MemoryStore(world.servers[0])
    found = [run_one(store, read_head(keys.prefix(CELL, 2, p, "s"), None)) for p in (0, 1)]
    statuses = [head_status(one, store, world.clock.monotonic()) for one in found]
    design = DesignStatus("snapshot", view, 0.0, statuses)
    [finding] = [one for one in examine_design(world.config, design) if "refused" in one.says]
    assert finding.says.startswith("20 refused messages wait, for example in partition 0: ")
    assert f"nodestate.{CELL}.dead is full" in finding.advice
    world.broker.dead_letter_limit = None
    assert world.converge() < 10
    assert len(world.broker.dead_letters) == 30


def test_many_dead_letters_do_not_delay_the_other_partitions(two_designs: SimulatedCell) -> None:
    """The confirms of each batch take 0.1 s, as on a slow disk; 1,500 dead letters take 2 s."""
    world = two_designs
    source = world.members[0].source
    slow = source.dead_letter

    def dead_letter(refused: Sequence[RefusedDelivery]) -> int:
        world.clock.advance(0.1)
        return slow(refused)

    source.dead_letter = dead_letter  # type: ignore[method-assign]  # the double's own would take no time
    for number in range(1_500):
        world.poisoned(0, b"poison %d" % number)
    began = world.clock.monotonic()
    while len(world.broker.dead_letters) < 1_500:
        world.run_well(0.5)
        assert world.readers[0].read(1e9).age < 4
    assert world.clock.monotonic() - began > 2

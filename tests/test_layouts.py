"""Another number of partitions while everything runs: where a layout begins, who follows, and how one ends."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from nodestate.consumers.member import Member
from nodestate.designs import DESIGNS
from nodestate.designs.control import cleared, cut_over, prepared, retired, rolled_back
from nodestate.designs.layout_removal import forget_layout
from nodestate.designs.reader import Reader
from nodestate.errors import BrokerUnavailableError, FencedError
from nodestate.model import Receipt, Version
from nodestate.ports import Source
from nodestate.store import keys
from nodestate.store.liveness import fresh_s
from nodestate.view.view import View
from tests.switched import NODES, K, Switched

OVER = [("journal", "journal@3"), ("snapshot", "snapshot@5"), ("sql", "sql@3"), ("journal@2", "snapshot@1")]


def versions(view: View) -> dict[str, Version]:
    return {name: node.version for name, node in view.nodes.items()}


def said(world: Switched) -> dict[str, Version]:
    """What the agents that live say of themselves."""
    return {name: agent.publisher.version for name, agent in world.agents.items() if agent.publisher.live}


def pinned(world: Switched, name: str) -> Reader:
    """A reader that never looked before."""
    return Reader(world.config, design=name, stores=world.fresh_stores(), clock=world.clock)


def bounds(world: Switched) -> list[int]:
    """The layouts that have queues."""
    return sorted(world.broker.layouts)


# -- beginning ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "other"), OVER)
def test_a_new_layout_begins_with_what_there_is_and_asks_nobody(name: str, other: str) -> None:
    """Nodes whose agents are dead come along, as silent as they are, and those that left stay gone. It is whole within three
    renewals or so: nobody has to listen to agents until all have reported.
    """
    world = Switched([K(name).design])
    dead = world.agents.pop("node-3")
    world.agents["node-4"].publisher.leave()
    world.run_well(30)
    resyncs = [member.runs.stats.resyncs for member in world.members]
    assert world.operator.change(world.operator.read(), prepared(world.record, K(other), "me"))
    for _ in range(10):
        world.change_some(0.7)
        world.run_well(0.5)
    view = pinned(world, other).read(max_age=5.0, node_max_age=20.0, on_stale="flag")
    assert versions(view) == said(world) | {"node-3": dead.publisher.version}
    assert (view.incomplete, view.stale) == (frozenset(), {"node-3"})
    assert 30 < view.node_age("node-3") < 60
    gone = view.nodes.record("node-4")
    assert gone is not None
    assert gone.gone
    assert [member.runs.stats.resyncs for member in world.members] == resyncs
    assert len(view.partitions) == K(other).partitions


def test_a_layout_that_finds_no_other_whole_begins_with_nothing_after_a_while() -> None:
    """The store lost the old one together with its owner: two that wait for each other would wait for ever."""
    world = Switched(database=True)  # where the record survives
    world.take(prepared(world.record, K("journal@3"), "me"))
    for number in range(len(world.servers)):
        world.restart_server(number)
    for member in list(world.members):
        member.die()
    world.run_well(3)
    assert not any(member.held for member in world.members)
    world.run_well(3 * world.config.settle_s)
    for name in ("journal", "journal@3"):
        view = pinned(world, name).read(max_age=5.0, on_stale="flag")
        assert (versions(view), view.incomplete, view.stale) == (said(world), frozenset(), frozenset())


def test_a_layout_is_not_begun_with_less_than_all() -> None:
    """I5: half of the old layout is on a server that is away; what is begun with the rest would pass for whole."""
    world = Switched()
    world.servers[1].stop()
    assert world.operator.change(world.operator.read(), prepared(world.record, K("journal@1"), "me"))
    world.run_well(6)
    assert [member.runs.consumers[1].owned for member in world.members] == [{}, {}]  # type: ignore[union-attr]
    world.servers[1].start()
    world.run_well(10)
    assert versions(pinned(world, "journal@1").read(max_age=5.0)) == said(world)


def test_a_layout_is_begun_only_with_what_came_before_its_queues_were_there() -> None:
    """I5: an event that waits in a queue of the old layout, as its owner is slow, is in no queue of the new one."""
    world = Switched()
    fast, slow = world.members
    assert world.operator.change(world.operator.read(), prepared(world.record, K("journal@3"), "me"))
    for agent in world.agents.values():
        agent.publisher.change({"usage": {"VCPU": 9}})
    world.confirm()
    for _ in range(8):
        world.clock.advance(0.5)
        fast.step()
    assert world.broker.queued(1)
    assert fast.runs.consumers[3].owned == {}  # type: ignore[union-attr]
    for _ in range(6):
        world.clock.advance(0.5)
        for member in (slow, fast):
            member.step()
    assert versions(pinned(world, "journal@3").read(max_age=5.0)) == said(world)


def test_whoever_takes_a_partition_of_a_new_layout_goes_on_with_what_is_stored() -> None:
    """A member dies half-way; and the next to take it need not read another layout again."""
    world = Switched()
    world.take(prepared(world.record, K("journal@3"), "me"))
    for member in list(world.members):
        member.die()
    world.change_some(1.0)
    world.run_well(8)
    assert versions(pinned(world, "journal@3").read(max_age=5.0)) == said(world)


# -- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "other"), OVER)
def test_a_reader_follows_to_another_number_of_partitions_and_back(name: str, other: str) -> None:
    """Within one refresh, and no node is older or gone (I1)."""
    world = Switched([K(name).design])
    world.agents["node-4"].publisher.leave()
    before = world.reader.read(max_age=5.0)
    world.take(prepared(world.record, K(other), "me"))
    world.take(cut_over(world.record, K(other), "me"))
    view = world.reader.read(max_age=5.0)
    assert (view.design, len(view.partitions)) == K(other)
    assert versions(view) == said(world)
    assert sorted(view.columns.names) == sorted({*before.columns.names})
    assert world.operator.change(world.operator.read(), rolled_back(world.record, "me"))
    view = world.reader.read(max_age=5.0)
    assert ((view.design, len(view.partitions)), versions(view)) == (K(name), said(world))


def test_a_wrong_number_in_the_settings_of_a_reader_is_no_error() -> None:
    """The record says what there is, to a reader that never looked before as well."""
    world = Switched()
    config = msgspec.structs.replace(world.config, partitions=7, read_design="snapshot")
    reader = Reader(config, stores=world.fresh_stores(), clock=world.clock)
    view = reader.read(max_age=60.0)
    assert ((view.design, len(view.partitions)), sorted(view.nodes)) == (("journal", 2), NODES)


def test_a_reader_stays_where_it_is_while_the_other_layout_lacks_anything() -> None:
    """A forced cutover to what is not there. What is shown goes on, and a receipt that is waited for is found in either."""
    world = Switched()
    world.reader.read(max_age=5.0)
    both = prepared(world.record, K("snapshot@3"), "me")
    assert world.operator.change(world.operator.read(), both)
    assert world.operator.change(world.operator.read(), cut_over(both, K("snapshot@3"), "me"))
    assert len(world.reader.read(max_age=5.0).partitions) == 2
    for _ in range(12):
        receipt: Receipt = world.agents["node-1"].publisher.change({"usage": {"VCPU": 7}})
        world.run_well(0.5)
        assert world.reader.read(at_least=receipt).nodes["node-1"].version == receipt.version
    assert len(world.reader.read(max_age=5.0).partitions) == 3


# -- ending ---------------------------------------------------------------------------------------


def test_a_layout_that_is_retired_is_left_forgotten_and_deleted() -> None:
    """By the last member that leaves it: queues that nobody reads would fill for ever. Readers of it see a loss (I5)."""
    world = Switched(["journal", "sql"])
    old = pinned(world, "sql")
    assert not old.read(max_age=5.0).incomplete
    world.take(prepared(world.record, K("snapshot@3"), "me"))
    world.take(cut_over(world.record, K("snapshot@3"), "me"))
    world.take(retired(world.record, K("journal"), "me"))
    assert bounds(world) == [2, 3]
    world.take(retired(world.record, K("sql"), "me"))
    assert world.record.leaving == (K("sql"),)
    assert bounds(world) == [3]
    assert [list(member.runs.consumers) for member in world.members] == [[3], [3]]  # type: ignore[union-attr]
    assert pinned(world, "sql").read(max_age=5.0, on_stale="flag").incomplete == {"partition 0", "partition 1"}
    world.pass_time(10)
    assert old.read(max_age=5.0, on_stale="flag").stale == set(NODES)
    assert world.database is not None
    assert [world.database.rows(keys.prefix("cell1", 2, p, keys.DATABASE)) for p in range(2)] == [[], []]
    world.take(cleared(world.record, 2, "me"))
    world.change_some(1.0)
    world.run_well(3)
    assert versions(world.reader.read(max_age=5.0)) == said(world)
    assert [member.runs.stats.counts.dead_letters for member in world.members] == [{}, {}]


def test_a_layout_stays_written_until_what_is_read_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """I6: forced cutover and retirement before the other layout could be begun. Nothing is acked for it alone."""
    world = Switched()
    make, failing = DESIGNS["snapshot"].writer, [True]

    def refuses(place: Any) -> Any:
        writer = make(place)
        begin = writer.begin_epoch

        def begun(*given: Any) -> Any:
            if failing[0]:
                raise BrokerUnavailableError("its place", "not now")
            return (yield from begin(*given))

        writer.begin_epoch = begun  # type: ignore[method-assign]
        return writer

    monkeypatch.setitem(DESIGNS, "snapshot", DESIGNS["snapshot"]._replace(writer=refuses))
    for step in (prepared, cut_over):
        world.take(step(world.record, K("snapshot@3"), "me"))
    world.take(retired(world.record, K("journal"), "me"))
    for member in list(world.members):
        member.die()
    world.change_some(1.0)
    world.run_well(5)
    view = world.reader.read(max_age=5.0)
    assert ((view.design, len(view.partitions)), versions(view)) == (K("journal"), said(world))
    failing[0] = False
    world.run_well(10)
    view = world.reader.read(max_age=5.0)
    assert ((view.design, len(view.partitions)), versions(view)) == (K("snapshot@3"), said(world))
    assert bounds(world) == [3]


def test_a_layout_is_used_again_before_it_was_cleared_away() -> None:
    """8 to 12, and back to 8 as long as its end is not through."""
    world = Switched()
    world.take(prepared(world.record, K("journal@3"), "me"))
    world.take(cut_over(world.record, K("journal@3"), "me"))
    world.take(retired(world.record, K("journal"), "me"))
    world.take(prepared(world.record, K("snapshot"), "me"))
    assert world.record.leaving == ()
    world.take(cut_over(world.record, K("snapshot"), "me"))
    world.change_some(1.0)
    world.run_well(3)
    view = world.reader.read(max_age=5.0)
    assert ((view.design, len(view.partitions)), versions(view)) == (K("snapshot"), said(world))


def retired_and_forgotten_by_nobody(name: str, other: str) -> Switched:
    """A cell that went over from a layout to another; its members died when they should have forgotten the old one."""
    world = Switched([K(name).design])
    world.take(prepared(world.record, K(other), "me"))
    world.take(cut_over(world.record, K(other), "me"))
    assert world.operator.change(world.operator.read(), retired(world.record, K(name), "me"))
    for member in list(world.members):
        for source in member.sources.values():
            source.inner.crash()
        world.members.remove(member)
    assert world.broker.delete(2)
    return world


@pytest.mark.parametrize(("name", "other"), OVER)
def test_a_layout_that_nobody_forgot_is_begun_anew_when_it_is_prepared_again(name: str, other: str) -> None:
    """Regression (I5, I6): its old state passed for all there is, as something was stored. Nodes that left meanwhile were there again."""
    world = retired_and_forgotten_by_nobody(name, other)
    world.start_member([0], [1])
    world.start_member([1], [0])
    world.take(cleared(world.record, 2, "me"))
    world.agents["node-4"].publisher.leave()
    world.change_some(1.0)
    world.run_well(30)
    assert world.operator.change(world.operator.read(), prepared(world.record, K(name), "me"))
    for _ in range(12):
        world.run_well(0.5)
        view = pinned(world, str(K(name))).read(max_age=5.0, on_stale="flag")
        if not view.incomplete and not view.stale:
            assert versions(view) == said(world)
    assert (view.incomplete, view.stale) == (frozenset(), frozenset())


def test_a_layout_that_was_down_is_taken_at_once_where_it_is_read() -> None:
    """Two layouts that were both down do not wait for each other."""
    world = Switched()
    world.take(prepared(world.record, K("journal@3"), "me"))
    members = list(world.members)
    for member in members:
        for source in member.sources.values():
            source.inner.crash()
        world.members.remove(member)
    world.pass_time(120)
    world.start_member([0, 1], [])
    world.run_well(2)
    assert versions(world.reader.read(max_age=5.0)) == said(world)
    world.run_well(5)
    assert versions(pinned(world, "journal@3").read(max_age=5.0)) == said(world)


@pytest.mark.parametrize(("name", "other"), OVER)
def test_what_members_left_behind_that_died_is_forgotten_with_the_layout(name: str, other: str) -> None:
    """The operator's command does it, before it says that nothing is left; what may be in use still, by its head, it leaves."""
    world = retired_and_forgotten_by_nobody(name, other)
    of_layout = msgspec.structs.replace(world.config, partitions=2)
    left = forget_layout(of_layout, world.fresh_stores(), "", world.clock)
    assert {why.__class__ for why in left.values()} == {FencedError}
    world.pass_time(fresh_s(world.config) + 1)
    assert forget_layout(of_layout, world.fresh_stores(), "", world.clock) == {}
    assert pinned(world, str(K(name))).read(max_age=5.0, on_stale="flag").incomplete == {"partition 0", "partition 1"}


def test_a_layout_that_was_left_is_not_opened_again_by_another_change() -> None:
    """Regression: while what is read was not whole, any change of the record made the queues of a layout anew that had been left, and
    all agents were asked. It is opened when it is prepared."""
    world = Switched()
    for step in (prepared, cut_over):
        world.take(step(world.record, K("journal@3"), "me"))
    world.take(retired(world.record, K("journal"), "me"))
    for number in range(len(world.servers)):
        world.restart_server(number)
    world.run_well(2)
    world.take(prepared(world.record, K("snapshot@3"), "me"))
    assert [list(member.runs.consumers) for member in world.members] == [[3], [3]]  # type: ignore[union-attr]
    assert bounds(world) == [3]
    world.run_well(60)
    world.take(prepared(world.record, K("journal"), "me"))
    assert bounds(world) == [2, 3]
    world.run_well(10)
    assert versions(pinned(world, "journal@2").read(max_age=5.0)) == said(world)


def test_a_member_whose_settings_name_another_number_takes_part_in_what_the_record_says() -> None:
    """It was away while the cell moved, and comes back as it was."""
    world = Switched()
    world.take(prepared(world.record, K("journal@3"), "me"))
    world.take(cut_over(world.record, K("journal@3"), "me"))
    world.take(retired(world.record, K("journal"), "me"))
    world.members[0].die()
    world.run_well(3)
    assert [list(member.runs.consumers) for member in world.members] == [[3], [3]]  # type: ignore[union-attr]
    assert bounds(world) == [3]


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_member_that_is_slow_to_leave_takes_nothing_from_a_layout_that_is_in_use_again(when: str) -> None:
    """Regression (I5, I6): it forgot what others wrote by then, and deleted queues of what was read."""
    world = Switched()
    world.take(prepared(world.record, K("journal@3"), "me"))
    world.take(cut_over(world.record, K("journal@3"), "me"))
    slow, other = world.members
    assert world.operator.change(world.operator.read(), retired(world.record, K("journal"), "me"))
    seen: list[list[int]] = []

    def meanwhile() -> None:
        """It sleeps; the broker gives its queues to the other."""
        world.members.remove(slow)
        for source in slow.sources.values():
            source.inner.disconnect()
        world.take(prepared(world.record, K("journal"), "me"))
        world.run_well(15)
        world.take(cut_over(world.record, K("journal"), "me"))
        world.members.append(slow)
        for source in other.sources.values():
            source.inner.crash()  # and dies just then, so nobody consumes
        world.members.remove(other)
        seen.append(bounds(world))

    assert isinstance(slow.runs, Member)
    consumer = slow.runs.consumers[2]
    leave = consumer.leave

    def slow_leave() -> None:
        if when == "before":
            meanwhile()
            leave()
        else:
            leave()
            meanwhile()

    consumer.leave = slow_leave  # type: ignore[method-assign]
    world.clock.advance(1.1)
    slow.step()
    assert seen == [[2, 3]]
    assert bounds(world) == [2, 3]
    world.change_some(1.0)
    world.start_member([1], [0])
    world.run_well(15)
    view = world.reader.read(max_age=5.0)
    assert ((view.design, len(view.partitions)), versions(view)) == (K("journal"), said(world))


def test_queues_that_a_publisher_made_for_nobody_are_set_aside() -> None:
    """Regression (I6): the broker was built anew, and the first agent made the layout of its settings, where events went as well for
    ever. What waits there is not deleted."""
    world = Switched()
    world.take(prepared(world.record, K("journal@3"), "me"))
    world.take(cut_over(world.record, K("journal@3"), "me"))
    world.take(retired(world.record, K("journal"), "me"))
    world.take(cleared(world.record, 2, "me"))
    world.run_well(10)
    world.broker.stop()
    world.run_well(1)
    world.broker.declare(2)
    world.broker.start()
    world.change_some(1.0)
    world.run_well(10)
    assert bounds(world) == [3]
    assert sum(len(queue.messages) for queue in world.broker.aside[2]) >= len(NODES)
    assert versions(world.reader.read(max_age=5.0)) == said(world)


def test_queues_of_the_settings_that_the_record_names_are_not_set_aside() -> None:
    """Nor those of another consumer that follows no record."""
    world = Switched()
    world.take(prepared(world.record, K("journal@3"), "me"))
    world.take(cut_over(world.record, K("journal@3"), "me"))
    world.run_well(10)
    assert bounds(world) == [2, 3]
    world.take(retired(world.record, K("journal"), "me"))
    world.take(cleared(world.record, 2, "me"))
    source = world.broker.source([0, 1], layout=2)
    world.broker.stop()
    world.broker.start()
    with pytest.raises(BrokerUnavailableError):
        source.receive(1, 0.0)
    source.receive(1, 0.0)
    world.run_well(10)
    assert bounds(world) == [2, 3]


def test_a_broker_that_is_away_keeps_no_member_from_leaving() -> None:
    """What it could not delete the operator's command does."""
    world = Switched()

    class Away:
        def open(self, partitions: int) -> Source:
            return world.broker.source(range(partitions), layout=partitions)

        def delete(self, _partitions: int) -> bool:
            raise BrokerUnavailableError("broker", "away")

        def set_aside(self, _partitions: int, _used: int) -> int:
            raise BrokerUnavailableError("broker", "away")

    for member in list(world.members):
        member.source.inner.crash()
        world.members.remove(member)
    stores, rng = world.fresh_stores(), random.Random(1)
    member = Member(world.config, Away(), stores, world.broker, world.clock, rng, "m")
    steps = [prepared(world.record, K("journal@3"), "me")]
    steps.append(cut_over(steps[-1], K("journal@3"), "me"))
    steps.append(retired(steps[-1], K("journal"), "me"))
    for step in steps:
        assert world.operator.change(world.operator.read(), step)
        for _ in range(20):
            world.pass_time(0.5)
            member.step()
    assert list(member.consumers) == [3]
    assert versions(pinned(world, "journal@3").read(max_age=5.0)) == said(world)

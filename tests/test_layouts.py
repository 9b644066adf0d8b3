"""Changing the number of partitions of a running cell: how a layout begins, is followed, and ends."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from harness.waiting import PATIENCE_S, wait_until
from nodestate.broker.layouts import KombuLayouts
from nodestate.config import Config
from nodestate.consumers.member import Member
from nodestate.consumers.seed_layout import SeedLayout
from nodestate.designs import DESIGNS
from nodestate.designs.control import cleared, cut_over, prepared, retired, rolled_back
from nodestate.designs.layout_removal import remove_layout_epochs
from nodestate.designs.reader import Reader
from nodestate.errors import BrokerUnavailableError, FencedError
from nodestate.model import Receipt, Version
from nodestate.ports import Source, SystemClock
from nodestate.store import keys
from nodestate.store.liveness import fresh_s
from nodestate.view.view import View
from tests.switched_cell import NODES, K, SwitchedCell

CHANGES = [("journal", "journal@3"), ("snapshot", "snapshot@5"), ("sql", "sql@3"), ("journal@2", "snapshot@1")]


def versions(view: View) -> dict[str, Version]:
    return {name: node.version for name, node in view.nodes.items()}


def published_versions(world: SwitchedCell) -> dict[str, Version]:
    """By node of a running agent that has not left, the version that the agent last published."""
    return {name: agent.publisher.version for name, agent in world.agents.items() if agent.publisher.live}


def pinned_reader(world: SwitchedCell, name: str) -> Reader:
    """A new reader of one design."""
    return Reader(world.config, design=name, stores=world.fresh_stores(), clock=world.clock)


def layouts_with_queues(world: SwitchedCell) -> list[int]:
    """The layouts that have queues, by number of partitions."""
    return sorted(world.broker.layouts)


# -- new layouts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "other"), CHANGES)
def test_a_new_layout_begins_with_the_nodes_of_the_old_one_and_without_a_resync(name: str, other: str) -> None:
    """Nodes with dead agents are in the new layout with the age of their last sign of life, and nodes that left stay
    gone. The new layout is complete after about three renewals, because it need not wait until all agents have
    reported.
    """
    world = SwitchedCell([K(name).design])
    dead = world.agents.pop("node-3")
    world.agents["node-4"].publisher.leave()
    world.run_well(30)
    resyncs = [member.runs.stats.resyncs for member in world.members]
    assert world.operator.change(world.operator.read(), prepared(world.record, K(other), "me"))
    for _ in range(10):
        world.change_some(0.7)
        world.run_well(0.5)
    view = pinned_reader(world, other).read(max_age=5.0, node_max_age=20.0, on_stale="flag")
    assert versions(view) == published_versions(world) | {"node-3": dead.publisher.version}
    assert (view.incomplete, view.stale) == (frozenset(), {"node-3"})
    assert 30 < view.node_age("node-3") < 60
    gone = view.nodes.record("node-4")
    assert gone is not None
    assert gone.gone
    assert [member.runs.stats.resyncs for member in world.members] == resyncs
    assert len(view.partitions) == K(other).partitions


def test_a_layout_begins_empty_if_its_seed_layout_stays_incomplete() -> None:
    """The store lost the old layout and its owner died. Two layouts that wait for each other would wait for ever."""
    world = SwitchedCell(database=True)  # the control record survives in the database
    world.take(prepared(world.record, K("journal@3"), "me"))
    for number in range(len(world.servers)):
        world.restart_server(number)
    for member in list(world.members):
        member.die()
    world.run_well(3)
    assert not any(member.held for member in world.members)
    world.run_well(3 * world.config.settle_s)
    for name in ("journal", "journal@3"):
        view = pinned_reader(world, name).read(max_age=5.0, on_stale="flag")
        assert (versions(view), view.incomplete, view.stale) == (published_versions(world), frozenset(), frozenset())


def test_a_layout_is_not_begun_from_an_incomplete_seed_layout() -> None:
    """I5: half of the old layout is on a server that is down. A layout begun with the rest would pass for complete."""
    world = SwitchedCell()
    world.servers[1].stop()
    assert world.operator.change(world.operator.read(), prepared(world.record, K("journal@1"), "me"))
    world.run_well(6)
    assert [member.runs.consumers[1].owned for member in world.members] == [{}, {}]  # type: ignore[union-attr]
    world.servers[1].start()
    world.run_well(10)
    assert versions(pinned_reader(world, "journal@1").read(max_age=5.0)) == published_versions(world)


def test_a_layout_begins_only_after_the_seed_layout_has_all_events_from_before_its_queues() -> None:
    """I5: an event that still waits in a queue of the old layout, because its owner is slow, is in no queue of the new
    one.
    """
    world = SwitchedCell()
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
    assert versions(pinned_reader(world, "journal@3").read(max_age=5.0)) == published_versions(world)


def test_the_next_owner_of_a_new_layouts_partition_continues_from_its_stored_state() -> None:
    """A member dies before it has begun all partitions. The next owner need not read the old layout again."""
    world = SwitchedCell()
    world.take(prepared(world.record, K("journal@3"), "me"))
    for member in list(world.members):
        member.die()
    world.change_some(1.0)
    world.run_well(8)
    assert versions(pinned_reader(world, "journal@3").read(max_age=5.0)) == published_versions(world)


# -- readers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "other"), CHANGES)
def test_a_reader_follows_to_another_number_of_partitions_and_back(name: str, other: str) -> None:
    """The reader follows within one refresh, and no node becomes older or disappears (I1)."""
    world = SwitchedCell([K(name).design])
    world.agents["node-4"].publisher.leave()
    before = world.reader.read(max_age=5.0)
    world.take(prepared(world.record, K(other), "me"))
    world.take(cut_over(world.record, K(other), "me"))
    view = world.reader.read(max_age=5.0)
    assert (view.design, len(view.partitions)) == K(other)
    assert versions(view) == published_versions(world)
    assert sorted(view.columns.names) == sorted({*before.columns.names})
    assert world.operator.change(world.operator.read(), rolled_back(world.record, "me"))
    view = world.reader.read(max_age=5.0)
    assert ((view.design, len(view.partitions)), versions(view)) == (K(name), published_versions(world))


def test_a_reader_ignores_a_wrong_number_of_partitions_in_its_settings() -> None:
    """The control record counts, and not the settings, even for a reader that never read before."""
    world = SwitchedCell()
    config = msgspec.structs.replace(world.config, partitions=7, read_design="snapshot")
    reader = Reader(config, stores=world.fresh_stores(), clock=world.clock)
    view = reader.read(max_age=60.0)
    assert ((view.design, len(view.partitions)), sorted(view.nodes)) == (("journal", 2), NODES)


def test_a_reader_stays_with_its_layout_while_the_new_one_is_incomplete() -> None:
    """A cutover is forced to a layout that is still incomplete. The reader goes on with the old layout, and finds a
    receipt that it waits for in either of them.
    """
    world = SwitchedCell()
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


# -- retired layouts ------------------------------------------------------------------------------


def test_a_retired_layout_is_left_and_its_state_and_queues_are_deleted() -> None:
    """The last member that leaves does it: queues without a consumer would fill for ever. Readers of it see a loss
    (I5).
    """
    world = SwitchedCell(["journal", "sql"])
    old = pinned_reader(world, "sql")
    assert not old.read(max_age=5.0).incomplete
    world.take(prepared(world.record, K("snapshot@3"), "me"))
    world.take(cut_over(world.record, K("snapshot@3"), "me"))
    world.take(retired(world.record, K("journal"), "me"))
    assert layouts_with_queues(world) == [2, 3]
    world.take(retired(world.record, K("sql"), "me"))
    assert world.record.leaving == (K("sql"),)
    assert layouts_with_queues(world) == [3]
    assert [list(member.runs.consumers) for member in world.members] == [[3], [3]]  # type: ignore[union-attr]
    assert pinned_reader(world, "sql").read(max_age=5.0, on_stale="flag").incomplete == {"partition 0", "partition 1"}
    world.pass_time(10)
    assert old.read(max_age=5.0, on_stale="flag").stale == set(NODES)
    assert world.database is not None
    assert [world.database.rows(keys.prefix("cell1", 2, p, keys.DATABASE)) for p in range(2)] == [[], []]
    world.take(cleared(world.record, 2, "me"))
    world.change_some(1.0)
    world.run_well(3)
    assert versions(world.reader.read(max_age=5.0)) == published_versions(world)
    assert [member.runs.stats.counts.dead_letters for member in world.members] == [{}, {}]


def test_a_retired_layout_is_written_until_the_layout_of_readers_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """I6: cutover and retirement are forced before the new layout could be begun. No event is acked for the new one
    alone.
    """
    world = SwitchedCell()
    make, failing = DESIGNS["snapshot"].writer, [True]

    def refusing_writer(target: Any) -> Any:
        writer = make(target)
        begin = writer.begin_epoch

        def begun(*given: Any) -> Any:
            if failing[0]:
                raise BrokerUnavailableError("the store", "not now")
            return (yield from begin(*given))

        writer.begin_epoch = begun  # type: ignore[method-assign]
        return writer

    monkeypatch.setitem(DESIGNS, "snapshot", DESIGNS["snapshot"]._replace(writer=refusing_writer))
    for step in (prepared, cut_over):
        world.take(step(world.record, K("snapshot@3"), "me"))
    world.take(retired(world.record, K("journal"), "me"))
    for member in list(world.members):
        member.die()
    world.change_some(1.0)
    world.run_well(5)
    view = world.reader.read(max_age=5.0)
    assert ((view.design, len(view.partitions)), versions(view)) == (K("journal"), published_versions(world))
    failing[0] = False
    world.run_well(10)
    view = world.reader.read(max_age=5.0)
    assert ((view.design, len(view.partitions)), versions(view)) == (K("snapshot@3"), published_versions(world))
    assert layouts_with_queues(world) == [3]


def test_a_retired_layout_can_be_used_again_before_it_was_removed() -> None:
    """A cell goes from two to three partitions, and back to two before the old layout was removed."""
    world = SwitchedCell()
    world.take(prepared(world.record, K("journal@3"), "me"))
    world.take(cut_over(world.record, K("journal@3"), "me"))
    world.take(retired(world.record, K("journal"), "me"))
    world.take(prepared(world.record, K("snapshot"), "me"))
    assert world.record.leaving == ()
    world.take(cut_over(world.record, K("snapshot"), "me"))
    world.change_some(1.0)
    world.run_well(3)
    view = world.reader.read(max_age=5.0)
    assert ((view.design, len(view.partitions)), versions(view)) == (K("snapshot"), published_versions(world))


def retired_and_not_removed(name: str, other: str) -> SwitchedCell:
    """A cell that changed from one layout to another, and whose members died before they removed the old one."""
    world = SwitchedCell([K(name).design])
    world.take(prepared(world.record, K(other), "me"))
    world.take(cut_over(world.record, K(other), "me"))
    assert world.operator.change(world.operator.read(), retired(world.record, K(name), "me"))
    for member in list(world.members):
        for source in member.sources.values():
            source.inner.crash()
        world.members.remove(member)
    assert world.broker.delete(2)
    return world


@pytest.mark.parametrize(("name", "other"), CHANGES)
def test_a_layout_whose_stored_state_was_left_over_begins_from_its_seed_layout(name: str, other: str) -> None:
    """Regression (I5, I6): the stored state of the old layout passed for complete, and nodes that had left were there
    again.
    """
    world = retired_and_not_removed(name, other)
    world.start_member([0], [1])
    world.start_member([1], [0])
    world.take(cleared(world.record, 2, "me"))
    world.agents["node-4"].publisher.leave()
    world.change_some(1.0)
    world.run_well(30)
    assert world.operator.change(world.operator.read(), prepared(world.record, K(name), "me"))
    for _ in range(12):
        world.run_well(0.5)
        view = pinned_reader(world, str(K(name))).read(max_age=5.0, on_stale="flag")
        if not view.incomplete and not view.stale:
            assert versions(view) == published_versions(world)
    assert (view.incomplete, view.stale) == (frozenset(), frozenset())


@pytest.mark.parametrize(("name", "other"), CHANGES[:3])
def test_stored_state_that_was_left_over_is_never_complete_without_its_seed_layout(
    monkeypatch: pytest.MonkeyPatch, name: str, other: str
) -> None:
    """I5: the seed layout cannot be read until after the wait, and the partitions begin without it. The stored state
    lacks events, so it does not pass for complete, whatever its last owner said, before all agents could have reported.
    """
    world = retired_and_not_removed(name, other)
    monkeypatch.setattr(SeedLayout, "partitions", lambda *_: {})
    world.start_member([0], [1])
    world.start_member([1], [0])
    world.take(cleared(world.record, 2, "me"))
    world.change_some(1.0)
    world.run_well(30)
    assert world.operator.change(world.operator.read(), prepared(world.record, K(name), "me"))
    with capture_logs() as logs:
        world.run_well(4 * world.config.settle_s)
    taken = [one for one in logs if one["event"] == "partition taken over" and one["layout"] == K(name).partitions]
    assert [one["complete"] for one in taken] == [False] * K(name).partitions
    view = pinned_reader(world, str(K(name))).read(max_age=5.0)
    assert (versions(view), view.incomplete) == (published_versions(world), frozenset())


def test_a_partition_waits_for_its_seed_layout_once_and_not_again_after_each_lost_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The broker restarts every ten seconds, and the wait is longer than that. It still ends."""
    world = SwitchedCell()
    monkeypatch.setattr(SeedLayout, "partitions", lambda *_: {})
    assert world.operator.change(world.operator.read(), prepared(world.record, K("journal@3"), "me"))
    for _ in range(6):
        world.run_well(10)
        world.broker.stop()
        world.run_well(1)
        world.broker.start()
    world.run_well(5)
    assert sum(len(member.runs.consumers[3].owned) for member in world.members) == 3  # type: ignore[union-attr]


def test_the_layout_of_readers_is_taken_over_at_once_after_all_consumers_were_down() -> None:
    """Two layouts without consumers for some time do not wait for each other: the one that readers use begins."""
    world = SwitchedCell()
    world.take(prepared(world.record, K("journal@3"), "me"))
    members = list(world.members)
    for member in members:
        for source in member.sources.values():
            source.inner.crash()
        world.members.remove(member)
    world.pass_time(120)
    world.start_member([0, 1], [])
    world.run_well(2)
    assert versions(world.reader.read(max_age=5.0)) == published_versions(world)
    world.run_well(5)
    assert versions(pinned_reader(world, "journal@3").read(max_age=5.0)) == published_versions(world)


@pytest.mark.parametrize(("name", "other"), CHANGES)
def test_the_operators_command_removes_a_layout_that_dead_members_left(name: str, other: str) -> None:
    """The operator's command removes it, except partitions whose heads are recent, because they may be in use."""
    world = retired_and_not_removed(name, other)
    of_layout = msgspec.structs.replace(world.config, partitions=2)
    left = remove_layout_epochs(of_layout, world.fresh_stores(), "", world.clock)
    assert {type(error) for error in left.values()} == {FencedError}
    world.pass_time(fresh_s(world.config) + 1)
    assert remove_layout_epochs(of_layout, world.fresh_stores(), "", world.clock) == {}
    assert pinned_reader(world, str(K(name))).read(max_age=5.0, on_stale="flag").incomplete == {
        "partition 0",
        "partition 1",
    }


def test_a_layout_that_was_left_is_opened_again_only_when_it_is_prepared() -> None:
    """Regression: while the layout of readers was incomplete, each change of the control record declared the queues of
    the retired layout again, and all agents were asked. Only preparing the layout may open it again.
    """
    world = SwitchedCell()
    for step in (prepared, cut_over):
        world.take(step(world.record, K("journal@3"), "me"))
    world.take(retired(world.record, K("journal"), "me"))
    for number in range(len(world.servers)):
        world.restart_server(number)
    world.run_well(2)
    world.take(prepared(world.record, K("snapshot@3"), "me"))
    assert [list(member.runs.consumers) for member in world.members] == [[3], [3]]  # type: ignore[union-attr]
    assert layouts_with_queues(world) == [3]
    world.run_well(60)
    world.take(prepared(world.record, K("journal"), "me"))
    assert layouts_with_queues(world) == [2, 3]
    world.run_well(10)
    assert versions(pinned_reader(world, "journal@2").read(max_age=5.0)) == published_versions(world)


def test_a_member_with_old_settings_follows_the_layout_of_the_control_record() -> None:
    """The member was away while the cell changed its layout, and restarts with its old settings."""
    world = SwitchedCell()
    world.take(prepared(world.record, K("journal@3"), "me"))
    world.take(cut_over(world.record, K("journal@3"), "me"))
    world.take(retired(world.record, K("journal"), "me"))
    world.members[0].die()
    world.run_well(3)
    assert [list(member.runs.consumers) for member in world.members] == [[3], [3]]  # type: ignore[union-attr]
    assert layouts_with_queues(world) == [3]


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_member_that_is_slow_to_leave_removes_nothing_of_a_layout_that_is_in_use_again(when: str) -> None:
    """Regression (I5, I6): it removed state that others had written meanwhile, and deleted queues that were in use."""
    world = SwitchedCell()
    world.take(prepared(world.record, K("journal@3"), "me"))
    world.take(cut_over(world.record, K("journal@3"), "me"))
    slow, other = world.members
    assert world.operator.change(world.operator.read(), retired(world.record, K("journal"), "me"))
    seen: list[list[int]] = []

    def meanwhile() -> None:
        """The member is frozen, and the broker gives its queues to the other one."""
        world.members.remove(slow)
        for source in slow.sources.values():
            source.inner.disconnect()
        world.take(prepared(world.record, K("journal"), "me"))
        world.run_well(15)
        world.take(cut_over(world.record, K("journal"), "me"))
        world.members.append(slow)
        for source in other.sources.values():
            source.inner.crash()  # the other one dies now, so no consumer is left
        world.members.remove(other)
        seen.append(layouts_with_queues(world))

    assert isinstance(slow.runs, Member)
    consumer = slow.runs.consumers[2]
    retire_layout = consumer.retire_layout

    def slow_retire_layout() -> None:
        if when == "before":
            meanwhile()
            retire_layout()
        else:
            retire_layout()
            meanwhile()

    consumer.retire_layout = slow_retire_layout  # type: ignore[method-assign]
    world.clock.advance(1.1)
    slow.step()
    assert seen == [[2, 3]]
    assert layouts_with_queues(world) == [2, 3]
    world.change_some(1.0)
    world.start_member([1], [0])
    world.run_well(15)
    view = world.reader.read(max_age=5.0)
    assert ((view.design, len(view.partitions)), versions(view)) == (K("journal"), published_versions(world))


def test_queues_that_a_publisher_declared_and_no_consumer_reads_are_unbound() -> None:
    """Regression (I6): on a new broker the first agent declared the queues of its settings' layout, and events went
    there for ever. The events that wait in these queues are kept.
    """
    world = SwitchedCell()
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
    assert layouts_with_queues(world) == [3]
    assert sum(len(queue.messages) for queue in world.broker.aside[2]) >= len(NODES)
    assert versions(world.reader.read(max_age=5.0)) == published_versions(world)


def test_queues_of_a_layout_whose_record_was_lost_are_unbound_and_named() -> None:
    """The cell went from 2 partitions to 3. Then all stores and consumers were lost, and the settings still say 2."""
    world = SwitchedCell()
    for step in (prepared, cut_over):
        world.take(step(world.record, K("journal@3"), "me"))
    world.take(retired(world.record, K("journal"), "me"))
    world.take(cleared(world.record, 2, "me"))
    for member in list(world.members):
        for source in member.sources.values():
            source.inner.crash()
        world.members.remove(member)
    for number in range(len(world.servers)):
        world.restart_server(number)
    world.change_some(1.0)
    world.start_member([0], [1])
    world.start_member([1], [0])
    with capture_logs() as logs:
        world.run_well(world.config.settle_s + 10)
    assert world.record.layouts == [2]
    assert layouts_with_queues(world) == [2]
    [waiting] = {one["waiting"] for one in logs if one["event"].startswith("events wait") and one["layout"] == 3}
    assert waiting == sum(len(queue.messages) for queue in world.broker.aside[3])
    assert versions(world.reader.read(max_age=5.0)) == published_versions(world)


def test_a_layout_that_is_prepared_while_its_queues_are_looked_for_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """I6: the record names a layout before its consumers declare the queues, so it is read right before they go."""
    world = SwitchedCell()
    find = world.broker.found

    def prepared_meanwhile() -> list[int]:
        world.broker.declare(3)
        world.operator.change(world.operator.read(), prepared(world.record, K("journal@3"), "me"))
        return find()

    monkeypatch.setattr(world.broker, "found", prepared_meanwhile)
    world.members[0].die()
    world.run_well(10)
    assert layouts_with_queues(world) == [2, 3]
    assert world.broker.aside == {}


@pytest.mark.parametrize("fails", [False, True])
def test_the_adapter_looks_for_layouts_without_keeping_its_caller(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    asked, answers = threading.Event(), threading.Event()

    @contextmanager
    def slow_session(_config: Config, _name: str) -> Iterator[Any]:
        asked.set()
        assert answers.wait(PATIENCE_S)
        if fails:
            raise BrokerUnavailableError("broker", "away")
        yield SimpleNamespace(queues=SimpleNamespace(layouts=lambda _topology: [2, 3]))

    monkeypatch.setattr("nodestate.broker.layouts.one_off_session", slow_session)
    adapter, outcomes = KombuLayouts(Config(), 1, 1, SystemClock()), list[list[int] | str]()
    assert adapter.found() is None
    assert asked.wait(PATIENCE_S)
    assert adapter.found() is None
    answers.set()

    def is_over() -> bool:
        try:
            found = adapter.found()
        except BrokerUnavailableError:
            outcomes.append("error")
        else:
            outcomes.extend([found] if found is not None else [])
        return bool(outcomes)

    wait_until(is_over, "the search does not end")
    assert outcomes == (["error"] if fails else [[2, 3]])


def test_a_search_for_layouts_that_takes_long_or_fails_stops_no_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    """I5: over a slow connection to the broker it takes many seconds. A failed one is repeated after a pause."""
    world = SwitchedCell()
    find, calls = world.broker.found, list[float]()

    def slow_and_failing() -> list[int] | None:
        calls.append(world.clock.monotonic())
        if len(calls) < 30:
            return None
        if len(calls) == 30:
            raise BrokerUnavailableError("broker", "away")
        return find()

    world.broker.declare(3)
    monkeypatch.setattr(world.broker, "found", slow_and_failing)
    world.members[0].die()
    world.run_well(10)
    for _ in range(40):
        world.run_well(1)
        assert world.reader.read(max_age=60.0).age < 5.0
    assert calls[30] - calls[29] >= 4.0
    assert layouts_with_queues(world) == [2]


def test_queues_of_the_settings_layout_are_kept_while_the_record_names_it_or_a_consumer_reads_them() -> None:
    """Queues of a consumer that follows no control record are not unbound either."""
    world = SwitchedCell()
    world.take(prepared(world.record, K("journal@3"), "me"))
    world.take(cut_over(world.record, K("journal@3"), "me"))
    world.run_well(10)
    assert layouts_with_queues(world) == [2, 3]
    world.take(retired(world.record, K("journal"), "me"))
    world.take(cleared(world.record, 2, "me"))
    source = world.broker.source([0, 1], layout=2)
    world.broker.stop()
    world.broker.start()
    with pytest.raises(BrokerUnavailableError):
        source.receive(1, 0.0)
    source.receive(1, 0.0)
    world.run_well(10)
    assert layouts_with_queues(world) == [2, 3]


def test_a_member_leaves_a_layout_even_while_the_broker_is_away() -> None:
    """The operator's command deletes the queues that the member could not delete."""
    world = SwitchedCell()

    class Away:
        def open(self, partitions: int) -> Source:
            return world.broker.source(range(partitions), layout=partitions)

        def found(self) -> list[int]:
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
    assert versions(pinned_reader(world, "journal@3").read(max_age=5.0)) == published_versions(world)

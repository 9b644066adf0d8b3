"""The control record: the order of its steps, its stores, and how consumers and readers follow it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
import structlog.testing
from hypothesis import given
from hypothesis import strategies as st

from nodestate.config import DESIGN_NAMES, Config
from nodestate.designs import DESIGNS
from nodestate.designs.control import (
    CONTROL,
    Control,
    cleared,
    cut_over,
    dated,
    prepared,
    record_from_settings,
    require_named,
    retired,
    rolled_back,
)
from nodestate.designs.control_store import ControlStore, newest
from nodestate.designs.layout_removal import delete_queues
from nodestate.designs.reader import Reader
from nodestate.designs.stored_design import StoredDesign, display_names, parse_stored_design
from nodestate.errors import (
    ConfigError,
    ControlLostError,
    DesignStepError,
    StoreFullError,
    StoreRefusedError,
    StoreUnavailableError,
)
from nodestate.ports import Put, Write, WriteResult, WriteStatus
from nodestate.store import keys
from nodestate.store.head import read_head
from nodestate.store.round_trips import Stores, run_one
from nodestate.testing import MemoryBroker, MemoryServer, MemoryStore
from tests.switched_cell import NODES, K, SwitchedCell

START = Control(3, (K("journal"),), K("journal"))


# -- steps ----------------------------------------------------------------------------------------


def test_switch_to_another_design_and_back() -> None:
    """As drawn in the module. Each change raises the version, so the newest copy is known."""
    both = prepared(START, K("snapshot"), "me")
    assert both == Control(4, (K("journal"), K("snapshot")), K("journal"), None, "me")
    over = cut_over(both, K("snapshot"), "me")
    assert over == Control(5, (K("journal"), K("snapshot")), K("snapshot"), K("journal"), "me")
    assert rolled_back(over, "me") == Control(6, (K("journal"), K("snapshot")), K("journal"), None, "me")
    assert retired(over, K("journal"), "me") == Control(6, (K("snapshot"),), K("snapshot"), None, "me")


def test_repeated_step_changes_nothing() -> None:
    """After an interruption the operator repeats the command."""
    both = prepared(START, K("snapshot"), "me")
    over = cut_over(both, K("snapshot"), "me")
    gone = retired(over, K("journal"), "me")
    assert prepared(both, K("snapshot"), "you") is both
    assert cut_over(over, K("snapshot"), "you") is over
    assert retired(gone, K("journal"), "you") is gone
    assert rolled_back(START, "you") is START


def test_refusal_names_the_missing_step() -> None:
    """House rule 8."""
    with pytest.raises(DesignStepError, match="prepare snapshot") as caught:
        cut_over(START, K("snapshot"), "me")
    assert caught.value.first == "nodestate design prepare snapshot@2"
    with pytest.raises(DesignStepError, match="readers read journal"):
        retired(START, K("journal"), "me")
    with pytest.raises(DesignStepError, match="readers read journal@2"):
        retired(prepared(START, K("snapshot@3"), "me"), K("journal"), "me")


def test_design_written_in_another_layout_does_not_count_as_retired() -> None:
    """Regression: ``retire journal`` reported success while journal@2 was still written, because a name without a
    number means the layout that is read.
    """
    both = cut_over(prepared(START, K("snapshot@3"), "me"), K("snapshot@3"), "me")
    with pytest.raises(DesignStepError, match=r"do not write journal@3: .* They write journal@2") as refused:
        require_named(both, K("journal@3"))
    assert "retire journal@2" in str(refused.value)
    gone = retired(both, K("journal"), "me")
    for known in (K("journal@2"), K("journal@3"), K("sql@3"), K("snapshot@3")):
        require_named(gone, known)  # a command that is repeated ends well


@pytest.mark.parametrize(
    "text", ["tape", "tape@2", "@2", "", "snapshot@", "snapshot@0", "snapshot@241", "snapshot@x", "snapshot@-1"]
)
def test_invalid_name_of_a_design_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"no design|names no design in a layout"):
        parse_stored_design(text, 8)


def test_names_have_a_number_only_if_there_are_several_layouts() -> None:
    """A name is short as long as it is not ambiguous."""
    assert display_names([K("journal"), K("sql")]) == {K("journal"): "journal", K("sql"): "sql"}
    assert display_names([K("journal@2"), K("journal@3")]) == {K("journal@2"): "journal@2", K("journal@3"): "journal@3"}
    assert parse_stored_design(str(K("journal@3")), 2) == K("journal@3")


def test_queues_of_a_layout_that_is_used_again_are_not_deleted() -> None:
    """Regression (I6): the command that retired the layout waited for consumers to leave; when all of them restarted,
    it deleted queues that they read again.
    """
    broker = MemoryBroker(2)
    over = cut_over(prepared(START, K("journal@3"), "one"), K("journal@3"), "one")
    gone = retired(over, K("journal"), "one")
    back = prepared(gone, K("snapshot"), "two")
    with pytest.raises(DesignStepError, match="record 7, by two, writes a layout of 2"):
        delete_queues(2, back, broker.delete)
    assert list(broker.layouts) == [2]
    assert delete_queues(2, cleared(gone, 2, "two"), broker.delete)
    assert list(broker.layouts) == [2]
    assert delete_queues(2, gone, broker.delete)
    assert list(broker.layouts) == []


def test_last_design_of_a_layout_stays_in_the_record_until_its_queues_are_deleted() -> None:
    """An operator whose command was interrupted before that can see it, and repeat the command."""
    both = prepared(prepared(START, K("snapshot"), "me"), K("snapshot@3"), "me")
    over = cut_over(both, K("snapshot@3"), "me")
    one_left = retired(over, K("snapshot"), "me")
    assert (one_left.leaving, one_left.former) == ((), K("journal"))
    last = retired(one_left, K("journal"), "me")
    assert (last.writes, last.leaving, last.former) == ((K("snapshot@3"),), (K("journal"),), None)
    assert retired(last, K("journal"), "you") is last
    assert cleared(last, 2, "me") == Control(last.version + 1, (K("snapshot@3"),), K("snapshot@3"), None, "me")
    assert cleared(last, 3, "me") is last
    assert prepared(last, K("snapshot"), "me").leaving == (), "the layout is not used again"


STEPS = [
    prepared,
    cut_over,
    retired,
    lambda control, _kept, by: rolled_back(control, by),
    lambda control, kept, by: cleared(control, kept.partitions, by),
]
EVERY = st.builds(StoredDesign, st.sampled_from(DESIGN_NAMES), st.sampled_from([2, 3]))


@given(st.lists(st.tuples(st.sampled_from(STEPS), EVERY), max_size=20))
def test_design_that_is_read_is_always_written(steps: list[Any]) -> None:
    """So is the design that a rollback returns to, and no layout is both written and leaving.

    The version counts changes, and nothing else.
    """
    control = START
    for step, kept in steps:
        try:
            after = step(control, kept, "me")
        except DesignStepError:
            continue
        assert after is control or after.version == control.version + 1
        control = after
        assert control.reads in control.writes
        assert not control.former or control.former in control.writes
        assert not {kept.partitions for kept in control.leaving} & {kept.partitions for kept in control.writes}
        assert CONTROL.unpack(CONTROL.pack(control)) == control


# -- places ---------------------------------------------------------------------------------------


@pytest.fixture
def servers() -> list[MemoryServer]:
    return [MemoryServer(f"store-{n}") for n in range(3)]


@pytest.fixture
def places(servers: list[MemoryServer]) -> ControlStore:
    """A database, which decides, and two memcached servers."""
    database, *others = [MemoryStore(server) for server in servers]
    return ControlStore("cell1", Stores(others, database))


def versions(places: ControlStore) -> list[int | None]:
    return [copy.control.version if copy.control else None for copy in places.read()]


def test_change_is_decided_in_one_store_and_copied_to_all(places: ControlStore) -> None:
    places.put_back(START, places.read())
    assert versions(places) == [3, 3, 3]
    assert places.change(places.read(), prepared(START, K("snapshot"), "me"))
    assert versions(places) == [4, 4, 4]


def test_second_of_two_simultaneous_changes_fails(places: ControlStore) -> None:
    """By compare-and-swap: neither overwrites a change that it has not seen."""
    places.put_back(START, places.read())
    seen = places.read()
    assert places.change(seen, prepared(START, K("snapshot"), "me"))
    assert not places.change(seen, prepared(START, K("sql"), "you"))
    assert newest(places.read()) == prepared(START, K("snapshot"), "me")


def test_lost_or_old_copy_is_replaced_and_never_used(places: ControlStore, servers: list[MemoryServer]) -> None:
    """memcached was flushed, or a server comes back with its copy from before an outage."""
    later = prepared(START, K("snapshot"), "me")
    places.put_back(START, places.read())
    servers[2].stop()
    assert places.change(places.read(), later)
    servers[2].start()
    servers[1].flush()
    assert versions(places) == [4, None, 3]
    assert newest(places.read()) == later
    places.put_back(later, places.read())
    assert versions(places) == [4, 4, 4]


def test_change_fails_if_the_deciding_store_has_an_older_record(
    places: ControlStore, servers: list[MemoryServer]
) -> None:
    """The database was set back. A change of its old record would get a version that was used already."""
    places.put_back(prepared(START, K("snapshot"), "me"), places.read())
    servers[0].flush()
    with pytest.raises(ControlLostError, match="store-0"):
        places.change(places.read(), START)
    MemoryStore(servers[0]).write([Write(Put.ADD, keys.control("cell1"), CONTROL.pack(START))])
    with pytest.raises(ControlLostError):
        places.change(places.read(), prepared(START, K("sql"), "you"))


def test_deciding_store_must_answer(places: ControlStore, servers: list[MemoryServer]) -> None:
    places.put_back(START, places.read())
    servers[0].stop()
    found = places.read()
    assert newest(found) == START
    with pytest.raises(StoreUnavailableError, match="store-0"):
        places.change(found, prepared(START, K("snapshot"), "me"))


def test_corrupt_record_counts_as_missing(places: ControlStore, servers: list[MemoryServer]) -> None:
    """It is replaced, not used."""
    MemoryStore(servers[0]).write([Write(Put.ADD, keys.control("cell1"), b"rubbish")])
    places.put_back(START, places.read())
    assert versions(places) == [3, 3, 3]


# -- consumers and readers ------------------------------------------------------------------------


def test_consumers_create_the_record_from_the_settings_once() -> None:
    """Later settings are ignored: two members with different ones would otherwise alternate."""
    world = SwitchedCell()
    assert world.record == record_from_settings(world.config, world.record.version)
    assert [member.consumer.designs for member in world.members] == [("journal",), ("journal",)]
    world.config = Config(partitions=2, designs=("snapshot",))
    newcomer = world.start_member([0], [])
    newcomer.step()
    assert newcomer.consumer.designs == ("journal",)


def test_first_record_reads_a_design_that_is_written() -> None:
    """The default of read_design may be a design that these settings do not write."""
    assert record_from_settings(Config(designs=("journal",), read_design="snapshot", partitions=2), 1.5) == Control(
        1, (K("journal"),), K("journal"), None, "settings"
    )


def test_consumer_that_cannot_read_the_record_takes_no_partition() -> None:
    """Its settings may be out of date, and designs that they do not name would be removed."""
    world = SwitchedCell()
    world.take(prepared(world.record, K("snapshot"), "me"))
    for member in list(world.members):
        member.source.inner.crash()
        world.members.remove(member)
    world.servers[0].flush()
    world.servers[1].stop()
    newcomer = world.start_member([0, 1], [])
    for _ in range(5):
        newcomer.step()
    assert (newcomer.runs.control, newcomer.held) == (None, [])
    world.servers[1].start()
    world.run_well(60)
    assert newcomer.consumer.designs == ("journal", "snapshot")
    assert world.whole("snapshot")


def test_reader_switches_if_the_callers_bound_allows_it() -> None:
    """The age of a design that was never read is known to two seconds only, which is no reason to refuse."""
    world = SwitchedCell()
    world.take(prepared(world.record, K("snapshot"), "me"))
    ages = []
    for _ in range(20):
        world.run_well(0.5)
        ages.append(world.reader.read(max_age=60.0).age)
    tightest = max(ages[5:]) + 0.01
    assert world.operator.change(world.operator.read(), cut_over(world.record, K("snapshot"), "me"))
    designs = []
    for _ in range(20):
        world.run_well(0.5)
        designs.append(world.reader.read(max_age=tightest).design)
    assert designs[-1] == "snapshot"


def test_prepared_design_is_written_from_memory_and_kept_current() -> None:
    """The other design continues without a pause, and agents are not asked for reports."""
    world = SwitchedCell()
    resyncs = [member.consumer.stats.resyncs for member in world.members]
    world.take(prepared(world.record, K("snapshot"), "me"))
    assert world.whole("snapshot")
    assert [member.consumer.stats.resyncs for member in world.members] == resyncs
    world.change_some(1.0)
    world.run_well(3)
    assert world.whole("snapshot")
    assert world.reader.read(max_age=3.0).design == "journal"


@pytest.mark.parametrize("call", range(8))
def test_member_that_slept_before_it_added_a_design_does_not_overrun_the_new_owner(call: int) -> None:
    """Regression (I6, I7): it raised the term over the head of the present owner, found other nodes than its own, and
    began another epoch from memory, as complete. Events that were acknowledged in between were lost.
    """
    world = SwitchedCell()
    sleeper = world.members[1]
    world.clock.advance(1.1)
    assert world.operator.change(world.operator.read(), prepared(world.record, K("snapshot"), "me"))

    def meanwhile() -> None:
        world.members.remove(sleeper)
        world.run_well(8)
        world.take(cut_over(world.record, K("snapshot"), "me"))
        world.take(retired(world.record, K("journal"), "me"))
        for _ in range(3):
            world.change_some(1.0)
            world.run_well(2)
        world.members.append(sleeper)

    world.overtaken(sleeper, call, meanwhile)
    assert world.record.reads == K("snapshot")
    said = {name: agent.publisher.version for name, agent in world.agents.items()}
    for _ in range(10):  # no agent says a word meanwhile
        view = world.reader.read(max_age=30.0)
        assert {name: view.nodes[name].version for name in said.keys() - view.incomplete} == {
            name: version for name, version in said.items() if name not in view.incomplete
        }
        world.clock.advance(0.5)
        for member in world.members:
            member.step()
    assert not view.incomplete


@pytest.mark.parametrize("is_new", [True, False], ids=["first record", "lost record"])
@pytest.mark.parametrize("how", ["refuses", "is full"])
def test_a_store_that_can_be_read_but_not_written_is_named_in_the_log(
    how: str, is_new: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: nothing was logged while the control record could not be written, and a new cell never began."""
    world = SwitchedCell()
    key = keys.control(world.config.cell)

    def write(self: MemoryServer, writes: Sequence[Write]) -> list[WriteResult]:
        if any(each.key != key for each in writes):
            return accepted(self, writes)
        if how == "is full":
            return [WriteResult(WriteStatus.FULL)]
        raise StoreRefusedError(self.name, "read-only")

    server_class = type(world.servers[0])
    accepted = server_class.write
    with monkeypatch.context() as refusing, structlog.testing.capture_logs() as logs:
        refusing.setattr(server_class, "write", write)
        for server in world.servers:
            server.flush()
        if is_new:
            for member in list(world.members):
                member.die()
        world.run_well(10)
    failing = [entry for entry in logs if entry["event"] == "operation is failing" and "control record" in str(entry)]
    assert failing
    assert all(entry["operation"].startswith("write of the control record to ") for entry in failing)
    assert any(("read-only" if how == "refuses" else "no memory left") in entry["reason"] for entry in failing)
    world.run_well(10)
    assert world.record.reads == K("journal")


def test_design_whose_store_fails_does_not_delay_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its begin is tried again; events and the other designs continue."""
    world = SwitchedCell()
    failing = DESIGNS["snapshot"].writer

    def refuses(place: Any) -> Any:
        writer = failing(place)

        def begin(*_: Any) -> Any:
            raise StoreUnavailableError("snapshot", "not now")
            yield

        writer.begin_epoch = begin  # type: ignore[method-assign]
        return writer

    monkeypatch.setitem(DESIGNS, "snapshot", DESIGNS["snapshot"]._replace(writer=refuses))
    world.take(prepared(world.record, K("snapshot"), "me"))
    world.change_some(1.0)
    world.run_well(3)
    assert world.whole("journal")
    assert not world.whole("snapshot")
    monkeypatch.setitem(DESIGNS, "snapshot", DESIGNS["snapshot"]._replace(writer=failing))
    for member in list(world.members):
        member.die()
    world.run_well(60)
    assert world.whole("snapshot")


def test_reader_follows_a_cutover_within_one_refresh() -> None:
    """No restart, no error, no node older; and back again."""
    world = SwitchedCell()
    world.reader.read(max_age=3.0)
    world.take(prepared(world.record, K("snapshot"), "me"))
    world.take(cut_over(world.record, K("snapshot"), "me"))
    view = world.reader.read(max_age=3.0)
    assert (view.design, sorted(view.nodes)) == ("snapshot", NODES)
    assert world.operator.change(world.operator.read(), rolled_back(world.record, "me"))
    assert world.reader.read(max_age=3.0).design == "journal"


def test_reader_stays_with_its_design_until_the_other_is_complete() -> None:
    """After a forced cutover to a design that is not written, an old complete view is better than an empty new one."""
    world = SwitchedCell()
    world.reader.read(max_age=3.0)
    both = prepared(world.record, K("snapshot"), "me")
    assert world.operator.change(world.operator.read(), both)
    assert world.operator.change(world.operator.read(), cut_over(both, K("snapshot"), "me"))
    view = world.reader.read(max_age=3.0)
    assert (view.design, sorted(view.nodes)) == ("journal", NODES)
    world.run_well(3)
    assert world.reader.read(max_age=3.0).design == "snapshot"


def test_reader_with_a_design_ignores_the_record() -> None:
    """Commands that compare designs name them."""
    world = SwitchedCell()
    pinned = Reader(world.config, design="journal", stores=world.fresh_stores(), clock=world.clock)
    world.take(prepared(world.record, K("snapshot"), "me"))
    world.take(cut_over(world.record, K("snapshot"), "me"))
    assert pinned.read(max_age=3.0).design == "journal"


def test_retired_design_is_removed() -> None:
    """Its readers see a loss, not an old state that looks fresh (I5)."""
    world = SwitchedCell(["journal", "snapshot"])
    pinned = Reader(world.config, design="snapshot", stores=world.fresh_stores(), clock=world.clock)
    assert not pinned.read(max_age=3.0).incomplete
    world.take(retired(world.record, K("snapshot"), "me"))
    for partition in range(2):
        store, prefix = world.fresh_stores().of(partition), keys.prefix(world.config.cell, 2, partition, "s")
        assert run_one(store, read_head(prefix, None)) is None
    world.pass_time(10)
    assert pinned.read(max_age=3.0, on_stale="flag").stale == set(NODES)
    world.run_well(3)
    assert world.whole("journal")


def test_record_survives_the_loss_of_memcached() -> None:
    """Consumers have it in memory; the settings, which are different by now, are not used."""
    world = SwitchedCell()
    world.take(prepared(world.record, K("snapshot"), "me"))
    world.take(cut_over(world.record, K("snapshot"), "me"))
    world.take(retired(world.record, K("journal"), "me"))
    before = world.record
    for number in range(len(world.servers)):
        world.restart_server(number)
    world.run_well(60)
    assert world.record == before
    assert world.whole("snapshot")
    assert world.reader.read(max_age=3.0).design == "snapshot"


# -- what a review found --------------------------------------------------------------------------


class Failing:
    """A design that cannot be begun while ``fails``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.fails = True
        self._make = DESIGNS[name].writer
        monkeypatch.setitem(DESIGNS, name, DESIGNS[name]._replace(writer=self._writer))

    def _writer(self, place: Any) -> Any:
        writer = self._make(place)
        begin = writer.begin_epoch

        def failing(*given: Any) -> Any:
            if self.fails:
                raise StoreUnavailableError("its place", "not now")
            return (yield from begin(*given))

        writer.begin_epoch = failing  # type: ignore[method-assign]
        return writer


def test_no_event_is_acknowledged_for_a_design_that_is_not_written_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """I6: after a forced cutover to a design that cannot be begun, the old design is retired.

    It stays until the other is written.
    """
    world = SwitchedCell()
    snapshot = Failing(monkeypatch, "snapshot")
    for step in (prepared, cut_over):
        world.take(step(world.record, K("snapshot"), "me"))
    world.take(retired(world.record, K("journal"), "me"))
    assert all(held.retiring == {"journal"} for member in world.members for held in member.consumer.owned.values())
    world.change_some(1.0)
    world.run_well(5)
    wanted = {name: agent.publisher.version for name, agent in world.agents.items()}
    assert {name: node.version for name, node in world.reader.read(max_age=5.0).nodes.items()} == wanted
    snapshot.fails = False
    world.run_well(5)
    assert world.whole("snapshot")
    assert not world.whole("journal")
    view = world.reader.read(max_age=5.0)
    assert (view.design, {name: node.version for name, node in view.nodes.items()}) == ("snapshot", wanted)


def test_events_wait_while_no_design_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last design was lost together with its consumer: new events must not be acknowledged."""
    world = SwitchedCell()
    member = world.members[0]
    held = next(iter(member.consumer.owned.values()))
    held.joining = set(held.writers)
    later, storage = world.clock.monotonic() + 60, member.consumer._storage
    joins_at = {storage.store_of(held.number, name).name: later for name in held.writers}
    monkeypatch.setattr(member.consumer._commits, "_joins_at", joins_at)
    for agent in world.agents.values():
        agent.publisher.change({"usage": {"VCPU": 9}})
    world.confirm()
    before = member.consumer.stats.commits
    for _ in range(5):
        world.clock.advance(0.1)
        member.step()
    assert held.backlog, "the events do not wait"
    assert (held.pending, member.consumer.stats.commits) == (None, before)


def test_store_that_is_down_and_not_written_does_not_prevent_takeovers() -> None:
    """After the database was retired, an operator switches it off."""
    world = SwitchedCell(["sql", "snapshot"])
    world.take(cut_over(world.record, K("snapshot"), "me"))
    world.take(retired(world.record, K("sql"), "me"))
    assert world.database is not None
    world.database.stop()
    for member in list(world.members):
        member.die()
    world.run_well(30)
    assert world.whole("snapshot")


def test_reader_whose_servers_are_down_learns_of_a_rollback_from_another_store() -> None:
    """memcached died after the cutover, and the operator rolls back to the database."""
    world = SwitchedCell(["sql"])
    world.take(prepared(world.record, K("snapshot"), "me"))
    world.take(cut_over(world.record, K("snapshot"), "me"))
    assert world.reader.read(max_age=5.0).design == "snapshot"
    for server in world.servers:
        server.stop()
    assert world.operator.change(world.operator.read(), rolled_back(world.record, "me"))
    world.reader._stores = world.fresh_stores()
    assert world.reader.read(max_age=60.0, on_stale="flag").design == "sql"


def test_force_lets_another_store_decide(places: ControlStore, servers: list[MemoryServer]) -> None:
    """The deciding database is dead, and the cell is to leave it.

    When the database is back, its old copy is replaced.
    """
    places.put_back(START, places.read())
    servers[0].stop()
    later = prepared(START, K("snapshot"), "me")
    assert places.change(places.read(), later, force=True)
    servers[0].start()
    assert versions(places) == [3, 4, 4]
    places.put_back(later, places.read())
    assert versions(places) == [4, 4, 4]


def test_full_store_is_an_error_and_not_a_conflict() -> None:
    """Otherwise the operator's command would try for ever."""
    server = MemoryServer(max_bytes=400, no_evict=True)
    places = ControlStore("cell1", Stores([MemoryStore(server)]))
    places.put_back(START, places.read())
    MemoryStore(server).write([Write(Put.ADD, "other", b"x" * 150)])
    with pytest.raises(StoreFullError):
        places.change(places.read(), prepared(START, K("snapshot"), "me" * 200))


def test_record_with_an_unknown_design_does_not_end_a_consumer() -> None:
    """A design of a later version, or one for which this consumer's settings name no store."""
    for unknown in ("tape", "sql"):
        world = SwitchedCell()
        for member in list(world.members):
            member.source.inner.crash()
            world.members.remove(member)
        assert world.operator.change(
            world.operator.read(),
            Control(world.record.version + 1, (K("journal"), StoredDesign(unknown, 2)), K("journal")),
        )
        newcomer = world.start_member([0, 1], [])
        for _ in range(3):
            newcomer.step()
        assert (newcomer.runs.control, newcomer.held) == (None, [])


@pytest.mark.parametrize("behind_s", [0.0, 1e6], ids=["clocks", "no-clocks"])
def test_reader_that_saw_a_lost_record_follows_the_next(behind_s: float) -> None:
    """Regression: consumers wrote the record from before again, and the next change got the version that was lost. A
    reader that had seen the lost one stayed with a removed layout for ever. It also works if an operator's clock is
    behind.
    """
    world = SwitchedCell(servers=1)

    def change(after: Control) -> None:
        assert world.operator.change(world.operator.read(), dated(after, world.clock.time() - behind_s))

    change(prepared(world.record, K("journal@3"), "one"))
    world.run_well(6)
    change(cut_over(world.record, K("journal@3"), "one"))
    assert len(world.reader.read(max_age=5.0).partitions) == 3
    world.restart_server(0)  # before a consumer looked at the record
    world.run_well(60)
    assert world.record.reads == K("journal")
    change(retired(world.record, K("journal@3"), "two"))
    world.run_well(10)
    assert len(world.reader.read(max_age=5.0).partitions) == 2


def test_deciding_store_wins_between_two_records_of_one_version(
    places: ControlStore, servers: list[MemoryServer]
) -> None:
    """Its record is copied over the other."""
    one, two = prepared(START, K("snapshot"), "one"), prepared(START, K("sql"), "two")
    places.put_back(two, places.read())
    key = keys.control("cell1")
    servers[1].write([Write(Put.CAS, key, CONTROL.pack(one), servers[1].fetch([key])[key].cas)])
    known = newest(places.read())
    assert known == two
    places.put_back(known, places.read())
    assert [copy.control for copy in places.read()] == [two] * 3


def test_readers_follow_a_record_that_was_created_again() -> None:
    """memcached and all consumers are lost, and there is no database: the settings apply again, also for readers that
    saw the old record.
    """
    world = SwitchedCell()
    world.take(prepared(world.record, K("snapshot"), "me"))
    world.take(cut_over(world.record, K("snapshot"), "me"))
    assert world.reader.read(max_age=5.0).design == "snapshot"
    for number in range(len(world.servers)):
        world.restart_server(number)
    for member in list(world.members):
        member.die()
    world.run_well(90)
    assert world.record.reads == K("journal")
    assert world.reader.read(max_age=5.0).design == "journal"


@pytest.mark.parametrize("design", ["snapshot", "journal"])
def test_cell_moves_to_other_memcached_servers_while_it_runs(design: str) -> None:
    """One server becomes three, of which one may be the old one: the same design, under other keys."""
    world = SwitchedCell([design], servers=1, servers_b=3)
    moved = f"{design}_b"
    world.take(prepared(world.record, K(moved), "me"))
    assert world.whole(moved)
    world.take(cut_over(world.record, K(moved), "me"))
    assert world.reader.read(max_age=5.0).design == moved
    world.take(retired(world.record, K(design), "me"))
    world.servers[0].stop()
    for member in list(world.members):
        member.die()
    world.change_some(1.0)
    world.run_well(30)
    wanted = {name: agent.publisher.version for name, agent in world.agents.items()}
    assert {name: node.version for name, node in world.reader.read(max_age=5.0).nodes.items()} == wanted
    newcomer = Reader(world.config, stores=world.fresh_stores(), clock=world.clock)
    assert newcomer.read(max_age=60.0, on_stale="flag").design == moved


def test_missing_driver_of_another_store_does_not_fail_a_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings name a database, this scheduler has no SQLAlchemy, and memcached is down: the view ages, and no
    error is raised.
    """
    world = SwitchedCell()
    world.reader.read(max_age=5.0)
    world.reader.config = msgspec.structs.replace(world.config, sql="mariadb://nobody@nowhere/nothing")
    monkeypatch.setitem(sys.modules, "nodestate.sql.store", None)
    for server in world.servers:
        server.stop()
    view = world.reader.read(max_age=60.0, on_stale="flag")
    assert (view.design, sorted(view.nodes)) == ("journal", NODES)

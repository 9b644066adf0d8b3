"""Control records that no operator wrote: each counts as missing, and costs neither queues nor the next change."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from nodestate.designs.control import CONTROL, Control, dated, prepared
from nodestate.designs.control_store import ControlStore, newest, newest_copy
from nodestate.designs.stored_design import StoredDesign
from nodestate.errors import ControlLostError
from nodestate.findings.design_checks import examine_copies
from nodestate.ports import Put, Write, WriteStatus
from nodestate.store import keys
from nodestate.store.round_trips import Stores
from nodestate.testing import ManualClock, MemoryServer, MemoryStore
from nodestate.testing.queues import MemoryMessage
from tests.planted_values import replace, sealed
from tests.switched_cell import K, SwitchedCell

START = Control(3, (StoredDesign("journal", 2),), StoredDesign("journal", 2))
WALL = 1_763_787_600


def record(version: Any = WALL + 5, writes: Any = (("journal", 2),), reads: Any = ("journal", 2), *more: Any) -> Any:
    return [version, writes, reads, *more]


INVALID = {
    "no partitions": record(writes=[["journal", 0]], reads=["journal", 0]),
    "partitions -1": record(writes=[["journal", -1]], reads=["journal", -1]),
    "100,000 partitions": record(writes=[["journal", 100_000]], reads=["journal", 100_000]),
    "2^63 partitions": record(writes=[["journal", 2**63]], reads=["journal", 2**63]),
    "version 2^64-1": record(version=2**64 - 1),
    "version 2^53": record(version=2**53),
    "version -1": record(version=-1),
    "no design": record(writes=[]),
    "reads what is not written": record(writes=[["snapshot", 2]]),
    "one design twice": record(writes=[["journal", 2], ["journal", 2]]),
    "300 designs": record(writes=[["journal", n % 240 + 1] for n in range(300)]),
    "leaves no layout": record(WALL, [["journal", 2]], ["journal", 2], None, "me", [["journal", 0]]),
    "author with control characters": record(WALL, [["journal", 2]], ["journal", 2], None, "\x1b[2J", []),
    "command with control characters": record(WALL, [["journal", 2]], ["journal", 2], None, "me", [], "\x1b[2J"),
    "changed never": record(WALL, [["journal", 2]], ["journal", 2], None, "me", [], "", float("nan")),
    "changed at infinity": record(WALL, [["journal", 2]], ["journal", 2], None, "me", [], "", float("inf")),
    "signature of 1,000 characters": record(
        WALL, [["journal", 2]], ["journal", 2], None, "me", [], "", 0.0, "a" * 1000
    ),
    "no record": "control",
}
DOUBTFUL = {
    "version of next year": record(version=WALL + 31_536_000),
    "unknown design": record(writes=[["journal", 2], ["tape", 2]]),
    "unknown design to read": record(writes=[["tape", 2]], reads=["tape", 2]),
}
"""Records that are right for a process with another clock, or of a later version."""


@pytest.fixture
def servers() -> list[MemoryServer]:
    return [MemoryServer(f"store-{n}") for n in range(2)]


@pytest.fixture
def places(servers: list[MemoryServer]) -> ControlStore:
    clock = ManualClock(time=WALL)
    return ControlStore("cell1", Stores([MemoryStore(server) for server in servers]), clock)


@pytest.mark.parametrize("content", INVALID.values(), ids=INVALID)
def test_an_invalid_record_counts_as_missing_and_can_be_replaced(
    places: ControlStore, servers: list[MemoryServer], content: Any
) -> None:
    places.put_back(START, places.read())
    for server in servers:
        replace(server, keys.control("cell1"), sealed(content))
    found = places.read()
    assert newest(found) is None
    assert all(copy.invalid for copy in found)
    assert [finding.level for finding in examine_copies("cell1", found)] == ["FAIL", "FAIL"]
    places.put_back(START, found)
    assert places.change(places.read(), dated(prepared(START, K("snapshot"), "me"), WALL))
    assert newest(places.read()) == dated(prepared(START, K("snapshot"), "me"), WALL)


@pytest.mark.parametrize("content", DOUBTFUL.values(), ids=DOUBTFUL)
def test_a_record_that_may_be_right_stays_until_an_operator_forces_a_change(
    places: ControlStore, servers: list[MemoryServer], content: Any
) -> None:
    """Regression: members with an old clock or of an old version undid changes of the operator."""
    places.put_back(START, places.read())
    replace(servers[0], keys.control("cell1"), sealed(content))
    found = places.read()
    assert ([copy.may_be_right for copy in found], newest(found)) == ([True, False], START)
    places.put_back(START, found)
    assert servers[0].fetch([keys.control("cell1")])[keys.control("cell1")].value == sealed(content)
    assert "--force" in next(examine_copies("cell1", places.read())).advice
    after = dated(prepared(START, K("snapshot"), "me"), WALL)
    with pytest.raises(ControlLostError, match="doctor"):
        places.change(places.read(), after)
    assert places.change(places.read(), after, force=True)
    assert [copy.control for copy in places.read()] == [after, after]


def test_a_member_whose_clock_is_days_behind_does_not_undo_a_change(
    places: ControlStore, servers: list[MemoryServer]
) -> None:
    """It keeps the record that it knows, and all others follow the change."""
    places.put_back(START, places.read())
    late = ControlStore("cell1", Stores([MemoryStore(server) for server in servers]), ManualClock(time=WALL - 200_000))
    after = dated(prepared(START, K("snapshot"), "me"), WALL)
    assert places.change(places.read(), after)
    late.put_back(START, late.read())
    assert [copy.control for copy in places.read()] == [after, after]


def test_a_record_keeps_the_fields_of_later_versions_when_it_is_put_back(
    places: ControlStore, servers: list[MemoryServer]
) -> None:
    value = sealed([*record(), None, "me", [], "cutover journal", 1.8e9, "", "a later field"])
    replace_or_add(servers[0], value)
    copy = newest_copy(places.read())
    assert copy is not None
    assert copy.control is not None
    places.put_back(copy.control, places.read(), copy.value)
    assert [server.fetch([keys.control("cell1")])[keys.control("cell1")].value for server in servers] == [value, value]


def replace_or_add(server: MemoryServer, value: bytes) -> None:
    [written] = server.write([Write(Put.ADD, keys.control("cell1"), value)])
    assert written.status is WriteStatus.STORED


def test_members_of_an_old_version_leave_a_record_that_names_a_design_of_a_later_one() -> None:
    world = SwitchedCell(servers=1)
    before, layouts = world.record, dict(world.broker.layouts)
    value = sealed(record(before.version + 1, [["journal", 2], ["tape", 2]]))
    replace(world.servers[0], keys.control(world.config.cell), value)
    world.run_well(4)
    assert [member.runs.control for member in world.members] == [before, before]
    assert world.broker.layouts == layouts
    key = keys.control(world.config.cell)
    assert world.servers[0].fetch([key])[key].value == value


def test_the_largest_version_that_counts_can_be_followed_by_a_change(servers: list[MemoryServer]) -> None:
    """The limit moves with the time, so a change is possible a moment later."""
    clock = ManualClock(time=WALL)
    places = ControlStore("cell1", Stores([MemoryStore(server) for server in servers]), clock)
    last = msgspec.structs.replace(START, version=WALL + 86_400)
    for server in servers:
        replace(server, keys.control("cell1"), CONTROL.pack(last))
    clock.advance(1.0)
    after = dated(prepared(last, K("snapshot"), "me"), clock.time())
    assert places.change(places.read(), after)
    assert newest(places.read()) == after


def test_consumers_replace_invalid_records_and_keep_their_queues() -> None:
    """Regression: they left the layout that the record did not name, and deleted its queues."""
    world = SwitchedCell(servers=1)
    before, layouts = world.record, dict(world.broker.layouts)
    for name in ("no partitions", "100,000 partitions", "version 2^53", "no design"):
        content = INVALID[name]
        for server in world.servers:
            replace(server, keys.control(world.config.cell), sealed(content))
        world.run_well(4)
        assert (world.record, world.broker.layouts) == (before, layouts), name
    assert not world.reader.read(max_age=5.0).incomplete
    world.take(prepared(before, K("snapshot"), "me"))
    world.run_well(20)
    assert world.whole("snapshot")


def test_a_new_consumer_waits_if_the_only_record_may_be_right() -> None:
    """Its clock may be wrong, or an operator of a later version may have written the record."""
    world = SwitchedCell(servers=1)
    for member in list(world.members):
        member.die()
    content = record(version=int(world.clock.time()) + 31_536_000)
    replace(world.servers[0], keys.control(world.config.cell), sealed(content))
    newcomer = world.start_member([0, 1], [])
    for _ in range(3):
        newcomer.step()
    assert (newcomer.runs.control, newcomer.held) == (None, [])
    replace(world.servers[0], keys.control(world.config.cell), sealed(INVALID["no partitions"]))
    for _ in range(3):
        newcomer.step()
    assert newcomer.runs.control is not None


def test_messages_that_wait_in_a_layout_outlive_a_record_that_does_not_name_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only an operator's `nodestate design retire` deletes them: another program may have written the record."""
    world = SwitchedCell(servers=1)
    for member in world.members:
        consumer = member.runs.consumers[2]
        leave = consumer.retire_layout

        def leave_while_an_event_comes(leave: Any = leave) -> None:
            leave()
            world.broker.queue(0, 2).messages.append(MemoryMessage(b"an event"))

        monkeypatch.setattr(consumer, "retire_layout", leave_while_an_event_comes)
    forged = Control(world.record.version + 1, (K("journal@3"),), K("journal@3"))
    replace(world.servers[0], keys.control(world.config.cell), CONTROL.pack(forged))
    world.run_well(60)
    assert [list(member.runs.consumers) for member in world.members] == [[3], [3]]
    assert b"an event" in [message.body for message in world.broker.aside[2][0].messages]

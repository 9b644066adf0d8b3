"""One copy of the control record is mutated; a consumer, an operator and a reader go on with the right copy.

Beside the layout that is written there is another one, in whose queues a message waits: no input may delete it.
"""

from __future__ import annotations

from random import Random
from typing import Final

from nodestate.config import Config
from nodestate.consumers.member import Member
from nodestate.designs.control import CONTROL, Control, dated, prepared
from nodestate.designs.control_store import ControlStore, newest
from nodestate.designs.reader import Reader
from nodestate.designs.stored_design import StoredDesign
from nodestate.errors import ControlLostError
from nodestate.findings.design_checks import examine_copies, examine_record
from nodestate.ports import Put, Write
from nodestate.store import keys
from nodestate.store.round_trips import Stores
from nodestate.testing import ManualClock, MemoryBroker, MemoryServer, MemorySource, MemoryStore
from tests.fuzz.mutation import mutated_item
from tests.planted_values import replace

JOURNAL, SNAPSHOT = StoredDesign("journal", 2), StoredDesign("snapshot", 2)
KNOWN: Final = Control(1_763_780_000, (JOURNAL, SNAPSHOT), JOURNAL, SNAPSHOT, "me", (StoredDesign("journal", 3),))


WAITING: Final = 5
"""A layout with a message in one of its queues."""


class _Layouts:
    """The queues of the cell, all of which this consumer reads."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self.found, self.set_aside = broker.found, broker.set_aside

    def open(self, partitions: int) -> MemorySource:
        """See ``ports.Layouts``."""
        return self._broker.source(range(partitions), layout=partitions)


def run(data: Random) -> bool:
    """Mutate one copy of two, in a cell with a consumer and in one without."""
    _follow(data)
    return _change(data)


def _follow(data: Random) -> None:
    clock = ManualClock()
    servers = [MemoryServer(f"m{n}", clock=clock) for n in range(2)]
    broker = MemoryBroker(2, clock=clock)
    broker.declare(WAITING)
    broker.sink().publish(0, b"waits", lambda _ok: None)
    config = Config(cell="cell1", partitions=2, designs=("journal", "snapshot"), read_design="journal")
    stores = Stores([MemoryStore(server) for server in servers])
    for server in servers:
        server.write([Write(Put.ADD, keys.control("cell1"), CONTROL.pack(KNOWN))])
    member = Member(config, _Layouts(broker), stores, broker, clock, Random(1), "m")
    member.step()
    assert member.control == KNOWN
    mutant, _ = mutated_item(data, CONTROL.pack(KNOWN))
    replace(data.choice(servers), keys.control("cell1"), mutant)
    for _ in range(data.choice((2, 2, 8))):  # eight: queues of layouts that no record names are looked for
        clock.advance(1.0)
        member.step()
    assert member.control is not None
    assert member.control.version >= KNOWN.version
    if member.control.writes == KNOWN.writes:
        assert 2 in member.consumers, "it no longer consumes a layout that is written"
    member.close()  # messages that it did not ack return to their queues
    queues = [*broker.layouts.get(WAITING, []), *broker.aside.get(WAITING, [])]
    kept = [message.body for queue in queues for message in queue.messages]
    assert b"waits" in [*kept, *(letter.body for letter in broker.dead_letters)], "a message is lost with its queue"


def _change(data: Random) -> bool:
    clock = ManualClock()
    servers = [MemoryServer(f"m{n}", clock=clock) for n in range(2)]
    places = ControlStore("cell1", Stores([MemoryStore(server) for server in servers]), clock)
    raw = CONTROL.pack(KNOWN)
    mutant, reached = mutated_item(data, raw)
    at = data.randrange(2)
    for n, server in enumerate(servers):
        server.write([Write(Put.ADD, keys.control("cell1"), mutant if n == at else raw)])
    config = Config(cell="cell1", partitions=2, designs=("journal", "snapshot"), read_design="journal")
    reader = Reader(config, stores=Stores([MemoryStore(server) for server in servers]), clock=clock)
    reader.read(max_age=5.0, on_stale="flag")
    found = places.read()
    assert len(list(examine_copies("cell1", found))) == sum(bool(copy.invalid) for copy in found)
    known = newest(found)
    assert known is not None, "the other copy is right"
    assert all(1 <= stored.partitions <= 240 for stored in (*known.writes, known.reads, *known.leaving))
    places.put_back(known, found)
    doubtful = any(copy.may_be_right for copy in found)
    clock.advance(2.0)
    after = dated(prepared(known, StoredDesign("snapshot", 7), "you"), clock.time())
    try:
        assert places.change(places.read(), after, force=doubtful)
    except ControlLostError:
        raise AssertionError("no change is possible") from None
    assert newest(places.read()) == after
    assert next(examine_record(config, places.read())).says
    reader.read(max_age=5.0, on_stale="flag")
    return reached

"""One copy of the control record is mutated; then consumers put it back, an operator changes it, and a reader reads."""

from __future__ import annotations

from random import Random
from typing import Final

from nodestate.cli.doctor.design_checks import examine_copies, examine_record
from nodestate.config import Config
from nodestate.designs.control import CONTROL, Control, dated, prepared
from nodestate.designs.control_store import ControlStore, newest
from nodestate.designs.reader import Reader
from nodestate.designs.stored_design import StoredDesign
from nodestate.errors import ControlLostError
from nodestate.ports import Put, Write
from nodestate.store import keys
from nodestate.store.round_trips import Stores
from nodestate.testing import ManualClock, MemoryServer, MemoryStore
from tests.fuzz.mutation import mutated_item

JOURNAL, SNAPSHOT = StoredDesign("journal", 2), StoredDesign("snapshot", 2)
KNOWN: Final = Control(1_763_780_000, (JOURNAL, SNAPSHOT), JOURNAL, SNAPSHOT, "me", (StoredDesign("journal", 3),))


def run(data: Random) -> bool:
    """Mutate one copy of two."""
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

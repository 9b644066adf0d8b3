"""One stored value of a partition is mutated; then readers, a scheduler, the doctor and the next owner run."""

from __future__ import annotations

import functools
import math
from random import Random
from typing import Any, Final

import msgspec

from nodestate.config import Config
from nodestate.consumers.takeover import _without_damage
from nodestate.errors import NodestateError
from nodestate.findings.agent_checks import examine_clocks, examine_names
from nodestate.model import NodeRecord
from nodestate.scheduling.fleet import Fleet
from nodestate.scheduling.request import parse
from nodestate.scheduling.selection import Selector
from nodestate.scheduling.selection.plugins import own
from nodestate.store.memory import StoredItem
from nodestate.store.wire import ENVELOPE_BYTES, pack_record, seal
from nodestate.testing import ManualClock, MemoryDatabase, MemoryServer
from nodestate.testing.database import Backup
from nodestate.view.columns import ColumnStore
from nodestate.view.follower import PartitionState
from nodestate.view.view import View
from tests.fuzz.mutation import mutated, mutated_bytes
from tests.partition_owner import Owner, Watcher, change, prefix_of, report
from tests.planted_values import content, sealed
from tests.scheduling.fleets import chosen

DESIGNS: Final = ("journal", "snapshot", "sql")
STATE: Final[dict[str, Any]] = {
    "zone": "a",
    "inventory": {"VCPU": {"total": 8, "min_unit": 1}, "MEMORY_MB": {"total": 4_000}},
    "usage": {"VCPU": 1},
    "traits": ["T"],
    "allocations": {"vm": {"resources": {"VCPU": 1}, "group": "g", "hints": {"reservation": "r", "members": 2}}},
    "metrics": {"cpu.percent": 1.5},
    "namespaces": {
        "nodestate": {"refused": {"o": {"reason": "expired", "at": 1.0}}, "same_name": {"hosts": ["a", "b"], "at": 1}}
    },
}
NODES: Final = ("n", "m", "k")


@functools.cache
def _stored(design: str) -> tuple[dict[str, StoredItem], Backup | None]:
    """The items, and for a database the rows, of a partition with some commits, a checkpoint and an index."""
    clock = ManualClock()
    server = MemoryDatabase(clock=clock) if design == "sql" else MemoryServer(clock=clock)
    owner = Owner(design, server, clock)
    owner.begin()
    for name in NODES:
        owner.commit(report(name, 1, **STATE))
    if design != "sql":
        owner.repair()
    owner.commit(change("n", 2, usage={"VCPU": 2}))
    owner.commit(change("m", 2, metrics={"cpu.percent": 2.5}))
    owner.renew()
    return dict(server._entries), server.backup() if isinstance(server, MemoryDatabase) else None


class _MutatedDatabase(MemoryDatabase):
    """A database in which the encoded record of one row is replaced."""

    mutation: tuple[int, bytes] | None = None

    def _answer(self, query: Any) -> Any:
        found = super()._answer(query)
        if self.mutation is None:
            return found
        slot, encoded = self.mutation
        rows = msgspec.msgpack.decode(found.value)
        rows[1] = [[at, encoded if at == slot else record] for at, record in rows[1]]
        return msgspec.structs.replace(found, value=msgspec.msgpack.encode(rows))


def _server(design: str, data: Random, clock: ManualClock) -> tuple[MemoryServer, bool]:
    """A server with one mutated value, and whether its checksum is right."""
    entries, backup = _stored(design)
    server = _MutatedDatabase(clock=clock) if design == "sql" else MemoryServer(clock=clock)
    if isinstance(server, _MutatedDatabase):
        assert backup is not None
        server.restore(backup)
        if data.random() < 0.4:
            record = server.rows(prefix_of(design))[data.randrange(len(NODES))]
            value = mutated(data, msgspec.msgpack.decode(pack_record(record.record)))
            server.mutation = record.slot, _deeper(data, msgspec.msgpack.encode(_packable(value)))
            return server, True
    server._entries.update({key: StoredItem(one.value, one.cas, one.expires_at) for key, one in entries.items()})
    key = data.choice(sorted(entries))
    raw = entries[key].value
    kind = data.random()
    if kind < 0.75:
        try:
            raw, reached = sealed(mutated(data, content(raw))), True
        except (OverflowError, ValueError):
            raw, reached = seal(mutated_bytes(data, raw[ENVELOPE_BYTES:])), True
    elif kind < 0.9:
        raw, reached = seal(mutated_bytes(data, raw[ENVELOPE_BYTES:])), True
    else:
        raw, reached = mutated_bytes(data, raw), False
    server._last_cas = max(one.cas for one in entries.values()) + 1
    server._entries[key] = StoredItem(raw, server._last_cas, entries[key].expires_at)
    return server, reached


def _packable(value: Any) -> Any:
    return value if not isinstance(value, float) or math.isfinite(value) else 0.0


def _deeper(data: Random, encoded: bytes) -> bytes:
    return mutated_bytes(data, encoded) if data.random() < 0.2 else encoded


def run(data: Random) -> bool:
    """Mutate one value, and let every part of the cell meet it."""
    design, clock = data.choice(DESIGNS), ManualClock()
    server, reached = _server(design, data, clock)
    watcher = Watcher(design, server, clock)
    _check(watcher.look(), clock, reached=reached)
    _check(watcher.look_at_life(), clock, reached=reached)
    owner = Owner(design, server, clock, "b")
    try:
        taken = owner.take()
        if taken is None:
            owner.records = []
            owner.begin(9)
        else:
            owner.records = list(_without_damage(0, design, taken).records)
            if not taken.epoch_continues or owner.records != taken.records:
                owner.begin(9)
        owner._slots = {record.name: slot for slot, record in enumerate(owner.records)}
        owner.commit(report("n", 5, **STATE), report("z", 1))
        if owner.renew():
            owner.repair()
        owner.commit(change("m", 3, usage={"VCPU": 3}))
    except NodestateError:
        pass
    _check(watcher.look(), clock, reached=reached)
    return reached


def _check(state: PartitionState, clock: ManualClock, *, reached: bool) -> None:
    """A scheduler and the doctor use a view of this state; ages are not negative, and nothing is there twice."""
    assert state.confirmed_at <= clock.monotonic()
    view = View("any", (state,), frozenset(), set(), ColumnStore(), clock)
    assert view.columns is not None
    names = [record.name for record in view.nodes.records()]
    assert len(set(names)) == len(names)
    for record in view.nodes.records():
        assert view.nodes.record(record.name) == record
        _read(record, reached=reached)
    fleet = Fleet()
    fleet.advance(view)
    selector = Selector(fleet, own(), 1)
    chosen(selector, parse({"resources": {"VCPU": 1, "MEMORY_MB": 1}}))
    for row in range(len(fleet)):
        fleet.reports.allocations(row)
        fleet.reports.hints_by_instance(row)
        fleet.reports.has_left(row)
    fleet.state_columns.metric("cpu.percent")
    list(examine_clocks(view, clock.time()))
    list(examine_names(Config(), view, clock.time()))


def _read(record: NodeRecord, *, reached: bool) -> None:
    """Decode a state. Only a value with a right checksum may have a damaged one."""
    try:
        record.state()
    except NodestateError:
        assert reached

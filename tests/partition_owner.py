"""One partition of one design, with an owner that writes it and followers that read it; no consumer, no broker."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from nodestate.designs import DESIGNS
from nodestate.model import NodeRecord, fold, parse_event
from nodestate.store import keys
from nodestate.store.owner_status import OwnerStatus
from nodestate.store.ownership import PartitionTarget
from nodestate.store.partition_writer import Batch, TakeoverResult
from nodestate.store.round_trips import Steps, run_one
from nodestate.testing import FaultyStore, ManualClock, MemoryDatabase, MemoryServer, MemoryStore, Plan, script
from nodestate.view.follower import Follower, PartitionState

T = TypeVar("T")
LEASE_S = 86_400
WELL = OwnerStatus(0, complete=True, ages_ms=bytes(8))


def prefix_of(design: str) -> str:
    """The prefix of the keys of this partition."""
    return keys.prefix("cell1", 1, 0, DESIGNS[design].letter)


def report(node: str, generation: int, **state: Any) -> bytes:
    """The event of a full state."""
    fields = {"kind": "report", "node": node, "incarnation": 1, "generation": generation, "reported_at": 1.0}
    return msgspec.msgpack.encode({**fields, "state": state})


def change(node: str, generation: int, **patch: Any) -> bytes:
    """The event of a change."""
    fields = {"kind": "change", "node": node, "incarnation": 1, "generation": generation, "reported_at": 1.0}
    return msgspec.msgpack.encode({**fields, "patch": patch})


class Owner:
    """Folds events and commits them, as a consumer would, through a connection that fails by plan."""

    def __init__(self, design: str, server: MemoryServer, clock: ManualClock, name: str = "a") -> None:
        self.store = FaultyStore(MemoryStore(server, clock), script(), whole=isinstance(server, MemoryDatabase))
        place = PartitionTarget(prefix_of(design), 0, name, LEASE_S, self.store, clock)
        self.writer = DESIGNS[design].writer(place)
        self.records: list[NodeRecord] = []
        self._slots: dict[str, int] = {}
        self._batch: Batch | None = None

    def begin(self, epoch: int = 7) -> None:
        """Begin an epoch with the nodes in memory."""
        self.run(self.writer.begin_epoch(epoch, self, WELL))

    def take(self) -> TakeoverResult | None:
        """Take the partition over, and keep the nodes that were found."""
        taken = self.run(self.writer.take_over())
        if taken is not None:
            self.records = list(taken.records)
            self._slots = {record.name: slot for slot, record in enumerate(self.records)}
        return taken

    def commit(self, *events: bytes, plan: Plan | None = None) -> None:
        """Fold and write these events. After an error, ``again`` must be called first."""
        size_before, changed = len(self.records), {}
        for raw in events:
            event = parse_event(raw)
            slot = self._slots.get(event.node)
            record = fold(self.records[slot] if slot is not None else None, event).record
            assert record is not None
            if slot is None:
                slot = self._slots[event.node] = len(self.records)
                self.records.append(record)
            else:
                self.records[slot] = record
            changed[slot] = None
        self._batch = Batch(events, tuple(changed), size_before)
        self.again(plan)

    def again(self, plan: Plan | None = None) -> None:
        """Write the last batch once more, as after an error."""
        assert self._batch is not None
        self.run(self.writer.commit(self._batch, self, WELL), plan)

    def renew(self) -> bool:
        """Renew the head. Returns True if a reader asked for a repair."""
        return self.run(self.writer.renew(WELL))

    def repair(self) -> None:
        """Write the lost items again."""
        self.run(self.writer.repair(self, WELL))

    def run(self, steps: Steps[T], plan: Plan | None = None) -> T:
        """Run steps, with the faults of ``plan``."""
        self.store.plan = plan or script()
        try:
            return run_one(self.store, steps)
        finally:
            self.store.plan = script()


class Watcher:
    """Follows the partition, and counts its round trips."""

    def __init__(self, design: str, server: MemoryServer, clock: ManualClock) -> None:
        self.store = FaultyStore(MemoryStore(server), self._counted)
        prefix = prefix_of(design)
        self._follower = Follower(0, prefix, DESIGNS[design].reader(prefix), self.store, clock)
        self.fetches: list[int] = []
        self.plan: Plan = script()

    def _counted(self, operation: str, count: int) -> Any:
        if operation == "fetch":
            self.fetches.append(count)
        return self.plan(operation, count)

    def look(self, plan: Plan | None = None) -> PartitionState:
        """Refresh, with the faults of ``plan``."""
        self.fetches, self.plan = [], plan or script()
        return run_one(self.store, self._follower.refresh(with_life=False))

    def look_at_life(self) -> PartitionState:
        """Refresh with signs of life."""
        return run_one(self.store, self._follower.refresh(with_life=True))


def held(state: PartitionState) -> list[NodeRecord]:
    """The records of a partition, in slot order."""
    return list(state.table.records()) if state.table is not None else []

"""A small cell in one process: doubles of servers and broker, publishers, consumers that die and freeze, and readers.

``GroundTruth`` records every write that a server accepts and every event that a queue accepts. From these alone, and
independently of the code under test, it derives the content that each view must have (invariants I1 to I7).
``JudgedReader`` compares each view with it.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Literal, TypeVar

import msgspec

from nodestate.agent.publisher import Publisher
from nodestate.agent.resync_scope import concerns
from nodestate.config import Config
from nodestate.consumers.loop import Consumer
from nodestate.consumers.member import Member as ConsumersMember
from nodestate.consumers.partition import OwnedPartition
from nodestate.consumers.pending_work import MAX_DEAD_LETTER_BYTES
from nodestate.consumers.watermarks import is_marker
from nodestate.designs import DESIGNS
from nodestate.designs.reader import Reader
from nodestate.errors import BrokerUnavailableError, StoreUnavailableError, UnconfirmedError
from nodestate.journal import format as journal_format
from nodestate.journal import reader as journal_reader
from nodestate.journal import writer as journal_writer
from nodestate.model import Change, Heartbeat, Leave, NodeRecord, Report, Version, fold, merge_patch, parse_event
from nodestate.ports import (
    ACTIVATION,
    Delivery,
    Item,
    NodeRow,
    Put,
    RefusedDelivery,
    Resync,
    Store,
    StoreRole,
    Write,
    WriteResult,
    WriteStatus,
)
from nodestate.ports.backoff import Backoff
from nodestate.snapshot import format as snapshot_format
from nodestate.snapshot import reader as snapshot_reader
from nodestate.snapshot.format import Stamp, stamp_of
from nodestate.sql import reader as sql_reader
from nodestate.sql.writer import MAX_SILENT_S
from nodestate.store import keys
from nodestate.store.head import HEAD, Head, term_of
from nodestate.store.round_trips import Stores
from nodestate.store.wire import unpack_block, unpack_record
from nodestate.testing import (
    Backup,
    Fault,
    FaultyStore,
    ManualClock,
    MemoryBroker,
    MemoryDatabase,
    MemoryServer,
    MemorySource,
    MemoryStore,
    Plan,
)
from nodestate.view.follower import PartitionState
from nodestate.view.view import View

GONE: Final = "gone"
"""The state of a version with which a node left."""
CELL: Final = "cell1"
SLICE_S: Final = 0.5
"""Longest time between two actions of an agent while time passes."""
CONVERGE_S: Final = 120.0
"""Without faults the views of a cell equal its agents' states within this time, which is two settling periods and
more.
"""


S = TypeVar("S", bound=Store)


class Crash(BaseException):
    """The process dies here. No ``except Exception`` may catch it, so it is not an ``Exception``."""


def has_left(state: Mapping[str, Any]) -> bool:
    """True if the state is that of a node that left with allocations. Such a node gives no signs of life."""
    return "left_at" in state.get("namespaces", {}).get("nodestate", {})


def all_well(_operation: str, _count: int) -> Fault | None:
    """A plan without faults."""
    return None


@contextmanager
def small_limits() -> Iterator[None]:
    """Make rings overflow, checkpoints become due and contents come in several parts after a handful of events.

    With these limits a test of fifty steps reaches states that a real cell reaches in an hour.
    """
    changes: list[tuple[Any, str, int]] = [
        (snapshot_format, "RING_SLOTS", 6),
        (snapshot_format, "RING_COMMITS", 5),
        (snapshot_format, "PART_NODES", 2),
        (journal_format, "MIN_TAIL_BYTES", 400),
        (journal_writer, "PART_BYTES", 500),
        (journal_reader, "MAX_FETCH_PARTS_COUNT", 1),
        (snapshot_reader, "MAX_FETCH_COUNT", 2),
        (sql_reader, "MAX_FETCH_ROWS_COUNT", 2),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in changes]
    for module, name, value in changes:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


# -- the truth ------------------------------------------------------------------------------------

Epoch = tuple[str, str, int]
"""Layout and partition as in a key, the letter of a design, and an epoch."""


@dataclass(slots=True)
class Publication:
    """One event in a queue, and whether its agent knows that the broker confirmed or lost it."""

    at: float
    bucket: int
    node: str
    version: Version
    body: bytes
    confirmed: bool = False
    lost: bool = False


class GroundTruth:
    """All accepted writes and events, and the content that they imply for each epoch and offset."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.histories: dict[str, dict[Version, Any]] = {}
        """The state of each version of each node."""
        self.publications: list[Publication] = []
        """All events that went into queues, in their order."""
        self.contents: dict[str, bytes] = {}
        """Segments, checkpoints and indexes, by key."""
        self.items: dict[tuple[str, int, Stamp], dict[str, NodeRecord]] = {}
        """The snapshot's items by partition, epoch and stamp."""
        self.heads: dict[Epoch, Head] = {}
        """The last head of each epoch."""
        self.commits: dict[Epoch, dict[int, dict[str, NodeRecord]]] = {}
        """The nodes of each epoch after each offset."""

    # -- writes that servers accepted

    def accepted(self, write: Write) -> None:
        """Record a write that was stored."""
        if write.key == keys.control(CELL):
            return
        _, _, partition, letter, tail = write.key.split(":", 4)
        if tail.startswith("node:"):
            stored = snapshot_format.NODE.unpack(write.value)
            self.items.setdefault((partition, stored.epoch, stored.stamp), {})[stored.record.name] = stored.record
        elif tail.startswith(("log:", "ckpt:", "index:")):
            assert write.put is Put.ADD, f"{write.key} is rewritten"
            self.contents[write.key] = write.value
        elif tail.startswith("head:"):
            self._head(partition, letter, HEAD.unpack(write.value), write.rows)

    def _head(self, partition: str, letter: str, head: Head, rows: Sequence[NodeRow]) -> None:
        epoch = (partition, letter, head.epoch)
        prefix = f"ns:{CELL}:{partition}:{letter}"
        before = self.heads.get(epoch)
        self.heads[epoch] = head
        if before is None:
            assert (head.term, head.next) == (1, 1), "an epoch begins with commit 0 by its first term"
            self.commits[epoch] = {1: self._first(partition, prefix, letter, head, rows)}
            return
        assert head.term >= before.term, "I7: an owner that lost its partition moved the head"
        assert head.owner == before.owner or head.term > before.term, "I7: two owners in one term"
        assert head.next in {before.next, before.next + 1}, "offsets have a gap, or go back"
        assert head.beat > before.beat, "a write of the head is older than the one that it replaced"
        if head.next == before.next:
            assert not rows, "rows without a commit"
            return
        nodes = dict(self.commits[epoch][before.next])
        if letter[0] == keys.JOURNAL:
            self._fold_segment(prefix, head, before.next, nodes)
        elif letter[0] == keys.DATABASE:
            nodes.update(_of_commit(prefix, head.epoch, before.next, rows))
        else:
            nodes.update(self.items.get((partition, head.epoch, stamp_of(head.term, before.next)), {}))
        self.commits[epoch][head.next] = nodes

    def _first(
        self, partition: str, prefix: str, letter: str, head: Head, rows: Sequence[NodeRow]
    ) -> dict[str, NodeRecord]:
        if letter[0] == keys.DATABASE:
            assert [row.slot for row in rows] == list(range(len(rows))), "an epoch begins with all rows"
            return _of_commit(prefix, head.epoch, 0, rows)
        if letter[0] == keys.JOURNAL:
            checkpoint = journal_format.JOURNAL_SECTION.of(head).checkpoint
            parts = journal_format.checkpoint_keys(prefix, head.epoch, checkpoint)
            return {name: unpack_record(row) for key in parts for name, _, row in unpack_block(self.contents[key])}
        parts = snapshot_format.index_keys(prefix, head.epoch, snapshot_format.SNAPSHOT_SECTION.of(head).index)
        names = [name for key in parts for name in snapshot_format.unpack_index_part(self.contents[key])[0]]
        return {name: self.items[partition, head.epoch, stamp_of(1, 0)][name] for name in names}

    def _fold_segment(self, prefix: str, head: Head, offset: int, nodes: dict[str, NodeRecord]) -> None:
        terms = journal_format.JOURNAL_SECTION.of(head).terms
        key = keys.segment(prefix, head.epoch, term_of(terms, offset), offset)
        for raw in journal_format.SEGMENT.unpack(self.contents[key]):
            event = parse_event(raw)
            record = fold(nodes.get(event.node), event).record
            assert record is not None
            nodes[event.node] = record

    def set_back(self, heads: Mapping[Epoch, Head]) -> None:
        """Record that a database was restored to a backup with these heads."""
        self.heads = {epoch: head for epoch, head in self.heads.items() if epoch[1] != keys.DATABASE} | {
            epoch: head for epoch, head in heads.items() if epoch[1] == keys.DATABASE
        }

    # -- events of agents

    def published(self, bucket: int, body: bytes) -> Publication:
        """Record an event that went into a queue of each layout.

        A version names one state; patches are applied naively.
        """
        event = parse_event(body)
        history = self.histories.setdefault(event.node, {})
        if isinstance(event, Report):
            state = msgspec.msgpack.decode(event.state)
        elif isinstance(event, Change):
            before = history[Version(event.incarnation, event.generation - 1)]
            state = merge_patch(
                msgspec.msgpack.decode(msgspec.msgpack.encode(before)), msgspec.msgpack.decode(event.patch)
            )
        elif isinstance(event, Leave):
            before = history.get(Version(event.incarnation, event.generation - 1), GONE)
            state = GONE
            if before != GONE and before.get("allocations"):
                left = before.get("namespaces", {}).get("nodestate", {}).get("left_at", event.reported_at)
                down = {"status": "down", "namespaces": {"nodestate": {"left_at": left}}}
                state = merge_patch(msgspec.msgpack.decode(msgspec.msgpack.encode(before)), down)
        else:
            state = history.get(event.version)
        if not isinstance(event, Heartbeat):
            assert history.setdefault(event.version, state) == state, f"{event.version} names two states"
        publication = Publication(self.clock.monotonic(), bucket, event.node, event.version, body)
        self.publications.append(publication)
        return publication

    def newest(self, partitions: int, partition: int, by: float) -> dict[str, Version]:
        """Return the newest version of each node of a partition whose confirmed message was in a queue before
        ``by``.
        """
        newest: dict[str, Version] = {}
        for one in self.publications:
            if one.bucket % partitions == partition and one.at < by and one.confirmed and not one.lost:
                newest[one.node] = max(newest.get(one.node, one.version), one.version)
        return newest

    def last_sign(self, node: str) -> float:
        """Return when the last message of a node went into its queue."""
        return max((one.at for one in self.publications if one.node == node), default=float("-inf"))


def _of_commit(prefix: str, epoch: int, offset: int, rows: Sequence[NodeRow]) -> dict[str, NodeRecord]:
    """Return the records of the rows of a commit. All rows must be of its prefix, epoch and offset."""
    assert {(row.prefix, row.epoch, row.offset) for row in rows} <= {(prefix, epoch, offset)}
    return {row.record.name: row.record for row in rows}


class WitnessedDatabase(MemoryDatabase):
    """A database that records every accepted write in the ground truth."""

    def __init__(self, truth: GroundTruth, clock: ManualClock) -> None:
        super().__init__("database", clock=clock)
        self._truth = truth

    def _write(self, write: Write) -> WriteResult:
        done = super()._write(write)
        if done.status is WriteStatus.STORED and write.put not in (Put.DELETE, Put.DELETE_ROWS):
            self._truth.accepted(write)
        return done


class WitnessedServer(MemoryServer):
    """A memcached that records every accepted write in the ground truth."""

    def __init__(
        self, truth: GroundTruth, name: str, clock: ManualClock, max_bytes: int | None, *, no_evict: bool
    ) -> None:
        super().__init__(name, clock=clock, max_bytes=max_bytes, no_evict=no_evict)
        self._truth = truth

    def _write(self, write: Write) -> WriteResult:
        done = super()._write(write)
        if done.status is WriteStatus.STORED and write.put not in (Put.DELETE, Put.DELETE_ROWS):
            self._truth.accepted(write)
        return done

    def lift_limit(self) -> None:
        """Remove the limit of its memory."""
        self._max_bytes = None


class TruthRecordingSink:
    """A sink that records each event in the ground truth, and whether the broker confirmed it."""

    def __init__(self, truth: GroundTruth, broker: MemoryBroker) -> None:
        self._truth = truth
        self._inner = broker.sink()

    def publish(self, bucket: int, body: bytes, on_done: Callable[[bool], None]) -> None:
        """See ``ports.Sink``."""
        known: list[Publication] = []

        def done(ok: bool) -> None:
            for publication in known:
                publication.confirmed, publication.lost = ok, publication.lost or not ok
            on_done(ok)

        self._inner.publish(bucket, body, done)
        known.append(self._truth.published(bucket, body))

    def flush(self, timeout_s: float) -> None:
        """See ``ports.Sink``."""
        self._inner.flush(timeout_s)

    def resyncs(self, timeout_s: float) -> list[Resync]:
        """See ``ports.Sink``."""
        return self._inner.resyncs(timeout_s)

    def close(self) -> None:
        """See ``ports.Sink``."""
        self._inner.close()


# -- members --------------------------------------------------------------------------------------


class MortalSource:
    """A member's connection to the broker. With ``dies_before_ack`` the member dies before its next ack."""

    def __init__(self, inner: MemorySource) -> None:
        self.inner = inner
        self.dies_before_ack = False

    def receive(self, limit: int, timeout_s: float) -> list[Delivery]:
        """See ``ports.Source``."""
        return self.inner.receive(limit, timeout_s)

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """See ``ports.Source``."""
        if self.dies_before_ack:
            raise Crash
        self.inner.ack(deliveries)

    def dead_letter(self, refused: Sequence[RefusedDelivery]) -> int:
        """See ``ports.Source``."""
        return self.inner.dead_letter(refused)

    def send_marker(self, partition: int, body: bytes = ACTIVATION) -> None:
        """See ``ports.Source``."""
        self.inner.send_marker(partition, body)

    def close(self) -> None:
        """See ``ports.Source``."""
        self.inner.close()


class _Wire:
    """The way of writes to a server: a time to live counts from the call, however late the write arrives, unless the
    write names another moment (``ports.Write``).
    """

    def __init__(self, server: WitnessedServer | WitnessedDatabase, clock: ManualClock) -> None:
        self.server = server
        self.sent_at: float | None = None
        """When the writes that arrive were sent; None: now."""
        self._clock = clock
        self._store = MemoryStore(server)

    @property
    def name(self) -> str:
        """See ``ports.Store``."""
        return self.server.name

    @property
    def max_value_bytes(self) -> int:
        """See ``ports.Store``."""
        return self.server.max_value_bytes

    def fetch(self, keys: Sequence[str], *, values_only: bool = False) -> dict[str, Item]:
        """See ``ports.Store``."""
        return self._store.fetch(keys, values_only=values_only)

    def write(self, writes: Sequence[Write]) -> list[WriteResult]:
        """See ``ports.Store``."""
        sent_at = self._clock.monotonic() if self.sent_at is None else self.sent_at
        return self.server.write([w._replace(as_of=sent_at) if w.as_of is None else w for w in writes])

    def server_time_at(self, moment: float) -> float | None:
        """See ``ports.Store``."""
        return self._store.server_time_at(moment)

    def close(self) -> None:
        """See ``ports.Store``."""


class MortalStore(FaultyStore):
    """A connection whose process may freeze before a write or die during one; its packets may arrive late."""

    def __init__(self, server: WitnessedServer | WitnessedDatabase, clock: ManualClock) -> None:
        self._wire = _Wire(server, clock)
        super().__init__(self._wire, all_well, whole=isinstance(server, WitnessedDatabase))
        self.server = server
        self.dies = False
        self._clock = clock
        self._sent_at: deque[float] = deque()

    def write(self, writes: Sequence[Write]) -> list[WriteResult]:
        """See ``FaultyStore``."""
        before = len(self.late)
        try:
            return super().write(writes)
        except StoreUnavailableError:
            if len(self.late) > before:
                self._sent_at.append(self._clock.monotonic())
            if self.dies:
                raise Crash from None
            raise

    def arrive(self) -> list[WriteResult]:
        """See ``FaultyStore``."""
        if not self.late or not self.server.running:
            return []
        self._wire.sent_at = self._sent_at.popleft()
        try:
            return super().arrive()
        finally:
            self._wire.sent_at = None

    def lose(self) -> None:
        """See ``FaultyStore``."""
        super().lose()
        self._sent_at.clear()


class SimulatedMember:
    """One consumer process of the simulated cell."""

    def __init__(self, cell: SimulatedCell, name: str, partitions: Sequence[int], standby: Sequence[int]) -> None:
        self.name = name
        self.partitions = tuple(partitions)
        self.standby = tuple(standby)
        self.sources: dict[int, MortalSource] = {}
        """Its connections to the broker, by layout."""
        self._cell = cell
        self.stores, stores = cell.connected(lambda server: MortalStore(server, cell.clock))
        config, rng = cell.config, random.Random(cell.rng.getrandbits(32))
        self.runs: Consumer | ConsumersMember
        if cell.follows_control:
            self.runs = ConsumersMember(config, self, stores, cell.broker, cell.clock, rng, name)
        else:
            self.runs = Consumer(config, self.open(config.partitions), stores, cell.broker, cell.clock, rng, name)

    @property
    def consumer(self) -> Consumer:
        """Return that of its first layout."""
        return self.runs if isinstance(self.runs, Consumer) else next(iter(self.runs.consumers.values()))

    @property
    def source(self) -> MortalSource:
        """Return that of its first layout."""
        return next(iter(self.sources.values()))

    @property
    def held(self) -> list[OwnedPartition]:
        """Return the partitions of all layouts that it owns."""
        consumers = [self.runs] if isinstance(self.runs, Consumer) else self.runs.consumers.values()
        return [held for consumer in consumers for held in consumer.owned.values()]

    # -- ports.Layouts

    def open(self, partitions: int) -> MortalSource:
        """See ``ports.Layouts``. In a layout other than the first the member gets every second partition."""
        first, standby = self.partitions, self.standby
        if partitions != self._cell.config.partitions:
            ours = self.partitions[0] % 2 if self.partitions else 1
            first, standby = tuple(range(ours, partitions, 2)), tuple(range(1 - ours, partitions, 2))
        self.sources[partitions] = MortalSource(self._cell.broker.source(first, standby, partitions))
        return self.sources[partitions]

    def found(self) -> list[int]:
        """See ``ports.Layouts``."""
        return self._cell.broker.found()

    def set_aside(self, partitions: int, used: int) -> int:
        """See ``ports.Layouts``."""
        self._cell.broker.check_running()
        if partitions not in self.runs.consumers:
            self.sources.pop(partitions, None)
        return self._cell.broker.set_aside(partitions, used)

    def step(self, plan: Plan = all_well, *, dies: bool = False) -> None:
        """Do one step in which ``plan`` decides on each call of a store; with ``dies`` the process dies at the
        first fault.
        """
        for store in self.stores:
            store.plan, store.dies = plan, dies
        try:
            self.runs.step()
        except Crash:
            self.die()
        for store in self.stores:
            store.plan, store.dies = all_well, False

    def die(self) -> None:
        """Die as by SIGKILL; a new process takes its place."""
        for source in self.sources.values():
            source.inner.crash()
        self._cell.members.remove(self)
        self._cell.wires += [store for store in self.stores if store.late]
        self._cell.start_member(self.partitions, self.standby)


def at_call(number: int, fault: Fault) -> Plan:
    """Return a plan with one fault, at the call with this number, counted from 0."""
    calls = iter(range(1_000_000))
    return lambda _operation, _count: fault if next(calls) == number else None


# -- readers --------------------------------------------------------------------------------------


class JudgedReader:
    """A reader that checks the invariants at each read."""

    def __init__(self, cell: SimulatedCell, design: str) -> None:
        self.design = design
        self._letter = DESIGNS[design].letter
        self._cell = cell
        self.stores, stores = cell.connected(lambda server: FaultyStore(MemoryStore(server), all_well))
        self._reader = Reader(cell.config, design=design, stores=stores, clock=cell.clock)
        self.last: View | None = None
        """The last view that was judged."""
        self._offsets: dict[tuple[str, int], int] = {}
        self._versions: dict[tuple[str, int, str], Version] = {}

    def read(self, max_age: float, on_stale: Literal["exclude", "flag"] = "flag", plan: Plan = all_well) -> View:
        """Read, with a bound for single nodes of ten times ``max_age``, and check the view."""
        for store in self.stores:
            store.plan = plan
        view = self._reader.read(max_age=max_age, node_max_age=10 * max_age, on_stale=on_stale)
        if on_stale == "exclude":
            assert not (view.stale | view.incomplete) & set(view.nodes), "exclude leaves stale nodes out"
        for partition in view.partitions:
            self._judge(partition, view)
        self.last = view
        return view

    def _judge(self, state: PartitionState, view: View) -> None:
        truth, table, number = self._cell.truth, state.table, state.partition
        vouched = f"partition {number}" not in view.incomplete
        if table is None:
            assert not vouched, "a partition without any known content passes for complete"
            return
        place = f"{len(view.partitions)}.{number}"
        here = f"{self.design} partition {place} at {table.epoch:x}:{table.offset}"
        records = {record.name: record for record in table.records()}
        committed = truth.commits[place, self._letter, table.epoch].get(table.offset)
        assert committed is not None, f"{here} was never committed"
        if self.design in ("journal", "journal_b"):
            assert records == committed, f"I2: {here} is not the fold of its prefix"
        for name, record in committed.items():
            assert records[name].version >= record.version or name in table.incomplete, f"I3: {name} of {here} is older"
        for name, record in records.items():
            if record.version != (0, 0):
                said = truth.histories[name][record.version]
                if record.gone and said != GONE:
                    assert has_left(said), f"{name} {record.version} is not gone"  # its report before was lost
                    continue
                assert (GONE if record.gone else record.state()) == said, (
                    f"{name} {record.version} is not what its agent authored"
                )
        self._judge_progress(place, state, records, here)
        if vouched:
            self._judge_claim(len(view.partitions), state, records, here)
        if state.heard_at is not None:
            for name, heard_at in zip(records, state.heard_at.tolist(), strict=False):
                assert heard_at <= truth.last_sign(name), f"I5: {name} of {here} gave no sign of life at {heard_at}"

    def _judge_progress(self, partition: str, state: PartitionState, records: dict[str, NodeRecord], here: str) -> None:
        assert state.table is not None
        place = (partition, state.table.epoch)
        assert state.table.offset >= self._offsets.get(place, 0), f"I1: {here} went back"
        self._offsets[place] = state.table.offset
        for name, record in records.items():
            before = self._versions.get((*place, name), Version(0, 0))
            assert record.version >= before, f"I1: {name} of {here} went back from {before} to {record.version}"
            self._versions[(*place, name)] = record.version

    def _judge_claim(self, partitions: int, state: PartitionState, records: dict[str, NodeRecord], here: str) -> None:
        truth = self._cell.truth
        assert state.table is not None
        for name, version in truth.newest(partitions, state.partition, state.confirmed_at).items():
            record = records.get(name)
            if name in state.table.incomplete or (record is not None and record.version >= version):
                continue
            if truth.histories[name].get(version) == GONE and (record is None or not record.live):
                continue
            has = record.version if record is not None else None
            raise AssertionError(f"I5: {here} claims {state.confirmed_at}, but {name} is at {has}, not at {version}")


# -- the cell -------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Beating:
    publisher: Publisher
    beat_at: float


class SimulatedCell:
    """A whole cell and its ground truth. Partition p lives on server p modulo the number of servers."""

    def __init__(
        self,
        *,
        seed: int = 0,
        partitions: int = 2,
        servers: int = 2,
        max_bytes: int | None = None,
        no_evict: bool = False,
        designs: tuple[str, ...] = ("journal", "snapshot"),
        follows_control: bool = False,
        servers_b: int = 0,
        database: bool = False,
        config: Config | None = None,
        clock: ManualClock | None = None,
        server: type[WitnessedServer] = WitnessedServer,
    ) -> None:
        self.rng = random.Random(seed)
        self.follows_control = follows_control
        self.clock = clock or ManualClock()
        self.config = config or Config(partitions=partitions, designs=designs, read_design=designs[0])
        partitions, designs = self.config.partitions, self.config.designs
        self.truth = GroundTruth(self.clock)
        self.servers = [
            server(self.truth, f"store-{n}", self.clock, max_bytes, no_evict=no_evict) for n in range(servers)
        ]
        self.servers_b = [
            server(self.truth, f"store-b-{n}", self.clock, max_bytes, no_evict=no_evict) for n in range(servers_b)
        ]
        """The servers of the designs journal_b and snapshot_b."""
        in_database = database or any(DESIGNS[name].store_role is StoreRole.SQL for name in designs)
        self.database = WitnessedDatabase(self.truth, self.clock) if in_database else None
        """The database of the sql design; None if the cell does not have this design."""
        self._backup: tuple[float, Backup, dict[Epoch, Head]] | None = None
        self.broker = MemoryBroker(partitions, clock=self.clock)
        self.poison: set[bytes] = set()
        self.agents: dict[str, _Beating] = {}
        self.members: list[SimulatedMember] = []
        self.readers: list[JudgedReader] = []
        self.wires: list[MortalStore] = []
        """Connections of dead processes with packets under way."""
        self._sink = TruthRecordingSink(self.truth, self.broker)
        self._backoff = Backoff(self.clock, self.rng)
        self._incarnations: dict[str, int] = {}
        self._births = 0

    @property
    def both(self) -> list[WitnessedServer]:
        """The memcached servers of both stores."""
        return [*self.servers, *self.servers_b]

    def connected(self, connect: Callable[[Any], S]) -> tuple[list[S], Stores]:
        """Connect to every server; returns the connections as a list and as ``Stores``."""
        at, at_b = [connect(server) for server in self.servers], [connect(server) for server in self.servers_b]
        database = [connect(self.database)] if self.database is not None else []
        return [*at, *at_b, *database], Stores(at, database[0] if database else None, at_b)

    @property
    def places(self) -> Sequence[WitnessedServer | WitnessedDatabase]:
        """The servers of the first design."""
        return [self.database] if self.database is not None and self.config.designs[0] == "sql" else self.servers

    # -- agents

    def start_agent(self, name: str, state: dict[str, Any]) -> None:
        """Begin a new life of a node's agent, which reports the state."""
        incarnation = max(int(self.clock.time()), self._incarnations.get(name, 0) + 1)
        self._incarnations[name] = incarnation
        publisher = Publisher(
            self.config,
            name,
            sink=self._sink,
            clock=self.clock,
            incarnation=incarnation,
            backoff=self._backoff,
            rng=random.Random(self.rng.getrandbits(32)),
        )
        beat_at = self.clock.monotonic() + self.rng.uniform(0.0, self.config.heartbeat_s)
        self.agents[name] = _Beating(publisher, beat_at)
        publisher.report(state)

    def change_some(self, share: float) -> None:
        """Change about this share of the living nodes."""
        for agent in self.agents.values():
            if agent.publisher.live and self.rng.random() < share:
                agent.publisher.change({"usage": {"VCPU": self.rng.randrange(9)}})

    def agents_act(self) -> None:
        """Let agents receive confirms, answer resyncs, send lost states again, and send heartbeats that are due."""
        with suppress(BrokerUnavailableError):
            for resync in self._sink.resyncs(0):
                for agent in self.agents.values():
                    if concerns(resync, agent.publisher.node, agent.publisher.bucket):
                        agent.publisher.resync(resync)
        now = self.clock.monotonic()
        for agent in self.agents.values():
            agent.publisher.tick()
            if agent.publisher.live and agent.beat_at <= now:
                agent.beat_at = now + self.config.heartbeat_s
                agent.publisher.heartbeat()
        self.confirm()

    def confirm(self) -> None:
        """Deliver the broker's confirms, if it gives any."""
        with suppress(BrokerUnavailableError, UnconfirmedError):
            self._sink.flush(0)

    def pass_time(self, seconds: float) -> None:
        """Let time pass; only agents act meanwhile."""
        until = self.clock.monotonic() + seconds
        while (left := until - self.clock.monotonic()) > 0:
            self.clock.advance(min(left, SLICE_S))
            self.agents_act()

    def run_well(self, seconds: float) -> None:
        """Let time pass while agents, consumers and readers act."""
        until = self.clock.monotonic() + seconds
        while self.clock.monotonic() < until:
            self.pass_time(SLICE_S)
            for member in list(self.members):
                member.step()
            for reader in self.readers:
                reader.read(5.0)

    def poisoned(self, partition: int, body: bytes, node: str = "") -> None:
        """Put a malformed message into a queue, or one of the user of another ``node``."""
        self.poison.add(body)
        sink = self.broker.sink(node=node)
        sink.publish(partition, body, lambda _ok: None)
        self.broker.sinks.remove(sink)  # it is gone before the broker could report a loss to it

    def lose_message(self, partition: int, index: int) -> None:
        """Lose a waiting event before its publisher gets a confirm for it.

        An event by which a node leaves is never lost: its agent is gone, so no process could notice.
        """
        waiting = [n for n, body in enumerate(self.broker.queued(partition)) if self._may_vanish(body)]
        if waiting:
            body = self.broker.drop(partition, waiting[index % len(waiting)])
            for publication in self.truth.publications:
                if publication.body == body:
                    publication.lost = True

    def _may_vanish(self, body: bytes) -> bool:
        return not is_marker(body) and body not in self.poison and not isinstance(parse_event(body), Leave)

    # -- consumers and readers

    def start_member(self, partitions: Sequence[int], standby: Sequence[int]) -> SimulatedMember:
        """Start another consumer process, which queues up behind the present ones."""
        self._births += 1
        member = SimulatedMember(self, f"member-{self._births}", partitions, standby)
        self.members.append(member)
        return member

    def overtaken(self, member: SimulatedMember, call: int, meanwhile: Callable[[], None]) -> None:
        """Freeze a member during a step, at a call of a store, until the broker has given its queues to other members.

        ``meanwhile`` is called while it is frozen.
        """
        calls = iter(range(1_000_000))

        def plan(_operation: str, _count: int) -> Fault | None:
            if next(calls) == call:
                for source in member.sources.values():
                    source.inner.disconnect()
                meanwhile()
            return None

        member.step(plan)

    def connections(self) -> list[MortalStore]:
        """Return all connections with packets under way."""
        return [s for s in (*self.wires, *(s for m in self.members for s in m.stores)) if s.late]

    def restart_server(self, number: int) -> None:
        """Restart a memcached: it loses all items, and the packets that are under way to it are lost."""
        for store in self.connections():
            if store.server is self.both[number]:
                store.lose()
        self.both[number].restart()

    def back_up_database(self) -> None:
        """Take a backup of the database."""
        assert self.database is not None
        self._backup = self.clock.monotonic(), self.database.backup(), dict(self.truth.heads)

    def restore_database(self) -> None:
        """Restore the backup when it has the least age of real backups; packets that are under way to the
        database are lost.
        """
        if self._backup is None:
            return
        assert self.database is not None
        taken_at, backup, heads = self._backup
        self.pass_time(max(0.0, taken_at + MAX_SILENT_S + 2 - self.clock.monotonic()))
        for store in self.connections():
            if store.server is self.database:
                store.lose()
        self.database.restore(backup)
        self.truth.set_back(heads)

    # -- at rest

    def be_well(self) -> None:
        """End all faults."""
        for server in (*self.servers, *self.servers_b):
            server.start()
            server.lift_limit()
        if self.database is not None:
            self.database.start()
        self.broker.confirming = True
        self.broker.start()
        for store in self.connections():
            while store.late:
                store.arrive()

    def converge(self) -> float:
        """End all faults and run until the views equal the agents' states; returns how many seconds that took."""
        self.be_well()
        began_at = self.clock.monotonic()
        difference = "not compared yet"
        while self.clock.monotonic() - began_at < CONVERGE_S:
            self.pass_time(0.5)
            for member in list(self.members):
                member.step()
            difference = self._disagreement()
            if not difference:
                return self.clock.monotonic() - began_at
        raise AssertionError(f"I4, I6: no agreement after {CONVERGE_S} s: {difference}")

    def _disagreement(self) -> str:
        views = {}
        for reader in self.readers:
            view = reader.read(5.0)
            left = {name for name in view.nodes if has_left(view.nodes[name].state)}
            if view.incomplete or view.stale - left:
                return f"{reader.design}: incomplete {sorted(view.incomplete)}, stale {sorted(view.stale)}"
            expected = {
                name: (agent.publisher.version, agent.publisher.state())
                for name, agent in self.agents.items()
                if agent.publisher.state()
            }
            found = {
                name: (record.version, record.state()) for name in view.nodes if (record := view.nodes.record(name))
            }
            if found != expected:
                return f"{reader.design}: {found} where agents have {expected}"
            views[reader.design] = {record.name: record for record in view.nodes.records()}
        for design, other in pairwise(views):
            if views[design] != views[other]:
                return f"{design} {views[design]} differs from {other} {views[other]}"
        for layout, queues in self.broker.layouts.items():
            for number in range(len(queues)):
                waiting = [body for body in self.broker.queued(number, layout) if not is_marker(body)]
                if waiting:
                    return f"in queue {number} of {layout}: {waiting}"
        dead = {letter.body for letter in self.broker.dead_letters}
        poison = {body[:MAX_DEAD_LETTER_BYTES] for body in self.poison}
        assert dead <= poison, "I6: an agent's event was dead-lettered"
        return "" if dead == poison else f"malformed messages that were not dead-lettered: {poison - dead}"

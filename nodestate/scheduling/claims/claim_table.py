"""The ledger: what one scheduler knows of the claim records, and how it writes them.

A record as the ledger knows it lies over the fleet, with what is about to be written, so that selection sees what is
claimed; taking a node is then one compare-and-swap against just that record, one round trip for all nodes of a batch::

    unknown --learn--> known --take, drop--> edited --flush: STORED--> known, as edited
    edited --flush: CONFLICT, somebody else was faster--> read again: known, the edits are gone; select again
    edited --flush: MISSING, or a read finds nothing--> lost: begun anew, unsure for a while (claims.py)
    edited --flush: no answer--> unknown: the edits were made or not; what is found of them at the next read is dropped

Claims of its own that went with a record are put back as soon as the loss is seen; those that are missing from a record that
was not lost were dropped by somebody else, and are its own no more.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from nodestate.errors import CorruptItemError, NodestateError
from nodestate.model import NEVER, Receipt, Version, partitioning
from nodestate.ports import ClaimStore, Item, Key, Put, Write, WriteStatus
from nodestate.scheduling.claims.record import (
    CLAIMS,
    CLOCK_S,
    MAX_CLAIMS_COUNT,
    UNSURE_S,
    Claim,
    ClaimRecord,
    changed,
    group_limit,
    outstanding,
    settled,
    unsure,
)
from nodestate.scheduling.fleet import Fleet
from nodestate.scheduling.order_ids import order_id_of
from nodestate.scheduling.selection.node_preference import NodePreference
from nodestate.store import keys
from nodestate.store.round_trips import Step, Steps, run

FETCH_COUNT: Final = 2_000
"""Records of one round trip, when all are read."""
MAX_FLUSHES_COUNT: Final = 8
"""Times in a row that others may be faster where nothing is at stake but room that is given back."""


class Known(NamedTuple):
    """A record as it was read or written last."""

    record: ClaimRecord
    cas: int


@dataclass(slots=True)
class ClaimTableStats:
    """Counters since the start. ``begun``: records that were not there; ``lost``: those that were known, and that it or
    somebody else began anew; ``put_back``: own claims that went with one, and were written again.
    """

    written: int = 0
    conflicts: int = 0
    begun: int = 0
    lost: int = 0
    put_back: int = 0
    unanswered: int = 0


@dataclass(slots=True)
class _Edit:
    """What is about to change in a node's record."""

    add: dict[str, Claim] = field(default_factory=dict)
    drop: set[str] = field(default_factory=set)
    seen: Version = NEVER
    avoid_unsure: bool = False


class ClaimTable:
    """Belongs to one scheduler, with its fleet. Nodes live on the servers by a static map, as partitions do.

    Servers that do not answer are passed over; what lives there stays unknown, and can't be claimed.
    """

    def __init__(self, cell: str, servers: Sequence[ClaimStore], fleet: Fleet, node_preference: NodePreference) -> None:
        assert servers, "claims need a server"
        self.stats = ClaimTableStats()
        self.known: dict[str, Known] = {}
        self._cell = cell
        self._servers = servers
        self._fleet = fleet
        self._node_preference = node_preference
        self._edits: dict[str, _Edit] = {}
        self._own: dict[str, dict[str, tuple[Claim, float]]] = {}  # by node and id, with when its record was born
        self._allocated: dict[str, Version] = {}
        self._unknown_outcome: dict[str, set[str]] = {}
        self._due: dict[int, list[tuple[float, str]]] = {id(server): [] for server in servers}
        self._next_due: dict[str, float] = {}
        self._recently_created: dict[str, float] = {}
        self._born: dict[str, float] = {}
        self._shown: dict[str, set[str]] = {}
        self._as_of = 0

    def server(self, node: str) -> ClaimStore:
        """Where a node's record lives."""
        return self._servers[partitioning.partition_of(node, len(self._servers))]

    def now(self, node: str) -> float:
        """The time that deadlines on a node are of. Raises ``StoreUnavailableError``."""
        return self.server(node).server_time()

    def require_servers(self) -> None:
        """Raises ``StoreUnavailableError`` where a server does not answer: what is claimed there is not known."""
        for server in self._servers:
            server.server_time()

    def unsure_nodes(self) -> list[str]:
        """The nodes whose record was begun so lately that claims may be missing from it."""
        if self._recently_created:
            now = {id(server): _time_of(server) for server in self._servers}
            self._recently_created = {
                node: born
                for node, born in self._recently_created.items()
                if born + UNSURE_S > now[id(self.server(node))]
            }
        return list(self._recently_created)

    # -- over the fleet

    def on_fleet_advanced(self) -> None:
        """After the fleet advanced: what was claimed there may be allocated now."""
        rows = self._fleet.changed_since(self._as_of)
        names = self._fleet.names
        self._apply_overlay(list(self.known) if rows is None else [names[row] for row in set(rows)])
        self._as_of = self._fleet.changes

    def expire(self) -> None:
        """Take claims whose time is over off the fleet."""
        for server in self._servers:
            due = self._due[id(server)]
            if not due:
                continue
            now = _time_of(server)
            while due and due[0][0] + CLOCK_S <= now:
                until, node = heapq.heappop(due)
                if self._next_due.get(node) != until:
                    continue  # it was put off, or has another by now
                del self._next_due[node]
                before = self._own.pop(node, {})
                own = {i: one for i, one in before.items() if one[0].until + CLOCK_S > now}
                for claim_id in before.keys() - own.keys():
                    self._allocated.pop(claim_id, None)
                if own:
                    self._own[node] = own
                self._note_due(node, now)
                self._apply_overlay([node])

    def _note_due(self, node: str, now: float) -> None:
        """When the next claim on a node is over."""
        known = self.known.get(node)
        claims = [
            *(known.record.claims if known is not None else ()),
            *(one for one, _ in self._own.get(node, {}).values()),
        ]
        until = min((claim.until for claim in claims if claim.until + CLOCK_S > now), default=None)
        if until is not None and self._next_due.get(node) != until:
            self._next_due[node] = until
            heapq.heappush(self._due[id(self.server(node))], (until, node))

    def _apply_overlay(self, nodes: Iterable[str]) -> None:
        for node in nodes:
            row = self._fleet.rows.get(node)
            known, edit = self.known.get(node), self._edits.get(node)
            if row is None or (known is None and edit is None):
                continue
            record = known.record if known is not None else ClaimRecord(0.0)
            if edit is not None:
                record = changed(record, add=edit.add.values(), drop=edit.drop, seen=edit.seen)
            blocked = record.seen > self._fleet.version[row]
            if not record.claims and not blocked:
                self._fleet.overlay(row, None)
                continue
            found = outstanding(record.claims, _time_of(self.server(node)), self._shown_of(node, row, record))
            found.blocked = blocked
            self._fleet.overlay(row, found if found.amounts or blocked else None)

    def receipts_to_await(self) -> list[Receipt]:
        """What the fleet lacks yet of nodes that nothing can be claimed on for that."""
        rows, version = self._fleet.rows, self._fleet.version
        return [
            Receipt(node, known.record.seen)
            for node, known in self.known.items()
            if node in rows and known.record.seen > version[rows[node]]
        ]

    def _shown_of(self, node: str, row: int, record: ClaimRecord) -> set[str]:
        """The claims of a record whose instances the node shows, or showed in an earlier view: usage has, or had, them."""
        tenants = self._fleet.instances.reported[row]
        before = self._shown.get(node, set())
        shown = before & {claim.id for claim in record.claims}
        fresh = [
            claim for claim in record.claims if claim.instance in tenants and claim.id not in shown and not claim.resize
        ]
        if fresh:
            hints = self._fleet.reports.hints_by_instance(row)
            shown |= {claim.id for claim in fresh if _became(claim, hints)}
        if shown:
            self._shown[node] = shown
        elif before:
            del self._shown[node]
        return shown

    def is_allocated(self, node: str, claim: Claim) -> bool:
        """Whether the node reports what a claim became, and not what the same instance had on it before."""
        row = self._fleet.rows.get(node)
        return (
            row is not None
            and claim.instance in self._fleet.instances.reported[row]
            and _became(claim, self._fleet.reports.hints_by_instance(row))
        )

    # -- edits

    def add_claim(self, node: str, claim: Claim, *, avoid_unsure: bool = False) -> None:
        """Add a claim, in place of one with the same id, with the next ``flush``; the fleet shows it at once. ``avoid_unsure``: only
        if no claims may be missing from the node's record.
        """
        edit = self._edits.setdefault(node, _Edit())
        edit.add[claim.id] = claim
        edit.avoid_unsure |= avoid_unsure
        self._unknown_outcome.get(node, set()).discard(claim.id)
        self._apply_overlay([node])

    def drop_claim(self, node: str, claim_id: str, seen: Version = NEVER) -> None:
        """Give a claim back with the next ``flush``. ``seen``: the version of the node that shows what it became."""
        edit = self._edits.setdefault(node, _Edit())
        edit.add.pop(claim_id, None)
        edit.drop.add(claim_id)
        edit.seen = max(edit.seen, seen)
        self._own.get(node, {}).pop(claim_id, None)
        self._allocated.pop(claim_id, None)
        self._apply_overlay([node])

    def mark_allocated(self, node: str, claim_id: str, version: Version) -> None:
        """A claim of our own is an allocation, which the node's state of this version shows."""
        if claim_id in self._own.get(node, {}):
            self._allocated[claim_id] = version

    def allocated_version(self, claim_id: str) -> Version | None:
        """The state that shows what the claim became, as far as it is known."""
        return self._allocated.get(claim_id)

    def own_claims(self) -> Iterator[tuple[str, Claim]]:
        """The claims that this scheduler wrote, and did not give back: with their nodes."""
        return ((node, claim) for node, claims in self._own.items() for claim, _ in claims.values())

    def nodes_claimed_by_others(self, name: str) -> list[str]:
        """The nodes that others than ``name`` have claims on, as far as it is known: these may have gone meanwhile, unseen."""
        return [
            node
            for node, known in self.known.items()
            if known.record.claims and any(claim.holder != name for claim in known.record.claims)
        ]

    # -- the servers

    def read_records(self, nodes: Iterable[str]) -> bool:
        """Read the records of these nodes; those that are missing are begun. False where a server did not answer."""
        waiting = list(nodes)
        answered = True
        while waiting:
            some, waiting = waiting[:FETCH_COUNT], waiting[FETCH_COUNT:]
            results = run({id(server): (server, self._fetch(mine)) for server, mine in self._by_server(some)})
            answered &= not any(isinstance(result, NodestateError) for result in results.values())
        return answered

    def flush(self) -> dict[str, WriteStatus | NodestateError]:
        """Write all edits, by compare-and-swap against what is known: one round trip where that still holds, and one more
        to read again what changed.

        By node: ``STORED``; ``CONFLICT``: the edits are gone, and the fleet shows why; ``FULL``: they are gone, as the record, or
        its server, takes no more; or the error of the server.
        """
        edits, self._edits = self._edits, {}
        work = {id(server): (server, mine) for server, mine in self._by_server(edits)}
        results = run({key: (server, self._write({n: edits[n] for n in mine})) for key, (server, mine) in work.items()})
        outcomes: dict[str, WriteStatus | NodestateError] = {}
        for key, (_, mine) in work.items():
            result = results[key]
            if not isinstance(result, NodestateError):
                outcomes |= result
                for node in mine:
                    if result[node] is not WriteStatus.STORED:
                        self._drop_again(node, edits[node])
                continue
            self.stats.unanswered += len(mine)
            for node in mine:
                outcomes[node] = result
                self._forget(node)
                # What was new may be there or not, and nobody counts on it; what is given back is still to be given back.
                self._unknown_outcome.setdefault(node, set()).update(
                    edits[node].add.keys() - self._own.get(node, {}).keys()
                )
                for claim_id in edits[node].drop:
                    self.drop_claim(node, claim_id, edits[node].seen)
        return outcomes

    def flush_all(self) -> None:
        """Flush until nothing is left to be written, or nobody listens."""
        for _ in range(MAX_FLUSHES_COUNT):
            if not self._edits:
                return
            self.flush()

    @property
    def edited(self) -> bool:
        """Whether there is something to be flushed."""
        return bool(self._edits)

    def reassert_own_claims(self) -> None:
        """Read the records that hold claims of our own: what went with a record is put back."""
        self.read_records([node for node, claims in self._own.items() if claims])

    def _fetch(self, nodes: Sequence[str]) -> Steps[None]:
        reply = yield Step(fetch=[keys.claim(self._cell, node) for node in nodes])
        missing = [node for node in nodes if not self._take_in(node, reply.items.get(keys.claim(self._cell, node)))]
        if not missing:
            return
        record = ClaimRecord(self.now(missing[0]))
        begun = yield Step([self._begin(node, record, reply.items) for node in missing])
        again = []
        for node, written in zip(missing, begun.written, strict=True):
            if written.status is WriteStatus.STORED:
                self.stats.begun += 1
                self._know(node, record, written.cas)
            else:
                again.append(node)
        if again:
            reply = yield Step(fetch=[keys.claim(self._cell, node) for node in again])
            for node in again:
                self._take_in(node, reply.items.get(keys.claim(self._cell, node)))

    def _begin(self, node: str, record: ClaimRecord, items: Mapping[Key, Item]) -> Write:
        """A record where there is none, or one that can't be read: the same as lost."""
        key = keys.claim(self._cell, node)
        if key in items:
            return Write(Put.CAS, key, CLAIMS.pack(record), items[key].cas)
        return Write(Put.ADD, key, CLAIMS.pack(record))

    def _take_in(self, node: str, item: Item | None) -> bool:
        """Know what was read; False where there is nothing that could be."""
        try:
            record = CLAIMS.unpack(item.value) if item is not None else None
        except CorruptItemError:
            record = None
        if item is None or record is None:
            self._forget(node)
            return False
        self._know(node, record, item.cas)
        return True

    def _know(self, node: str, record: ClaimRecord, cas: int) -> None:
        self.known[node] = Known(record, cas)
        now = _time_of(self.server(node))
        if unsure(record, now):
            self._recently_created[node] = record.born
        here = {claim.id: claim for claim in record.claims}
        self._note_due(node, now)
        for claim in record.claims:
            self._node_preference.observe_scheduler(claim.holder)
        for claim_id in self._unknown_outcome.pop(node, set()) & here.keys():
            self.drop_claim(node, claim_id)
        self.stats.lost += self._born.get(node, record.born) != record.born
        self._born[node] = record.born
        for claim, born in list(self._own.get(node, {}).values()):
            there = here.get(claim.id)
            if there is not None:  # as it is now: somebody else may have extended it, or put it back
                self._own[node][claim.id] = there, record.born
            elif born != record.born:
                self.add_claim(node, claim)
            else:  # somebody else dropped it: it was released, or shown by the node
                del self._own[node][claim.id]
        self._apply_overlay([node])

    def _write(self, edits: Mapping[str, _Edit]) -> Steps[dict[str, WriteStatus | NodestateError]]:
        unknown = [node for node in edits if node not in self.known]
        if unknown:
            yield from self._fetch(unknown)
        outcomes: dict[str, WriteStatus | NodestateError] = {}
        now = self.now(next(iter(edits)))
        fresh: dict[str, ClaimRecord] = {}
        for node, edit in edits.items():
            record = self._edited(node, edit, now)
            if isinstance(record, WriteStatus):
                outcomes[node] = record
            else:
                fresh[node] = record
        values = {node: CLAIMS.pack(record) for node, record in fresh.items()}
        room_bytes = self.server(next(iter(edits))).max_value_bytes
        for node in [node for node, value in values.items() if len(value) > room_bytes]:
            outcomes[node] = WriteStatus.FULL
            del fresh[node]
        self._apply_overlay(outcomes)
        if not fresh:
            return outcomes
        reply = yield Step(
            [Write(Put.CAS, keys.claim(self._cell, node), values[node], self.known[node].cas) for node in fresh]
        )
        again: list[str] = []
        for (node, record), written in zip(fresh.items(), reply.written, strict=True):
            if written.status is WriteStatus.STORED and written.cas:
                self._stored(node, edits[node], record, written.cas)
                outcomes[node] = WriteStatus.STORED
                continue
            if written.status is WriteStatus.FULL:
                outcomes[node] = WriteStatus.FULL
                self._apply_overlay([node])
                continue
            if written.status is WriteStatus.STORED:  # written over before its id was told
                self._stored(node, edits[node], record, 0)
                outcomes[node] = WriteStatus.STORED
            else:
                self.stats.conflicts += 1
                outcomes[node] = WriteStatus.CONFLICT
            again.append(node)
        if again:
            yield from self._fetch(again)
        return outcomes

    def _edited(self, node: str, edit: _Edit, now: float) -> ClaimRecord | WriteStatus:
        """The record with the edits, or why they can't be made: what is known now leaves no room for them (``CONFLICT``), or the
        record takes no more (``FULL``).
        """
        known, row = self.known.get(node), self._fleet.rows.get(node)
        if known is None or (edit.add and row is None) or (edit.avoid_unsure and unsure(known.record, now)):
            return WriteStatus.CONFLICT
        record, shown = known.record, None
        if row is not None:
            shown = self._shown_of(node, row, record)
            record = settled(record, now, shown, self._fleet.version[row])
        record = changed(record, add=edit.add.values(), drop=edit.drop, seen=edit.seen)
        if edit.add and len(record.claims) > MAX_CLAIMS_COUNT:
            return WriteStatus.FULL
        if edit.add and row is not None and shown is not None:
            self._fleet.overlay(row, outstanding(record.claims, now, shown))
            if record.seen > self._fleet.version[row] or not self._has_room(row, edit.add.values()):
                return WriteStatus.CONFLICT
        return record

    def _has_room(self, row: int, claims: Iterable[Claim]) -> bool:
        """Whether the fleet, with these claims over it, keeps every bound of the node."""
        fleet = self._fleet
        for claim in claims:
            if any(name not in fleet.free or fleet.free[name][row] < 0 for name in claim.resources):
                return False
            limit = group_limit(claim)
            if limit is not None and fleet.groups.get(claim.group or "", {}).get(row, 0) > limit:
                return False
        return True

    def _stored(self, node: str, edit: _Edit, record: ClaimRecord, cas: int) -> None:
        self.stats.written += 1
        self.known[node] = Known(record, cas)
        if edit.add:
            own = self._own.setdefault(node, {})
            self.stats.put_back += sum(own[i][1] != record.born for i in edit.add.keys() & own.keys())
            own.update({i: (claim, record.born) for i, claim in edit.add.items()})
        self._note_due(node, _time_of(self.server(node)))
        self._apply_overlay([node])

    def _drop_again(self, node: str, edit: _Edit) -> None:
        """What was to be given back still is; only what was to be taken is decided anew."""
        known = self.known.get(node)
        for claim in known.record.claims if known is not None else ():
            if claim.id in edit.drop:
                self.drop_claim(node, claim.id, edit.seen)

    def _forget(self, node: str) -> None:
        if self.known.pop(node, None) is not None and node in self._fleet.rows:
            self._fleet.overlay(self._fleet.rows[node], None)

    def _by_server(self, nodes: Iterable[str]) -> list[tuple[ClaimStore, list[str]]]:
        found: dict[int, tuple[ClaimStore, list[str]]] = {}
        for node in nodes:
            server = self.server(node)
            found.setdefault(id(server), (server, []))[1].append(node)
        return list(found.values())


def _became(claim: Claim, hints: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the allocation of a claim's instance is what it became; no order is said of what others allocate."""
    order = order_id_of(hints.get(claim.instance, {}))
    return not order or order >= claim.id


def _time_of(server: ClaimStore) -> float:
    """Its time, or the beginning of all times where it does not answer: then nothing is over yet."""
    try:
        return server.server_time()
    except NodestateError:
        return 0.0

"""The claim table: all claim records as one scheduler knows them, its own claims, and how it changes the records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from nodestate.errors import CorruptItemError, NodestateError
from nodestate.model import NEVER, Receipt, Version
from nodestate.ports import ClaimStore, Item, Key, Put, Write, WriteStatus
from nodestate.scheduling.claims.claim_servers import ClaimServers, time_or_zero
from nodestate.scheduling.claims.deadline_queue import DeadlineQueue
from nodestate.scheduling.claims.edits import Edit, PendingEdits, UnknownOutcomes
from nodestate.scheduling.claims.own_claims import OwnClaims
from nodestate.scheduling.claims.record import (
    CLAIMS,
    CLOCK_S,
    MAX_CLAIMS_COUNT,
    Claim,
    ClaimRecord,
    is_unsure,
    max_group_members,
    outstanding_claims,
    without_ended_claims,
)
from nodestate.scheduling.claims.record_cache import RecordCache
from nodestate.scheduling.claims.record_overlay import RecordOverlay
from nodestate.scheduling.fleet import Fleet
from nodestate.scheduling.selection import NodePreference
from nodestate.store import keys
from nodestate.store.round_trips import Step, Steps, run

FETCH_COUNT: Final = 2_000
"""Most records that one round trip reads."""
MAX_FLUSHES_COUNT: Final = 8
"""Most writes in a row for claims that are only removed, while other schedulers keep writing first."""


@dataclass(slots=True)
class ClaimTableStats:
    """Counters since the start."""

    written: int = 0
    """Records that were written."""
    conflicts: int = 0
    """Writes that failed because another scheduler had written first."""
    created: int = 0
    """Records that were missing or corrupt, and that this scheduler created."""
    lost: int = 0
    """Records that were known, got lost and were created again, by this scheduler or another."""
    restored: int = 0
    """Own claims that were lost with their record and written again."""
    unanswered: int = 0
    """Writes that a server did not answer."""


class ClaimTable:
    """All claim records as one scheduler knows them. Belongs to that scheduler, with its fleet.

    The claims of the known records are taken off the fleet, and so are claims that are about to be written, so that a
    selection sees the room that is left. To take a node is then one compare-and-swap against the record as it is known:
    one round trip to each server for all nodes of a batch. The states of a node's record::

        unknown --read_records--> known --add_claim, drop_claim--> edited --flush, STORED--> known, as edited
        edited --flush, CONFLICT: another scheduler wrote first--> read again: known, without the edits; select again
        edited --flush, MISSING, or a read finds no record--> lost: created again, and unsure for a while (``record``)
        edited --flush, no answer--> unknown: the claims may have been written; the next read drops those that it finds

    Claims of this scheduler that were lost with a record are written again as soon as the loss is seen. Claims that are
    missing from a record that was not lost were removed by another scheduler, and are no longer this scheduler's.

    If a server does not answer, its records stay unknown and their nodes cannot be claimed; all other nodes can.
    """

    def __init__(self, cell: str, servers: Sequence[ClaimStore], fleet: Fleet, node_preference: NodePreference) -> None:
        self.stats = ClaimTableStats()
        """Counters since the start."""
        self.servers = ClaimServers(servers)
        """The servers that the records live on."""
        self.records = RecordCache()
        """The records as they were read or written last."""
        self.own = OwnClaims()
        """The claims that this scheduler holds."""
        self._cell = cell
        """The name of the cell, which is part of each record's key."""
        self._fleet = fleet
        """The scheduler's fleet."""
        self._node_preference = node_preference
        """Is told of every scheduler whose claims are read."""
        self._edits = PendingEdits()
        """The changes that the next flush writes."""
        self._unknown_outcomes = UnknownOutcomes()
        """New claims whose write was not answered."""
        self._deadlines = DeadlineQueue(self.servers)
        """The next deadline of each node's claims."""
        self._overlay = RecordOverlay(fleet, self.servers, self.records, self._edits)
        """Takes the records' claims off the fleet."""

    # -- what is known

    def unsure_nodes(self) -> list[str]:
        """The nodes whose record was created so recently that claims may be missing from it."""
        return self.records.unsure_nodes(self.servers)

    def is_allocated(self, node: str, claim: Claim) -> bool:
        """Whether the node reports the allocation that a claim became, and not an earlier one of the same instance."""
        return self._overlay.is_allocated(node, claim)

    def receipts_to_await(self) -> list[Receipt]:
        """Receipts to wait for, of the nodes whose state in the fleet is older than their record's ``seen``."""
        return self._overlay.receipts_to_await()

    @property
    def edited(self) -> bool:
        """Whether there are changes that the next flush would write."""
        return bool(self._edits)

    # -- time passes

    def on_fleet_advanced(self) -> None:
        """Take claims that the new view shows as allocations off the fleet no longer."""
        self._overlay.apply_changes()

    def expire(self) -> None:
        """Take claims whose deadline has passed off the fleet no longer."""
        for server in self.servers:
            if not self._deadlines.has_any(server):
                continue
            now = time_or_zero(server)
            for node in self._deadlines.pop_passed(server, now):
                self.own.expire(node, now)
                self._schedule_deadline(node, now)
                self._overlay.apply([node])

    # -- edits

    def add_claim(self, node: str, claim: Claim, *, avoid_unsure: bool = False) -> None:
        """Add a claim, in place of one with the same id, with the next flush. The fleet shows the claim at once.

        Args:
            node: The node to claim on.
            claim: The claim.
            avoid_unsure: Add the claim only if the node's record is not unsure when it is written.
        """
        self._edits.add_claim(node, claim, avoid_unsure=avoid_unsure)
        self._unknown_outcomes.discard(node, claim.id)
        self._overlay.apply([node])

    def drop_claim(self, node: str, claim_id: str, seen: Version = NEVER) -> None:
        """Remove a claim with the next flush. The fleet shows its room as free at once.

        Args:
            node: The node that was claimed.
            claim_id: The claim's id.
            seen: The version of the node's state that shows the claim's allocation, or that made the agent refuse;
                ``NEVER`` if there is none. Schedulers with an older state must refresh before they claim there.
        """
        self._edits.drop_claim(node, claim_id, seen)
        self.own.drop(node, claim_id)
        self._overlay.apply([node])

    # -- reading

    def read_records(self, nodes: Iterable[str]) -> bool:
        """Read the records of these nodes, and create missing ones. Returns False if a server did not answer."""
        waiting = list(nodes)
        answered = True
        while waiting:
            some, waiting = waiting[:FETCH_COUNT], waiting[FETCH_COUNT:]
            results = run({id(server): (server, self._fetch(mine)) for server, mine in self.servers.grouped(some)})
            answered &= not any(isinstance(result, NodestateError) for result in results.values())
        return answered

    def reassert_own_claims(self) -> None:
        """Read the records that hold claims of this scheduler; the next flush writes lost claims again."""
        self.read_records(self.own.nodes())

    def _fetch(self, nodes: Sequence[str]) -> Steps[None]:
        reply = yield Step(fetch=[self._key(node) for node in nodes])
        missing = [node for node in nodes if not self._cache_item(node, reply.items.get(self._key(node)))]
        if not missing:
            return
        record = ClaimRecord(self.servers.time(missing[0]))
        created = yield Step([self._creation(node, record, reply.items) for node in missing])
        again = []
        for node, written in zip(missing, created.written, strict=True):
            if written.status is WriteStatus.STORED:
                self.stats.created += 1
                self._cache_record(node, record, written.cas)
            else:
                again.append(node)
        if again:
            reply = yield Step(fetch=[self._key(node) for node in again])
            for node in again:
                self._cache_item(node, reply.items.get(self._key(node)))

    def _creation(self, node: str, record: ClaimRecord, items: Mapping[Key, Item]) -> Write:
        """The write that creates a node's record; a corrupt item is replaced, as its claims are lost as well."""
        key = self._key(node)
        if key in items:
            return Write(Put.CAS, key, CLAIMS.pack(record), items[key].cas)
        return Write(Put.ADD, key, CLAIMS.pack(record))

    def _cache_item(self, node: str, item: Item | None) -> bool:
        """Cache the record of an item that was read. Returns False if there was none or it was corrupt."""
        try:
            record = CLAIMS.unpack(item.value) if item is not None else None
        except CorruptItemError:
            record = None
        if item is None or record is None:
            self._forget(node)
            return False
        self._cache_record(node, record, item.cas)
        return True

    def _cache_record(self, node: str, record: ClaimRecord, cas: int) -> None:
        now = time_or_zero(self.servers.of(node))
        self.stats.lost += self.records.put(node, record, cas, now)
        self._schedule_deadline(node, now)
        for claim in record.claims:
            self._node_preference.observe_scheduler(claim.holder)
        for claim_id in self._unknown_outcomes.resolve(node, {claim.id for claim in record.claims}):
            self.drop_claim(node, claim_id)
        for claim in self.own.compare(node, record):
            self.add_claim(node, claim)
        self._overlay.apply([node])

    def _forget(self, node: str) -> None:
        if self.records.forget(node):
            self._overlay.clear(node)

    # -- writing

    def flush(self) -> dict[str, WriteStatus | NodestateError]:
        """Write all edits, by compare-and-swap against the records as they are known. Costs one round trip to each
        server, and one more to read again the records that other schedulers changed.

        Returns:
            For each edited node its outcome. ``STORED``: the edits are written. ``CONFLICT``: they are discarded, and
            the fleet shows the room that the other schedulers left. ``FULL``: they are discarded, as the record or its
            server takes no more. An error: the server did not answer, so new claims may be written or not. Removals
            that were not written stay edits for the next flush.
        """
        edits = self._edits.take_all()
        work = {id(server): (server, mine) for server, mine in self.servers.grouped(edits)}
        results = run({key: (server, self._write({n: edits[n] for n in mine})) for key, (server, mine) in work.items()})
        outcomes: dict[str, WriteStatus | NodestateError] = {}
        for key, (_, mine) in work.items():
            result = results[key]
            if isinstance(result, NodestateError):
                self.stats.unanswered += len(mine)
                for node in mine:
                    outcomes[node] = result
                    self._on_unanswered(node, edits[node])
            else:
                outcomes |= result
                for node in mine:
                    if result[node] is not WriteStatus.STORED:
                        self._drop_again(node, edits[node])
        return outcomes

    def flush_all(self) -> None:
        """Flush until no edits are left, at most ``MAX_FLUSHES_COUNT`` times: other schedulers may be faster."""
        for _ in range(MAX_FLUSHES_COUNT):
            if not self._edits:
                return
            self.flush()

    def _on_unanswered(self, node: str, edit: Edit) -> None:
        """Handle an edit whose outcome is unknown. New claims are given up, and dropped if they turn up in the record;
        a claim that was held before stays held; removals are edits again.
        """
        self._forget(node)
        self._unknown_outcomes.add(node, edit.add.keys() - self.own.on(node).keys())
        for claim_id in edit.drop:
            self.drop_claim(node, claim_id, edit.seen)

    def _drop_again(self, node: str, edit: Edit) -> None:
        """Make the removals of an edit that was not stored edits again; its new claims are up to the caller."""
        known = self.records.known.get(node)
        for claim in known.record.claims if known is not None else ():
            if claim.id in edit.drop:
                self.drop_claim(node, claim.id, edit.seen)

    def _write(self, edits: Mapping[str, Edit]) -> Steps[dict[str, WriteStatus | NodestateError]]:
        """Write the edits of one server's nodes."""
        unknown = [node for node in edits if node not in self.records.known]
        if unknown:
            yield from self._fetch(unknown)
        server = self.servers.of(next(iter(edits)))
        now = server.server_time()
        outcomes: dict[str, WriteStatus | NodestateError] = {}
        edited: dict[str, ClaimRecord] = {}
        for node, edit in edits.items():
            record = self._edited(node, edit, now)
            if isinstance(record, WriteStatus):
                outcomes[node] = record
            else:
                edited[node] = record
        values = {node: CLAIMS.pack(record) for node, record in edited.items()}
        for node in [node for node, value in values.items() if len(value) > server.max_value_bytes]:
            outcomes[node] = WriteStatus.FULL
            del edited[node]
        self._overlay.apply(outcomes)
        if not edited:
            return outcomes
        known = self.records.known
        reply = yield Step([Write(Put.CAS, self._key(node), values[node], known[node].cas) for node in edited])
        again: list[str] = []
        for (node, record), written in zip(edited.items(), reply.written, strict=True):
            if written.status is WriteStatus.STORED:
                self._on_stored(node, edits[node], record, written.cas)
                outcomes[node] = WriteStatus.STORED
                if not written.cas:  # another scheduler wrote the record again before the server told its id
                    again.append(node)
            elif written.status is WriteStatus.FULL:
                outcomes[node] = WriteStatus.FULL
                self._overlay.apply([node])
            else:
                self.stats.conflicts += 1
                outcomes[node] = WriteStatus.CONFLICT
                again.append(node)
        if again:
            yield from self._fetch(again)
        return outcomes

    def _edited(self, node: str, edit: Edit, now: float) -> ClaimRecord | WriteStatus:
        """The record with the edit applied. Returns ``CONFLICT`` if the record as it is known leaves no room for the
        new claims, and ``FULL`` if the record has too many claims.
        """
        known, row = self.records.known.get(node), self._fleet.rows.get(node)
        if known is None or (edit.add and row is None) or (edit.avoid_unsure and is_unsure(known.record, now)):
            return WriteStatus.CONFLICT
        record, allocated = known.record, None
        if row is not None:
            allocated = self._overlay.allocated_ids(node, row, record)
            record = without_ended_claims(record, now, allocated, self._fleet.version[row])
        record = edit.apply(record)
        if edit.add and len(record.claims) > MAX_CLAIMS_COUNT:
            return WriteStatus.FULL
        if edit.add and row is not None and allocated is not None:
            self._fleet.overlay(row, outstanding_claims(record.claims, now, allocated))
            if record.seen > self._fleet.version[row] or not self._has_room(row, edit.add.values()):
                return WriteStatus.CONFLICT
        return record

    def _has_room(self, row: int, claims: Iterable[Claim]) -> bool:
        """Whether the node has room for these claims, which are already taken off the fleet's row."""
        fleet = self._fleet
        free, groups = fleet.free, fleet.groups
        for claim in claims:
            if any(name not in free or free[name][row] < 0 for name in claim.resources):
                return False
            limit = max_group_members(claim)
            if limit is not None and groups.get(claim.group or "", {}).get(row, 0) > limit:
                return False
        return True

    def _on_stored(self, node: str, edit: Edit, record: ClaimRecord, cas: int) -> None:
        self.stats.written += 1
        self.records.update(node, record, cas)
        if edit.add:
            self.stats.restored += self.own.add(node, edit.add, record.born)
        self._schedule_deadline(node, time_or_zero(self.servers.of(node)))
        self._overlay.apply([node])

    def _schedule_deadline(self, node: str, now: float) -> None:
        """Schedule the next deadline among the claims in a node's record and the own claims on the node."""
        known = self.records.known.get(node)
        claims = [
            *(known.record.claims if known is not None else ()),
            *(own.claim for own in self.own.on(node).values()),
        ]
        self._deadlines.schedule(
            node, min((claim.until for claim in claims if claim.until + CLOCK_S > now), default=None)
        )

    def _key(self, node: str) -> str:
        return keys.claim(self._cell, node)

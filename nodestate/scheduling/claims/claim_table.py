"""The claim table: the claim records as one scheduler knows them, its own claims, and its changes to the records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from nodestate.errors import NodestateError
from nodestate.model import NEVER, Receipt, Version
from nodestate.ports import ClaimStore, Item, Key, Put, Write, WriteStatus
from nodestate.scheduling.claims.claim_servers import ClaimServers, time_or_zero
from nodestate.scheduling.claims.claim_stats import ClaimTableStats
from nodestate.scheduling.claims.deadline_queue import DeadlineQueue
from nodestate.scheduling.claims.edits import Edit, PendingEdits, UnknownOutcomes
from nodestate.scheduling.claims.own_claims import OwnClaims
from nodestate.scheduling.claims.record import (
    CLAIMS,
    CLOCK_S,
    MAX_CLAIMS_COUNT,
    Claim,
    ClaimRecord,
    fault_of,
    is_unsure,
    max_group_members,
    outstanding_claims,
    without_ended_claims,
)
from nodestate.scheduling.claims.record_cache import RecordCache
from nodestate.scheduling.claims.record_overlay import RecordOverlay
from nodestate.scheduling.fleet import Fleet
from nodestate.scheduling.selection import NodeFaults, NodePreference
from nodestate.store import keys
from nodestate.store.round_trips import Step, Steps, run

FETCH_COUNT: Final = 2_000
"""Maximum number of records that one round trip reads."""
MAX_FLUSHES_COUNT: Final = 8
"""Maximum number of flushes by ``flush_all``; one is not enough if other schedulers change the records first."""


class ClaimTable:
    """The claim records as one scheduler knows them. Each scheduler has its own table, beside its own fleet.

    The table subtracts the claims of the known records from the free resources in the fleet, so that a selection sees
    the room that is left. It also subtracts claims that the next flush will write. To claim a node then takes one
    compare-and-swap against the known record: one round trip to each server for all nodes of a batch. The states of a
    node's record::

        unknown --read_records--> known --add_claim, drop_claim--> edited --flush, STORED--> known, with the edits
        edited --flush, CONFLICT: another scheduler wrote first--> read again: known, without the edits; select again
        edited --flush, MISSING, or a read finds no record--> lost: created again, and unsure for a while (``record``)
        edited --flush, no answer--> unknown: the new claims may be stored; the next read drops them if it finds them

    If claims of this scheduler were lost with their record, the table writes them again as soon as it notices the loss.
    If a claim is missing from a record that was not lost, another scheduler removed it, and this scheduler no longer
    holds it.

    If a server does not answer, its records stay unknown. Then no claims can be made on the nodes of these records. All
    other nodes can be claimed as usual.

    Args:
        cell: The cell's name.
        servers: One connection to each server that stores claim records, in the same order for all schedulers.
        fleet: The scheduler's fleet.
        node_preference: Divides the nodes among this scheduler and the schedulers whose claims are read.
        node_faults: Lowers the rank of nodes whose agent was gone or failed.
    """

    def __init__(
        self,
        cell: str,
        servers: Sequence[ClaimStore],
        fleet: Fleet,
        node_preference: NodePreference,
        node_faults: NodeFaults,
    ) -> None:
        self.stats = ClaimTableStats()
        """Counters since the start."""
        self.servers = ClaimServers(servers)
        """The servers that store the records."""
        self.records = RecordCache()
        """The records as this scheduler last read or wrote them."""
        self.own = OwnClaims()
        """The claims that this scheduler holds."""
        self._cell = cell
        """The name of the cell, which is part of each record's key."""
        self._fleet = fleet
        """The scheduler's fleet."""
        self._node_preference = node_preference
        """Divides the nodes among this scheduler and the schedulers whose claims are read."""
        self._node_faults = node_faults
        """Lowers the rank of nodes whose agent was gone or failed."""
        self._edits = PendingEdits()
        """The changes that ``flush`` will write."""
        self._unknown_outcomes = UnknownOutcomes()
        """New claims whose write was not answered."""
        self._deadlines = DeadlineQueue(self.servers)
        """The earliest deadline of each node's claims."""
        self._overlay = RecordOverlay(fleet, self.servers, self.records, self._edits)
        """Subtracts the records' claims from the free resources in the fleet."""

    # -- queries

    def unsure_nodes(self) -> list[str]:
        """Return the nodes whose record was created so recently that claims may be missing from it."""
        return self.records.unsure_nodes(self.servers)

    def is_allocated(self, node: str, claim: Claim) -> bool:
        """Return whether the node reports the allocation that was built for a claim.

        An older allocation of the same instance does not count.
        """
        return self._overlay.is_allocated(node, claim)

    def receipts_to_await(self) -> list[Receipt]:
        """Return the versions of nodes that the fleet must show before anything can be claimed on these nodes.

        A receipt names a node and a version. There is one for each node whose state in the fleet is older than ``seen``
        of its claim record.
        """
        return self._overlay.receipts_to_await()

    @property
    def edited(self) -> bool:
        """Whether there are changes that the next flush will write."""
        return bool(self._edits)

    # -- time passes

    def on_fleet_advanced(self, since: int) -> None:
        """Stop subtracting the claims that the new view shows as allocations: the nodes' usage includes them now.

        ``since`` is ``Fleet.changes`` before the fleet advanced.
        """
        self._overlay.apply_changes(since)

    def expire(self) -> None:
        """Stop subtracting, and stop holding, the claims whose deadline has passed by their server's clock."""
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
        """Add a claim, or replace the claim with the same id, with the next flush. The fleet subtracts it at once.

        Args:
            node: The node to claim on.
            claim: The claim.
            avoid_unsure: Do not write the claim if the node's record is unsure at the time of the flush.
        """
        self._edits.add_claim(node, claim, avoid_unsure=avoid_unsure)
        self._unknown_outcomes.discard(node, claim.id)
        self._overlay.apply([node])

    def drop_claim(self, node: str, claim_id: str, seen: Version = NEVER) -> None:
        """Remove a claim with the next flush. The fleet shows the claimed resources as free at once.

        Args:
            node: The node that was claimed.
            claim_id: The claim's id.
            seen: The version of the node's state that shows the claim's allocation, or the version in which the agent
                refused the order. ``NEVER`` if there is no such version. Schedulers with an older state of the node
                must refresh before they claim on it.
        """
        self._edits.drop_claim(node, claim_id, seen)
        self.own.drop(node, claim_id)
        self._overlay.apply([node])

    def add_fault(self, node: str, reason: str) -> None:
        """Lower the rank of a node for all schedulers, because its agent was gone, failed or did not answer.

        The next flush writes the fault into the node's record.
        """
        self._node_faults.observe(node, reason)
        self._edits.add_fault(node, reason, time_or_zero(self.servers.of(node)))

    # -- reading

    def read_records(self, nodes: Iterable[str]) -> bool:
        """Read the records of these nodes, and create the missing ones.

        Returns False if a server did not answer: some of the records were not read then.
        """
        waiting = list(nodes)
        answered = True
        while waiting:
            some, waiting = waiting[:FETCH_COUNT], waiting[FETCH_COUNT:]
            results = run({id(server): (server, self._fetch(mine)) for server, mine in self.servers.grouped(some)})
            answered &= not any(isinstance(result, NodestateError) for result in results.values())
        return answered

    def reassert_own_claims(self) -> None:
        """Read the records that should have claims of this scheduler. The next flush writes lost claims again."""
        self.read_records(self.own.nodes())

    def _fetch(self, nodes: Sequence[str]) -> Steps[None]:
        """Read the records of nodes that have the same server, and create the missing ones."""
        reply = yield Step(fetch=[self._key(node) for node in nodes])
        missing = [node for node in nodes if not self._cache_item(node, reply.items.get(self._key(node)))]
        if not missing:
            return
        record = ClaimRecord.created_at(self.servers.time(missing[0]))
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
        """Return the write that creates a node's record.

        Args:
            node: The node.
            record: The new, empty record.
            items: The items that were read. If the node has one, it is damaged, and the write replaces it.
        """
        key = self._key(node)
        if key in items:
            return Write(Put.CAS, key, CLAIMS.pack(record), items[key].cas)
        return Write(Put.ADD, key, CLAIMS.pack(record))

    def _cache_item(self, node: str, item: Item | None) -> bool:
        """Cache the record of an item. Returns False if it is missing or damaged; the record is then unknown."""
        now = time_or_zero(self.servers.of(node))
        record = self.records.decode(node, self._key(node), item, now)
        if item is None or record is None:
            self._forget(node)
            return False
        self._cache_record(node, record, item.cas)
        if item.outdated:
            self._edits.rewrite(node)
        return True

    def _cache_record(self, node: str, record: ClaimRecord, cas: int) -> None:
        """Cache a record that was read or created, and update everything that is computed from it."""
        now = time_or_zero(self.servers.of(node))
        self.stats.lost += self.records.put(node, record, cas, now)
        self._schedule_deadline(node, now)
        for claim in record.claims:
            self._node_preference.observe_scheduler(claim.holder)
        fault = fault_of(record)
        if fault is not None and now:
            self._node_faults.observe(node, fault[0], now - fault[1])
        for claim_id in self._unknown_outcomes.resolve(node, {claim.id for claim in record.claims}):
            self.drop_claim(node, claim_id)
        for claim in self.own.compare(node, record):
            self.add_claim(node, claim)
        self._overlay.apply([node])

    def _forget(self, node: str) -> None:
        """Make a node's record unknown, and stop subtracting its claims."""
        if self.records.forget(node):
            self._overlay.clear(node)

    # -- writing

    def flush(self) -> dict[str, WriteStatus | NodestateError]:
        """Write all edits, each by a compare-and-swap against the known record.

        Costs one round trip to each server. A second one reads the records that other schedulers changed meanwhile.

        Returns the outcome for each edited node:

        - ``STORED``: The edits are written.
        - ``CONFLICT``: Nothing is written. Either another scheduler changed the record first (a lost compare-and-swap),
          and the record was read again. Or no write was tried, for a reason that ``_edited`` names. The new claims are
          discarded, and the caller chooses nodes again.
        - ``FULL``: Nothing is written, because the record is too large or its server has no memory left. The new claims
          are discarded, and the caller avoids the node.
        - An error: The server did not answer, so the edits may be written or not. The new claims are given up; if they
          turn up in the record, they are dropped. The caller avoids the server's nodes.

        Removals of claims that were not written, or not certainly, become edits again, for the next flush.
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
        """Flush until no edits are left, at most ``MAX_FLUSHES_COUNT`` times.

        One flush is not enough if other schedulers change the records first.
        """
        for _ in range(MAX_FLUSHES_COUNT):
            if not self._edits:
                return
            self.flush()

    def _on_unanswered(self, node: str, edit: Edit) -> None:
        """Handle an edit whose write was not answered, so that it may be stored or not.

        New claims are given up; if they turn up in the record, they are dropped. A claim that was held before, and that
        the edit only changed, stays held. Removals become edits again, for the next flush.
        """
        self._forget(node)
        self._unknown_outcomes.add(node, edit.add.keys() - self.own.on(node).keys())
        for claim_id in edit.drop:
            self.drop_claim(node, claim_id, edit.seen)

    def _drop_again(self, node: str, edit: Edit) -> None:
        """Plan the removals and the fault of an edit again, because the edit was not stored.

        Claims that are no longer in the record need no removal. The new claims of the edit are discarded.
        """
        known = self.records.known.get(node)
        for claim in known.record.claims if known is not None else ():
            if claim.id in edit.drop:
                self.drop_claim(node, claim.id, edit.seen)
        if edit.fault and known is not None:
            self._edits.add_fault(node, edit.fault, edit.fault_at)

    def _write(self, edits: Mapping[str, Edit]) -> Steps[dict[str, WriteStatus | NodestateError]]:
        """Write the edits of nodes that have the same server. Returns the outcome for each node, see ``flush``."""
        unknown = {node for node in edits if node not in self.records.known}
        if unknown:
            yield from self._fetch(list(unknown))
        server = self.servers.of(next(iter(edits)))
        now = server.server_time()
        outcomes: dict[str, WriteStatus | NodestateError] = {}
        edited: dict[str, ClaimRecord] = {}
        for node, edit in edits.items():
            record = self._edited(node, edit, now, was_read=node in unknown)
            if isinstance(record, WriteStatus):
                outcomes[node] = record
            else:
                edited[node] = record.written_at(now)
        values = {node: CLAIMS.pack(record) for node, record in edited.items()}
        max_bytes = server.max_value_bytes  # read once, because each reading checks the connection to the server
        for node in [node for node, value in values.items() if len(value) > max_bytes]:
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
                if not written.cas:  # another scheduler wrote the record before its new id could be read
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

    def _edited(self, node: str, edit: Edit, now: float, *, was_read: bool) -> ClaimRecord | WriteStatus:
        """Return the known record with the edit applied, or the reason why the edit must not be written.

        The fleet shows the edit already, except if the record ``was_read`` since the edit was made.

        Returns ``CONFLICT``, as after a lost compare-and-swap, in these cases:

        - The node's record is unknown.
        - There are new claims, and the fleet does not have the node, or has no room for them, or has a state of the
          node that is older than the record's ``seen``.
        - A new claim avoids unsure records, and the record is unsure.

        Returns ``FULL`` if the record would have more than ``MAX_CLAIMS_COUNT`` claims.
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
            if was_read:
                self._fleet.overlay(row, outstanding_claims(record.claims, now, allocated))
            if record.seen > self._fleet.version[row] or not self._has_room(row, edit.add.values()):
                return WriteStatus.CONFLICT
        return record

    def _has_room(self, row: int, claims: Iterable[Claim]) -> bool:
        """Return whether the node has room for these claims, which are subtracted from the fleet's row already."""
        fleet = self._fleet
        free, groups = fleet.free, fleet.groups
        for claim in claims:
            if any(name not in free or free[name][row] < 0 for name in claim.resources):
                return False
            if not claim.resize and not fleet.units.allow_on(claim.resources, row):
                return False
            limit = max_group_members(claim)
            if limit is not None and groups.get(claim.group or "", {}).get(row, 0) > limit:
                return False
        return True

    def _on_stored(self, node: str, edit: Edit, record: ClaimRecord, cas: int) -> None:
        """Cache the record that an edit made, and hold the claims that the edit added."""
        self.stats.written += 1
        self.records.update(node, record, cas)
        if edit.add:
            self.stats.restored += self.own.add(node, edit.add, record.born)
            self._deadlines.schedule(node, min(claim.until for claim in edit.add.values()))
        if not edit.add or self._edits.of(node) is not None:  # otherwise the overlay shows this record already
            self._overlay.apply([node])

    def _schedule_deadline(self, node: str, now: float) -> None:
        """Schedule the earliest deadline of the claims in a node's record and of the own claims on the node."""
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

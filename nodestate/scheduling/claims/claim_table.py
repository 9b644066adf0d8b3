"""The claim table: the claim records as one scheduler knows them, its own claims, and its changes to the records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from types import MappingProxyType
from typing import Final

from nodestate.errors import NodestateError
from nodestate.model import NEVER, Receipt, Version
from nodestate.ports import ClaimStore, Clock, WriteStatus
from nodestate.scheduling.claims.claim_servers import ClaimServers
from nodestate.scheduling.claims.claim_stats import ClaimTableStats
from nodestate.scheduling.claims.deadline_queue import DeadlineQueue
from nodestate.scheduling.claims.edits import Edit, PendingEdits, UnknownOutcomes
from nodestate.scheduling.claims.own_claims import OwnClaims
from nodestate.scheduling.claims.record import (
    CLOCK_S,
    Claim,
    ClaimRecord,
    fault_of,
)
from nodestate.scheduling.claims.record_cache import CachedRecord, RecordCache
from nodestate.scheduling.claims.record_editor import RecordEditor
from nodestate.scheduling.claims.record_overlay import RecordOverlay
from nodestate.scheduling.claims.record_store import RecordStore, Written
from nodestate.scheduling.fleet import Fleet
from nodestate.scheduling.selection import NodeFaults, NodePreference

FETCH_COUNT: Final = 2_000
"""Maximum number of records that one round trip reads."""
MAX_TRIES_COUNT: Final = 8
"""Maximum number of times that one flush writes a record of which only one copy may have the edit."""
MAX_FLUSHES_COUNT: Final = 8
"""Maximum number of flushes by ``flush_all``; one is not enough if other schedulers change the records first."""


class ClaimTable:
    """The claim records as one scheduler knows them. Each scheduler has its own table, beside its own fleet.

    The table subtracts the claims of the known records from the free resources in the fleet, so that a selection sees
    the room that is left. It also subtracts claims that the next flush will write. To claim a node then takes one
    compare-and-swap against the known record: for each copy, one round trip to each server for all nodes of a batch.
    The states of a node's record::

        unknown --read_records--> known --add_claim, drop_claim--> edited --flush, STORED--> known, with the edits
        edited --flush, CONFLICT: another scheduler wrote first--> read again: known, without the edits; select again
        edited --flush, MISSING, or a read finds no record--> lost: created again, and unsure for a while (``record``)
        edited --flush, no answer--> unknown: the new claims may be stored; the next read drops them if it finds them

    If claims of this scheduler were lost with their record, the table writes them again as soon as it notices the loss.
    If a claim is missing from a record that was not lost, another scheduler removed it, and this scheduler no longer
    holds it.

    If no server with a copy of a record answers, the record stays unknown, and no claims can be made on its node. All
    other nodes can be claimed as usual. If the server of one copy does not answer, the record is unsure.

    Args:
        cell: The cell's name.
        servers: One connection to each server that stores claim records, in the same order for all schedulers.
        fleet: The scheduler's fleet.
        node_preference: Divides the nodes among this scheduler and the schedulers whose claims are read.
        node_faults: Lowers the rank of nodes whose agent was gone or failed.
        clock: The time of this process.
        copies: The number of copies of each record, on as many servers: 1 or 2.
    """

    def __init__(
        self,
        cell: str,
        servers: Sequence[ClaimStore],
        fleet: Fleet,
        node_preference: NodePreference,
        node_faults: NodeFaults,
        clock: Clock,
        *,
        copies: int = 1,
    ) -> None:
        self.stats = ClaimTableStats()
        """Counters since the start."""
        self.servers = ClaimServers(servers, copies, clock)
        """The servers that store the records."""
        self.records = RecordCache()
        """The records as this scheduler last read or wrote them."""
        self._store = RecordStore(cell, self.servers, self.records)
        """Reads and writes the copies of the records."""
        self.own = OwnClaims()
        """The claims that this scheduler holds."""
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
        self._editor = RecordEditor(fleet, self.servers, self.records, self._overlay, self.own)
        """Applies the edits to the records."""

    # -- queries

    def unsure_nodes(self) -> AbstractSet[str]:
        """Return the nodes from whose record claims may be missing, see ``RecordCache.unsure_nodes``."""
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
        for home in range(len(self.servers)):
            if not self._deadlines.has_any(home):
                continue
            now = self.servers.observed_time(home)
            self._read_after_clock_change()
            for node in self._deadlines.pop_passed(home, now):
                self.own.expire(node, now)
                self._schedule_deadline(node, now)
                self._overlay.apply([node])

    # -- edits

    def add_claim(self, node: str, claim: Claim, *, avoid_unsure: bool = False, is_renewal: bool = False) -> None:
        """Add a claim, or replace the claim with the same id, with the next flush. The fleet subtracts it at once.

        Args:
            node: The node to claim on.
            claim: The claim.
            avoid_unsure: Do not write the claim if the node's record is unsure at the time of the flush.
            is_renewal: The scheduler holds the claim, with another deadline, see ``hold_claim``. It is not dropped if
                the write fails. It is not written if another scheduler has removed it.
        """
        self._edits.add_claim(node, claim, avoid_unsure=avoid_unsure, is_renewal=is_renewal)
        self._unknown_outcomes.discard(node, claim.id)
        self._overlay.apply([node])

    def hold_claim(self, node: str, claim: Claim) -> None:
        """Hold a claim that the node's known record has, as if this scheduler had written it."""
        known = self.records.known.get(node)
        if known is not None and claim in known.record.claims:
            self.own.add(node, {claim.id: claim}, known.record.born)

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
        self._edits.add_fault(node, reason, self.servers.time_or_zero(node))

    # -- reading

    def read_records(self, nodes: Iterable[str]) -> bool:
        """Read the records of these nodes, and create the missing ones.

        Returns False if some of the records are unknown, because no server with a copy answered.
        """
        return not self._read(nodes)

    def _read(self, nodes: Iterable[str]) -> dict[str, NodestateError | None]:
        """Read these records. Returns by node the error of each unknown record, see ``ReadRecords.unknown``."""
        waiting = list(nodes)
        unknown = dict[str, NodestateError | None]()
        while waiting:
            some, waiting = waiting[:FETCH_COUNT], waiting[FETCH_COUNT:]
            result = self._store.read(some)
            if self.servers.changed:
                waiting += set(self._forget_earlier_clocks()).difference(some)
            self.stats.created += len(result.created)
            for node, cached in result.found.items():
                self._cache_record(node, cached)
            for node in result.outdated:
                self._edits.rewrite(node)
            for node in result.unknown:
                self._forget(node)
            unknown |= result.unknown
        return unknown

    def reassert_own_claims(self) -> None:
        """Read the records that should have claims of this scheduler. The next flush writes lost claims again."""
        self.read_records(self.own.nodes())

    def read_returned(self) -> None:
        """Read the records of which one copy was unknown, if its server answers again."""
        self.read_records(self.servers.reachable(self.records.partly_known - self.records.full_servers.keys()))

    def _cache_record(self, node: str, cached: CachedRecord) -> None:
        """Cache a record that was read or created, and update everything that is computed from it."""
        record, now = cached.record, self.servers.time_or_zero(node)
        self.stats.lost += self.records.put(node, cached, now)
        self._schedule_deadline(node, now)
        for claim in record.claims:
            self._node_preference.observe_scheduler(claim.holder)
        fault = fault_of(record)
        if fault is not None and now:
            self._node_faults.observe(node, fault[0], now - fault[1])
        there = {claim.id for claim in record.claims}
        self._edits.keep_written(node, there)
        for claim_id in self._unknown_outcomes.resolve(node, there, is_whole=cached.is_whole):
            self.drop_claim(node, claim_id)
        for claim in self.own.compare(node, record, is_whole=cached.is_whole):
            self.add_claim(node, claim)
        self._overlay.apply([node])

    def _read_after_clock_change(self, taken: Mapping[str, Edit] = MappingProxyType({})) -> None:
        """Read records again if their clock was set, see ``_forget_earlier_clocks``."""
        if self.servers.changed:
            self._read(self._forget_earlier_clocks(taken))

    def _forget_earlier_clocks(self, taken: Mapping[str, Edit] = MappingProxyType({})) -> list[str]:
        """Make the records unknown whose clock was set since they were read. Returns their nodes.

        The deadlines of claims that this scheduler holds are shifted. Claims that the next flush would add conflict,
        because it is unknown whether their deadlines are times before or after the change.

        Args:
            taken: The edits that a flush is about to write.
        """
        homes, home_of = self.servers.take_changed(), self.servers.home
        self.records.last_writes.clear()
        for node, edit in (*taken.items(), *self._edits):
            edit.clock_was_set |= home_of(node) in homes
        for node in self.own.nodes():
            if (by_s := homes.get(home_of(node), 0)) != 0:
                self.own.shift(node, by_s)
        nodes = [node for node in self.records.known if home_of(node) in homes]
        for node in nodes:
            self._forget(node)
        return nodes

    def _forget(self, node: str) -> None:
        """Make a node's record unknown, and stop subtracting its claims."""
        if self.records.forget(node):
            self._overlay.clear(node)

    # -- writing

    def flush(self) -> dict[str, WriteStatus | NodestateError]:
        """Write all edits, each by a compare-and-swap against the known record.

        Costs one round trip to each server for each copy of the records. Another one reads the records that other
        schedulers changed meanwhile.

        Returns the outcome for each edited node:

        - ``STORED``: The edits are written, in each copy whose server answers.
        - ``CONFLICT``: The new claims are not made. Either another scheduler changed the record first (a lost
          compare-and-swap), and the record was read again. Or no write was tried, for a reason that
          ``RecordEditor.edited`` names. Or a new claim avoids unsure records, and the server of one copy does not
          answer. The new claims are discarded, and the caller chooses nodes again.
        - ``FULL``: As ``CONFLICT``, because the record is too large or its server has no memory left. The caller avoids
          the node.
        - An error: No server with a copy answered, so the edits may be written or not. The new claims are given up; if
          they turn up in the record, they are dropped. The caller avoids the servers' nodes.

        Removals of claims that were not written, or not certainly, become edits again, for the next flush.
        """
        outcomes, given_up = self._flush_once()
        if given_up:  # other schedulers wait for the room
            self._flush_once()
        return outcomes

    def _flush_once(self) -> tuple[dict[str, WriteStatus | NodestateError], bool]:
        """Write all edits. Returns the outcomes, and whether a new claim is to be dropped from a copy that has it."""
        edits = self._edits.take_all()
        outcomes = dict[str, WriteStatus | NodestateError]()
        in_doubt = set[str]()
        waiting: Mapping[str, Edit] = edits
        for number in range(MAX_TRIES_COUNT if self.servers.copies > 1 else 1):
            results = self._try_write(waiting, is_retry=number > 0)
            outcomes |= {node: result.outcome for node, result in results.items()}
            in_doubt |= {node for node, result in results.items() if result.maybe_stored}
            waiting = {node: edits[node] for node in in_doubt if node in results and results[node].retriable}
            if not waiting:
                break
        for node, outcome in outcomes.items():
            if isinstance(outcome, NodestateError):
                self.stats.unanswered += 1
                self._on_unanswered(node, edits[node])
            elif outcome is not WriteStatus.STORED:
                if node in in_doubt:
                    self._give_up(node, edits[node])
                self._drop_again(node, edits[node])
        return outcomes, any(outcomes[node] in (WriteStatus.CONFLICT, WriteStatus.FULL) for node in in_doubt)

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
        self._unknown_outcomes.add(node, edit.new_ids() - self.own.on(node).keys())
        for claim_id in edit.drop:
            self.drop_claim(node, claim_id, edit.seen)

    def _give_up(self, node: str, edit: Edit) -> None:
        """Drop the new claims of an edit that a copy has, and that are not made, with the next flush."""
        self._unknown_outcomes.add(node, edit.new_ids() - self.own.on(node).keys())
        self.read_records([node])

    def _drop_again(self, node: str, edit: Edit) -> None:
        """Plan the removals and the fault of an edit again, because the edit was not stored.

        Claims that are no longer in the known record need no removal. The new claims of the edit are discarded.
        """
        known = self.records.known.get(node)
        there = {claim.id for claim in known.record.claims} if known is not None else edit.drop
        for claim_id in edit.drop & there:
            self.drop_claim(node, claim_id, edit.seen)
        if edit.fault and known is not None:
            self._edits.add_fault(node, edit.fault, edit.fault_at)

    def _try_write(self, edits: Mapping[str, Edit], *, is_retry: bool) -> dict[str, Written]:
        """Write these edits. Returns the result for each node.

        Reads unknown records before, and the records that other schedulers changed afterwards. A record of which only
        one copy may have the edit is unknown afterwards. ``is_retry``: these edits were tried before.
        """
        unread = {node for node in edits if node not in self.records.known}
        errors = self._read(unread) if unread else {}
        results, times = dict[str, Written](), self.servers.times(edits)
        self._read_after_clock_change(edits)
        changes = dict[str, tuple[CachedRecord, ClaimRecord]]()
        for node, edit in edits.items():
            if (error := errors.get(node)) is not None:
                results[node] = Written(error)
                continue
            now = times[node]
            record = self._editor.edited(node, edit, now, was_read=is_retry or node in unread)
            if isinstance(record, WriteStatus):
                results[node] = Written(record)
            else:
                changes[node] = self.records.known[node], record.written_at(now)
        self._overlay.apply(results)
        again = list[str]()
        for node, result in self._store.write(changes).items():
            results[node] = result
            if result.outcome is WriteStatus.STORED:
                results[node] = self._on_stored(node, edits[node], changes[node][1], result)
                if 0 in result.cas:  # another scheduler wrote the record before its new id could be read
                    again.append(node)
            elif result.maybe_stored:
                self._forget(node)
            elif result.outcome is WriteStatus.FULL:
                self._overlay.apply([node])
            else:
                self.stats.conflicts += 1
                again.append(node)
        self.read_records(again)
        return results

    def _on_stored(self, node: str, edit: Edit, record: ClaimRecord, result: Written) -> Written:
        """Cache the record that an edit made, and hold the claims that the edit added.

        Returns the result, or a conflict if a new claim avoids unsure records and only one copy was written.
        """
        self.stats.written += 1
        cached = CachedRecord(record, result.cas, None not in result.cas, result.full_server)
        self.records.update(node, cached)
        if edit.avoid_unsure and not cached.is_whole:
            return Written(WriteStatus.CONFLICT, maybe_stored=True)
        if edit.add:
            self._edits.keep_written(node, edit.add)
            self.stats.restored += self.own.add(node, edit.add, record.born)
            self._deadlines.schedule(node, min(claim.until for claim in edit.add.values()))
        if not edit.add or self._edits.of(node) is not None:  # otherwise the overlay shows this record already
            self._overlay.apply([node])
        return result

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

"""Takes the claims of the known records off the fleet, so that a selection sees the room that is left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nodestate.model import Receipt
from nodestate.scheduling.claims.claim_servers import ClaimServers, time_or_zero
from nodestate.scheduling.claims.edits import PendingEdits
from nodestate.scheduling.claims.record import Claim, ClaimRecord, outstanding_claims
from nodestate.scheduling.claims.record_cache import RecordCache
from nodestate.scheduling.fleet import Fleet
from nodestate.scheduling.order_ids import order_id_of


class RecordOverlay:
    """Computes a row's overlay from the node's record, the edits that are to be written, and the node's allocations."""

    def __init__(self, fleet: Fleet, servers: ClaimServers, records: RecordCache, edits: PendingEdits) -> None:
        self._fleet = fleet
        """The fleet that the overlays are set on."""
        self._servers = servers
        """The servers of the records, for the time by which deadlines are judged."""
        self._records = records
        """The known records."""
        self._edits = edits
        """The changes that are to be written; the fleet shows them at once."""
        self._allocated: dict[str, set[str]] = {}
        """For each node the ids of the claims in its record that are, or were in an earlier view, its allocations."""
        self._as_of = 0
        """The fleet's count of changes up to which overlays were computed."""

    def apply(self, nodes: Iterable[str]) -> None:
        """Compute and set the overlays of these nodes, except nodes without a row or without a known record."""
        for node in nodes:
            row = self._fleet.rows.get(node)
            known, edit = self._records.known.get(node), self._edits.of(node)
            if row is None or (known is None and edit is None):
                continue
            record = known.record if known is not None else ClaimRecord(0.0)
            if edit is not None:
                record = edit.apply(record)
            blocked = record.seen > self._fleet.version[row]
            if not record.claims and not blocked:
                self._fleet.overlay(row, None)
                continue
            allocated = self.allocated_ids(node, row, record)
            found = outstanding_claims(record.claims, time_or_zero(self._servers.of(node)), allocated)
            found.blocked = blocked
            self._fleet.overlay(row, found if found.amounts or blocked else None)

    def apply_changes(self) -> None:
        """Compute the overlays of all rows that changed since the last call: their claims may be allocations now."""
        rows = self._fleet.changed_since(self._as_of)
        names = self._fleet.names
        self.apply(list(self._records.known) if rows is None else [names[row] for row in set(rows)])
        self._as_of = self._fleet.changes

    def clear(self, node: str) -> None:
        """Take nothing off a node's row, as its record is unknown."""
        if node in self._fleet.rows:
            self._fleet.overlay(self._fleet.rows[node], None)

    def allocated_ids(self, node: str, row: int, record: ClaimRecord) -> set[str]:
        """The ids of the claims in a record that are allocations of the node, or were in an earlier view. The node's
        usage includes them, or did until they ended, so they do not count as claims.
        """
        tenants = self._fleet.instances.reported[row]
        before = self._allocated.get(node, set())
        allocated = before & {claim.id for claim in record.claims}
        candidates = [
            claim
            for claim in record.claims
            if claim.instance in tenants and claim.id not in allocated and not claim.resize
        ]
        if candidates:
            hints = self._fleet.reports.hints_by_instance(row)
            allocated |= {claim.id for claim in candidates if _built_from(claim, hints)}
        if allocated:
            self._allocated[node] = allocated
        elif before:
            del self._allocated[node]
        return allocated

    def is_allocated(self, node: str, claim: Claim) -> bool:
        """Whether the node reports the allocation that a claim became, and not an earlier one of the same instance."""
        row = self._fleet.rows.get(node)
        return (
            row is not None
            and claim.instance in self._fleet.instances.reported[row]
            and _built_from(claim, self._fleet.reports.hints_by_instance(row))
        )

    def receipts_to_await(self) -> list[Receipt]:
        """Receipts to wait for, of the nodes whose state in the fleet is older than their record's ``seen``."""
        rows, version = self._fleet.rows, self._fleet.version
        return [
            Receipt(node, known.record.seen)
            for node, known in self._records.known.items()
            if node in rows and known.record.seen > version[rows[node]]
        ]


def _built_from(claim: Claim, hints: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the allocation of a claim's instance was built for the claim, or later. An allocation without an order id
    was not built by a scheduler and counts as the claim's.
    """
    order_id = order_id_of(hints.get(claim.instance, {}))
    return not order_id or order_id >= claim.id

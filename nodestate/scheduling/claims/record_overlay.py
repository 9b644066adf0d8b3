"""Subtracts the claims of the known records from the fleet's free resources, so that a selection sees the room left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nodestate.model import Receipt
from nodestate.scheduling.claims.claim_servers import ClaimServers
from nodestate.scheduling.claims.edits import PendingEdits
from nodestate.scheduling.claims.record import Claim, ClaimRecord, outstanding_claims
from nodestate.scheduling.claims.record_cache import RecordCache
from nodestate.scheduling.fleet import Fleet
from nodestate.scheduling.order_ids import order_id_of


class RecordOverlay:
    """Computes the overlay of each row: the claims that the fleet subtracts from the node's free resources.

    The overlay has the claims of the node's record and the edits that are not written yet, without the claims that have
    become allocations.

    Args:
        fleet: The scheduler's fleet.
        servers: The servers that store the records.
        records: The known records.
        edits: The changes that the next flush writes.
    """

    def __init__(self, fleet: Fleet, servers: ClaimServers, records: RecordCache, edits: PendingEdits) -> None:
        self._fleet = fleet
        """The fleet that the overlays are set on."""
        self._servers = servers
        """The servers of the records; deadlines are compared with their clocks."""
        self._records = records
        """The known records."""
        self._edits = edits
        """The changes that the next flush writes; the overlays contain them already."""
        self._allocated: dict[str, set[str]] = {}
        """By node, the ids of the claims in its record that this view or an earlier one showed as allocations."""

    def apply(self, nodes: Iterable[str]) -> None:
        """Compute and set the overlays of these nodes.

        Skips nodes that the fleet does not have, and nodes that have neither a known record nor an edit.
        """
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
            found = outstanding_claims(record.claims, self._servers.time_or_zero(node), allocated)
            found.blocked = blocked
            self._fleet.overlay(row, found if found.amounts or blocked else None)

    def apply_changes(self, since: int) -> None:
        """Compute the overlays of all rows that changed since then, as claims may be allocations now.

        Args:
            since: ``Fleet.changes`` before the fleet advanced.
        """
        rows = self._fleet.changed_since(since)
        names = self._fleet.names
        self.apply(list(self._records.known) if rows is None else [names[row] for row in set(rows)])

    def clear(self, node: str) -> None:
        """Remove the overlay of a node, because its record is unknown."""
        if node in self._fleet.rows:
            self._fleet.overlay(self._fleet.rows[node], None)

    def allocated_ids(self, node: str, row: int, record: ClaimRecord) -> set[str]:
        """Return the ids of the claims in a record that this view or an earlier one showed as allocations.

        They no longer count as claims: the node's reported usage includes the allocation, or it did until the
        allocation ended.

        Args:
            node: The node.
            row: Its row in the fleet.
            record: Its claim record.
        """
        tenants = self._fleet.instances.reported[row]
        before = self._allocated.get(node, set())
        allocated = before & {claim.id for claim in record.claims} if before else set()
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
        """Return whether the node reports the allocation that was built for a claim.

        An older allocation of the same instance does not count.
        """
        row = self._fleet.rows.get(node)
        return (
            row is not None
            and claim.instance in self._fleet.instances.reported[row]
            and _built_from(claim, self._fleet.reports.hints_by_instance(row))
        )

    def receipts_to_await(self) -> list[Receipt]:
        """Return a receipt for each node whose state in the fleet is older than its record's ``seen``.

        Nothing can be claimed on these nodes until the fleet shows the states that the receipts name.
        """
        rows, version = self._fleet.rows, self._fleet.version
        return [
            Receipt(node, known.record.seen)
            for node, known in self._records.known.items()
            if node in rows and known.record.seen > version[rows[node]]
        ]


def _built_from(claim: Claim, hints: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether the reported allocation of a claim's instance was built for the claim, or later.

    An allocation without an order id was not ordered by a scheduler. It counts as built for the claim.

    Args:
        claim: The claim.
        hints: The hints of the node's allocations, by instance.
    """
    order_id = order_id_of(hints.get(claim.instance, {}))
    return not order_id or order_id >= claim.id

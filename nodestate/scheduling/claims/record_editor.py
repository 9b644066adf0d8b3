"""Applies a scheduler's edits to the known claim records, if they may be written."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from nodestate.ports import WriteStatus
from nodestate.scheduling.claims.claim_servers import ClaimServers
from nodestate.scheduling.claims.edits import Edit
from nodestate.scheduling.claims.own_claims import OwnClaims
from nodestate.scheduling.claims.record import (
    MAX_CLAIMS_COUNT,
    Claim,
    ClaimRecord,
    is_unsure,
    max_group_members,
    outstanding_claims,
    without_ended_claims,
)
from nodestate.scheduling.claims.record_cache import RecordCache
from nodestate.scheduling.claims.record_copies import with_removals
from nodestate.scheduling.claims.record_overlay import RecordOverlay
from nodestate.scheduling.fleet import Fleet


class RecordEditor:
    """Makes the record that an edit writes, or says why the edit must not be written.

    Args:
        fleet: The scheduler's fleet.
        servers: The servers that store the records.
        records: The known records.
        overlay: Tells which claims are allocations.
        own: The claims that the scheduler holds.
    """

    def __init__(
        self, fleet: Fleet, servers: ClaimServers, records: RecordCache, overlay: RecordOverlay, own: OwnClaims
    ) -> None:
        self._fleet = fleet
        """The nodes' free resources and versions."""
        self._servers = servers
        """The servers of the records."""
        self._records = records
        """The known records."""
        self._overlay = overlay
        """Tells which claims are allocations."""
        self._own = own
        """The claims that the scheduler holds."""

    def edited(self, node: str, edit: Edit, now: float, *, was_read: bool) -> ClaimRecord | WriteStatus:
        """Return the known record with the edit applied, or the reason why the edit must not be written.

        The fleet shows the edit already, except if the record ``was_read`` since the edit was made.

        Returns ``CONFLICT``, as after a lost compare-and-swap, in these cases:

        - The node's record is unknown.
        - There are new claims, and the fleet does not have the node, or has no room for them, or has a state of the
          node that is older than the record's ``seen``.
        - A new claim avoids unsure records, and the record is unsure.
        - A new claim has a deadline by a clock that was set since.
        - A claim that is renewed is no longer held: another scheduler removed it, or it expired.

        Returns ``FULL`` if the record would have more than ``MAX_CLAIMS_COUNT`` claims.
        """
        known, row = self._records.known.get(node), self._fleet.rows.get(node)
        if (
            known is None
            or (edit.add and (row is None or edit.clock_was_set))
            or not edit.renewed <= self._own.on(node).keys()
            or (edit.avoid_unsure and (is_unsure(known.record, now) or not known.is_whole))
        ):
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
        if self._servers.copies > 1:
            copies = self._servers.copies if known.is_whole else 1
            return with_removals(record, known.record, now, settled=known.settled, copies=copies)
        return record if record.copies == 1 else msgspec.structs.replace(record, copies=1)

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

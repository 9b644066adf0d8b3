"""The reconciler: any scheduler finishes the operations of a scheduler that died, from the reports of the agents.

Three things are repaired:

- An instance is on two nodes, because it was migrated, or booted twice. The authoritative allocation (see
  ``order_ids``) stays and the others are ended, unless the node with the authoritative one is unresponsive.
- All members of a reservation are built, and some lack the hint ``placed``. They get it.
- Some members of a reservation are missing, none has the hint ``placed``, and no claim is left that could become a
  member. The members that were built are ended. If one member has the hint, all members were there once, so a missing
  one was ended on purpose, and nothing is done.

A scheduler may still be at work on an operation that looks unfinished, so nothing is repaired until it was seen in the
same state for ``grace_s``. If a claim server is down we cannot tell whether claims remain, so we wait. We check for
claims twice, ``REASSERT_S`` apart: by then their holders have written lost claims again, and the view shows members
whose claims have been dropped.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from nodestate.model import Receipt
from nodestate.scheduling.claims import REASSERT_S, ClaimTable
from nodestate.scheduling.fleet import Fleet, PlacementMark

Marks = Mapping[tuple[int, str], PlacementMark]
"""The members of one reservation that a view shows: their placement marks, by (row, instance)."""


class RepairAction(NamedTuple):
    """One order that repairs an unfinished operation.

    ``set_placed``: give the instance on the node the hint ``placed``; False: end it there.
    """

    node: str
    instance: str
    set_placed: bool


class Reconciler:
    """The unfinished operations that one scheduler sees, and since when.

    Args:
        fleet: The nodes as the last view shows them.
        claim_table: The claims of this scheduler and of others.
        grace_s: Seconds for which something must look unfinished before it is repaired.
    """

    def __init__(self, fleet: Fleet, claim_table: ClaimTable, grace_s: float) -> None:
        self._fleet = fleet  # the nodes as the last view shows them
        self._claim_table = claim_table  # the claims of this scheduler and of others
        self._grace_s = grace_s  # how long something must look unfinished
        self._since: dict[str, float] = {}  # when each unfinished state was seen first, in monotonic seconds
        # When a reservation was first seen without claims, and the receipts to await from then on.
        self._unclaimed: dict[str, tuple[float, list[Receipt]]] = {}

    def pending_actions(self, now: float) -> list[RepairAction]:
        """Return the repairs that are due.

        Args:
            now: Monotonic seconds.
        """
        fleet = self._fleet
        duplicates = fleet.instances.duplicates()
        unfinished = {
            reservation: marks
            for reservation, marks in fleet.placement_marks.by_reservation.items()
            if not all(mark.placed for mark in marks.values())
        }
        states = {one: f"{'all' if is_complete(marks) else 'some'} of {one}" for one, marks in unfinished.items()}
        seen = {*(f"instance {instance}" for instance in duplicates), *states.values()}
        self._since = {state: self._since.get(state, now) for state in seen}
        due = {state for state, since in self._since.items() if now - since >= self._grace_s}
        actions: list[RepairAction] = []
        for instance, rows in duplicates.items():
            if f"instance {instance}" in due:
                actions += self._end_copies(instance, rows)
        overdue = {reservation: marks for reservation, marks in unfinished.items() if states[reservation] in due}
        # A claim of a missing member may be on any node, so the records of all nodes are read.
        claims_known = all(map(is_complete, overdue.values())) or self._claim_table.read_records(list(fleet.names))
        self._unclaimed = {one: seen for one, seen in self._unclaimed.items() if one in overdue}
        for reservation, marks in overdue.items():
            if is_complete(marks) or (claims_known and self._is_unclaimed(reservation, now)):
                actions += self._finish_reservation(marks)
        return actions

    def _end_copies(self, instance: str, rows: Collection[int]) -> list[RepairAction]:
        """End an instance on all rows but the authoritative one; nowhere if that one is unknown or unresponsive."""
        authoritative = self._fleet.authoritative_row(instance)
        if authoritative is None or not self._fleet.is_responsive(authoritative):
            return []
        names = self._fleet.names
        return [RepairAction(names[row], instance, set_placed=False) for row in rows if row != authoritative]

    def _finish_reservation(self, marks: Marks) -> list[RepairAction]:
        """Mark the members of a complete reservation as placed, or end the members of an incomplete one."""
        names = self._fleet.names
        complete = is_complete(marks)
        return [
            RepairAction(names[row], instance, set_placed=complete)
            for (row, instance), mark in marks.items()
            if not (complete and mark.placed)
        ]

    def _is_unclaimed(self, reservation: str, now: float) -> bool:
        """Whether no claim was left that may still become a member, both now and at a check at least REASSERT_S ago.

        Also False until the view shows the node states that claim records named at the first check.
        """
        if self._is_claimed(reservation):
            self._unclaimed.pop(reservation, None)
            return False
        since, receipts = self._unclaimed.setdefault(reservation, (now, self._claim_table.receipts_to_await()))
        version, rows = self._fleet.version, self._fleet.rows
        return now - since >= REASSERT_S and all(version[rows[node]] >= newest for node, newest in receipts)

    def _is_claimed(self, reservation: str) -> bool:
        """Whether a claim is left that may still become a member."""
        return any(
            claim.reservation == reservation and claim.until > self._claim_table.servers.time(node)
            and not self._claim_table.is_allocated(node, claim)
            for node, known in self._claim_table.records.known.items()
            for claim in known.record.claims
        )  # fmt: skip


def is_complete(marks: Marks) -> bool:
    """Whether all members of a reservation are built, or were at some time (then one of them is marked as placed)."""
    members_count = next(iter(marks.values())).members
    was_complete = any(mark.placed for mark in marks.values())
    return was_complete or len({instance for _, instance in marks}) >= members_count

"""The reconciler: finishes the operations that another scheduler left unfinished when it died.

Every scheduler has a reconciler. It sees unfinished operations in the reports of the agents, and repairs three kinds:

- An instance is on two nodes, because it was migrated or booted twice. The authoritative allocation (see ``order_ids``)
  stays and all other allocations are ended, unless the node with the authoritative one is unresponsive, or that one is
  a member of a reservation of which other members are missing: it may itself be ended soon.
- All members of a reservation are built, but some of their allocations do not have the hint ``placed``. They get it.
- Some members of a reservation are missing, none has the hint ``placed``, and no claim is left that could become a
  member. The members that were built are ended.

If at least one member has the hint ``placed``, all members were there once. A missing member was then ended on purpose,
so the rest is not ended but gets the hint.

A scheduler may still be working on an operation that looks unfinished. So an operation is repaired only after it was
seen in the same state for ``grace_s`` seconds.

The search for remaining claims has two more rules. If a claim server is down, claims may be stored there, so the
reconciler waits. And it checks twice, at least ``REASSERT_S`` apart: in the meantime, holders write lost claims again,
and the view advances to the node states that show members whose claims were dropped already.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from nodestate.model import Receipt
from nodestate.scheduling.claims import REASSERT_S, ClaimTable
from nodestate.scheduling.fleet import Fleet, PlacementMark

Marks = Mapping[tuple[int, str], PlacementMark]
"""The placement marks of those members of one reservation that a view shows, by (row, instance)."""


class RepairAction(NamedTuple):
    """One order that repairs an unfinished operation."""

    node: str
    """The node that has the instance."""
    instance: str
    """The instance's id."""
    set_placed: bool
    """True: add the hint ``placed`` to the allocation. False: end the instance on this node."""


class Reconciler:
    """Finds unfinished operations in the views of one scheduler, and decides how to repair them.

    Args:
        fleet: The nodes as the last view shows them.
        claim_table: The claims of this scheduler and of others.
        grace_s: Seconds for which an operation must be seen in the same state before it is repaired.
    """

    def __init__(self, fleet: Fleet, claim_table: ClaimTable, grace_s: float) -> None:
        self._fleet = fleet  # the nodes as the last view shows them
        self._claim_table = claim_table  # the claims of this scheduler and of others
        self._grace_s = grace_s  # how long an operation must be seen in the same state
        self._since: dict[str, float] = {}  # by unfinished state: when it was first seen, in monotonic seconds
        # By reservation: when it was first seen without claims, and the receipts that were to be awaited at that time.
        self._unclaimed: dict[str, tuple[float, list[Receipt]]] = {}

    def pending_actions(self, now: float) -> list[RepairAction]:
        """Return the repairs that are due: of the operations that were in the same unfinished state for ``grace_s``.

        Args:
            now: The present time in monotonic seconds.
        """
        fleet = self._fleet
        duplicates = fleet.instances.duplicates()
        unfinished = {
            reservation: marks
            for reservation, marks in fleet.placement_marks.by_reservation.items()
            if not all(mark.placed for mark in marks.values())
        }
        states = {one: f"{'all' if all_members_built(marks) else 'some'} of {one}" for one, marks in unfinished.items()}
        seen = {*(f"instance {instance}" for instance in duplicates), *states.values()}
        self._since = {state: self._since.get(state, now) for state in seen}
        due = {state for state, since in self._since.items() if now - since >= self._grace_s}
        actions: list[RepairAction] = []
        for instance, rows in duplicates.items():
            if f"instance {instance}" in due:
                actions += self._end_copies(instance, rows, unfinished.values())
        overdue = {reservation: marks for reservation, marks in unfinished.items() if states[reservation] in due}
        # A claim of a missing member may be on any node, so the records of all nodes are read.
        claims_known = all(map(all_members_built, overdue.values())) or self._claim_table.read_records(
            list(fleet.names)
        )
        self._unclaimed = {one: seen for one, seen in self._unclaimed.items() if one in overdue}
        for reservation, marks in overdue.items():
            if all_members_built(marks) or (claims_known and self._is_unclaimed(reservation, now)):
                actions += self._finish_reservation(marks)
        return actions

    def _end_copies(self, instance: str, rows: Collection[int], unfinished: Iterable[Marks]) -> list[RepairAction]:
        """Return the actions that end an instance on all of these rows, except the authoritative one.

        Returns no actions if no allocation is authoritative, if the node with the authoritative one is unresponsive, or
        if that one is a member of a reservation of which other members are missing.

        Args:
            instance: The instance's id.
            rows: The rows that report it.
            unfinished: The marks of each reservation of which a member lacks the hint ``placed``.
        """
        authoritative = self._fleet.authoritative_row(instance)
        if authoritative is None or not self._fleet.is_responsive(authoritative):
            return []
        if any((authoritative, instance) in marks and not all_members_built(marks) for marks in unfinished):
            return []
        names = self._fleet.names
        return [RepairAction(names[row], instance, set_placed=False) for row in rows if row != authoritative]

    def _finish_reservation(self, marks: Marks) -> list[RepairAction]:
        """Return the actions that finish a reservation.

        If all members are, or once were, built, they get the hint ``placed``. Otherwise the built members are ended.
        """
        names = self._fleet.names
        all_built = all_members_built(marks)
        return [
            RepairAction(names[row], instance, set_placed=all_built)
            for (row, instance), mark in marks.items()
            if not (all_built and mark.placed)
        ]

    def _is_unclaimed(self, reservation: str, now: float) -> bool:
        """Return whether no claim of a reservation is left that may still become a member.

        Returns True only if no claim was found at two checks at least ``REASSERT_S`` apart. Returns False as well until
        the view shows the node states that the claim records required at the first check (their ``seen``): such a state
        may show a member whose claim was dropped already.

        Args:
            reservation: The reservation's id.
            now: The present time in monotonic seconds.
        """
        if self._is_claimed(reservation):
            self._unclaimed.pop(reservation, None)
            return False
        since, receipts = self._unclaimed.setdefault(reservation, (now, self._claim_table.receipts_to_await()))
        version, rows = self._fleet.version, self._fleet.rows
        return now - since >= REASSERT_S and all(version[rows[node]] >= newest for node, newest in receipts)

    def _is_claimed(self, reservation: str) -> bool:
        """Return whether a known claim record has a live claim of a reservation that has not become an allocation."""
        return any(
            claim.reservation == reservation and claim.until > self._claim_table.servers.time(node)
            and not self._claim_table.is_allocated(node, claim)
            for node, known in self._claim_table.records.known.items()
            for claim in known.record.claims
        )  # fmt: skip


def all_members_built(marks: Marks) -> bool:
    """Return whether all members of a reservation are built, or were built at some time.

    If a member has the hint ``placed``, all members were built at some time.

    Args:
        marks: The marks of the members that a view shows; not empty.
    """
    members_count = next(iter(marks.values())).members
    was_complete = any(mark.placed for mark in marks.values())
    return was_complete or len({instance for _, instance in marks}) >= members_count

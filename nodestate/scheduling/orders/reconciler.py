"""Reconciler: what a scheduler that died left half done is finished by any other, from what the agents report.

- An instance on two nodes, as it was moved, or booted twice: the allocation that counts stays (``identities``), the others are
  ended; not before its node is heard.
- A reservation whose members are all there, and not all marked as placed: they are marked. One that has a member so
  marked was whole once; what is missing since was ended on purpose.
- A reservation of which members are missing, none is marked, and no claim is left that could become one: what is there is
  ended. Where a server of claims does not answer nobody knows of that, so it waits; and it looks twice, so that claims that were
  lost are put back, and members whose claims are settled are in the view.

Nothing is done before it was seen for ``grace_s``: whoever is at it may be about to finish it. That some are missing counts
from when the first was: what is seen for that long in one state, not in any.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from nodestate.model import Receipt
from nodestate.scheduling.claims import REASSERT_S
from nodestate.scheduling.claims.claim_table import ClaimTable
from nodestate.scheduling.fleet import Fleet, PlacementMark


class RepairAction(NamedTuple):
    """What to tell an agent: to end the instance, or (``placed``) to mark it as placed."""

    node: str
    instance: str
    placed: bool


class Reconciler:
    """What one scheduler saw half done, and since when."""

    def __init__(self, fleet: Fleet, claim_table: ClaimTable, grace_s: float) -> None:
        self._fleet = fleet
        self._claim_table = claim_table
        self._grace_s = grace_s
        self._since: dict[str, float] = {}
        self._unclaimed: dict[str, tuple[float, list[Receipt]]] = {}

    def due(self, now: float) -> list[RepairAction]:
        """What is to be done by now."""
        fleet = self._fleet
        doubled = fleet.instances.duplicates()
        gangs = {
            number: gang
            for number, gang in fleet.placement_marks.by_reservation.items()
            if not all(m.placed for m in gang.values())
        }
        names = {number: f"{'all' if is_whole(gang) else 'some'} of {number}" for number, gang in gangs.items()}
        found = {*(f"instance {name}" for name in doubled), *names.values()}
        self._since = {what: self._since.get(what, now) for what in found}
        over = {what for what, since in self._since.items() if now - since >= self._grace_s}
        duties: list[RepairAction] = []
        for instance, rows in doubled.items():
            if f"instance {instance}" in over:
                duties += self._of_doubled(instance, rows)
        ripe = {number: gang for number, gang in gangs.items() if names[number] in over}
        # Claims may be on any node, and who wrote them tells nobody.
        known = all(map(is_whole, ripe.values())) or self._claim_table.read_records(list(fleet.names))
        self._unclaimed = {number: seen for number, seen in self._unclaimed.items() if number in ripe}
        for number, gang in ripe.items():
            if is_whole(gang) or (known and self._is_unclaimed(number, now)):
                duties += self._of_gang(gang)
        return duties

    def _of_doubled(self, instance: str, rows: Collection[int]) -> list[RepairAction]:
        counting = self._fleet.authoritative_row(instance)
        if counting is None or not self._fleet.is_responsive(counting):
            return []
        names = self._fleet.names
        return [RepairAction(names[row], instance, False) for row in rows if row != counting]

    def _of_gang(self, gang: Mapping[tuple[int, str], PlacementMark]) -> list[RepairAction]:
        names = self._fleet.names
        whole = is_whole(gang)
        return [
            RepairAction(names[row], instance, whole)
            for (row, instance), mark in gang.items()
            if not (whole and mark.placed)
        ]

    def _is_unclaimed(self, number: str, now: float) -> bool:
        """Whether no claim was left that may still become a member, both now and one look before; and the view has what others saw
        of claims by then.
        """
        if self._claimed(number):
            self._unclaimed.pop(number, None)
            return False
        since, seen = self._unclaimed.setdefault(number, (now, self._claim_table.receipts_to_await()))
        version, rows = self._fleet.version, self._fleet.rows
        return now - since >= REASSERT_S and all(version[rows[node]] >= newest for node, newest in seen)

    def _claimed(self, number: str) -> bool:
        """Whether a claim is left that may still become a member."""
        return any(
            claim.reservation == number and claim.until > self._claim_table.servers.time(node)
            and not self._claim_table.is_allocated(node, claim)
            for node, known in self._claim_table.records.known.items()
            for claim in known.record.claims
        )  # fmt: skip


def is_whole(gang: Mapping[tuple[int, str], PlacementMark]) -> bool:
    """Whether all members of a reservation are there, or were."""
    members = next(iter(gang.values())).members
    return any(mark.placed for mark in gang.values()) or len({instance for _, instance in gang}) >= members

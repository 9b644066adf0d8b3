"""The claim overlay: the differences between the fleet and the nodes' reports.

A node's report does not include instances that are only claimed: the overlay adds them. And while a migration chooses a
node, the instance itself must not count: the overlay excludes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from nodestate.model.group_policy import GroupPolicy


@dataclass(slots=True)
class OutstandingClaims:
    """The sum of all claims on one node that have not become allocations.

    The node's report does not include these claims, so the fleet subtracts them from the node's free amounts.
    """

    amounts: dict[str, int] = field(default_factory=dict)
    """The sum of the claimed amounts of each resource class."""
    tenants: dict[str, str | None] = field(default_factory=dict)
    """The claimed instances: a map from the id of each instance to the name of its group, or None without a group."""
    blocked: bool = False
    """Whether new claims on the node must wait for a newer view, because the claim record's ``seen`` is newer than the
    fleet's state of the node.
    """
    policies: dict[str, dict[str, GroupPolicy]] = field(default_factory=dict)
    """For each group the policies of its claimed members, by instance."""


class Exclusion(NamedTuple):
    """An instance that the fleet temporarily does not count on a row, as if the instance were not on that node."""

    row: int
    """The row of the node that reports the instance."""
    instance: str
    """The instance's id."""
    amounts: Mapping[str, int]
    """The amount of each resource class that the instance has on the node. The fleet shows these amounts as free."""
    order: str = ""
    """The id of the order that built the instance on the node in its present form; empty if no scheduler ordered it."""


class ClaimOverlay:
    """The outstanding claims and the exclusions of each row of a fleet."""

    def __init__(self) -> None:
        self.outstanding: dict[int, OutstandingClaims] = {}
        """The outstanding claims of each row. Rows without claims are missing. Only ``replace`` changes the map."""
        self._exclusions: dict[int, list[Exclusion]] = {}
        """The exclusions of each row that were added and not yet removed."""

    def replace(self, row: int, outstanding: OutstandingClaims | None) -> None:
        """Set the outstanding claims of a row, in place of the earlier ones. None means that no claims are left."""
        if outstanding is None:
            self.outstanding.pop(row, None)
        else:
            self.outstanding[row] = outstanding

    def add_exclusion(self, exclusion: Exclusion) -> None:
        """Stop counting an instance on its row, until ``remove_exclusion`` is called with the same exclusion."""
        self._exclusions.setdefault(exclusion.row, []).append(exclusion)

    def remove_exclusion(self, exclusion: Exclusion) -> None:
        """Count the instance on its row again. The exclusion must have been added before."""
        exclusions = self._exclusions[exclusion.row]
        exclusions.remove(exclusion)
        if not exclusions:
            del self._exclusions[exclusion.row]

    def net_claimed(self, resource: str, row: int) -> int:
        """Return the amount of a resource class to subtract from the row's reported free amount.

        This is the sum of the claims on the row, minus the amounts of the excluded instances. It may be negative.
        """
        claimed = self.outstanding[row].amounts.get(resource, 0) if row in self.outstanding else 0
        return claimed - sum(one.amounts.get(resource, 0) for one in self._exclusions.get(row, ()))

    def is_blocked(self, row: int) -> bool:
        """Return whether claims on a row must wait for a newer view of its node (``OutstandingClaims.blocked``)."""
        outstanding = self.outstanding.get(row)
        return outstanding is not None and outstanding.blocked

    def rows_claiming(self, resource: str) -> list[int]:
        """Return the rows on which an amount of a resource class is claimed."""
        return [row for row, outstanding in self.outstanding.items() if resource in outstanding.amounts]

    def instances(self, row: int, reported: Mapping[str, str | None]) -> Mapping[str, str | None]:
        """Return the instances on a row: the reported and the claimed instances, without the excluded ones.

        Args:
            row: The row.
            reported: The instances that the row's node reports: a map from the id of each instance to the name of its
                group, or None without a group.

        Returns:
            A map of the same form.
        """
        outstanding = self.outstanding.get(row)
        present = {**outstanding.tenants, **reported} if outstanding is not None else reported
        if row in self._exclusions:
            absent = {one.instance for one in self._exclusions[row]}
            present = {instance: group for instance, group in present.items() if instance not in absent}
        return present

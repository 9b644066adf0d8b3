"""The claim overlay: the claims to add to the nodes' reports, and the instances to leave out of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(slots=True)
class OutstandingClaims:
    """The claims on one node that its reported allocations do not include yet, added up."""

    amounts: dict[str, int] = field(default_factory=dict)
    """Claimed amounts by resource class."""
    tenants: dict[str, str | None] = field(default_factory=dict)
    """Claimed instances with their groups."""
    blocked: bool = False
    """Whether nothing more may be claimed on the node until a newer state of it is read."""


class Exclusion(NamedTuple):
    """An instance to leave out of its row for a while, as if the instance were not there."""

    row: int
    """The row of the node that reports the instance."""
    instance: str
    """The instance's id."""
    amounts: Mapping[str, int]
    """The resources that the instance has on the node, by class."""
    order: str = ""
    """The id of the order that built the instance as it is."""


class ClaimOverlay:
    """Outstanding claims and exclusions, by row."""

    def __init__(self) -> None:
        self.outstanding: dict[int, OutstandingClaims] = {}
        """The outstanding claims of each row that has any. To be read only."""
        self._exclusions: dict[int, list[Exclusion]] = {}
        """The exclusions of each row that are in force."""

    def replace(self, row: int, outstanding: OutstandingClaims | None) -> None:
        """Set the outstanding claims of a row in place of the earlier ones; None removes them."""
        if outstanding is None:
            self.outstanding.pop(row, None)
        else:
            self.outstanding[row] = outstanding

    def add_exclusion(self, exclusion: Exclusion) -> None:
        """Leave an instance out of its row from now on."""
        self._exclusions.setdefault(exclusion.row, []).append(exclusion)

    def remove_exclusion(self, exclusion: Exclusion) -> None:
        """End an exclusion that was added."""
        exclusions = self._exclusions[exclusion.row]
        exclusions.remove(exclusion)
        if not exclusions:
            del self._exclusions[exclusion.row]

    def amount(self, resource: str, row: int) -> int:
        """The claimed less the excluded amount of a resource class on a row."""
        claimed = self.outstanding[row].amounts.get(resource, 0) if row in self.outstanding else 0
        return claimed - sum(one.amounts.get(resource, 0) for one in self._exclusions.get(row, ()))

    def is_blocked(self, row: int) -> bool:
        """Whether nothing may be claimed on a row until a newer state of its node is read."""
        outstanding = self.outstanding.get(row)
        return outstanding is not None and outstanding.blocked

    def rows_claiming(self, resource: str) -> list[int]:
        """The rows on which an amount of a resource class is claimed."""
        return [row for row, outstanding in self.outstanding.items() if resource in outstanding.amounts]

    def instances(self, row: int, reported: Mapping[str, str | None]) -> Mapping[str, str | None]:
        """The instances on a row, with their groups: the reported and the claimed ones, without the excluded ones."""
        outstanding = self.outstanding.get(row)
        present = {**outstanding.tenants, **reported} if outstanding is not None else reported
        if row in self._exclusions:
            absent = {one.instance for one in self._exclusions[row]}
            present = {instance: group for instance, group in present.items() if instance not in absent}
        return present

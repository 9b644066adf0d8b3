"""Placement marks: the hints that say which reservation an allocation belongs to.

A mark also says whether a scheduler has seen all members of the reservation placed. If the scheduler that confirms a
reservation dies, another scheduler reads the marks: they show which members exist, and how many should exist.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class PlacementMark(msgspec.Struct, frozen=True, gc=False):
    """The hints of one allocation that concern its reservation. Schedulers write them, and agents report them."""

    reservation: str = ""
    """The id of the reservation; empty if the instance was booted without a reservation."""
    members: int = 0
    """How many members the reservation has, whether they are placed or not."""
    placed: bool = False
    """Whether a scheduler has seen that all members of the reservation are placed."""


class PlacementMarks:
    """The placement marks of all reported allocations, by reservation."""

    def __init__(self) -> None:
        self.by_reservation: dict[str, dict[tuple[int, str], PlacementMark]] = {}
        """The placement marks of each reservation: ``by_reservation[reservation][row, instance]``.

        Callers may only read it.
        """
        self._by_row: dict[int, list[tuple[str, str]]] = {}
        """The keys of each row's placement marks in ``by_reservation``, as pairs (reservation, instance)."""

    def replace(self, row: int, marks: Iterable[tuple[str, PlacementMark]]) -> None:
        """Set the placement marks of a row, in place of the row's earlier marks.

        Args:
            row: The row.
            marks: Each instance that the row's node reports, with its mark. Marks without a reservation are ignored.
        """
        for reservation, instance in self._by_row.pop(row, ()):
            others = self.by_reservation[reservation]
            del others[row, instance]
            if not others:
                del self.by_reservation[reservation]
        for instance, mark in marks:
            if mark.reservation:
                self._by_row.setdefault(row, []).append((mark.reservation, instance))
                self.by_reservation.setdefault(mark.reservation, {})[row, instance] = mark

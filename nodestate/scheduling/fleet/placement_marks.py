"""Placement marks: which allocations belong to which reservation, and whether all its members were seen placed."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class PlacementMark(msgspec.Struct, frozen=True, gc=False):
    """The part of an allocation's hints in which schedulers note the reservation that the instance was placed with."""

    reservation: str = ""
    """The reservation's id; empty if the instance was booted by itself."""
    members: int = 0
    """How many members the reservation has."""
    placed: bool = False
    """Whether a scheduler saw that all members are placed."""


class PlacementMarks:
    """The marks of all instances that nodes report, by reservation."""

    def __init__(self) -> None:
        self.by_reservation: dict[str, dict[tuple[int, str], PlacementMark]] = {}
        """For each reservation its marks by row and instance. To be read only."""
        self._by_row: dict[int, list[tuple[str, str]]] = {}
        """For each row the (reservation, instance) pairs of its marks."""

    def replace(self, row: int, marks: Iterable[tuple[str, PlacementMark]]) -> None:
        """Note the marks that a row's node reports, as (instance, mark), in place of its earlier marks."""
        for reservation, instance in self._by_row.pop(row, ()):
            others = self.by_reservation[reservation]
            del others[row, instance]
            if not others:
                del self.by_reservation[reservation]
        for instance, mark in marks:
            if mark.reservation:
                self._by_row.setdefault(row, []).append((mark.reservation, instance))
                self.by_reservation.setdefault(mark.reservation, {})[row, instance] = mark

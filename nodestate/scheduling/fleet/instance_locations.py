"""The locations of instances: the rows on which each instance is reported or claimed.

From these locations follows how many members of a group are on each row.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence


class InstanceLocations:
    """The rows of every instance.

    Most instances are on one row. An instance is on several rows while it migrates, or after it was built twice.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.groups: dict[str, dict[int, int]] = {}
        """The number of members of each group that are reported or claimed on each row: ``groups[group][row]``.

        Callers may only read it.
        """
        self.reported: list[dict[str, str | None]] = []
        """The instances that each row's node reports: ``reported[row]`` maps each instance to its group's name or None.

        The fleet assigns the elements.
        """
        self._names = names
        """The name of each row's node. The list belongs to the fleet's columns, which append new nodes to it."""
        self._row: dict[str, int] = {}
        """For each instance one of the rows on which it is reported or claimed."""
        self._other_rows: dict[str, set[int]] = {}
        """For each instance on several rows, the rows other than the one in ``_row``."""

    def rows_with(self, instance: str) -> list[int]:
        """Return the rows on which an instance is reported or claimed, in ascending order."""
        if instance not in self._row:
            return []
        return sorted({self._row[instance], *self._other_rows.get(instance, ())})

    def reporting_rows(self, instance: str) -> list[int]:
        """Return the rows whose nodes report an instance, in ascending order, without rows that only have a claim."""
        return [row for row in self.rows_with(instance) if instance in self.reported[row]]

    def reporting_node(self, instance: str, exclude: Collection[int] = ()) -> str:
        """Return the name of a node that reports an instance. Rows in ``exclude`` are ignored.

        Returns an empty text if no node reports the instance. If several nodes report it, the node of the lowest row is
        returned.
        """
        rows = (row for row in self.reporting_rows(instance) if row not in exclude)
        return next((self._names[row] for row in rows), "")

    def duplicates(self) -> dict[str, list[int]]:
        """Return the instances that more than one node reports, each with the rows of these nodes."""
        found = {}
        for instance in self._other_rows:
            rows = self.reporting_rows(instance)
            if len(rows) > 1:
                found[instance] = rows
        return found

    def update(self, row: int, before: Mapping[str, str | None], now: Mapping[str, str | None]) -> None:
        """Replace the instances on a row.

        Args:
            row: The row.
            before: The instances that were on the row until now: a map from the id of each instance to the name of its
                group, or None without a group.
            now: The instances that are on the row from now on, as a map of the same form.
        """
        if before == now:
            return
        for instance, group in before.items() - now.items():
            if group is not None:
                counts = self.groups[group]
                counts[row] -= 1
                if not counts[row]:
                    del counts[row]
                    if not counts:
                        del self.groups[group]
            if instance not in now:
                self._remove(instance, row)
        for instance, group in now.items() - before.items():
            if group is not None:
                counts = self.groups.setdefault(group, {})
                counts[row] = counts.get(row, 0) + 1
            if instance not in before and self._row.setdefault(instance, row) != row:
                self._other_rows.setdefault(instance, set()).add(row)

    def _remove(self, instance: str, row: int) -> None:
        """Note that an instance is no longer on one of its rows."""
        others = self._other_rows.get(instance)
        if self._row[instance] != row:
            assert others is not None, f"{instance} is on row {self._row[instance]}, not on {row}"
            others.discard(row)
        elif others:
            self._row[instance] = others.pop()
        else:
            del self._row[instance]
        if others is not None and not others:
            del self._other_rows[instance]

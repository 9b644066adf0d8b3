"""The locations of instances: their rows, by the nodes' reports and by claims, and the members of each group by row."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence


class InstanceLocations:
    """The rows of every instance: one row, or several while the instance migrates or after it was built twice."""

    def __init__(self, names: Sequence[str]) -> None:
        self.groups: dict[str, dict[int, int]] = {}
        """For each group the number of its members on each row; claimed members count. To be read only."""
        self.reported: list[dict[str, str | None]] = []
        """For each row the instances that its node reports, with their groups. Assigned by the fleet, row by row."""
        self._names = names
        """The node of each row; shared with the fleet's columns."""
        self._row: dict[str, int] = {}
        """One row of each instance that is anywhere."""
        self._other_rows: dict[str, set[int]] = {}
        """The other rows of an instance that is on several."""

    def rows_with(self, instance: str) -> list[int]:
        """The rows that an instance is on, or claimed on, in ascending order."""
        if instance not in self._row:
            return []
        return sorted({self._row[instance], *self._other_rows.get(instance, ())})

    def reporting_rows(self, instance: str) -> list[int]:
        """The rows whose nodes report this instance, in ascending order."""
        return [row for row in self.rows_with(instance) if instance in self.reported[row]]

    def reporting_node(self, instance: str, exclude: Collection[int] = ()) -> str:
        """The name of a node that reports this instance and whose row is not in ``exclude``; empty if there is none."""
        rows = (row for row in self.reporting_rows(instance) if row not in exclude)
        return next((self._names[row] for row in rows), "")

    def duplicates(self) -> dict[str, list[int]]:
        """The instances that more than one node reports, with the rows of these nodes."""
        found = {}
        for instance in self._other_rows:
            rows = self.reporting_rows(instance)
            if len(rows) > 1:
                found[instance] = rows
        return found

    def update(self, row: int, before: Mapping[str, str | None], now: Mapping[str, str | None]) -> None:
        """Note that the instances on a row, with their groups, are ``now`` and no longer ``before``."""
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

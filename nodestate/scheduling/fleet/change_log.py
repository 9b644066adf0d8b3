"""The rows of a fleet that changed, in the order of the changes: a ranking weighs only those again."""

from __future__ import annotations

from collections.abc import Iterable


class ChangeLog:
    """The newest changes of a fleet, one row number each. Old changes are dropped, and ``since`` tells if so."""

    def __init__(self) -> None:
        self.count = 0
        """Changes since the start, dropped ones included."""
        self._rows: list[int] = []
        """The row of each change that is still kept, the newest last."""

    def since(self, count: int) -> list[int] | None:
        """The rows that changed after ``self.count`` was ``count``; None if those changes are no longer kept."""
        begin = len(self._rows) - (self.count - count)
        return self._rows[begin:] if begin >= 0 else None

    def note(self, rows: Iterable[int], capacity: int) -> None:
        """Add one change for each of ``rows``.

        Args:
            rows: Row numbers; a row that occurs twice counts as two changes.
            capacity: Length of the fleet's arrays; if the log is more than twice as long, half of it is dropped.
        """
        before = len(self._rows)
        self._rows += rows
        self.count += len(self._rows) - before
        if len(self._rows) > 2 * capacity:
            del self._rows[: len(self._rows) // 2]

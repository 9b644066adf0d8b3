"""The change log of a fleet: the rows that changed, in order. A ranking weighs only these rows again."""

from __future__ import annotations

from collections.abc import Iterable


class ChangeLog:
    """Which rows of a fleet changed, the newest change last.

    If the log becomes too long, its older half is dropped. A user of the log that has not read that half must assume
    that every row changed.
    """

    def __init__(self) -> None:
        self.count = 0
        """Number of changes since the fleet was created, including the changes that were dropped."""
        self._rows: list[int] = []
        """The row of each change that was not dropped, the newest change last."""

    def since(self, count: int) -> list[int] | None:
        """Return the rows that changed after ``self.count`` had the value ``count``. A row may occur several times.

        Returns None if some of these changes were dropped. The caller must then assume that every row changed.
        """
        begin = len(self._rows) - (self.count - count)
        return self._rows[begin:] if begin >= 0 else None

    def note(self, rows: Iterable[int], capacity: int) -> None:
        """Add one change for each of ``rows``.

        Args:
            rows: Row numbers. A row that occurs twice counts as two changes.
            capacity: The length of the fleet's arrays. If the log is more than twice as long, the older half of the log
                is dropped.
        """
        before = len(self._rows)
        self._rows += rows
        self.count += len(self._rows) - before
        if len(self._rows) > 2 * capacity:
            del self._rows[: len(self._rows) // 2]

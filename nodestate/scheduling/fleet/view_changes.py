"""View changes: finds the node records in which a view differs from the view before it."""

from __future__ import annotations

from collections.abc import Collection

from nodestate.model import NodeRecord
from nodestate.view.table import Table
from nodestate.view.view import View


class ViewChanges:
    """Compares each view with the previous view that was given to ``next``.

    The tables of two views share the objects of unchanged rows, so a comparison costs time for changed rows only.
    """

    def __init__(self) -> None:
        self._tables: tuple[Table | None, ...] = ()
        """The tables of the previous view, one for each partition; None for a partition that could not be read."""

    def next(self, view: View, names: Collection[str]) -> list[NodeRecord]:
        """Return the records of ``view`` that are new or have changed since the view of the previous call.

        For each node in ``names`` that ``view`` does not contain, a tombstone is returned, too. A view may lose nodes
        because a partition can no longer be read, for example. At the first call, all records are new.

        Args:
            view: The new view.
            names: All nodes that the caller knows.
        """
        tables = tuple(partition.table for partition in view.partitions)
        olds = self._tables if len(self._tables) == len(tables) else (None,) * len(tables)
        records: list[NodeRecord] = []
        nodes_may_be_gone = len(self._tables) != len(tables)
        for table, old in zip(tables, olds, strict=True):
            if table is old:
                continue
            nodes_may_be_gone |= old is not None and (table is None or table.slots is not old.slots)
            if table is not None:
                before = old.rows if old is not None and table.slots is old.slots else None
                records += [table.record(row) for _, row in table.rows.differing(before)]
        self._tables = tables
        if nodes_may_be_gone and names:
            there = {record.name for table in tables if table is not None for record in table.records()}
            records += [_tombstone(name) for name in names if name not in there]
        return records


def _tombstone(name: str) -> NodeRecord:
    """Make a record that says that the node is gone."""
    return NodeRecord(name, 0, 0, 0, 0, 0.0, True, "down", "", b"", b"", b"", b"")

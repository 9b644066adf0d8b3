"""The difference between two views of one reader."""

from __future__ import annotations

from nodestate.model import NEVER, NodeRecord
from nodestate.view.view import View


def changed_records(before: View, now: View) -> list[NodeRecord]:
    """Return the records of a view that are new or changed since an earlier view, tombstones included.

    The cost is that of the changes. After a switch to another design, epoch or layout, all records are compared.
    """
    changed: list[NodeRecord] = []
    same_layout = len(before.partitions) == len(now.partitions)
    for partition, state in enumerate(now.partitions):
        table = state.table
        if table is None:
            continue
        old = before.partitions[partition].table if same_layout else None
        if old is not None and old.epoch == table.epoch and before.design == now.design:
            changed += [table.record(row) for _, row in table.rows.differing(old.rows)]
            continue
        for record in table.records():
            known = before.nodes.record(record.name)
            if (known.version if known is not None else NEVER, known is not None and known.incomplete) != (
                record.version,
                record.incomplete,
            ):
                changed.append(record)
    return changed

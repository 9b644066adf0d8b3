"""The difference between two views of one reader."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from nodestate.model import NodeRecord
from nodestate.view.view import View


class ViewDifference(NamedTuple):
    """The difference between a view and an earlier one."""

    records: Sequence[NodeRecord] = ()
    """The records that are new or changed, tombstones included."""
    vanished: Sequence[str] = ()
    """Names of the nodes that the view no longer has, not even as tombstones: the store lost them."""


def view_difference(before: View, now: View) -> ViewDifference:
    """Return the difference between a view and an earlier view of the same reader.

    The cost is that of the changes. After a switch to another design, epoch or layout, all records are compared.
    """
    changed: list[NodeRecord] = []
    vanished: list[str] = []
    same_layout = before.design == now.design and len(before.partitions) == len(now.partitions)
    for partition, state in enumerate(now.partitions):
        table = state.table
        old = before.partitions[partition].table if same_layout else None
        if table is None:
            vanished += [record.name for record in old.records()] if old is not None else []
        elif old is not None and old.epoch == table.epoch:
            changed += [table.record(row) for _, row in table.rows.differing(old.rows)]
        else:
            changed += [record for record in table.records() if _differs(before.nodes.record(record.name), record)]
            if old is not None:
                vanished += [record.name for record in old.records() if table.get(record.name) is None]
    if not same_layout:
        vanished += [record.name for record in before.nodes.records() if now.nodes.record(record.name) is None]
    return ViewDifference(changed, vanished)


def _differs(old: NodeRecord | None, new: NodeRecord) -> bool:
    if old is None:
        return True
    return (old.version, old.incomplete, old.gone) != (new.version, new.incomplete, new.gone)

"""The names of the nodes in which two tables of one partition differ."""

from __future__ import annotations

from nodestate.model import NodeRecord
from nodestate.view.table import Table


def changed_nodes(before: Table | None, now: Table | None) -> set[str]:
    """Return the names of the nodes that appeared, changed or are gone between two tables of a partition.

    A node that left counts as not there, and so does a node without a state, unless it is incomplete. A node that
    became incomplete, or is complete again, counts as changed. The tables of one epoch share unchanged chunks, so the
    cost is that of the changed chunks. Tables of different epochs share nothing: all nodes of both are returned.
    """
    if now is before:
        return set()
    if before is None or now is None or before.epoch != now.epoch:
        return all_nodes(before) | all_nodes(now)
    names = set() if before.incomplete is now.incomplete else set(before.incomplete ^ now.incomplete)
    for slot, row in now.rows.differing(before.rows):
        record = _shown(now.record(row))
        old = _shown(before.at(slot)) if slot < before.size else None
        if record != old:
            names.add(now.names[slot])
    if now.size < before.size:  # the caller gave the views in the other order
        names.update(record.name for record in map(before.at, range(now.size, before.size)) if record.live)
    return names


def all_nodes(table: Table | None) -> set[str]:
    """Return the names of the nodes of a table that have a state or are incomplete."""
    return live_nodes(table) | table.incomplete if table is not None else set()


def live_nodes(table: Table | None) -> set[str]:
    """Return the names of the nodes of a table that have a state."""
    return {record.name for record in table.records() if record.live} if table is not None else set()


def _shown(record: NodeRecord) -> NodeRecord | None:
    return record if record.live else None

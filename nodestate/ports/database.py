"""The rows that a database keeps for the ``sql`` design, and the queries for them."""

from __future__ import annotations

import enum
from typing import NamedTuple

from nodestate.model import NodeRecord


class NodeRow(NamedTuple):
    """One node as a database keeps it."""

    prefix: str
    """The partition and design that the row belongs to (``keys.prefix``)."""
    epoch: int
    slot: int
    """Number of the node within its partition and epoch."""
    offset: int
    """The commit that wrote the row."""
    record: NodeRecord


class RowSelection(enum.Enum):
    """The rows of an epoch that a ``RowQuery`` selects."""

    ALL = "all"
    SINCE_OFFSET = "since"
    """Rows that the commit ``low`` or a later one wrote."""
    SLOT_RANGE = "between"
    """Rows in the slots from ``low`` to before ``high``."""


class RowQuery(NamedTuple):
    """A query for rows of one partition.

    ``Store.fetch`` takes it in place of a key; ``Put.DELETE_ROWS`` deletes the rows that it selects. The answer to a
    fetch is an item whose value is a packed ``store.wire.FoundRows``. Only databases answer row queries.
    """

    prefix: str
    """The partition and design whose rows are queried (``keys.prefix``)."""
    epoch: int
    selection: RowSelection
    low: int = 0
    high: int = 0

    @classmethod
    def of_epoch(cls, prefix: str, epoch: int) -> RowQuery:
        """All rows of an epoch."""
        return cls(prefix, epoch, RowSelection.ALL)

    @classmethod
    def since(cls, prefix: str, epoch: int, offset: int) -> RowQuery:
        """The rows that the commit ``offset`` or a later one wrote."""
        return cls(prefix, epoch, RowSelection.SINCE_OFFSET, offset)

    @classmethod
    def between(cls, prefix: str, epoch: int, first: int, end: int) -> RowQuery:
        """The rows in the slots from ``first`` to before ``end``."""
        return cls(prefix, epoch, RowSelection.SLOT_RANGE, first, end)

    def selects(self, row: NodeRow) -> bool:
        """True if the query selects this row."""
        if (row.prefix, row.epoch) != (self.prefix, self.epoch):
            return False
        if self.selection is RowSelection.SINCE_OFFSET:
            return row.offset >= self.low
        return self.selection is RowSelection.ALL or self.low <= row.slot < self.high

"""The interface between a consumer and the writer of one partition that each design provides.

The states of a writer::

    (new) --take_over--> owning what was stored --commit, renew, repair--> owning
    (new) --take_over: nothing stored--> --begin_epoch--> owning
    owning --EpochLostError--> --begin_epoch--> owning          owning --FencedError--> (to be discarded)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from nodestate.model import NodeRecord
from nodestate.store.owner_status import OwnerStatus
from nodestate.store.round_trips import Steps


class HeldNodes(Protocol):
    """All nodes of an owned partition, as folded so far."""

    @property
    def records(self) -> Sequence[NodeRecord]:
        """The records of all nodes that appeared in this epoch, in slot order."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The content of one commit."""

    events: tuple[bytes, ...]
    """The accepted events, in order."""
    changed: tuple[int, ...]
    """The slots whose records the events changed."""
    size_before: int
    """Number of slots before this commit; slots from here on are new."""


class TakeoverResult(NamedTuple):
    """The stored state that a takeover found."""

    records: list[NodeRecord]
    """All nodes, in slot order."""
    complete: bool
    """True if the owner before knew all nodes of the partition."""
    ages_ms: bytes
    """By slot, milliseconds since the node's last sign of life, as little-endian uint32; may have fewer slots."""
    behind_ms: int | None
    """Milliseconds since the owner before had taken everything in its queue; None if unknown."""
    epoch_continues: bool = True
    """False if the owner must begin another epoch with these records, because offsets or versions may repeat.

    That is so if a node's state was lost (its old events cannot be told from new ones), if the records may come from a
    backup, or if they come from another layout.
    """
    copies: int = 1
    """See ``Head.copies``."""


class PartitionWriter(Protocol):
    """The writer of one partition of one design.

    All methods return steps for ``round_trips.run``. They raise the errors of the store, ``FencedError`` and
    ``EpochLostError``.
    """

    @property
    def copies(self) -> int:
        """``Head.copies`` of the stored head, as far as this owner knows. Valid after the first success of a method."""

    def take_over(self) -> Steps[TakeoverResult | None]:
        """Become the owner of the stored state. Returns None if there is no usable one: then call ``begin_epoch``."""

    def begin_epoch(self, epoch: int, nodes: HeldNodes, status: OwnerStatus) -> Steps[None]:
        """Write all nodes as a new epoch."""

    def commit(self, batch: Batch, nodes: HeldNodes, status: OwnerStatus) -> Steps[None]:
        """Write a batch, all or nothing.

        After an error whose outcome is unknown, call it again with the same batch before anything else.
        """

    def renew(self, status: OwnerStatus) -> Steps[bool]:
        """Confirm the ownership. Returns True if ``repair`` must be called."""

    def repair(self, nodes: HeldNodes, status: OwnerStatus) -> Steps[None]:
        """Write again all items of this partition that the store has lost, or that are outdated."""

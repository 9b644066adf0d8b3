"""Writing one partition of one design: what every design's writer shares with its consumer.

A design's writer, as its owner uses it::

    (new) --take--> holding what was stored --commit, renew, repair--> holding
    (new) --take: nothing there--> --begin--> holding
    holding --EpochLostError--> --begin--> holding          holding --FencedError--> (to be dropped)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from nodestate.model import NodeRecord
from nodestate.store.ownership import OwnerStatus
from nodestate.store.round_trips import Steps


class HeldNodes(Protocol):
    """All nodes of a held partition, as folded so far; ``records`` stand in slot order."""

    @property
    def records(self) -> Sequence[NodeRecord]:
        """Every node that was ever seen in this epoch."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one commit adds: the accepted ``events`` in order, and the slots whose records they ``changed``.

    ``size_before``: slots from here on are new with this commit.
    """

    events: tuple[bytes, ...]
    changed: tuple[int, ...]
    size_before: int


class TakeoverResult(NamedTuple):
    """What a takeover found.

    All nodes in slot order; whether the owner before vouched for them; by slot the milliseconds since each was
    last heard of (little-endian uint32; may be shorter); how many milliseconds ago what is stored was known to
    be all that the queue had (None: unknown); and whether no node's state was lost. Where one was, nobody knows
    any more which of its events are old: another epoch begins, and is not vouched for yet.
    """

    records: list[NodeRecord]
    complete: bool
    ages_ms: bytes
    behind_ms: int | None
    whole: bool = True


class PartitionWriter(Protocol):
    """One design of one partition. All methods are steps for ``lockstep.run``; errors are those of the store,
    ``FencedError`` and ``EpochLostError``.
    """

    def take_over(self) -> Steps[TakeoverResult | None]:
        """Become the owner. None where nothing is stored that can be built upon: then ``begin``."""

    def begin_epoch(self, epoch: int, nodes: HeldNodes, status: OwnerStatus) -> Steps[None]:
        """Write everything anew as another epoch."""

    def commit(self, batch: Batch, nodes: HeldNodes, status: OwnerStatus) -> Steps[None]:
        """Write a batch, all or nothing. After an error that left the outcome unknown, call it again with the
        same batch before anything else.
        """

    def renew(self, status: OwnerStatus) -> Steps[bool]:
        """Confirm the ownership. True where a repair is asked for."""

    def repair(self, nodes: HeldNodes, status: OwnerStatus) -> Steps[None]:
        """Write again what the store has lost of this partition."""

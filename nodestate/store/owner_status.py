"""The statements of an owner about its partition, which it sends with each write of a head."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nodestate.ports import Store
from nodestate.store.head import NEVER_HEARD
from nodestate.store.liveness import add_to_ages, written_ms


@dataclass(frozen=True, slots=True)
class OwnerStatus:
    """The statements of an owner about its partition, and the moment at which they were true."""

    behind_ms: int
    """Milliseconds since the owner had last taken everything in its queue."""
    complete: bool
    """True if the owner knows all nodes of the partition."""
    ages_ms: bytes = b""
    """By slot, milliseconds since the node's last sign of life, as little-endian uint32."""
    said_at: float | None = None
    """Monotonic time at which the values above were true; None: at the moment of the write.

    A batch may take long, and the owner may have to wait for another server. So each write adds the time since then
    (``as_of``).
    """
    refused: int = 0
    """How many refused messages the owner holds, because the dead-letter queue has not taken them."""
    copies: int = 1
    """Number of replicas that have all that the owner acknowledged, the one that is written included."""

    def as_of(self, now: float) -> OwnerStatus:
        """The same status at ``now``, in monotonic seconds: all ages have grown by the time since ``said_at``.

        Use one reading of the clock for this and for the ``as_of`` of the write. If the clock were read twice, a freeze
        between the two readings would be missing from the ages that readers compute.
        """
        elapsed_ms = ms_between(self.said_at, now) if self.said_at is not None else 0
        ages_ms = add_to_ages(self.ages_ms, elapsed_ms) if self.ages_ms and elapsed_ms else self.ages_ms
        behind_ms = min(self.behind_ms + elapsed_ms, NEVER_HEARD)
        return OwnerStatus(behind_ms, self.complete, ages_ms, now, self.refused, self.copies)

    def written_ms(self, store: Store) -> int:
        """The time of writing of a record with this status, which ``as_of`` returned."""
        assert self.said_at is not None
        return written_ms(store, self.said_at)


def ms_between(moment: float, now: float) -> int:
    """Milliseconds from a moment until ``now``, rounded up. Both are in monotonic seconds."""
    return math.ceil((now - moment) * 1000)

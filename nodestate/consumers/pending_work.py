"""The work of one partition between the folding of its messages and their acknowledgement."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Final

from nodestate.errors import BadEventError
from nodestate.model import NodeRecord
from nodestate.ports import Delivery
from nodestate.store.partition_writer import Batch

MAX_DEAD_LETTER_BYTES: Final = 64 * 1024
"""Most bytes of a refused message that are kept: a consumer may hold ``prefetch`` of them in each partition."""


@dataclass(slots=True)
class Pending:
    """Work of one partition that is not yet stored in every design: a batch of events, new epochs, or repairs."""

    batch: Batch
    """The events to commit, and the nodes that they changed."""
    deliveries: list[Delivery]
    """The messages taken from the backlog for this work, in order: events, markers and refused messages."""
    unconfirmed_designs: set[str]
    """Designs that have not yet stored the work. When none is left, the deliveries are acknowledged."""
    repair: frozenset[str] = frozenset()
    """Designs in which the lost items are written again, instead of the batch."""
    bad: list[tuple[Delivery, BadEventError]] = field(default_factory=list)
    """Refused messages with the reasons. Each message is acknowledged only after it is a dead letter."""
    replaced: dict[int, NodeRecord] = field(default_factory=dict)
    """By slot, the record that the first of the events replaced. Slots from ``batch.size_before`` on are missing."""
    lost_queue: bool = False
    """True if the deliveries are the first of a queue that replaces one with lost messages."""
    heard_again: bool = False
    """True if the events are the first signs of life of a node, or the first ones after ``LONG_SILENCE_S``."""
    caught_up_at: float = -math.inf
    """Send time of the last watermark message among the deliveries, in monotonic seconds. Once the work is stored, the
    partition has caught up to this time.
    """

    def refuse(self, delivery: Delivery, error: BadEventError) -> None:
        """Add the last of the deliveries to ``bad``; at most ``MAX_DEAD_LETTER_BYTES`` of its body are kept."""
        if len(delivery.body) > MAX_DEAD_LETTER_BYTES:
            cut_from = delivery.cut_from or len(delivery.body)
            delivery = replace(delivery, body=delivery.body[:MAX_DEAD_LETTER_BYTES], cut_from=cut_from)
            self.deliveries[-1] = delivery
        self.bad.append((delivery, error))

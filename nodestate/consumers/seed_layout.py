"""A seed layout: the layout whose nodes a new layout begins with.

A layout is the division of a cell's nodes into a number of partitions. When a cell changes to another number, the new
layout's partitions begin with the nodes that readers see in the old layout, and no agent has to report.

Why no event is missing: every event that was published after the new queues were bound is in the new queues. Every
earlier event is in the old layout's queues. Once the consumers of the old layout have taken everything up to a moment
after the binding, the state that readers see in the old layout includes every earlier event. An event may be in both
that state and the new queues; the fold then treats it as a duplicate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np

from nodestate.config import Config
from nodestate.designs.reader import Reader
from nodestate.designs.stored_design import StoredDesign
from nodestate.model import NodeRecord
from nodestate.model.partitioning import partition_of
from nodestate.ports import Clock
from nodestate.store.head import NEVER_HEARD
from nodestate.store.partition_writer import TakeoverResult
from nodestate.store.round_trips import Stores
from nodestate.view.follower import PartitionState

ROUTING_S: Final = 0.1
"""Longest time, in seconds, that an event may take from the exchange to a queue.

An event that came to the exchange just before the new queue was bound may reach the old queue late, even behind a
watermark message that was sent after the binding.
"""


class SeedLayout:
    """Reads an existing layout, for consumers of another layout.

    Keep one object for as long as it may be needed. A reader that has followed a layout for some time knows more
    exactly how far the layout's owners are behind.
    """

    def __init__(self, config: Config, design: StoredDesign, stores: Stores, clock: Clock) -> None:
        layout_config = msgspec.structs.replace(config, partitions=design.partitions)
        self._reader = Reader(layout_config, design=design.design, stores=stores, clock=clock)
        """Follows the design in the existing layout."""
        self._clock = clock
        """Monotonic time."""

    def is_complete(self) -> bool:
        """True if the owner of each partition knows all its nodes, and the store has lost nothing of the partition."""
        return all(map(_is_complete, self._read()))

    def partitions(self, partitions: int, bound_at: Mapping[int, float]) -> dict[int, TakeoverResult]:
        """Return the nodes of partitions of the new layout, as far as they can be known from this layout.

        Args:
            partitions: number of partitions of the new layout.
            bound_at: the partitions to return. Each key is the number of a partition of the new layout. Each value is a
                time at which the partition's queue was bound already, in monotonic seconds. Events that were published
                after the binding come through that queue, so only earlier events must be found here.

        Returns:
            The nodes by partition. A partition is missing from the result if this layout is incomplete, or if its
            owners may not have taken every event from before the partition's ``bound_at``. The caller asks for such a
            partition again later.
        """
        states = self._read()
        if not all(map(_is_complete, states)):
            return {}
        as_of = min(state.confirmed_at for state in states)
        records: dict[int, list[NodeRecord]] = {n: [] for n, bound in bound_at.items() if as_of > bound + ROUTING_S}
        heard_at: dict[int, list[float]] = {number: [] for number in records}
        for state in states if records else ():
            assert state.table is not None, "a complete partition has a table"
            state_heard_at = state.heard_at.tolist() if state.heard_at is not None else []
            for slot, record in enumerate(state.table.records()):
                number = partition_of(record.name, partitions)
                if number in records:
                    records[number].append(record)
                    heard_at[number].append(state_heard_at[slot] if slot < len(state_heard_at) else -math.inf)
        now = self._clock.monotonic()
        return {
            n: TakeoverResult(records[n], True, _ages_ms(now, heard_at[n]), None, epoch_continues=False)
            for n in records
        }

    def _read(self) -> tuple[PartitionState, ...]:
        """Read the layout again. Returns the state of each of its partitions, however old it is."""
        return self._reader.read(max_age=math.inf, node_max_age=math.inf, on_stale="flag").partitions


def _is_complete(state: PartitionState) -> bool:
    """True if the owner of the partition knows all its nodes, and the store has lost nothing of it."""
    return state.table is not None and state.complete and not state.lost


def _ages_ms(now: float, heard_at: list[float]) -> bytes:
    """Encode signs of life as a takeover returns them: milliseconds until ``now``, as little-endian uint32."""
    ages = np.minimum((now - np.array(heard_at, "f8")) * 1000, float(NEVER_HEARD))
    return np.ceil(ages).astype("<u4").tobytes()

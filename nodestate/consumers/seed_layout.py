"""A seed layout: the layout whose nodes a new layout begins with.

A layout is the division of a cell's nodes into a number of partitions. When a cell changes to another number, the new
layout's partitions begin with the nodes that readers see in the old layout, and no agent has to report.

Why no event is missing: every event published after the new queues were bound is in them; every earlier event is in the
old layout's queues. Once the old layout has taken everything up to a moment after the binding, the state that it shows
includes every earlier event. The two overlap, and an event that is in both is a duplicate to the fold.
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
from nodestate.store.liveness import NEVER_HEARD
from nodestate.store.partition_writer import TakeoverResult
from nodestate.store.round_trips import Stores
from nodestate.view.follower import PartitionState

ROUTING_S: Final = 0.1
"""Longest time that an event may take from the exchange to a queue. An event that came to the exchange just before
another queue was bound may reach its own queue after a watermark message that was sent later.
"""


class SeedLayout:
    """Reads an existing layout, for consumers of another layout. Keep the object while it may be needed: the ages that
    it gives are counted from its first read.
    """

    def __init__(self, config: Config, design: StoredDesign, stores: Stores, clock: Clock) -> None:
        layout_config = msgspec.structs.replace(config, partitions=design.partitions)
        self._reader = Reader(layout_config, design=design.design, stores=stores, clock=clock)
        """Follows the stored design."""
        self._clock = clock
        """Monotonic time."""

    def is_complete(self) -> bool:
        """True if each partition has an owner that knows all its nodes, and nothing of it is lost."""
        return all(map(_is_complete, self._read()))

    def partitions(self, partitions: int, wanted: Mapping[int, float]) -> dict[int, TakeoverResult]:
        """The nodes of the new layout's partitions.

        Args:
            partitions: number of partitions of the new layout.
            wanted: by partition of the new layout, when its queue was bound at the latest, in monotonic seconds.

        Returns those partitions for which this layout is complete as of a moment after the binding. The others have to
        wait.
        """
        states = self._read()
        if not all(map(_is_complete, states)):
            return {}
        as_of = min(state.confirmed_at for state in states)
        records: dict[int, list[NodeRecord]] = {n: [] for n, bound_at in wanted.items() if as_of > bound_at + ROUTING_S}
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
        return self._reader.read(max_age=math.inf, node_max_age=math.inf, on_stale="flag").partitions


def _is_complete(state: PartitionState) -> bool:
    return state.table is not None and state.complete and not state.lost


def _ages_ms(now: float, heard_at: list[float]) -> bytes:
    ages = np.minimum((now - np.array(heard_at, "f8")) * 1000, float(NEVER_HEARD))
    return np.ceil(ages).astype("<u4").tobytes()

"""What a new layout begins with: the nodes that another layout has, as readers see them.

Why this lacks nothing, and no agent need be asked: from when a layout's queues are bound, each event is in them. What came before is
in the queues of the other layout, and when that has taken all that was there later than the binding, what it shows is
everything from before. So the two overlap, and what is in both is a duplicate to the fold.
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
from nodestate.store.partition_writer import Taken
from nodestate.store.round_trips import Stores
from nodestate.view.follower import PartitionState

ROUTED_S: Final = 0.1
"""How long an event may be on its way from the exchange to a queue: one that came just before another queue was bound may get
into its own behind a watermark_message that was sent after.
"""


class SeedLayout:
    """A layout that is there, read for another one. Ages are counted from its first look on, so it is kept as long as it is of use."""

    def __init__(self, config: Config, kept: StoredDesign, stores: Stores, clock: Clock) -> None:
        of_layout = msgspec.structs.replace(config, partitions=kept.partitions)
        self._reader = Reader(of_layout, design=kept.design, stores=stores, clock=clock)
        self._clock = clock

    def is_whole(self) -> bool:
        """Whether an owner vouches for each partition, and nothing of it is lost."""
        return all(map(_whole, self._look()))

    def parts(self, partitions: int, wanted: Mapping[int, float]) -> dict[int, Taken]:
        """The nodes of these partitions of a layout of so many: of each that can be had as of later than the given moment, when
        its queue was bound. The others can't be had yet.
        """
        states = self._look()
        if not all(map(_whole, states)):
            return {}
        as_of = min(state.confirmed_at for state in states)
        records: dict[int, list[NodeRecord]] = {n: [] for n, bound_at in wanted.items() if as_of > bound_at + ROUTED_S}
        heard_at: dict[int, list[float]] = {number: [] for number in records}
        for state in states if records else ():
            assert state.table is not None, "it is whole"
            told = state.heard_at.tolist() if state.heard_at is not None else []
            for slot, record in enumerate(state.table.records()):
                number = partition_of(record.name, partitions)
                if number in records:
                    records[number].append(record)
                    heard_at[number].append(told[slot] if slot < len(told) else -math.inf)
        now = self._clock.monotonic()
        return {n: Taken(records[n], True, _ages_ms(now, heard_at[n]), None, whole=False) for n in records}

    def _look(self) -> tuple[PartitionState, ...]:
        return self._reader.read(max_age=math.inf, node_max_age=math.inf, on_stale="flag").partitions


def _whole(state: PartitionState) -> bool:
    return state.table is not None and state.vouched and not state.lost


def _ages_ms(now: float, heard_at: list[float]) -> bytes:
    ages = np.minimum((now - np.array(heard_at, "f8")) * 1000, float(NEVER_HEARD))
    return np.ceil(ages).astype("<u4").tobytes()

"""Propagation: the time from an event of a node until a view shows it, measured on one changed node of each refresh.

The event says when its agent published it, by the agent's clock; the reader's clock says when the view had it. So the
difference contains the difference of the two clocks. Each refresh takes another node, so one wrong clock spoils few
values of many (ADR 61).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from nodestate.histogram import PROPAGATION_BOUNDS_S, Histogram
from nodestate.ports import Clock
from nodestate.view.follower import PartitionState
from nodestate.view.table import Table

MAX_PAUSE_S: Final = 2.0
"""A refresh counts only if the one before it was at most this long ago. After a longer pause, the age of a change would
be the pause of the reader."""


class Propagation:
    """Takes one changed node of each refresh. Belongs to one reader."""

    def __init__(self) -> None:
        self.durations_s = Histogram(PROPAGATION_BOUNDS_S)
        """The seconds from the event to the view. A node whose clock is ahead counts as 0."""
        # The partitions after the refresh before, and its monotonic time.
        self._states: Sequence[PartitionState] = ()
        self._at = -math.inf
        # Number of values that were looked for. Each refresh takes another one of the changed nodes.
        self._turn = 0

    def observe(self, states: Sequence[PartitionState], clock: Clock) -> None:
        """Take the partitions as they are after a refresh."""
        before, now = self._states, clock.monotonic()
        is_soon, self._states, self._at = now - self._at <= MAX_PAUSE_S, states, now
        if not is_soon or len(before) != len(states):
            return
        changed = [
            (old.table, new.table)
            for old, new in zip(before, states, strict=True)
            if new.table is not old.table and new.table is not None and old.table is not None
        ]
        if changed:
            self._turn += 1
            self._observe_one(*changed[self._turn % len(changed)], clock.time())

    def _observe_one(self, old: Table, new: Table, now: float) -> None:
        if old.epoch != new.epoch:  # a reader that follows another epoch or design reads all nodes, changed or not
            return
        rows = [row for _, row in new.rows.differing(old.rows)]
        if rows:
            record = new.record(rows[self._turn % len(rows)])
            known = old.get(record.name)
            if known is None or known.version < record.version:  # otherwise only marked as incomplete
                self.durations_s.observe(max(0.0, now - record.reported_at))

"""A reader that reads during a fault, and compares the claims of its views with the confirmed events."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from typing import Final

from harness.cell import Cell
from harness.waiting import PATIENCE_S
from nodestate.designs.reader import Reader
from nodestate.model import NEVER
from nodestate.view.follower import PartitionState
from nodestate.view.table import Table
from nodestate.view.view import View

READ_EVERY_S: Final = 0.05


class ViewObserver(threading.Thread):
    """Reads one design of a cell until ``stop``, and keeps the worst of what its views claimed."""

    def __init__(self, cell: Cell, design: str, bound_s: float) -> None:
        super().__init__(name="observer", daemon=True)
        self.age_error_s = 0.0
        """Greatest number of seconds by which a partition claimed to be younger than it was."""
        self.oldest_s = Counter[int]()
        """By partition, the greatest age in seconds that a view gave for it."""
        self.stale: set[int] = set()
        """Partitions that a view showed as older than the bound."""
        self.incomplete: set[str] = set()
        """Nodes and partitions that a view named as incomplete."""
        self.silently_missing = 0
        """Greatest number of nodes that were in no list of a view."""
        self._cell, self._bound_s = cell, bound_s
        # A reader that has read before, as that of a scheduler has.
        self._reader = Reader(cell.config, design=design)
        self._reader.read(max_age=bound_s, on_stale="flag")
        # Table and claims of each partition at its last check: the same ones are not checked again.
        self._checked: dict[int, tuple[Table | None, float, bool]] = {}
        self._ending = threading.Event()

    def run(self) -> None:
        """Read until ``stop`` is called."""
        while not self._ending.wait(READ_EVERY_S):
            self.look()

    def stop(self) -> None:
        """End the thread, if it was started, and close the reader."""
        self._ending.set()
        if self.ident is not None:
            self.join(PATIENCE_S)
        self._reader.close()

    def look(self) -> None:
        """Read one view and note its claims."""
        self._note(self._reader.read(max_age=self._bound_s, on_stale="flag"), time.monotonic())

    def _note(self, view: View, now: float) -> None:
        self.incomplete |= view.incomplete
        if not view.incomplete:
            missing = sum(name not in view.nodes for name in self._cell.fleet.names)
            self.silently_missing = max(self.silently_missing, missing)
        for partition in view.partitions:
            age_s = now - partition.confirmed_at
            if math.isfinite(age_s):
                self.oldest_s[partition.partition] = max(self.oldest_s[partition.partition], age_s)  # type: ignore[assignment]  # a Counter of seconds
            if age_s > self._bound_s:
                self.stale.add(partition.partition)
            vouched = partition.complete and not partition.lost
            vouched = vouched and f"partition {partition.partition}" not in view.incomplete
            claim = (partition.table, partition.confirmed_at, vouched)
            if vouched and self._checked.get(partition.partition) != claim:
                self._compare(view, partition)
            self._checked[partition.partition] = claim

    def _compare(self, view: View, partition: PartitionState) -> None:
        """Note how long before the moment of the claim a version was confirmed that the table lacks."""
        fleet, table = self._cell.fleet, partition.table
        for name in fleet.names_of_partition[partition.partition]:
            record = table.get(name) if table is not None else None
            version = record.version if record is not None else NEVER
            if name not in view.incomplete and version < fleet.confirms[name].newest_by(partition.confirmed_at):
                error_s = partition.confirmed_at - fleet.confirms[name].newer_since(version)
                self.age_error_s = max(self.age_error_s, error_s)

"""Readers that read all the time and compare each view with the events that the broker had confirmed."""

from __future__ import annotations

import math
import threading
import time
from typing import Final

import msgspec

from harness.fleet import SimulatedFleet
from harness.waiting import PATIENCE_S
from nodestate.config import Config
from nodestate.designs.reader import Reader
from nodestate.model import NEVER, NodeRecord, Version
from nodestate.view.follower import PartitionState
from nodestate.view.table import Table
from nodestate.view.view import View

WARM_PAUSE_S: Final = 0.05
COLD_PAUSE_S: Final = 0.2
MAX_VIOLATIONS_COUNT: Final = 4
"""A watcher keeps this many violations: the first ones say what went wrong."""

_decode = msgspec.msgpack.Decoder().decode


class ViewWatcher(threading.Thread):
    """Reads one design with a bound of ``max_age`` and ``on_stale="exclude"``, and checks each view.

    Without a design it follows the cell's control record, as a scheduler does. A cold watcher makes a new reader for
    each read. It checks that

    - I1: within an epoch no node comes back at an older version; nor when the reader goes over to another design;
    - I5: a partition that the view vouches for contains, of each node, the version that the broker had confirmed by the
      moment as of which the view says that the owner was caught up, or the view names the node as incomplete. A node
      must not appear to be absent either. For partitions within the bound this implies that each node is as new as the
      version that was confirmed more than ``max_age`` seconds ago;
    - each version comes with the state that its author gave it.
    """

    def __init__(
        self, config: Config, design: str | None, fleet: SimulatedFleet, max_age: float, *, cold: bool = False
    ) -> None:
        super().__init__(name=f"{'cold' if cold else 'warm'} {design or 'as the record says'}", daemon=True)
        self.design = design
        self.cold = cold
        self.max_age = max_age
        self.last_design = ""
        """Design and layout of the last view, such as "journal@8"."""
        self.violations: list[str] = []
        """Violations that were found; at most ``MAX_VIOLATIONS_COUNT``."""
        self.reads = 0
        """Views that were checked."""
        self.fresh = 0
        """Views in which nothing was stale or incomplete."""
        self.stale_reads = 0
        """Views in which a node was stale."""
        self.refused: set[str] = set()
        """All names that a view ever gave as incomplete."""
        self._config = config
        self._fleet = fleet
        self._ending = threading.Event()
        self._seen: dict[str, tuple[int, Version]] = {}
        """The epoch and version at which each node was last returned."""
        self._checked: dict[str, NodeRecord] = {}
        """The record of each node whose state was last compared with its author's."""
        self._last: dict[int, tuple[Table | None, tuple[float, bool, frozenset[str], frozenset[str]]]] = {}
        """Table and claims of each partition at its last check: the same ones are not checked again."""

    def run(self) -> None:
        """Read until ``stop`` is called."""
        reader = Reader(self._config, design=self.design)
        while not self._ending.wait(COLD_PAUSE_S if self.cold else WARM_PAUSE_S):
            if self.cold:
                reader.close()
                reader = Reader(self._config, design=self.design)
            try:
                self._check(reader.read(max_age=self.max_age, on_stale="exclude"))
            except Exception as error:  # noqa: BLE001 - a read must not raise, whatever fails
                self._report(f"a read raised {error!r}")
        reader.close()

    def stop(self) -> None:
        """End the thread and wait until it has ended."""
        self._ending.set()
        self.join(PATIENCE_S)
        assert not self.is_alive(), f"{self.name} hangs"

    def _check(self, view: View) -> None:
        layout = f"{view.design}@{len(view.partitions)}"
        if layout != self.last_design:
            self._last.clear()
            self.last_design = layout
        names_by_partition = self._fleet.names_by_partition(len(view.partitions))
        self.reads += 1
        if not view.stale and not view.incomplete:
            self.fresh += 1
        if view.stale:
            self.stale_reads += 1
        self.refused |= view.incomplete
        for partition in view.partitions:
            # The claims of a partition change only with its table, with what its owner vouches for, and with
            # exclusions.
            table, vouched = partition.table, partition.complete and not partition.lost
            claims = (partition.confirmed_at, vouched, view.stale, view.incomplete)
            last = self._last.get(partition.partition)
            if last is not None and last[0] is table and last[1] == claims:
                continue
            self._last[partition.partition] = (table, claims)
            self._check_partition(view, partition, names_by_partition[partition.partition])

    def _check_partition(self, view: View, partition: PartitionState, names: list[str]) -> None:
        number, table = partition.partition, partition.table
        vouched = partition.complete and not partition.lost and f"partition {number}" not in view.incomplete
        for name in names:
            record = table.get(name) if table is not None else None
            version = record.version if record is not None else NEVER
            if table is not None and record is not None and name in view.nodes:
                self._check_returned(name, table.epoch, record)
            if not vouched or name in view.incomplete:
                continue
            confirmed = self._fleet.confirms[name].newest_by(partition.confirmed_at)
            if version < confirmed:
                age_s = time.monotonic() - partition.confirmed_at if math.isfinite(partition.confirmed_at) else math.inf
                self._report(
                    f"I5: {name} is at {tuple(version)}, but {tuple(confirmed)} was confirmed before the view's claim: "
                    f"partition {number} as of {age_s:.3f} s ago, bound {self.max_age} s, "
                    f"{'stale' if name in view.stale else 'not stale'}, position {view.position[number]}"
                )

    def _check_returned(self, name: str, epoch: int, record: NodeRecord) -> None:
        before = self._seen.get(name)
        comparable = self.design is None or (before is not None and before[0] == epoch)
        if before is not None and comparable and record.version < before[1]:
            self._report(f"I1: {name} went from {before[1]} back to {record.version} within epoch {epoch:x}")
        self._seen[name] = (epoch, record.version)
        if self._checked.get(name) is record:
            return
        self._checked[name] = record
        authored = self._fleet.history[name].get(record.version)
        if authored is None:
            self._report(f"{name} is at {record.version}, which its author never sent")
        elif authored != record.body and _decode(authored) != _decode(record.body):
            self._report(f"{name} is at {record.version} with a state that its author did not give it")

    def _report(self, violation: str) -> None:
        if len(self.violations) < MAX_VIOLATIONS_COUNT:
            self.violations.append(f"{self.name}, read {self.reads}: {violation}")

"""Readers that look all the time, and check each view against what the broker had confirmed by then."""

from __future__ import annotations

import math
import threading
import time
from typing import Final

import msgspec

from harness.fleet import SimulatedFleet
from nodestate.config import Config
from nodestate.designs.reader import Reader
from nodestate.model import NEVER, NodeRecord, Version
from nodestate.view.view import View

PAUSE_S: Final = 0.03
COLD_PAUSE_S: Final = 0.15
MAX_TOLD_COUNT: Final = 4

_decode = msgspec.msgpack.Decoder().decode


class ViewWatcher(threading.Thread):
    """Reads one design (None: what the control record says) with a bound of ``max_age`` and ``on_stale="exclude"``, and checks at each read

    (a ``cold`` one makes a new reader for each)

    - I1: within an epoch no node comes back older than it was; nor from one design to the next;
    - I5: a partition that the view vouches for has, of every node, what the broker had confirmed by the moment as of
      which the view says that the owner was caught up; or the node is named as incomplete. Nothing passes for absent
      either. (With partitions within the bound this implies: as new as what was confirmed more than ``max_age`` ago.)
    - that a version comes with the state that its author gave it.
    """

    def __init__(
        self, config: Config, design: str | None, fleet: SimulatedFleet, max_age: float, *, cold: bool = False
    ) -> None:
        super().__init__(name=f"{'cold' if cold else 'warm'} {design or 'as the record says'}", daemon=True)
        self.design = design
        self.last_design = ""
        self.cold = cold
        self.max_age = max_age
        self.violations: list[str] = []
        self.reads = 0
        self.fresh = 0
        self.stale_reads = 0
        self.refused: set[str] = set()
        self._config = config
        self._fleet = fleet
        self._ending = threading.Event()
        self._seen: dict[str, tuple[int, Version]] = {}
        self._checked: dict[str, NodeRecord] = {}
        self.oldest_of: dict[int, float] = {}

    def run(self) -> None:
        """Read until ``stop`` is called."""
        reader = Reader(self._config, design=self.design)
        while not self._ending.wait(COLD_PAUSE_S if self.cold else PAUSE_S):
            if self.cold:
                reader.close()
                reader = Reader(self._config, design=self.design)
            try:
                self._check(reader.read(max_age=self.max_age, on_stale="exclude"))
            except Exception as error:  # noqa: BLE001 - a read must not raise, whatever is down
                self._tell(f"a read raised {error!r}")
        reader.close()

    def stop(self) -> None:
        """End it, and wait for the end."""
        self._ending.set()
        self.join(30.0)
        assert not self.is_alive(), f"{self.name} hangs"

    def _check(self, view: View) -> None:
        now = time.monotonic()
        self.last_design = f"{view.design}@{len(view.partitions)}"
        of_partition = self._fleet.in_layout(len(view.partitions))
        self.reads += 1
        if not view.stale and not view.incomplete:
            self.fresh += 1
        if view.stale:
            self.stale_reads += 1
        self.refused |= view.incomplete
        for partition in view.partitions:
            number, table = partition.partition, partition.table
            if math.isfinite(partition.confirmed_at):
                self.oldest_of[number] = max(self.oldest_of.get(number, 0.0), now - partition.confirmed_at)
            vouched = partition.vouched and not partition.lost and f"partition {number}" not in view.incomplete
            for name in of_partition[number]:
                record = table.get(name) if table is not None else None
                version = record.version if record is not None else NEVER
                if table is not None and record is not None and name in view.nodes:
                    self._check_returned(name, table.epoch, record)
                if not vouched or name in view.incomplete:
                    continue
                wanted = self._fleet.confirms[name].newest_by(partition.confirmed_at)
                if version < wanted:
                    self._tell(
                        f"I5: {name} at {tuple(version)} where {tuple(wanted)} was confirmed before the view's claim: "
                        f"partition {number} as of {now - partition.confirmed_at:.3f} s ago, bound {self.max_age} s, "
                        f"{'stale' if name in view.stale else 'not stale'}, position {view.position[number]}"
                    )

    def _check_returned(self, name: str, epoch: int, record: NodeRecord) -> None:
        before = self._seen.get(name)
        comparable = self.design is None or (before is not None and before[0] == epoch)
        if before is not None and comparable and record.version < before[1]:
            self._tell(f"I1: {name} went from {before[1]} back to {record.version} within epoch {epoch:x}")
        self._seen[name] = (epoch, record.version)
        if self._checked.get(name) is record:
            return
        self._checked[name] = record
        truth = self._fleet.history[name].get(record.version)
        if truth is None:
            self._tell(f"{name} at {record.version}, which its author never sent")
        elif truth != record.body and _decode(truth) != _decode(record.body):
            self._tell(f"{name} at {record.version} has a state that its author did not give it")

    def _tell(self, what: str) -> None:
        if len(self.violations) < MAX_TOLD_COUNT:
            self.violations.append(f"{self.name}, read {self.reads}: {what}")

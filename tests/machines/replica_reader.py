"""A reader that goes over to the other replica of a partition, with a judge of each such change."""

from __future__ import annotations

from typing import Literal

from nodestate.testing import Plan
from nodestate.view.follower import PartitionState
from nodestate.view.view import View
from tests.machines.following_reader import FollowingReader
from tests.machines.simulated_cell import all_well


class ReplicaReader(FollowingReader):
    """Each partition is checked against the replica that the reader reads (I2, I3, I5).

    When the reader goes over to the other replica of a partition, no node may be older than before (I1), unless the
    epoch that it read before has ended: then the servers lost states that it had shown.
    """

    changes = 0
    """Number of partitions that were read from another replica than before."""

    def read(self, max_age: float, on_stale: Literal["exclude", "flag"] = "flag", plan: Plan = all_well) -> View:
        """Read and check the view; a read never raises an error."""
        live = self._reader._live
        before = dict(enumerate(live.followers))
        shown = {p: follower.state for p, follower in before.items()}
        view = super().read(max_age, on_stale, plan)
        for p, follower in enumerate(live.followers if self._reader._live is live else ()):
            if follower is not before[p]:
                self.changes += 1
                table, last = shown[p].table, before[p].state.table
                if table is not None and last is not None and table.epoch == last.epoch:
                    self._judge_change(shown[p], view.partitions[p])
        return view

    def _judge(self, state: PartitionState, view: View) -> None:
        self._letter = self._reader._live.followers[state.partition].prefix.rpartition(":")[2]
        super()._judge(state, view)

    def _judge_change(self, old: PartitionState, new: PartitionState) -> None:
        assert new.table is not None
        have = {record.name: record for record in new.table.records()}
        for record in old.table.records() if old.table is not None else ():
            now = have.get(record.name)
            if now is None and record.gone:
                continue
            assert now is not None, f"I1: {record.name} vanished with a change of the replica"
            assert now.version >= record.version, f"I1: {record.name} went back to {now.version}"

"""A reader that follows the control record, with a judge of each switch to another design."""

from __future__ import annotations

from typing import Literal

from nodestate.designs import DESIGNS
from nodestate.designs.reader import Reader
from nodestate.designs.stored_design import StoredDesign
from nodestate.testing import Plan
from nodestate.view.follower import NO_HEAD
from nodestate.view.view import View
from tests.machines.simulated_cell import JudgedReader, SimulatedCell, all_well


class FollowingReader(JudgedReader):
    """A reader that follows the control record; each view is checked against the design that it names.

    When the reader goes over to another design or layout, no node may be older than before (I1), except for nodes of an
    epoch that has ended.
    """

    def __init__(self, cell: SimulatedCell) -> None:
        super().__init__(cell, cell.config.read_design)
        self._reader = Reader(cell.config, stores=self._reader._stores, clock=cell.clock)

    def read(self, max_age: float, on_stale: Literal["exclude", "flag"] = "flag", plan: Plan = all_well) -> View:
        """Read and check the view; a read never raises an error."""
        for store in self.stores:
            store.plan = plan
        before = self._reader._live
        view = self._reader.read(max_age=max_age, node_max_age=10 * max_age, on_stale=on_stale)
        self.design, self._letter = view.design, DESIGNS[view.design].letter
        for partition in view.partitions:
            self._judge(partition, view)
        if self._reader._live is not before:
            shown = [state.table for state in before.states if state.table is not None and state.lost != NO_HEAD]
            for record in (record for table in shown for record in table.records()):
                now = view.nodes.record(record.name)
                assert now is not None, f"I1: {record.name} vanished from {before.stored} to {stored_design_of(view)}"
                assert now.version >= record.version, (
                    f"I1: {record.name} is at {now.version} in {stored_design_of(view)}"
                )
        self.last = view
        return view


def stored_design_of(view: View) -> StoredDesign:
    """Return design and layout of a view."""
    return StoredDesign(view.design, len(view.partitions))

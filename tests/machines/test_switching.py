"""An operator switches designs and numbers of partitions in a cell under faults: for readers that follow, I1, I3 and I5
hold all the time.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule
from structlog.testing import capture_logs

from nodestate.designs.control import Control, cleared, cut_over, prepared, retired, rolled_back
from nodestate.designs.control_store import ControlStore, newest
from nodestate.designs.layout_removal import remove_layout_epochs
from nodestate.designs.stored_design import StoredDesign
from nodestate.errors import ControlLostError, DesignStepError, StoreError
from nodestate.store.round_trips import Stores
from tests.machines.faulty_cell import MAX_AGE_S, FaultyCellMachine, numbers
from tests.machines.following_reader import FollowingReader, stored_design_of
from tests.machines.simulated_cell import JudgedReader, SimulatedCell, small_limits

NODES = [f"node-{number}" for number in range(5)]
NAMES = ["journal", "snapshot", "snapshot_b", "sql"]
FIRST = ["journal", "snapshot", "sql"]
LAYOUTS = [2, 3]


class SwitchingStateMachine(FaultyCellMachine):
    """An operator takes any steps in any order while consumers die, servers lose all items, and calls fail."""

    def __init__(self) -> None:
        super().__init__()
        self._held = ExitStack()
        self._held.enter_context(small_limits())
        self._held.enter_context(capture_logs())

    @initialize(seed=numbers, first=st.sampled_from(FIRST), servers=st.integers(1, 2), servers_b=st.integers(1, 3))
    def begin(self, seed: int, first: str, servers: int, servers_b: int) -> None:
        self.cell = SimulatedCell(
            seed=seed, servers=servers, servers_b=servers_b, designs=(first,), follows_control=True, database=True
        )
        self.cell.start_member([0], [1])
        self.cell.start_member([1], [0])
        for name in NODES:
            self.cell.start_agent(name, {"usage": {"VCPU": 1}})
        self.cell.run_well(self.cell.config.settle_s + 3)
        self.follower = FollowingReader(self.cell)
        self.cell.readers = [self.follower]
        self.operator = ControlStore(self.cell.config.cell, self._stores())
        self.record: Control | None = None

    def _stores(self) -> Stores:
        return JudgedReader(self.cell, "journal")._reader._stores

    # -- the operator

    @rule(design=st.builds(StoredDesign, st.sampled_from(NAMES), st.sampled_from(LAYOUTS)), rounds=st.integers(0, 12))
    def prepare(self, design: StoredDesign, rounds: int) -> None:
        """Prepare a design, and run for some rounds, after which it may be complete or not."""
        self._change(lambda known: prepared(known, design, "machine"))
        self.churn(rounds)

    @rule(step=st.sampled_from(["cutover", "cutover", "rollback", "retire", "clear"]), which=numbers)
    def take_a_step(self, step: str, which: int) -> None:
        """Take a step without a check that the last one is complete: as with ``--force``, or as two operators would."""
        steps: dict[str, Callable[[Control], Control]] = {
            "cutover": lambda known: cut_over(known, known.writes[which % len(known.writes)], "machine"),
            "rollback": lambda known: rolled_back(known, "machine"),
            "retire": lambda known: retired(known, known.writes[which % len(known.writes)], "machine"),
            "clear": self._clear,
        }
        self._change(steps[step])

    def _change(self, step: Callable[[Control], Control]) -> None:
        found = self.operator.read()
        known = newest(found)
        if known is not None:
            with suppress(DesignStepError, ControlLostError, StoreError):
                self.operator.change(found, step(known))

    def _clear(self, known: Control) -> Control:
        for design in known.leaving:
            of_layout = msgspec.structs.replace(self.cell.config, partitions=design.partitions)
            if self.cell.broker.delete(design.partitions) and not remove_layout_epochs(
                of_layout, self._stores(), "", self.cell.clock
            ):
                return cleared(known, design.partitions, "machine")
        return known

    def teardown(self) -> None:
        """In the end the reader reads the design of the record, complete and equal to the agents' states."""
        try:
            if hasattr(self, "follower"):
                self.cell.be_well()
                for _ in range(3):
                    self.cell.run_well(self.cell.config.settle_s)
                known = newest(self.operator.read())
                assert known is not None, "the control record is lost"
                for design in known.leaving:
                    assert self.cell.broker.delete(design.partitions), (
                        f"{design} was retired, but a consumer still reads its queues"
                    )
                assert stored_design_of(self.follower.read(MAX_AGE_S)) == known.reads
                self.cell.converge()
        finally:
            self._held.close()


TestSwitching = SwitchingStateMachine.TestCase
TestSwitching.settings = settings(settings(), stateful_step_count=25)

"""A cell with two replicas of each partition under faults: I1 to I7 hold for readers that change the replica.

Servers are away and return with their old contents, or empty; consumers die, freeze and lose replies.
"""

from __future__ import annotations

from contextlib import ExitStack

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule
from structlog.testing import capture_logs

from nodestate.config import Config
from tests.machines.faulty_cell import FaultyCellMachine, calls, numbers
from tests.machines.replica_reader import ReplicaReader
from tests.machines.simulated_cell import SimulatedCell, small_limits

NODES = [f"node-{number}" for number in range(5)]
DESIGNS = [("journal", "journal_replica"), ("snapshot", "snapshot_replica")]


class ReplicasStateMachine(FaultyCellMachine):
    """Servers and consumers come and go in any order, and calls fail."""

    def __init__(self) -> None:
        super().__init__()
        self._held = ExitStack()
        self._held.enter_context(small_limits())
        self._held.enter_context(capture_logs())

    @initialize(seed=numbers, designs=st.sampled_from(DESIGNS), servers=st.integers(2, 3))
    def begin(self, seed: int, designs: tuple[str, ...], servers: int) -> None:
        config = Config(partitions=2, designs=designs, read_design=designs[0])
        self.cell = SimulatedCell(seed=seed, servers=servers, config=config, follows_control=True)
        self.cell.start_member([0], [1])
        self.cell.start_member([1], [0])
        for name in NODES:
            self.cell.start_agent(name, {"usage": {"VCPU": 1}})
        self.cell.run_well(self.cell.config.settle_s + 3)
        self.follower = ReplicaReader(self.cell)
        self.cell.readers = [self.follower]

    @rule(which=numbers, call=calls, rounds=st.integers(1, 4))
    def be_overtaken(self, which: int, call: int, rounds: int) -> None:
        """A consumer is frozen in a step while the other one takes its partitions over."""
        member = self.cell.members[which % len(self.cell.members)]
        others = [one for one in self.cell.members if one is not member]

        def meanwhile() -> None:
            for _ in range(rounds):
                self.cell.change_some(0.5)
                self.cell.pass_time(0.5)
                for other in others:
                    other.step()

        self.cell.overtaken(member, call, meanwhile)

    def teardown(self) -> None:
        """In the end the view equals the agents' states, and both replicas have it."""
        try:
            if hasattr(self, "follower"):
                self.cell.be_well()
                for _ in range(3):
                    self.cell.run_well(self.cell.config.settle_s)
                self.cell.converge()
        finally:
            self._held.close()


TestReplicas = ReplicasStateMachine.TestCase
TestReplicas.settings = settings(settings(), stateful_step_count=25)

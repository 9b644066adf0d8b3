"""A cell with two replicas of each partition under faults: I1 to I7 hold for readers that change the replica.

Servers are away and return with their old contents, or empty; consumers die, freeze and lose replies.
"""

from __future__ import annotations

from contextlib import ExitStack

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from structlog.testing import capture_logs

from nodestate.config import Config
from nodestate.testing import Fault
from tests.machines.replica_reader import ReplicaReader
from tests.machines.simulated_cell import SimulatedCell, at_call, small_limits

NODES = [f"node-{number}" for number in range(5)]
DESIGNS = [("journal", "journal_replica"), ("snapshot", "snapshot_replica")]
MAX_AGE_S = 5.0
numbers = st.integers(min_value=0, max_value=10_000)
calls = st.integers(min_value=0, max_value=12)
faults = st.builds(Fault, done=st.none() | st.integers(0, 3), late=st.booleans())


class ReplicasStateMachine(RuleBasedStateMachine):
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

    @rule(rounds=st.integers(1, 5))
    def churn(self, rounds: int) -> None:
        for _ in range(rounds):
            self.cell.change_some(0.7)
            self.cell.run_well(0.5)

    @rule(which=numbers, call=calls, fault=faults)
    def step_with_fault(self, which: int, call: int, fault: Fault) -> None:
        self.cell.change_some(0.5)
        self.cell.members[which % len(self.cell.members)].step(at_call(call, fault))

    @rule(which=numbers, call=calls, fault=faults)
    def die_in_a_step(self, which: int, call: int, fault: Fault) -> None:
        self.cell.change_some(0.5)
        self.cell.members[which % len(self.cell.members)].step(at_call(call, fault), dies=True)

    @rule(which=numbers)
    def die(self, which: int) -> None:
        self.cell.members[which % len(self.cell.members)].die()

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

    @rule(which=numbers, up=st.booleans())
    def outage(self, which: int, up: bool) -> None:
        """A server is away, or returns with its old contents."""
        server = self.cell.servers[which % len(self.cell.servers)]
        if up:
            server.start()
        else:
            server.stop()

    @rule(which=numbers)
    def lose_a_server(self, which: int) -> None:
        self.cell.restart_server(which % len(self.cell.servers))

    @rule(call=calls)
    def read_with_a_fault(self, call: int) -> None:
        self.follower.read(MAX_AGE_S, plan=at_call(call, Fault()))

    @rule(seconds=st.sampled_from([0.5, 2.0, 8.0]))
    def time_passes(self, seconds: float) -> None:
        self.cell.pass_time(seconds)

    @invariant()
    def reader_sees_no_violation(self) -> None:
        if hasattr(self, "follower"):
            self.follower.read(MAX_AGE_S)

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

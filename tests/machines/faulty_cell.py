"""The changes and faults of a simulated cell, as rules for state machines with a reader that is judged."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nodestate.testing import Fault
from tests.machines.following_reader import FollowingReader
from tests.machines.simulated_cell import SimulatedCell, at_call

MAX_AGE_S = 5.0
numbers = st.integers(min_value=0, max_value=10_000)
calls = st.integers(min_value=0, max_value=12)
faults = st.builds(Fault, done=st.none() | st.integers(0, 3), late=st.booleans())


class FaultyCellMachine(RuleBasedStateMachine):
    """Consumers die, servers are away or lose all items, and calls fail. A subclass makes the cell and the reader."""

    cell: SimulatedCell
    follower: FollowingReader

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

    @rule(which=numbers, up=st.booleans())
    def outage(self, which: int, up: bool) -> None:
        server = self.cell.both[which % len(self.cell.both)]
        if up:
            server.start()
        else:
            server.stop()

    @rule(which=numbers)
    def lose_a_server(self, which: int) -> None:
        self.cell.restart_server(which % len(self.cell.both))

    @rule(call=calls)
    def read_with_a_fault(self, call: int) -> None:
        self.follower.read(MAX_AGE_S, plan=at_call(call, Fault()))

    @rule(seconds=st.sampled_from([0.5, 2.0, 8.0]))
    def time_passes(self, seconds: float) -> None:
        self.cell.pass_time(seconds)

    @invariant()
    def reader_that_follows_sees_no_violation(self) -> None:
        if hasattr(self, "follower"):
            self.follower.read(MAX_AGE_S)

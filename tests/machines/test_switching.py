"""An operator who switches designs and numbers of partitions in a cell under faults: readers that follow are held to I1, I3
and I5 all the while.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Literal

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from structlog.testing import capture_logs

from nodestate.designs import DESIGNS
from nodestate.designs.control import Control, cleared, cut_over, prepared, retired, rolled_back
from nodestate.designs.control_store import ControlStore, newest
from nodestate.designs.layout_removal import remove_layout_epochs
from nodestate.designs.reader import Reader
from nodestate.designs.stored_design import StoredDesign
from nodestate.errors import ControlLostError, DesignStepError, StoreError
from nodestate.store.round_trips import Stores
from nodestate.testing import Fault, Plan
from nodestate.view.follower import NO_HEAD
from nodestate.view.view import View
from tests.machines.simulated_cell import JudgedReader, SimulatedCell, all_well, at_call, small_limits

NODES = [f"node-{number}" for number in range(5)]
NAMES = ["journal", "snapshot", "snapshot_b", "sql"]
FIRST = ["journal", "snapshot", "sql"]
LAYOUTS = [2, 3]
MAX_AGE_S = 5.0
numbers = st.integers(min_value=0, max_value=10_000)
calls = st.integers(min_value=0, max_value=12)
faults = st.builds(Fault, done=st.none() | st.integers(0, 3), late=st.booleans())


class FollowingReader(JudgedReader):
    """A reader that names no design, judged by what it says that it read; and when it goes over from one design or layout to
    another, no node is older than it was (I1), save in an epoch that is over.
    """

    def __init__(self, world: SimulatedCell) -> None:
        super().__init__(world, world.config.read_design)
        self._reader = Reader(world.config, stores=self._reader._stores, clock=world.clock)

    def read(self, max_age: float, on_stale: Literal["exclude", "flag"] = "flag", plan: Plan = all_well) -> View:
        """Read and judge; the caller never meets an error."""
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
                assert now is not None, f"I1: {record.name} vanished from {before.stored} to {kept_by(view)}"
                assert now.version >= record.version, f"I1: {record.name} is at {now.version} in {kept_by(view)}"
        return view


def kept_by(view: View) -> StoredDesign:
    """What a view is of."""
    return StoredDesign(view.design, len(view.partitions))


class SwitchingStateMachine(RuleBasedStateMachine):
    """Any steps in any order, while consumers die, servers lose everything, and calls fail."""

    def __init__(self) -> None:
        super().__init__()
        self._held = ExitStack()
        self._held.enter_context(small_limits())
        self._held.enter_context(capture_logs())

    @initialize(seed=numbers, first=st.sampled_from(FIRST), servers=st.integers(1, 2), servers_b=st.integers(1, 3))
    def begin(self, seed: int, first: str, servers: int, servers_b: int) -> None:
        self.world = SimulatedCell(
            seed=seed, servers=servers, servers_b=servers_b, designs=(first,), follows_control=True, database=True
        )
        self.world.start_member([0], [1])
        self.world.start_member([1], [0])
        for name in NODES:
            self.world.start_agent(name, {"usage": {"VCPU": 1}})
        self.world.run_well(self.world.config.settle_s + 3)
        self.follower = FollowingReader(self.world)
        self.world.readers = [self.follower]
        self.operator = ControlStore(self.world.config.cell, self._stores())
        self.record: Control | None = None

    def _stores(self) -> Stores:
        return JudgedReader(self.world, "journal")._reader._stores

    # -- the operator

    @rule(kept=st.builds(StoredDesign, st.sampled_from(NAMES), st.sampled_from(LAYOUTS)), rounds=st.integers(0, 12))
    def prepare(self, kept: StoredDesign, rounds: int) -> None:
        """And time in which it may become whole, or not."""
        self._change(lambda known: prepared(known, kept, "machine"))
        self.churn(rounds)

    @rule(step=st.sampled_from(["cutover", "cutover", "rollback", "retire", "clear"]), which=numbers)
    def take_a_step(self, step: str, which: int) -> None:
        """Without a look whether the one before is through: as with --force, or as two operators would."""
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
        for kept in known.leaving:
            of_layout = msgspec.structs.replace(self.world.config, partitions=kept.partitions)
            if self.world.broker.delete(kept.partitions) and not remove_layout_epochs(
                of_layout, self._stores(), "", self.world.clock
            ):
                return cleared(known, kept.partitions, "machine")
        return known

    # -- everyday life and faults

    @rule(rounds=st.integers(1, 5))
    def churn(self, rounds: int) -> None:
        for _ in range(rounds):
            self.world.change_some(0.7)
            self.world.run_well(0.5)

    @rule(which=numbers, call=calls, fault=faults)
    def step_with_fault(self, which: int, call: int, fault: Fault) -> None:
        self.world.change_some(0.5)
        self.world.members[which % len(self.world.members)].step(at_call(call, fault))

    @rule(which=numbers, call=calls, fault=faults)
    def die_in_a_step(self, which: int, call: int, fault: Fault) -> None:
        self.world.change_some(0.5)
        self.world.members[which % len(self.world.members)].step(at_call(call, fault), dies=True)

    @rule(which=numbers)
    def die(self, which: int) -> None:
        self.world.members[which % len(self.world.members)].die()

    @rule(which=numbers, up=st.booleans())
    def outage(self, which: int, up: bool) -> None:
        server = self.world.both[which % len(self.world.both)]
        if up:
            server.start()
        else:
            server.stop()

    @rule(which=numbers)
    def lose_a_server(self, which: int) -> None:
        self.world.restart_server(which % len(self.world.both))

    @rule(call=calls)
    def read_with_a_fault(self, call: int) -> None:
        self.follower.read(MAX_AGE_S, plan=at_call(call, Fault()))

    @rule(seconds=st.sampled_from([0.5, 2.0, 8.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @invariant()
    def a_reader_that_follows_sees_nothing_wrong(self) -> None:
        if hasattr(self, "follower"):
            self.follower.read(MAX_AGE_S)

    def teardown(self) -> None:
        """In the end the reader reads what the record says, whole, and as the agents say."""
        try:
            if hasattr(self, "follower"):
                self.world.be_well()
                for _ in range(3):
                    self.world.run_well(self.world.config.settle_s)
                known = newest(self.operator.read())
                assert known is not None, "nobody knows the record any more"
                for kept in known.leaving:
                    assert self.world.broker.delete(kept.partitions), f"{kept} was retired and is read still"
                assert kept_by(self.follower.read(MAX_AGE_S)) == known.reads
                self.world.converge()
        finally:
            self._held.close()


TestSwitching = SwitchingStateMachine.TestCase
TestSwitching.settings = settings(settings(), stateful_step_count=25)

"""A state machine of several schedulers under faults, which checks the invariants I8 (no overcommit) and I9 (groups).

See ``scheduling_cell`` for the simulated cell, and docs/concepts/consistency.md for the invariants.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from structlog.testing import capture_logs

from nodestate.scheduling.orders.boot import Boot, Booted
from nodestate.scheduling.request import parse, parse_group
from nodestate.scheduling.reservation_claims import Reservation
from nodestate.scheduling.reservations import Confirmed
from tests.cell_keys import new_cell_keys, written
from tests.machines.scheduling_cell import SchedulerProcess, SchedulingCell, allowed_errors

NODES = [f"node-{number}" for number in range(4)]
STATE: dict[str, Any] = {"status": "up", "inventory": {"VCPU": {"total": 4}, "MEMORY_MB": {"total": 4_000}}}
numbers = st.integers(0, 10_000)
sizes = st.integers(1, 3)
groups = st.sampled_from([None, None, ("anti", "anti-affinity"), ("near", "affinity"), ("apart", "soft-anti-affinity")])
deaths = st.one_of(*[st.none()] * 5, st.integers(0, 30))
"""After how many calls a scheduler dies; mostly None: it survives."""


def wanted(instance: str, size: int, group: tuple[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """Return a request for one instance."""
    content: dict[str, Any] = {"instances": [instance], "resources": {"VCPU": size, "MEMORY_MB": 500 * size}, **more}
    if group is not None:
        content["group"] = {"name": group[0], "policy": group[1]}
    return content


class SchedulingMachine(RuleBasedStateMachine):
    """Boots, reservations and migrations by several schedulers in any order, with deaths and losses in between."""

    def __init__(self) -> None:
        super().__init__()
        self._logs = capture_logs()
        self._logs.__enter__()
        self.booted = 0
        """The number of instance ids used so far."""
        self.reserved: list[Reservation] = []
        """Reservations that were neither confirmed nor released."""
        self.unconfirmed: dict[str, set[str]] = {}
        """The members of reservations whose confirmation began and did not succeed."""
        self.boots: list[Boot] = []
        """All boots that began."""
        self.confirmed: set[str] = set()
        """Instances whose users were told by a confirmation that they are placed."""
        self.terminated: set[str] = set()
        """Instances that a user terminated."""
        self.booted_again: set[str] = set()
        """Instances whose id was booted more than once."""
        self.terminated_by: dict[str, SchedulerProcess] = {}
        """The scheduler of each termination that saw the instance on all of its nodes."""

    @initialize(seed=numbers, servers=st.integers(1, 2), schedulers=st.integers(1, 3))
    def begin(self, seed: int, servers: int, schedulers: int) -> None:
        self.cell = self.new_cell(seed, servers)
        self.cell.wait_until_complete()
        for number in range(schedulers):
            self.cell.start_scheduler(f"s{number}").scheduler.refresh()
        self.cell.run_for(12.0)  # no claim record is unsure any longer

    def new_cell(self, seed: int, servers: int) -> SchedulingCell:
        """Return the cell that the machine works on."""
        return SchedulingCell(dict.fromkeys(NODES, STATE), seed=seed, servers=servers, **self.more_settings())

    def more_settings(self) -> dict[str, Any]:
        """Settings of the cell that another machine adds."""
        return {}

    def process(self, number: int) -> SchedulerProcess:
        return self.cell.processes[number % len(self.cell.processes)]

    @rule(number=numbers, size=sizes, group=groups, dies=deaths)
    def submit(self, number: int, size: int, group: tuple[str, str] | None, dies: int | None) -> None:
        """Begin a boot; other rules run before it has an outcome."""
        self.booted += 1
        process = self.process(number)
        with self.cell.crashing(process, dies), allowed_errors():
            self.boots += process.scheduler.submit(parse(wanted(f"i{self.booted}", size, group)))
            process.scheduler.step(0.0)
        self.cell.check_claims()

    @rule(number=numbers, which=numbers, size=sizes, dies=deaths)
    def submit_again(self, number: int, which: int, size: int, dies: int | None) -> None:
        """Boot an id that exists already, or existed."""
        if not self.booted:
            return
        process = self.process(number)
        instance = f"i{which % self.booted + 1}"
        self.booted_again.add(instance)
        with self.cell.crashing(process, dies), allowed_errors():
            self.boots += process.scheduler.submit(parse(wanted(instance, size)))
            process.scheduler.step(0.0)
        self.cell.check_claims()

    @rule(number=numbers, dies=deaths)
    def step(self, number: int, dies: int | None) -> None:
        process = self.process(number)
        with self.cell.crashing(process, dies), allowed_errors():
            process.scheduler.step(0.0)
        self.cell.check_claims()

    @rule(
        number=numbers,
        members=st.lists(sizes, min_size=1, max_size=4),
        group=groups,
        dies=deaths,
        confirm=st.booleans(),
    )
    def reserve(
        self, number: int, members: list[int], group: tuple[str, str] | None, dies: int | None, confirm: bool
    ) -> None:
        content: dict[str, Any] = {"members": []}
        for size in members:
            self.booted += 1
            content["members"].append(wanted(f"i{self.booted}", size))
        if group is not None:
            content["group"] = {"name": f"{group[0]} {self.booted}", "policy": group[1]}
        process = self.process(number)
        with self.cell.crashing(process, dies), allowed_errors():
            held = process.scheduler.reservations.reserve(parse_group(content), timeout_s=2.0)
            if isinstance(held, Reservation):
                self.reserved.append(held)
                assert len(held.members) == len(members)
        self.cell.check_claims()
        if confirm:
            self.confirm(number, len(self.reserved) - 1, dies)

    @rule(number=numbers, which=numbers, dies=deaths)
    def confirm(self, number: int, which: int, dies: int | None) -> None:
        if not self.reserved:
            return
        held = self.reserved.pop(which % len(self.reserved))
        self.unconfirmed[held.id] = {member.instance for member in held.members}
        process = self.process(number)
        with self.cell.crashing(process, dies), allowed_errors():
            outcome = process.scheduler.reservations.confirm(held.id, timeout_s=30.0)
            if isinstance(outcome, Confirmed):
                self.confirmed |= self.unconfirmed.pop(held.id)  # from here on, each member may be terminated by itself
        self.cell.check_claims()

    @rule(number=numbers, which=numbers, dies=deaths)
    def release(self, number: int, which: int, dies: int | None) -> None:
        if not self.reserved:
            return
        held = self.reserved.pop(which % len(self.reserved))
        process = self.process(number)
        with self.cell.crashing(process, dies), allowed_errors():
            process.scheduler.reservations.release(held.id)
        self.cell.check_claims()

    @rule(number=numbers, which=numbers, dies=deaths)
    def move(self, number: int, which: int, dies: int | None) -> None:
        placed = sorted(self.cell.nodes_by_instance())
        if not placed:
            return
        process = self.process(number)
        with self.cell.crashing(process, dies), allowed_errors():
            process.scheduler.migrations.migrate(placed[which % len(placed)], timeout_s=20.0)
        self.cell.check_claims()

    @rule(number=numbers, which=numbers, size=sizes, dies=deaths)
    def resize(self, number: int, which: int, size: int, dies: int | None) -> None:
        placed = sorted(self.cell.nodes_by_instance())
        if not placed:
            return
        process = self.process(number)
        with self.cell.crashing(process, dies), allowed_errors():
            instance = placed[which % len(placed)]
            process.scheduler.migrations.resize(instance, {"VCPU": size, "MEMORY_MB": 500 * size}, timeout_s=20.0)
        self.cell.check_claims()

    @rule(number=numbers, which=numbers)
    def end(self, number: int, which: int) -> None:
        """Terminate an instance; not a member of an unconfirmed reservation, as the others would end with it."""
        placed = self.cell.nodes_by_instance()
        free = sorted(placed.keys() - {member for members in self.unconfirmed.values() for member in members})
        if free:
            instance = free[which % len(free)]
            process = self.process(number)
            self.terminated.add(instance)
            process.scheduler.terminations.terminate([(node, instance) for node in placed[instance]])
            fleet = process.scheduler.fleet
            if {fleet.names[row] for row in fleet.instances.reporting_rows(instance)} >= set(placed[instance]):
                self.terminated_by[instance] = process

    @rule(number=numbers, which=numbers, seconds=st.sampled_from([1.0, 50.0]))
    def extend(self, number: int, which: int, seconds: float) -> None:
        if self.reserved:
            with allowed_errors():
                self.process(number).scheduler.reservations.extend(
                    self.reserved[which % len(self.reserved)].id, seconds
                )
        self.cell.check_claims()

    @rule(number=numbers, node=st.sampled_from(NODES), dead=st.booleans(), dies=deaths)
    def evacuate(self, number: int, node: str, dead: bool, dies: int | None) -> None:
        """Evacuate a node, which may have lost its power and may return with all its instances."""
        if dead:
            self.cell.power_off(node)
        process = self.process(number)
        with self.cell.crashing(process, dies), allowed_errors():
            process.scheduler.migrations.evacuate(node, timeout_s=30.0)
        self.cell.check_claims()

    @rule()
    def revive(self) -> None:
        self.cell.power_on_all()

    @rule(calls=st.integers(0, 10))
    def kill_agent(self, calls: int) -> None:
        """Kill the agent after this number of calls, for example between storing and reporting; another one starts."""
        self.cell.agent_crash_point.calls_left = calls

    @rule(number=numbers, lagging=st.booleans())
    def lag(self, number: int, lagging: bool) -> None:
        """Let one scheduler decide on an older view than the others, within its bound."""
        self.process(number).reader.lagging = lagging

    @rule(number=numbers)
    def disconnect(self, number: int) -> None:
        """Cut a scheduler's connection to the broker: answers are lost, and its answer queue is a new one."""
        self.process(number).courier.disconnect()

    @rule(number=numbers, seconds=st.sampled_from([1.0, 10.0, 40.0]))
    def cut_off(self, number: int, seconds: float) -> None:
        """Stop a server for some seconds."""
        server = self.cell.servers[number % len(self.cell.servers)]
        server.stop()
        self.cell.run_for(seconds)
        server.start()
        self.cell.check_claims()

    @rule(number=numbers)
    def die(self, number: int) -> None:
        self.cell.replace_dead(self.process(number))

    @rule(node=st.sampled_from(NODES))
    def evict(self, node: str) -> None:
        self.cell.evict_claims(node)

    @rule(number=numbers)
    def flush(self, number: int) -> None:
        self.cell.flush_server(number)

    @rule(frozen=st.booleans())
    def freeze(self, frozen: bool) -> None:
        self.cell.agent_frozen = frozen

    @rule(holding=st.booleans())
    def hold(self, holding: bool) -> None:
        """Hold back orders and answers, or deliver all that were held back."""
        self.cell.broker.transit.holding = holding
        if not holding:
            while self.cell.broker.transit.under_way:
                self.cell.broker.transit.deliver()

    @rule(which=numbers)
    def lose(self, which: int) -> None:
        if self.cell.broker.transit.under_way:
            self.cell.broker.transit.lose(which % len(self.cell.broker.transit.under_way))

    @rule(seconds=st.sampled_from([0.2, 1.0, 6.0, 40.0]))
    def wait(self, seconds: float) -> None:
        self.cell.run_for(seconds)
        self.cell.check_claims()

    def teardown(self) -> None:
        if hasattr(self, "cell"):
            self._check_final_state()
        self._logs.__exit__(None, None, None)

    def _check_final_state(self) -> None:
        """Assert that nothing is unfinished after a long time without faults (I9)."""
        cell = self.cell
        cell.agent_frozen = False
        cell.power_on_all()
        self.hold(holding=False)
        cell.run_for(200.0)
        placed = cell.nodes_by_instance()
        assert {instance: nodes for instance, nodes in placed.items() if len(nodes) > 1} == {}
        reported = self.confirmed | {boot.placing.instance for boot in self.boots if isinstance(boot.outcome, Booted)}
        expected = reported - self.terminated
        assert expected <= placed.keys(), f"{expected - placed.keys()} were lost"
        surely_terminated = {
            instance for instance, process in self.terminated_by.items() if process in cell.processes
        } - self.booted_again
        assert not surely_terminated & placed.keys(), f"{surely_terminated & placed.keys()} live after their end"
        for reservation, members in self.unconfirmed.items():
            if members & self.booted_again:  # such a member may be placed alone, by its own boot
                continue
            assert members <= placed.keys() or not members & placed.keys(), (
                f"{reservation}: {members & placed.keys()} of {members} are placed"
            )
        assert [claim for node in NODES for claim in cell.claims(node)] == []


TestScheduling = SchedulingMachine.TestCase
TestScheduling.settings = settings(max_examples=30, stateful_step_count=30)


class TaggedSchedulingMachine(SchedulingMachine):
    """The same in a cell that requires tags: each honest allocation must be believed, whatever happens."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()

    def new_cell(self, seed: int, servers: int) -> SchedulingCell:
        """Return the cell that the machine works on."""
        return SchedulingCell(dict.fromkeys(NODES, STATE), seed=seed, servers=servers, **self.more_settings())

    def more_settings(self) -> dict[str, Any]:
        return {"auth_orders": "require", "keys_file": written(Path(self._folder.name), "cell.keys", new_cell_keys())}

    def teardown(self) -> None:
        super().teardown()
        untagged = [process.scheduler.fleet.reports.tags.untagged for process in self.cell.processes]
        assert not any(untagged), "an allocation of a scheduler was not believed"
        self._folder.cleanup()


TestTaggedScheduling = pytest.mark.thorough(TaggedSchedulingMachine.TestCase)
TestTaggedScheduling.settings = settings(max_examples=30, stateful_step_count=30)

"""Schedulers against each other, under faults, held to the invariants I8 to I10 of DESIGN.md section 9 (see
``cell``)."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from structlog.testing import capture_logs

from nodestate.errors import BadRequestError, StaleViewError, StoreUnavailableError
from nodestate.scheduling.orders.boot import Boot, Booted
from nodestate.scheduling.request import parse, parse_group
from nodestate.scheduling.reservation_claims import Reservation
from nodestate.scheduling.reservations import Confirmed
from tests.machines.scheduling_cell import SchedulerProcess, SchedulingCell

NODES = [f"node-{number}" for number in range(4)]
STATE: dict[str, Any] = {"status": "up", "inventory": {"VCPU": {"total": 4}, "MEMORY_MB": {"total": 4_000}}}
numbers = st.integers(0, 10_000)
sizes = st.integers(1, 3)
groups = st.sampled_from([None, None, ("anti", "anti-affinity"), ("near", "affinity"), ("apart", "soft-anti-affinity")])
lives = st.one_of(*[st.none()] * 5, st.integers(0, 30))
"""After how many calls the process dies."""


def wanted(instance: str, size: int, group: tuple[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """A request of one instance."""
    content: dict[str, Any] = {"instances": [instance], "resources": {"VCPU": size, "MEMORY_MB": 500 * size}, **more}
    if group is not None:
        content["group"] = {"name": group[0], "policy": group[1]}
    return content


class SchedulingMachine(RuleBasedStateMachine):
    """Boots, reservations and moves of several schedulers in any order, with deaths and losses in between."""

    def __init__(self) -> None:
        super().__init__()
        self._logs = capture_logs()
        self._logs.__enter__()
        self.booted = 0
        self.reserved: list[Reservation] = []
        self.gangs: dict[str, set[str]] = {}
        self.boots: list[Boot] = []
        self.told: set[str] = set()
        """Whose users were told that they are there, by a confirmation."""
        self.ended: set[str] = set()
        self.twice: set[str] = set()
        self.enders: dict[str, SchedulerProcess] = {}
        """By what was ended, where it was seen, by somebody who lives on."""

    @initialize(seed=numbers, servers=st.integers(1, 2), schedulers=st.integers(1, 3))
    def begin(self, seed: int, servers: int, schedulers: int) -> None:
        self.cell = SchedulingCell(dict.fromkeys(NODES, STATE), seed=seed, servers=servers)
        self.cell.wait_until_complete()
        for number in range(schedulers):
            self.cell.start_scheduler(f"s{number}").scheduler.refresh()
        self.cell.run_for(12.0)  # no record is unsure any more

    def process(self, number: int) -> Any:
        return self.cell.processes[number % len(self.cell.processes)]

    @rule(number=numbers, size=sizes, group=groups, dies=lives)
    def submit(self, number: int, size: int, group: tuple[str, str] | None, dies: int | None) -> None:
        """A boot begins; others go on before it ends."""
        self.booted += 1
        process = self.process(number)
        with self.cell.crashing(process, dies), _staleness():
            self.boots += process.scheduler.submit(parse(wanted(f"i{self.booted}", size, group)))
            process.scheduler.step(0.0)
        self.cell.check_claims()

    @rule(number=numbers, which=numbers, size=sizes, dies=lives)
    def submit_again(self, number: int, which: int, size: int, dies: int | None) -> None:
        """Somebody boots an id that is there already, or was."""
        if not self.booted:
            return
        process = self.process(number)
        instance = f"i{which % self.booted + 1}"
        self.twice.add(instance)
        with self.cell.crashing(process, dies), _staleness():
            self.boots += process.scheduler.submit(parse(wanted(instance, size)))
            process.scheduler.step(0.0)
        self.cell.check_claims()

    @rule(number=numbers, dies=lives)
    def step(self, number: int, dies: int | None) -> None:
        process = self.process(number)
        with self.cell.crashing(process, dies), _staleness():
            process.scheduler.step(0.0)
        self.cell.check_claims()

    @rule(
        number=numbers, members=st.lists(sizes, min_size=1, max_size=4), group=groups, dies=lives, confirm=st.booleans()
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
        with self.cell.crashing(process, dies), _staleness():
            held = process.scheduler.reservations.reserve(parse_group(content), timeout_s=2.0)
            if isinstance(held, Reservation):
                self.reserved.append(held)
                assert len(held.members) == len(members)
        self.cell.check_claims()
        if confirm:
            self.confirm(number, len(self.reserved) - 1, dies)

    @rule(number=numbers, which=numbers, dies=lives)
    def confirm(self, number: int, which: int, dies: int | None) -> None:
        if not self.reserved:
            return
        held = self.reserved.pop(which % len(self.reserved))
        self.gangs[held.id] = {member.instance for member in held.members}
        process = self.process(number)
        with self.cell.crashing(process, dies), _staleness():
            outcome = process.scheduler.reservations.confirm(held.id, timeout_s=30.0)
            if isinstance(outcome, Confirmed):
                self.told |= self.gangs.pop(held.id)  # each may end by itself from here on
        self.cell.check_claims()

    @rule(number=numbers, which=numbers, dies=lives)
    def release(self, number: int, which: int, dies: int | None) -> None:
        if not self.reserved:
            return
        held = self.reserved.pop(which % len(self.reserved))
        process = self.process(number)
        with self.cell.crashing(process, dies), _staleness():
            process.scheduler.reservations.release(held.id)
        self.cell.check_claims()

    @rule(number=numbers, which=numbers, dies=lives)
    def move(self, number: int, which: int, dies: int | None) -> None:
        placed = sorted(self.cell.nodes_by_instance())
        if not placed:
            return
        process = self.process(number)
        with self.cell.crashing(process, dies), _staleness():
            process.scheduler.migrations.migrate(placed[which % len(placed)], timeout_s=20.0)
        self.cell.check_claims()

    @rule(number=numbers, which=numbers, size=sizes, dies=lives)
    def resize(self, number: int, which: int, size: int, dies: int | None) -> None:
        placed = sorted(self.cell.nodes_by_instance())
        if not placed:
            return
        process = self.process(number)
        with self.cell.crashing(process, dies), _staleness():
            instance = placed[which % len(placed)]
            process.scheduler.migrations.resize(instance, {"VCPU": size, "MEMORY_MB": 500 * size}, timeout_s=20.0)
        self.cell.check_claims()

    @rule(number=numbers, which=numbers)
    def end(self, number: int, which: int) -> None:
        """A user is done with one. A member that goes before its gang is confirmed may take the others with it."""
        placed = self.cell.nodes_by_instance()
        free = sorted(placed.keys() - {member for gang in self.gangs.values() for member in gang})
        if free:
            instance = free[which % len(free)]
            process = self.process(number)
            self.ended.add(instance)
            process.scheduler.terminations.terminate([(node, instance) for node in placed[instance]])
            fleet = process.scheduler.fleet
            if {fleet.names[row] for row in fleet.instances.reporting_rows(instance)} >= set(placed[instance]):
                self.enders[instance] = process

    @rule(number=numbers, which=numbers, seconds=st.sampled_from([1.0, 50.0]))
    def extend(self, number: int, which: int, seconds: float) -> None:
        if self.reserved:
            with _staleness():
                self.process(number).groups.extend(self.reserved[which % len(self.reserved)].id, seconds)
        self.cell.check_claims()

    @rule(number=numbers, node=st.sampled_from(NODES), dead=st.booleans(), dies=lives)
    def evacuate(self, number: int, node: str, dead: bool, dies: int | None) -> None:
        """A node that is to be emptied, or one that lost its power; it may come back with all that it had."""
        if dead:
            self.cell.power_off(node)
        process = self.process(number)
        with self.cell.crashing(process, dies), _staleness():
            process.scheduler.migrations.evacuate(node, timeout_s=30.0)
        self.cell.check_claims()

    @rule()
    def revive(self) -> None:
        self.cell.power_on_all()

    @rule(calls=st.integers(0, 10))
    def kill_agent(self, calls: int) -> None:
        """After it stored what it admitted, and before it said so, or at another moment; it comes again."""
        self.cell.agent_crash_point.calls_left = calls

    @rule(number=numbers, lagging=st.booleans())
    def lag(self, number: int, lagging: bool) -> None:
        """The view of one scheduler is older than those of the others, within its bound."""
        self.process(number).reader.lagging = lagging

    @rule(number=numbers)
    def disconnect(self, number: int) -> None:
        """A scheduler loses its connection to the broker, and what agents answered; it gets another queue for
        answers."""
        self.process(number).courier.disconnect()

    @rule(number=numbers, seconds=st.sampled_from([1.0, 10.0, 40.0]))
    def cut_off(self, number: int, seconds: float) -> None:
        """A server answers nobody for a while."""
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
        """Orders and answers are under way for long, or not any more."""
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
            self._judge_the_end()
        self._logs.__exit__(None, None, None)

    def _judge_the_end(self) -> None:
        """After a long rest without faults nothing is half done (I9)."""
        cell = self.cell
        cell.agent_frozen = False
        cell.power_on_all()
        self.hold(holding=False)
        cell.run_for(200.0)
        placed = cell.nodes_by_instance()
        assert {instance: nodes for instance, nodes in placed.items() if len(nodes) > 1} == {}
        told = self.told | {boot.placing.instance for boot in self.boots if isinstance(boot.outcome, Booted)}
        assert told - self.ended <= placed.keys(), f"{told - self.ended - placed.keys()} are lost"
        over = {instance for instance, ender in self.enders.items() if ender in cell.processes} - self.twice
        assert not over & placed.keys(), f"{over & placed.keys()} were ended, and live"
        for gang, members in self.gangs.items():
            if members & self.twice:  # what somebody booted alone is there alone
                continue
            assert members <= placed.keys() or not members & placed.keys(), (
                f"{gang}: {members & placed.keys()} of {members}"
            )
        assert [claim for node in NODES for claim in cell.claims(node)] == []


class _staleness:  # noqa: N801 - reads as what it allows
    """What a scheduler may say while consumer or agents are away."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(
            kind, (StaleViewError, BadRequestError, TimeoutError, StoreUnavailableError)
        )


TestScheduling = SchedulingMachine.TestCase
TestScheduling.settings = settings(max_examples=30, stateful_step_count=30)

"""A whole cell under faults in one process keeps the invariants I1 to I7 (see ``simulated_cell``)."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Literal

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from structlog.testing import capture_logs

from nodestate.consumers.watermarks import is_marker
from nodestate.testing import Fault
from tests.machines.simulated_cell import JudgedReader, SimulatedCell, at_call, small_limits

NODES = [f"node-{number}" for number in range(6)]
numbers = st.integers(min_value=0, max_value=10_000)
seconds = st.sampled_from([0.1, 1.0, 4.0, 12.0, 40.0])
calls = st.integers(min_value=0, max_value=3) | st.integers(min_value=0, max_value=12)
states = st.fixed_dictionaries(
    {"usage": st.dictionaries(st.sampled_from(["VCPU", "MEMORY_MB"]), st.integers(0, 9))},
    optional={
        "inventory": st.just({"VCPU": {"total": 8}}),
        "status": st.sampled_from(["up", "down"]),
        "allocations": st.just({"vm": {"resources": {"VCPU": 1}}}),
    },
)
patches = st.fixed_dictionaries(
    {},
    optional={
        "usage": st.dictionaries(st.sampled_from(["VCPU", "DISK_GB"]), st.none() | st.integers(0, 9)),
        "status": st.sampled_from(["up", "draining"]),
        "metrics": st.just({"load": 0.5}),
        "zone": st.sampled_from([None, "az1"]),
        "allocations": st.fixed_dictionaries({"vm": st.sampled_from([None, {"resources": {"VCPU": 2}}])}),
    },
)
POISON = [b"poison", b"\x80", b"\x00", b"\x81\xa1v\x02"]
KINDS_OF_KEYS = [":", ":epoch", ":head:", ":life:", ":log:", ":ckpt:", ":node:", ":index:"]
faults = st.builds(Fault, done=st.none() | st.integers(0, 3), late=st.booleans())


class CellStateMachine(RuleBasedStateMachine):
    """Agents, queues, consumers, servers and readers act in any order, with faults; every read is checked."""

    def __init__(self) -> None:
        super().__init__()
        self._limits = ExitStack()
        self._limits.enter_context(small_limits())
        self._limits.enter_context(capture_logs())

    @initialize(
        seed=numbers,
        limit=st.sampled_from([None, None, None, (9_000, False), (9_000, True)]),
        servers=st.integers(1, 2),
        warm=st.sampled_from([True, True, True, False]),
        designs=st.sampled_from(
            [
                ("journal", "snapshot"),
                ("snapshot", "journal"),
                ("journal",),
                ("snapshot",),
                ("sql",),
                ("sql",),
                ("journal", "sql"),
                ("sql", "snapshot"),
            ]
        ),
    )
    def begin(
        self, seed: int, limit: tuple[int, bool] | None, servers: int, warm: bool, designs: tuple[str, ...]
    ) -> None:
        max_bytes, no_evict = limit or (None, False)
        self.cell = SimulatedCell(seed=seed, servers=servers, max_bytes=max_bytes, no_evict=no_evict, designs=designs)
        self.designs = sorted(designs)
        self.cell.start_member([0], [1])
        self.cell.start_member([1], [0])
        self.cell.readers = [JudgedReader(self.cell, design) for design in self.designs]
        for name in NODES[:3]:
            self.cell.start_agent(name, {"usage": {"VCPU": 1}})
        # Most faults that matter hit a cell that was well before.
        self.cell.run_well(self.cell.config.settle_s + 3 if warm else 0.5)

    # -- agents

    @rule(name=st.sampled_from(NODES), state=states)
    def report(self, name: str, state: dict[str, Any]) -> None:
        agent = self.cell.agents.get(name)
        if agent is None:
            self.cell.start_agent(name, state)
        else:
            agent.publisher.report(state)

    @rule(name=st.sampled_from(NODES), patch=patches, confirmed=st.booleans())
    def change(self, name: str, patch: dict[str, Any], confirmed: bool) -> None:
        agent = self.cell.agents.get(name)
        if agent is not None and agent.publisher.live:
            agent.publisher.change(patch)
        if confirmed:
            self.cell.confirm()

    @rule(name=st.sampled_from(NODES))
    def leave(self, name: str) -> None:
        agent = self.cell.agents.get(name)
        if agent is not None and agent.publisher.live:
            agent.publisher.leave()

    @rule(name=st.sampled_from(NODES), state=states, step_s=st.sampled_from([-3600.0, 0.0, 3600.0]))
    def restart_agent(self, name: str, state: dict[str, Any], step_s: float) -> None:
        self.cell.clock.step_time(step_s)
        self.cell.start_agent(name, state)

    @rule(rounds=st.integers(2, 6), every=st.booleans())
    def churn(self, rounds: int, every: bool) -> None:
        """Nodes change and consumers keep up."""
        for _ in range(rounds):
            self.cell.change_some(1.0 if every else 0.5)
            self.cell.run_well(0.5)

    # -- queues

    @rule(partition=st.integers(0, 1), index=numbers, kind=st.sampled_from(["duplicate", "swap", "lose", "poison"]))
    def disturb_queue(self, partition: int, index: int, kind: str) -> None:
        cell = self.cell
        waiting = cell.broker.queued(partition)
        if kind == "poison" and cell.broker.running:
            cell.poisoned(partition, POISON[index % len(POISON)])
        elif kind == "lose":
            cell.lose_message(partition, index)
        elif kind == "duplicate" and waiting:
            cell.broker.duplicate(partition, index % len(waiting))
        elif kind == "swap":
            pairs = [n for n in range(len(waiting) - 1) if not any(map(is_marker, waiting[n : n + 2]))]
            if pairs:
                first = pairs[index % len(pairs)]
                cell.broker.swap(partition, first, first + 1)

    @rule(kind=st.sampled_from(["stop", "stop, forget", "start", "start", "confirm", "be silent"]))
    def disturb_broker(self, kind: str) -> None:
        broker = self.cell.broker
        if kind.startswith("stop") and broker.running:
            broker.stop(lose_unconfirmed=kind == "stop, forget")
        elif kind == "start":
            broker.start()
        elif kind in {"confirm", "be silent"}:
            broker.confirming = kind == "confirm"

    # -- consumers

    @rule(which=numbers, times=st.integers(1, 4))
    def step(self, which: int, times: int) -> None:
        for _ in range(times):
            self.cell.members[which % len(self.cell.members)].step()

    @rule(which=numbers, call=calls, fault=faults)
    def step_with_fault(self, which: int, call: int, fault: Fault) -> None:
        self.cell.change_some(0.5)
        self.cell.members[which % len(self.cell.members)].step(at_call(call, fault))

    @rule(which=numbers, call=calls, fault=faults)
    def die_in_a_step(self, which: int, call: int, fault: Fault) -> None:
        self.cell.change_some(0.5)
        self.cell.members[which % len(self.cell.members)].step(at_call(call, fault), dies=True)

    @rule(which=numbers)
    def die_before_the_ack(self, which: int) -> None:
        member = self.cell.members[which % len(self.cell.members)]
        member.source.dies_before_ack = True
        member.step()

    @rule(which=numbers)
    def die(self, which: int) -> None:
        self.cell.members[which % len(self.cell.members)].die()

    @rule(which=numbers)
    def disconnect(self, which: int) -> None:
        self.cell.members[which % len(self.cell.members)].source.inner.disconnect()

    @rule(
        which=numbers,
        call=calls,
        passes_s=seconds,
        steps=st.integers(0, 4),
        reads=st.booleans(),
        flushed=st.sampled_from([None, None, None, 0, 1]),
    )
    def overtaken(self, which: int, call: int, passes_s: float, steps: int, reads: bool, flushed: int | None) -> None:
        member = self.cell.members[which % len(self.cell.members)]

        def meanwhile() -> None:
            self.cell.pass_time(passes_s)
            if flushed is not None:
                self.cell.servers[flushed % len(self.cell.servers)].flush()
            for _ in range(steps):
                self.cell.change_some(0.7)
                self.cell.confirm()
                for other in list(self.cell.members):
                    if other is not member:
                        other.step()
            if reads:
                for reader in self.cell.readers:
                    reader.read(5.0)

        self.cell.change_some(1.0)
        self.cell.overtaken(member, call, meanwhile)

    # -- stores

    @rule(which=numbers)
    def arrive(self, which: int) -> None:
        connections = self.cell.connections()
        if connections:
            connections[which % len(connections)].arrive()

    @rule(which=numbers, key=numbers, kind=st.sampled_from(KINDS_OF_KEYS), reads=st.booleans())
    def evict(self, which: int, key: int, kind: str, reads: bool) -> None:
        server = self.cell.servers[which % len(self.cell.servers)]
        present = [name for name in server.keys() if kind in name]  # noqa: SIM118 - not a dict
        if present:
            server.evict(present[key % len(present)])
        if reads:
            for design in self.designs:
                JudgedReader(self.cell, design).read(5.0)

    @rule(which=numbers, kind=st.sampled_from(["stop", "start", "start", "flush", "restart"]))
    def disturb_server(self, which: int, kind: str) -> None:
        number = which % len(self.cell.servers)
        if kind == "restart":
            self.cell.restart_server(number)
        else:
            getattr(self.cell.servers[number], kind)()

    @rule(which=numbers, lasts_s=st.sampled_from([3.0, 8.0, 30.0]), who=numbers, times=st.integers(0, 2))
    def freeze_server(self, which: int, lasts_s: float, who: int, times: int) -> None:
        """A server is frozen, and answers before its clock ticks again."""
        server = self.cell.servers[which % len(self.cell.servers)]
        server.stop()
        frozen_at = self.cell.clock.monotonic()
        self.cell.change_some(0.7)
        self.cell.pass_time(lasts_s)
        server.start()
        server.clock_stands_at = frozen_at
        for reader in self.cell.readers:
            reader.read(5.0)
        for _ in range(times):
            self.cell.members[who % len(self.cell.members)].step()
        for reader in self.cell.readers:
            reader.read(60.0)
        server.clock_stands_at = None

    @rule(swaps=st.booleans(), keeps=st.booleans())
    def reboot_controller(self, swaps: bool, keeps: bool) -> None:
        """The broker and all memcached servers restart, and members may get each other's partitions."""
        cell = self.cell
        cell.broker.stop(lose_unconfirmed=not keeps)
        for number in range(len(cell.servers)):
            cell.restart_server(number)
        for member in list(cell.members):
            member.step()
        if swaps:
            first, second = (member.source.inner for member in cell.members)
            first.partitions, second.partitions = second.partitions, first.partitions
            first.standby, second.standby = second.standby, first.standby
        cell.broker.start()

    @precondition(lambda self: self.cell.database is not None)
    @rule(kind=st.sampled_from(["stop", "start", "start", "back up", "back up", "restore", "delete", "restart"]))
    def disturb_database(self, kind: str) -> None:
        database = self.cell.database
        assert database is not None
        if kind == "back up":
            self.cell.back_up_database()
        elif kind == "restore":
            self.cell.restore_database()
        elif kind == "delete":
            database.flush()
        else:
            getattr(database, kind)()

    @precondition(lambda self: self.cell.database is not None)
    @rule(key=numbers, kind=st.sampled_from([":epoch", ":head:", ":life:"]))
    def delete_in_database(self, key: int, kind: str) -> None:
        database = self.cell.database
        assert database is not None
        present = [name for name in database.keys() if kind in name]  # noqa: SIM118 - not a dict
        if present:
            database.evict(present[key % len(present)])

    @precondition(lambda self: self.cell.database is not None)
    @rule(which=numbers, steps=st.integers(1, 3), restores=st.booleans(), fresh=st.booleans())
    def read_while_others_write(self, which: int, steps: int, restores: bool, fresh: bool) -> None:
        """Agents and consumers act between the two queries of one fetch."""
        cell, database = self.cell, self.cell.database
        assert database is not None

        def meanwhile() -> None:
            database.before_rows = None
            if restores:
                cell.restore_database()
            for _ in range(steps):
                cell.change_some(0.7)
                cell.confirm()
                for member in list(cell.members):
                    member.step()

        reader = cell.readers[which % len(cell.readers)]
        if fresh:
            reader = JudgedReader(cell, reader.design)
        database.before_rows = meanwhile
        reader.read(5.0)
        database.before_rows = None

    # -- time and readers

    @rule(passes_s=seconds)
    def pass_time(self, passes_s: float) -> None:
        self.cell.pass_time(passes_s)

    @rule(lasts_s=st.sampled_from([0.5, 2.0, 5.0, 30.0]))
    def run_well(self, lasts_s: float) -> None:
        self.cell.run_well(lasts_s)

    @rule(which=numbers, max_age=st.sampled_from([0.5, 2.0, 5.0, 60.0]), on_stale=st.sampled_from(["flag", "exclude"]))
    def read(self, which: int, max_age: float, on_stale: Literal["exclude", "flag"]) -> None:
        self.cell.readers[which % len(self.cell.readers)].read(max_age, on_stale)

    @rule(which=numbers, call=st.integers(0, 4))
    def read_with_fault(self, which: int, call: int) -> None:
        self.cell.readers[which % len(self.cell.readers)].read(5.0, "flag", at_call(call, Fault()))

    @precondition(lambda self: len(self.cell.readers) < 5)
    @rule(design=st.integers(0, 1))
    def new_reader(self, design: int) -> None:
        self.cell.readers.append(JudgedReader(self.cell, self.designs[design % len(self.designs)]))

    def teardown(self) -> None:
        try:
            if hasattr(self, "cell"):
                self.cell.converge()
        finally:
            self._limits.close()


TestCell = CellStateMachine.TestCase
TestCell.settings = settings(settings(), max_examples=2 * settings().max_examples)

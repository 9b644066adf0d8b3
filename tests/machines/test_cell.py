"""The whole cell under faults, held to the invariants I1 to I7 of DESIGN.md section 9 (see ``world``)."""

from __future__ import annotations

from contextlib import ExitStack

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from structlog.testing import capture_logs

from nodestate.testing import Fault
from tests.machines.world import JudgedReader, World, at_call, small_limits

NODES = [f"node-{number}" for number in range(6)]
numbers = st.integers(min_value=0, max_value=10_000)
seconds = st.sampled_from([0.1, 1.0, 4.0, 12.0, 40.0])
calls = st.integers(min_value=0, max_value=12)
states = st.fixed_dictionaries(
    {"usage": st.dictionaries(st.sampled_from(["VCPU", "MEMORY_MB"]), st.integers(0, 9))},
    optional={"inventory": st.just({"VCPU": {"total": 8}}), "status": st.sampled_from(["up", "down"])},
)
patches = st.fixed_dictionaries(
    {},
    optional={
        "usage": st.dictionaries(st.sampled_from(["VCPU", "DISK_GB"]), st.none() | st.integers(0, 9)),
        "status": st.sampled_from(["up", "draining"]),
        "metrics": st.just({"load": 0.5}),
        "zone": st.sampled_from([None, "az1"]),
    },
)
faults = st.builds(Fault, done=st.none() | st.integers(0, 3), late=st.booleans())


class CellMachine(RuleBasedStateMachine):
    """Agents, queues, consumers, servers and readers in any order, with faults; every read is judged."""

    def __init__(self) -> None:
        super().__init__()
        self._limits = ExitStack()
        self._limits.enter_context(small_limits())
        self._limits.enter_context(capture_logs())

    @initialize(
        seed=numbers,
        limit=st.sampled_from([None, None, None, (9_000, False), (9_000, True)]),
        servers=st.integers(1, 2),
        designs=st.sampled_from([("journal", "snapshot"), ("snapshot", "journal"), ("journal",), ("snapshot",)]),
    )
    def begin(self, seed: int, limit: tuple[int, bool] | None, servers: int, designs: tuple[str, ...]) -> None:
        max_bytes, no_evict = limit or (None, False)
        self.world = World(seed=seed, servers=servers, max_bytes=max_bytes, no_evict=no_evict, designs=designs)
        self.designs = sorted(designs)
        self.world.start_member([0], [1])
        self.world.start_member([1], [0])
        self.world.readers = [JudgedReader(self.world, design) for design in self.designs]
        for name in NODES[:3]:
            self.world.start_agent(name, {"usage": {"VCPU": 1}})
        for member in list(self.world.members):
            member.step()

    # -- agents

    @rule(name=st.sampled_from(NODES), state=states)
    def report(self, name, state):
        agent = self.world.agents.get(name)
        if agent is None:
            self.world.start_agent(name, state)
        else:
            agent.publisher.report(state)

    @rule(name=st.sampled_from(NODES), patch=patches, confirmed=st.booleans())
    def change(self, name, patch, confirmed):
        agent = self.world.agents.get(name)
        if agent is not None and agent.publisher.live:
            agent.publisher.change(patch)
        if confirmed:
            self.world.confirm()

    @rule(name=st.sampled_from(NODES))
    def leave(self, name):
        agent = self.world.agents.get(name)
        if agent is not None and agent.publisher.live:
            agent.publisher.leave()

    @rule(name=st.sampled_from(NODES), state=states, step_s=st.sampled_from([-3600.0, 0.0, 3600.0]))
    def restart_agent(self, name, state, step_s):
        self.world.clock.step_time(step_s)
        self.world.start_agent(name, state)

    # -- queues

    @rule(partition=st.integers(0, 1), index=numbers)
    def duplicate(self, partition, index):
        waiting = self.world.broker.queued(partition)
        if waiting:
            self.world.broker.duplicate(partition, index % len(waiting))

    @rule(partition=st.integers(0, 1), index=numbers)
    def swap(self, partition, index):
        waiting = self.world.broker.queued(partition)
        pairs = [n for n in range(len(waiting) - 1) if all(body[:1] not in {b"", b"\xc1"} for body in waiting[n : n + 2])]
        if pairs:
            first = pairs[index % len(pairs)]
            self.world.broker.swap(partition, first, first + 1)

    @rule(partition=st.integers(0, 1), index=numbers)
    def lose_message(self, partition, index):
        self.world.lose_message(partition, index)

    @rule(partition=st.integers(0, 1), body=st.sampled_from([b"poison", b"\x80", b"\x00", b"\x81\xa1v\x02"]))
    def poison(self, partition, body):
        if self.world.broker.running:
            self.world.poisoned(partition, body)

    @rule(lose=st.booleans())
    def stop_broker(self, lose):
        if self.world.broker.running:
            self.world.broker.stop(lose_unconfirmed=lose)

    @rule()
    def start_broker(self):
        self.world.broker.start()

    @rule(confirming=st.booleans())
    def confirms(self, confirming):
        self.world.broker.confirming = confirming

    # -- consumers

    @rule(which=numbers, times=st.integers(1, 4))
    def step(self, which, times):
        for _ in range(times):
            self.world.members[which % len(self.world.members)].step()

    @rule(which=numbers, call=calls, fault=faults)
    def step_with_fault(self, which, call, fault):
        self.world.members[which % len(self.world.members)].step(at_call(call, fault))

    @rule(which=numbers, call=calls, fault=faults)
    def die_in_a_step(self, which, call, fault):
        self.world.members[which % len(self.world.members)].step(at_call(call, fault), dies=True)

    @rule(which=numbers)
    def die_before_the_ack(self, which):
        member = self.world.members[which % len(self.world.members)]
        member.source.dies_before_ack = True
        member.step()

    @rule(which=numbers)
    def die(self, which):
        self.world.members[which % len(self.world.members)].die()

    @rule(which=numbers)
    def disconnect(self, which):
        self.world.members[which % len(self.world.members)].source.inner.disconnect()

    @rule(
        which=numbers,
        call=calls,
        passes_s=seconds,
        steps=st.integers(0, 3),
        reads=st.booleans(),
        flushed=st.sampled_from([None, None, None, 0, 1]),
    )
    def overtaken(self, which, call, passes_s, steps, reads, flushed):
        member = self.world.members[which % len(self.world.members)]

        def meanwhile() -> None:
            self.world.pass_time(passes_s)
            if flushed is not None:
                self.world.servers[flushed % len(self.world.servers)].flush()
            for _ in range(steps):
                for other in list(self.world.members):
                    if other is not member:
                        other.step()
            if reads:
                for reader in self.world.readers:
                    reader.read(5.0)

        self.world.overtaken(member, call, meanwhile)

    # -- stores

    @rule(which=numbers)
    def arrive(self, which):
        connections = self.world.connections()
        if connections:
            connections[which % len(connections)].arrive()

    @rule(which=numbers, key=numbers)
    def evict(self, which, key):
        server = self.world.servers[which % len(self.world.servers)]
        present = server.keys()
        if present:
            server.evict(present[key % len(present)])

    @rule(which=numbers)
    def flush_server(self, which):
        self.world.servers[which % len(self.world.servers)].flush()

    @rule(which=numbers)
    def restart_server(self, which):
        self.world.restart_server(which % len(self.world.servers))

    @rule(which=numbers)
    def stop_server(self, which):
        self.world.servers[which % len(self.world.servers)].stop()

    @rule(which=numbers)
    def start_server(self, which):
        self.world.servers[which % len(self.world.servers)].start()

    # -- time and readers

    @rule(passes_s=seconds)
    def pass_time(self, passes_s):
        self.world.pass_time(passes_s)

    @rule(rounds=st.integers(1, 8))
    def run_well(self, rounds):
        for _ in range(rounds):
            self.world.pass_time(0.5)
            for member in list(self.world.members):
                member.step()

    @rule(which=numbers, max_age=st.sampled_from([0.5, 2.0, 5.0, 60.0]), on_stale=st.sampled_from(["flag", "exclude"]))
    def read(self, which, max_age, on_stale):
        self.world.readers[which % len(self.world.readers)].read(max_age, on_stale)

    @rule(which=numbers, call=st.integers(0, 4))
    def read_with_fault(self, which, call):
        self.world.readers[which % len(self.world.readers)].read(5.0, "flag", at_call(call, Fault()))

    @precondition(lambda self: len(self.world.readers) < 5)
    @rule(design=st.integers(0, 1))
    def new_reader(self, design):
        self.world.readers.append(JudgedReader(self.world, self.designs[design % len(self.designs)]))

    def teardown(self) -> None:
        try:
            if hasattr(self, "world"):
                self.world.converge()
        finally:
            self._limits.close()


TestCell = CellMachine.TestCase
TestCell.settings = settings(settings(), stateful_step_count=40)

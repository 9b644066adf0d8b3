"""A simulated cell in one process: an agent that admits, a consumer, schedulers that crash, servers that lose data.

Checks use two sources alone: the allocations that the agent has after every step, and the bytes of the claim records in
the servers. The opinion of a scheduler is never used.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from nodestate.agent.agent import Agent
from nodestate.agent.sources.static_fleet import StaticFleet
from nodestate.config import Config
from nodestate.consumers.loop import Consumer
from nodestate.designs.reader import Reader
from nodestate.errors import BadRequestError, StaleViewError, StoreUnavailableError
from nodestate.model import Receipt, partitioning
from nodestate.model.orders import Answer, Order
from nodestate.ports import Item, Write, WriteResult
from nodestate.scheduling.claims import CLAIMS, CLOCK_S, Claim
from nodestate.scheduling.scheduler import Scheduler
from nodestate.scheduling.selection.plugins import own
from nodestate.store import keys
from nodestate.store.round_trips import Stores
from nodestate.testing import ManualClock, MemoryBroker, MemoryCourier, MemoryServer, MemorySink, MemoryStore, SeededIds
from nodestate.view.view import View

CELL: Final = "cell1"
STEP_S: Final = 1.0
"""The longest time that passes between two steps of the agent and the consumer."""
LATE_S: Final = 1_000_000.0
"""By how many seconds the clocks of the servers of claims are ahead, so that they can be set back."""


class Crash(BaseException):
    """A simulated process dies here. It is no ``Exception``, so no handler of the product catches it."""


class CooperativeClock(ManualClock):
    """A clock on which a sleep lets the other processes of the cell run."""

    def __init__(self) -> None:
        super().__init__()
        self.run_others: Callable[[], None] = lambda: None
        """Steps the other processes once."""
        self.busy = False
        """Whether another process is being stepped now: its sleeps only advance the time."""

    def sleep(self, seconds: float) -> None:
        if self.busy:
            self.advance(seconds)
            return
        while seconds > 0:
            self.run_others()
            self.advance(min(seconds, STEP_S))
            seconds -= STEP_S
        self.run_others()


class ShiftedClock:
    """The clock of a machine whose time of day differs from that of the others by ``ahead_s`` seconds."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.ahead_s = 0.0

    def monotonic(self) -> float:
        return self._clock.monotonic()

    def time(self) -> float:
        return self._clock.time() + self.ahead_s

    def sleep(self, seconds: float) -> None:
        self._clock.sleep(seconds)


class CrashPoint:
    """Raises ``Crash`` at one call of a server or of the broker, so that a process dies between any two calls."""

    calls_left: int | None = None
    """How many calls still succeed; None: all of them."""

    def count_call(self, _call: str = "") -> None:
        """Called before each call. ``_call`` names it."""
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left < 0:
                raise Crash


class CrashingClaimStore(MemoryStore):
    """A claim server's connection of a process that may die within a pipeline, so that only some writes are made."""

    def __init__(self, server: MemoryServer, crash_point: CrashPoint, clocks: Mapping[str, float]) -> None:
        super().__init__(server)
        self._crash_point = crash_point
        self._clocks = clocks
        """By the server's name, by how many seconds its clock was set ahead."""
        self.is_cut_off = False
        """Whether this process does not reach the server."""

    def _require_reachable(self) -> None:
        if self.is_cut_off:
            raise StoreUnavailableError(self.name, "cut off")

    def server_time(self) -> float:
        self._require_reachable()
        return super().server_time() + self._clocks.get(self.name, 0.0) + LATE_S

    def fetch(self, keys: Sequence[str], *, values_only: bool = False) -> dict[str, Item]:
        self._crash_point.count_call("fetch")
        self._require_reachable()
        return super().fetch(keys, values_only=values_only)

    def write(self, writes: Sequence[Write]) -> list[WriteResult]:
        self._require_reachable()
        written = []
        for write in writes:
            self._crash_point.count_call(f"{write.put.value} {write.key.split(':')[2]}")
            written += super().write([write])
        return written


class CrashingCourier:
    """A courier of a process that may die between any two of its orders."""

    def __init__(self, inner: MemoryCourier, crash_point: CrashPoint) -> None:
        self._inner = inner
        self._crash_point = crash_point

    @property
    def reply_to(self) -> str:
        self._crash_point.count_call("make orders")
        return self._inner.reply_to

    def send(self, orders: Sequence[Order], expires_s: float) -> None:
        for order in orders:
            self._crash_point.count_call("send an order")
            self._inner.send([order], expires_s)

    def answers(self, timeout_s: float) -> list[Answer]:
        self._crash_point.count_call("take answers")
        return self._inner.answers(timeout_s)

    def refused_answers(self) -> tuple[int, str]:
        return self._inner.refused_answers()

    def close(self) -> None:
        self._inner.close()


class CrashingSink(MemorySink):
    """A sink of an agent that may die after it stored an allocation and before it reports it."""

    def __init__(self, broker: MemoryBroker, crash_point: CrashPoint) -> None:
        super().__init__(broker)
        self._crash_point = crash_point

    def publish(self, bucket: int, body: bytes, on_done: Callable[[bool], None]) -> None:
        self._crash_point.count_call()
        super().publish(bucket, body, on_done)

    def answer(self, reply_to: str, answer: Answer) -> None:
        self._crash_point.count_call()
        super().answer(reply_to, answer)


class LaggingReader(Reader):
    """A reader that, while ``lagging``, returns its last view as long as that view is within the caller's bound."""

    lagging = False
    last: View | None = None

    def read(self, *, max_age: float | None = None, at_least: Receipt | None = None, **more: Any) -> View:
        if not self.lagging or at_least is not None or self.last is None or max_age is None or self.last.age > max_age:
            self.last = super().read(max_age=max_age, at_least=at_least, **more)
        return self.last


class SchedulerProcess:
    """One scheduler with a reader and a courier of its own."""

    def __init__(self, cell: SchedulingCell, name: str, seed: int) -> None:
        config, clock = cell.config, cell.clock
        self.crash_point = cell.crash_points()
        self.courier = cell.broker.courier()
        stores = Stores([MemoryStore(server) for server in cell.servers])
        self.claim_stores = [CrashingClaimStore(server, self.crash_point, cell.clocks) for server in cell.servers]
        self.reader = LaggingReader(config, stores=stores, clock=clock)
        self.scheduler = Scheduler(
            config,
            name=name,
            seed=seed,
            max_age=5.0,
            reader=self.reader,
            claims=self.claim_stores,
            courier=CrashingCourier(self.courier, self.crash_point),
            clock=clock,
            ids=SeededIds(f"{name} {seed}"),
            policies=own(),
        )

    def close(self) -> None:
        self.courier.close()


class SchedulingCell:
    """The nodes, their agent, one consumer, the store, the broker and the schedulers.

    Args:
        states: The state of each node, by its name.
        seed: Two cells with the same seed run in the same way.
        servers: The number of memcached servers, for claims and states.
        clock: The clock of all processes; None for one on which a sleep lets the other processes run.
        designs: The designs that the consumer writes.
        state_dir: Where the agent stores cordons; None: it refuses to cordon nodes.
        more: More settings of the cell.
    """

    def __init__(
        self,
        states: Mapping[str, Mapping[str, Any]],
        *,
        seed: int = 0,
        servers: int = 2,
        clock: CooperativeClock | None = None,
        designs: tuple[str, ...] = ("snapshot",),
        state_dir: Path | None = None,
        **more: Any,
    ) -> None:
        self.clock = clock or CooperativeClock()
        self.state_dir = state_dir
        self.config = Config(
            cell=CELL, partitions=2, designs=designs, read_design="snapshot", resync_jitter_s=0.5, **more
        )
        self.servers = [MemoryServer(f"store-{n}", clock=self.clock) for n in range(servers)]
        self.broker = MemoryBroker(2, clock=self.clock)
        self.fleet = StaticFleet(states)
        self.rng = random.Random(seed)
        self.incarnation = int(self.clock.time())
        self.agent_clock = ShiftedClock(self.clock)
        self.agent_crash_point = CrashPoint()
        self.agent = self._agent()
        stores = Stores([MemoryStore(server) for server in self.servers])
        self.consumer = Consumer(
            self.config, self.broker.source(range(2)), stores, self.broker, self.clock, self._random(), "consumer"
        )
        self.processes: list[SchedulerProcess] = []
        self.agent_frozen = False
        """The agent does nothing."""
        self.consumer_frozen = False
        """The consumer does nothing."""
        self.powered_off: set[str] = set()
        """Nodes without power."""
        self.nodes_with_lost_claims: set[str] = set()
        """Nodes whose claim record was lost at some time."""
        self.clock.run_others = self.step_agents
        self.clocks: dict[str, float] = {}
        """By the name of a server of claims, by how many seconds its clock was set ahead."""
        self.overcommitments: list[str] = []
        """Allocations of the agent that exceeded a bound, in words; must stay empty."""

    crash_points: type[CrashPoint] = CrashPoint
    """A new scheduler calls one before each of its calls."""

    def _agent(self) -> Agent:
        self.sink = CrashingSink(self.broker, self.agent_crash_point)
        return Agent(
            self.config,
            [self.fleet],
            self.sink,
            self.agent_clock,
            self._random(),
            inbox=self.sink,
            incarnation=self.incarnation,
            state_dir=self.state_dir,
            life=f"life {self.incarnation}",
            host="first-host",
        )

    def _random(self) -> random.Random:
        return random.Random(self.rng.getrandbits(32))

    def wait_until_complete(self) -> None:
        """Step agent and consumer until the consumer has a complete state of every node."""
        for _ in range(60):
            self.step_agents()
            self.clock.advance(1.0)
        reader = Reader(self.config, stores=Stores([MemoryStore(server) for server in self.servers]), clock=self.clock)
        assert len(reader.read(max_age=5.0).nodes) == len(self.fleet.nodes())

    def step_agents(self) -> None:
        """Step the agent and the consumer once, and check the agent's allocations."""
        self.clock.busy = True
        if not self.agent_frozen:
            try:
                self.agent.step(0.0)
            except Crash:
                self.restart_agent()
        if not self.consumer_frozen:
            self.consumer.step()
        self.clock.busy = False
        self.check_agents()

    def start_scheduler(self, name: str) -> SchedulerProcess:
        """Start another scheduler."""
        process = SchedulerProcess(self, name, self.rng.getrandbits(32))
        self.processes.append(process)
        return process

    @contextmanager
    def crashing(self, process: SchedulerProcess, calls: int | None) -> Iterator[None]:
        """Let a scheduler die after this number of calls within the block; None: it survives."""
        process.crash_point.calls_left = calls
        try:
            yield
        except Crash:
            self.replace_dead(process)
        finally:
            process.crash_point.calls_left = None

    def replace_dead(self, process: SchedulerProcess) -> None:
        """Remove a scheduler that died, and start another in its place."""
        process.close()
        self.processes.remove(process)
        self.start_scheduler(f"{process.scheduler.name}'")

    def run_for(self, seconds: float) -> None:
        """Let time pass; the agent, the consumer and all schedulers step once per second."""
        while seconds > 0:
            self.step_agents()
            for process in self.processes:
                process.scheduler.step(0.0)
            self.clock.advance(STEP_S)
            seconds -= STEP_S

    # -- faults

    def restart_agent(self) -> None:
        """Kill the agent and start another, with all instances of its nodes, in a new incarnation."""
        self.agent_crash_point.calls_left = None
        self.sink.disconnect(lose=True)
        self.fleet = StaticFleet({node: self.fleet.state(node) for node in self.fleet.nodes()})
        for node in self.powered_off:
            self.fleet.kill(node)
        self.incarnation += 1
        self.agent = self._agent()

    def power_off(self, node: str) -> None:
        """Take the power from a node."""
        self.powered_off.add(node)
        self.fleet.kill(node)

    def power_on_all(self) -> None:
        """Give all nodes their power back."""
        while self.powered_off:
            self.fleet.revive(self.powered_off.pop())

    def evict_claims(self, node: str) -> None:
        """Let a server lose one claim record."""
        if self.server(node).evict(keys.claim(CELL, node)):
            self.nodes_with_lost_claims.add(node)

    def flush_server(self, number: int) -> None:
        """Let a server lose all its items."""
        server = self.servers[number % len(self.servers)]
        server.flush()
        self.nodes_with_lost_claims |= {node for node in self.fleet.nodes() if self.server(node) is server}

    def server(self, node: str) -> MemoryServer:
        return self.servers[partitioning.partition_of(node, len(self.servers))]

    # -- checking

    def claims(self, node: str) -> list[Claim]:
        """Return the live claims in a node's record, from the bytes in its server."""
        item = self.server(node).fetch([keys.claim(CELL, node)]).get(keys.claim(CELL, node))
        if item is None:
            return []
        now = self.claim_time(node)
        return [claim for claim in CLAIMS.unpack(item.value).claims if claim.until > now]

    def claim_time(self, node: str) -> float:
        """Return the time of the clock that the deadlines of a node's claims refer to."""
        server = self.server(node)
        return server.time() + self.clocks.get(server.name, 0.0) + LATE_S

    def check_agents(self) -> None:
        """Assert that no node ever had more allocations than fit, whatever was lost (I8)."""
        for node in self.fleet.nodes():
            room = self.fleet.resources_of(node)
            for name, amount in room.usage.items():
                if amount > room.inventory[name]["total"]:
                    self.overcommitments.append(f"{node} has {amount} of {name}, over its inventory")
            had = Counter[str]()
            for allocation in room.allocations.values():
                for name, amount in allocation["resources"].items():
                    had[name] += amount
            assert {n: a for n, a in had.items() if a} == {n: a for n, a in room.usage.items() if a}, node
            for group, count in Counter(_anti_affinity_groups(room.allocations)).items():
                if count > 1:
                    self.overcommitments.append(f"{node} has {count} of group {group}")
        assert not self.overcommitments

    def check_claims(self) -> None:
        """Assert that allocations and claims together fit each node whose claim record was never lost (I8).

        Also that no claim lives longer than its deadline allows.
        """
        for node in self.fleet.nodes():
            claims = self.claims(node)
            for claim in claims:
                longest = max(
                    self.config.claim_ttl_s, *(c.until - self.claim_time(node) for c in claims if c.kept), 0.0
                )
                assert claim.until <= self.claim_time(node) + longest + CLOCK_S
            if node in self.nodes_with_lost_claims:
                continue
            room = self.fleet.resources_of(node)
            held = Counter(room.usage)
            for claim in claims:
                if claim.instance not in room.allocations:  # a resize is checked by the allocation that results
                    held.update(claim.resources)
            for name, amount in held.items():
                assert amount <= room.inventory[name]["total"], f"{node}: {amount} of {name} held, {claims}"
            members = Counter(_anti_affinity_groups(room.allocations))
            members.update(
                claim.group
                for claim in claims
                if claim.hints.get("group_policy") == "anti-affinity" and claim.instance not in room.allocations
            )
            assert all(count <= 1 for count in members.values()), f"{node}: {members}"

    def nodes_by_instance(self) -> dict[str, list[str]]:
        """Return, by instance, the nodes on which the agent has it."""
        found: dict[str, list[str]] = {}
        for node in self.fleet.nodes():
            for instance in self.fleet.resources_of(node).allocations:
                found.setdefault(instance, []).append(node)
        return found


def _anti_affinity_groups(allocations: Mapping[str, Any]) -> Iterator[str]:
    for allocation in allocations.values():
        if allocation.get("hints", {}).get("group_policy") == "anti-affinity":
            yield allocation["group"]


def allowed_errors() -> AbstractContextManager[None]:
    """Accept the errors that a scheduler may raise while the consumer, the agent or servers are away."""
    return suppress(StaleViewError, BadRequestError, TimeoutError, StoreUnavailableError)

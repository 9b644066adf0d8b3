"""A cell with schedulers in one process: agents that admit, a consumer, schedulers that die, servers that forget.

What is judged comes from the agents alone (what they have, at every moment) and from the bytes of the claim records in the
servers; nothing of a scheduler's own opinion is believed.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from nodestate.agent.agent import Agent
from nodestate.agent.sources.static_fleet import StaticFleet
from nodestate.config import Config
from nodestate.consumers.loop import Consumer
from nodestate.designs.reader import Reader
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
LIFE_S: Final = 1.0
"""Everybody else acts at least so often while somebody waits."""


class Crash(BaseException):
    """The process dies here. Not an ``Exception``: nothing may survive it."""


class CooperativeClock(ManualClock):
    """While somebody sleeps, the others go on."""

    def __init__(self) -> None:
        super().__init__()
        self.run_others: Callable[[], None] = lambda: None
        self.busy = False

    def sleep(self, seconds: float) -> None:
        if self.busy:  # one of the others waits itself
            self.advance(seconds)
            return
        while seconds > 0:
            self.run_others()
            self.advance(min(seconds, LIFE_S))
            seconds -= LIFE_S
        self.run_others()


class CrashPoint:
    """A scheduler's hands: with ``calls_left`` its process dies before that call of a server or the broker."""

    calls_left: int | None = None

    def count_call(self) -> None:
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left < 0:
                raise Crash


class CrashingClaimStore(MemoryStore):
    """A connection of a process that may die, and so leave half of its writes undone."""

    def __init__(self, server: MemoryServer, crash_point: CrashPoint) -> None:
        super().__init__(server)
        self._crash_point = crash_point

    def fetch(self, keys: Sequence[str]) -> dict[str, Item]:
        self._crash_point.count_call()
        return super().fetch(keys)

    def write(self, writes: Sequence[Write]) -> list[WriteResult]:
        written = []
        for write in writes:  # one by one: a pipeline may break off anywhere
            self._crash_point.count_call()
            written += super().write([write])
        return written


class CrashingCourier:
    """A ``ports.Courier`` of a process that may die between any two of its orders."""

    def __init__(self, inner: MemoryCourier, crash_point: CrashPoint) -> None:
        self._inner = inner
        self._crash_point = crash_point

    @property
    def reply_to(self) -> str:
        return self._inner.reply_to

    def send(self, orders: Sequence[Order], expires_s: float) -> None:
        for order in orders:
            self._crash_point.count_call()
            self._inner.send([order], expires_s)

    def answers(self, timeout_s: float) -> list[Answer]:
        self._crash_point.count_call()
        return self._inner.answers(timeout_s)

    def close(self) -> None:
        self._inner.close()


class CrashingSink(MemorySink):
    """The hands of an agent that may die after it stored what it admitted, and before it said so."""

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
    """While it is ``lagging``, what it saw last is what it says, for as long as it is not too old for who asks."""

    lagging = False
    last: View | None = None

    def read(self, *, max_age: float | None = None, at_least: Receipt | None = None, **more: Any) -> View:
        if not self.lagging or at_least is not None or self.last is None or max_age is None or self.last.age > max_age:
            self.last = super().read(max_age=max_age, at_least=at_least, **more)
        return self.last


class SchedulerProcess:
    """One scheduler, and all that a user holds of it."""

    def __init__(self, cell: SchedulingCell, name: str, seed: int) -> None:
        config, clock = cell.config, cell.clock
        self.crash_point = CrashPoint()
        self.courier = cell.broker.courier()
        stores = Stores([MemoryStore(server) for server in cell.servers])
        self.reader = LaggingReader(config, stores=stores, clock=clock)
        self.scheduler = Scheduler(
            config,
            name=name,
            seed=seed,
            max_age=5.0,
            reader=self.reader,
            claims=[CrashingClaimStore(server, self.crash_point) for server in cell.servers],
            courier=CrashingCourier(self.courier, self.crash_point),
            clock=clock,
            ids=SeededIds(f"{name} {seed}"),
            policies=own(),
        )

    def close(self) -> None:
        self.courier.close()


class SchedulingCell:
    """Everything: ``states`` of the nodes by name, claims and states on ``servers`` memcacheds."""

    def __init__(self, states: Mapping[str, Mapping[str, Any]], *, seed: int = 0, servers: int = 2) -> None:
        self.clock = CooperativeClock()
        self.config = Config(
            cell=CELL, partitions=2, designs=("snapshot",), read_design="snapshot", resync_jitter_s=0.5
        )
        self.servers = [MemoryServer(f"store-{n}", clock=self.clock) for n in range(servers)]
        self.broker = MemoryBroker(2, clock=self.clock)
        self.fleet = StaticFleet(states)
        self.rng = random.Random(seed)
        self.incarnation = int(self.clock.time())
        self.agent_crash_point = CrashPoint()
        self.agent = self._agent()
        stores = Stores([MemoryStore(server) for server in self.servers])
        self.consumer = Consumer(
            self.config, self.broker.source(range(2)), stores, self.broker, self.clock, self._random(), "consumer"
        )
        self.processes: list[SchedulerProcess] = []
        self.agent_frozen = False
        self.consumer_frozen = False
        self.powered_off: set[str] = set()
        self.nodes_with_lost_claims: set[str] = set()
        """Nodes whose claims were lost since the last rest."""
        self.clock.run_others = self.step_agents
        self.overcommitments: list[str] = []
        """What the agents had beyond a bound, ever."""

    def _agent(self) -> Agent:
        self.sink = CrashingSink(self.broker, self.agent_crash_point)
        return Agent(
            self.config,
            [self.fleet],
            self.sink,
            self.clock,
            self._random(),
            inbox=self.sink,
            incarnation=self.incarnation,
        )

    def _random(self) -> random.Random:
        return random.Random(self.rng.getrandbits(32))

    def wait_until_complete(self) -> None:
        """Until the consumer vouches for all nodes."""
        for _ in range(60):
            self.step_agents()
            self.clock.advance(1.0)
        reader = Reader(self.config, stores=Stores([MemoryStore(server) for server in self.servers]), clock=self.clock)
        assert len(reader.read(max_age=5.0).nodes) == len(self.fleet.nodes())

    def step_agents(self) -> None:
        """Agents and consumer do what is due."""
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
        """One more scheduler."""
        process = SchedulerProcess(self, name, self.rng.getrandbits(32))
        self.processes.append(process)
        return process

    @contextmanager
    def crashing(self, process: SchedulerProcess, calls: int | None) -> Iterator[None]:
        """What is done meanwhile ends with the process's death, after so many calls (None: it lives)."""
        process.crash_point.calls_left = calls
        try:
            yield
        except Crash:
            self.replace_dead(process)
        finally:
            process.crash_point.calls_left = None

    def replace_dead(self, process: SchedulerProcess) -> None:
        """It is dead; another of its kind comes."""
        process.close()
        self.processes.remove(process)
        self.start_scheduler(f"{process.scheduler.name}'")

    def run_for(self, seconds: float) -> None:
        """Time passes for everybody."""
        while seconds > 0:
            self.step_agents()
            for process in self.processes:
                process.scheduler.step(0.0)
            self.clock.advance(LIFE_S)
            seconds -= LIFE_S

    # -- faults

    def restart_agent(self) -> None:
        """The agent is killed, and another comes: with all instances of its nodes, in another life."""
        self.agent_crash_point.calls_left = None
        self.sink.disconnect(lose=True)
        self.fleet = StaticFleet({node: self.fleet.state(node) for node in self.fleet.nodes()})
        for node in self.powered_off:
            self.fleet.kill(node)
        self.incarnation += 1
        self.agent = self._agent()

    def power_off(self, node: str) -> None:
        """A node loses its power."""
        self.powered_off.add(node)
        self.fleet.kill(node)

    def power_on_all(self) -> None:
        """All nodes have power again."""
        while self.powered_off:
            self.fleet.revive(self.powered_off.pop())

    def evict_claims(self, node: str) -> None:
        """A server forgets one record."""
        if self.server(node).evict(keys.claim(CELL, node)):
            self.nodes_with_lost_claims.add(node)

    def flush_server(self, number: int) -> None:
        """A server forgets everything."""
        server = self.servers[number % len(self.servers)]
        server.flush()
        self.nodes_with_lost_claims |= {node for node in self.fleet.nodes() if self.server(node) is server}

    def server(self, node: str) -> MemoryServer:
        return self.servers[partitioning.partition_of(node, len(self.servers))]

    # -- judging

    def claims(self, node: str) -> list[Claim]:
        """The live claims in a node's record, as its server has it."""
        item = self.server(node).fetch([keys.claim(CELL, node)]).get(keys.claim(CELL, node))
        if item is None:
            return []
        now = self.server(node).time()
        return [claim for claim in CLAIMS.unpack(item.value).claims if claim.until > now]

    def check_agents(self) -> None:
        """What agents have is within every bound, whatever was lost (I8)."""
        for node in self.fleet.nodes():
            room = self.fleet.room(node)
            for name, amount in room.usage.items():
                if amount > room.inventory[name]["total"]:
                    self.overcommitments.append(f"{node} has {amount} of {name}")
            had = Counter[str]()
            for allocation in room.allocations.values():
                for name, amount in allocation["resources"].items():
                    had[name] += amount
            assert {n: a for n, a in had.items() if a} == {n: a for n, a in room.usage.items() if a}, node
            for group, count in Counter(_anti(room.allocations)).items():
                if count > 1:
                    self.overcommitments.append(f"{node} has {count} of group {group}")
        assert not self.overcommitments

    def check_claims(self) -> None:
        """What is allocated or claimed of a node whose record was not lost is within its capacity (I8), and no claim outlives
        its deadline.
        """
        for node in self.fleet.nodes():
            claims = self.claims(node)
            for claim in claims:
                longest = max(
                    self.config.claim_ttl_s, *(c.until - self.server(node).time() for c in claims if c.kept), 0.0
                )
                assert claim.until <= self.server(node).time() + longest + CLOCK_S
            if node in self.nodes_with_lost_claims:
                continue
            room = self.fleet.room(node)
            held = Counter(room.usage)
            for claim in claims:
                if claim.instance not in room.allocations:  # a resize is judged by what the agent has in the end
                    held.update(claim.resources)
            for name, amount in held.items():
                assert amount <= room.inventory[name]["total"], f"{node}: {amount} of {name} held, {claims}"
            members = Counter(_anti(room.allocations))
            members.update(
                claim.group
                for claim in claims
                if claim.hints.get("group_policy") == "anti-affinity" and claim.instance not in room.allocations
            )
            assert all(count <= 1 for count in members.values()), f"{node}: {members}"

    def nodes_by_instance(self) -> dict[str, list[str]]:
        """The nodes of each instance that an agent has."""
        found: dict[str, list[str]] = {}
        for node in self.fleet.nodes():
            for instance in self.fleet.room(node).allocations:
                found.setdefault(instance, []).append(node)
        return found


def _anti(allocations: Mapping[str, Any]) -> Iterator[str]:
    for allocation in allocations.values():
        if allocation.get("hints", {}).get("group_policy") == "anti-affinity":
            yield allocation["group"]

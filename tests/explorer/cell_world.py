"""A small cell: two consumers of one partition, two nodes, four events, a reader, and some kinds of faults.

The consumers and the reader may pause before each call of the server, so that anything else may happen in between. A
pause during which time passes is a freeze.

Choices:

====================  =================================================================================================
``A``, ``B``          a consumer finishes its step, or does a whole step
``A:pause``           it goes on, or begins a step, and pauses before its next call of the server
``reader``            the reader finishes its read, or reads; each view is judged
``reader:pause``      it goes on and pauses before its next call
``new reader``        a reader that knows nothing reads
``event``             the next event of the script is published and confirmed
``agents``            the agents send heartbeats, and the reports that they are asked for
``1 s``, ``8 s``       time passes; no process acts meanwhile
``4 s of work``       time passes; the consumers step twice a second meanwhile, and the agents are silent
====================  =================================================================================================

The faults are choices as well; each sequence has a limited number of them (``FAULTS``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

from nodestate.config import Config
from nodestate.errors import StoreUnavailableError
from nodestate.ports import Item, Key, Write, WriteResult
from nodestate.store.round_trips import Stores
from nodestate.testing import Fault, FaultyStore, ManualClock
from nodestate.view.view import View
from tests.explorer.digest import Digest
from tests.explorer.processes import Process, pause
from tests.machines.simulated_cell import (
    GroundTruth,
    JudgedReader,
    SimulatedCell,
    SimulatedMember,
    WitnessedServer,
    all_well,
    at_call,
)

FAULTS: Final = {
    "crash": "a consumer dies before the call at which it is paused; another process takes its place",
    "lost reply": "the call is carried out, and its reply is lost",
    "late write": "the call's writes arrive after the consumer gave up",
    "late reply": "the call is carried out, and the process gets the reply later, or gives up",
    "eviction": "the server loses one item",
    "flush": "the server loses all items",
    "reboot": "memcached and the broker restart together",
    "disconnect": "a consumer's connection to the broker breaks",
    "queue deleted": "an operator deletes the queue with its messages; it is declared again",
    "duplicate": "the first message that waits in the queue comes twice",
    "frozen server": "the server answers nobody for a while; then it answers first and sets its clock afterwards",
}
"""The kinds of faults, and what each is."""
PROCESSES: Final = ("A", "B", "reader", "new reader")
"""The two consumers, of which A is the active one at first; a reader; and a reader that begins with each read."""
EVENTS: Final = ("a", "b", "a", "b leaves")
"""The script: node a changes, node b changes, a changes again, b leaves."""
KINDS_OF_KEYS: Final = (":epoch", ":head:", ":life:", ":log:", ":node:", ":index:", ":ckpt:")
"""Kinds of items that an eviction may hit, by a part of their keys."""
WAITS: Final = "wait for the frozen server"
"""Where a process is paused that waits for the frozen server."""
WAITS_FOR_REPLY: Final = "wait for the reply"
"""Where a process is paused whose call was carried out, and whose reply is late."""
WORK: Final = "4 s of work"
FREEZE_S: Final = 7.5
"""How long the server is frozen before anything else happens, in seconds."""
WAKE_S: Final = 0.5
"""How long it is frozen after that, in seconds; less than the time-out of a request."""
TIMES_S: Final = {"1 s": 1.0, "8 s": 8.0}
"""How much time may pass at once."""


class StillClock(ManualClock):
    """A clock on which waits take no time, so that only the explorer's choices let time pass."""

    def sleep(self, seconds: float) -> None:
        """Return at once."""


class FreezableServer(WitnessedServer):
    """A memcached that can freeze. When it wakes, it answers the requests that wait before its clock ticks."""

    frozen_at: float | None = None
    """When it froze, in monotonic seconds; None unless it is frozen."""
    timeout_s = 0.0
    """After this time a client gives up waiting for a reply, in seconds."""
    is_reply_late = False
    """Whether the reply of the next call is late."""

    def fetch(self, keys: Sequence[Key], *, values_only: bool = False) -> dict[Key, Item]:
        """See ``ports.Store``."""
        reply = super().fetch(keys, values_only=values_only)
        self._delay_reply()
        return reply

    def write(self, writes: Sequence[Write]) -> list[WriteResult]:
        """See ``ports.Store``."""
        reply = super().write(writes)
        self._delay_reply()
        return reply

    def _delay_reply(self) -> None:
        if self.is_reply_late:
            self.is_reply_late = False
            carried_out_at = self.clock.monotonic()
            pause(WAITS_FOR_REPLY, always=True)
            if self.clock.monotonic() - carried_out_at > self.timeout_s:
                raise StoreUnavailableError(self.name, "the reply is late")


class PausingStore:
    """A connection of a process that may pause before each call, and that fails as the explorer says."""

    def __init__(self, inner: FaultyStore, server: FreezableServer, world: CellWorld) -> None:
        self.inner = inner
        self.server = server
        self._world = world

    @property
    def name(self) -> str:
        """See ``ports.Store``."""
        return self.inner.name

    @property
    def max_value_bytes(self) -> int:
        """See ``ports.Store``."""
        return self.inner.max_value_bytes

    def fetch(self, keys: Sequence[Key], *, values_only: bool = False) -> dict[Key, Item]:
        """See ``ports.Store``."""
        return self._call(f"fetch {len(keys)}", lambda: self.inner.fetch(keys, values_only=values_only))

    def write(self, writes: Sequence[Write]) -> list[WriteResult]:
        """See ``ports.Store``."""
        words = " ".join(f"{write.put.value} {write.key.split(':', 4)[-1].split(':')[0]}" for write in writes)
        return self._call(words, lambda: self.inner.write(writes))

    def server_time_at(self, moment: float) -> None:
        """See ``ports.Store``. Times of writing in encoded heads would make equal states at two moments different."""

    def close(self) -> None:
        """See ``ports.Store``."""
        self.inner.close()

    def _call(self, words: str, carry_out: Callable[[], Any]) -> Any:
        process, sent_at = Process.current, self._world.clock.monotonic()
        fault = pause(words) if self.server.frozen_at is None else None
        waited_at = None
        while self.server.frozen_at is not None:
            waited_at = self.server.frozen_at
            if process is None or self._world.clock.monotonic() - sent_at > self._world.cell.config.store_timeout_s:
                raise StoreUnavailableError(self.name, "frozen")
            pause(WAITS, always=True)
        if isinstance(fault, Fault):
            self.inner.plan = at_call(0, fault)
        self.server.is_reply_late = fault == "late reply"
        if waited_at is not None:
            self.server.clock_stands_at = waited_at
        try:
            reply = carry_out()
        finally:
            self.server.clock_stands_at = None
            self.inner.plan = all_well
        if process is not None:
            self._world.heard[process.name].append(reply)
        return reply


class _Cell(SimulatedCell):
    """The simulated cell, whose processes may pause before each call of the server."""

    def __init__(self, world: CellWorld, config: Config, *, follows_control: bool) -> None:
        self._world = world
        super().__init__(
            servers=world.servers_count,
            config=config,
            clock=world.clock,
            server=FreezableServer,
            follows_control=follows_control,
        )

    def connected(self, connect: Callable[[Any], Any]) -> tuple[list[Any], Stores]:
        """Connect to the servers. Returns the connections, and ``Stores`` of them that may pause."""
        connections, stores = [], []
        for server in self.servers:
            assert isinstance(server, FreezableServer)
            connections.append(connect(server))
            stores.append(PausingStore(connections[-1], server, self._world))
        return connections, Stores(stores)


class CellWorld:
    """See the module. All times are of one simulated clock.

    Args:
        faults: the kinds of faults that may happen (keys of ``FAULTS``).
        most_faults: how many of them may happen in one sequence.
        pausing: the processes that may pause at each call; the others carry out whole steps.
        left_out: choices that are not taken, so that the search reaches longer sequences of the others.
        designs: what the consumers write; the first one is read.
    """

    processes: ClassVar[tuple[str, ...]] = PROCESSES
    """The names of all processes."""
    follows_control: ClassVar[bool] = False
    """Whether consumers and readers follow the control record."""
    servers_count: ClassVar[int] = 1
    """Number of memcached servers. Only the first one freezes, and loses items."""
    events: ClassVar[tuple[str, ...]] = EVENTS
    """The script."""

    def __init__(
        self,
        faults: Sequence[str] = (),
        most_faults: int = 1,
        pausing: Sequence[str] = PROCESSES,
        left_out: Sequence[str] = (),
        designs: tuple[str, ...] = ("snapshot",),
    ) -> None:
        self.known: bytes | None = None
        """The digest of the present state; None if it was not computed."""
        self.clock = StillClock()
        self.heard: dict[str, list[Any]] = {name: [] for name in self.processes}
        """By process, the replies that its present work got."""
        config = Config(
            partitions=1, designs=designs, read_design=designs[0], heartbeat_s=1.0, resync_jitter_s=0.0, standby_s=1.0
        )
        self.cell = _Cell(self, config, follows_control=self.follows_control)
        server = self.cell.servers[0]
        assert isinstance(server, FreezableServer)
        self._server = server
        server.timeout_s = config.store_timeout_s
        self._faults = tuple(faults)
        self._left = most_faults
        self._pausing = tuple(pausing)
        self._left_out = frozenset(left_out)
        self._script = list(self.events)
        self._processes = {name: Process(name) for name in self.heard}
        self._begun: dict[str, bytes] = {}  # by process, the state of the world in which its present work began
        self._members: dict[str, SimulatedMember] = {}
        self._members["A"] = self.cell.start_member([0], [])
        self._members["B"] = self.cell.start_member([], [0])
        self._reader = self._new_reader()
        self.cell.readers = [self._reader]
        for node in ("a", "b"):
            self.cell.start_agent(node, {"usage": {"VCPU": 1}})
        self.cell.run_well(config.settle_s + 3)
        for node in ("a", "b"):
            self.cell.agents[node].beat_at = self.clock.monotonic()

    # -- the world

    def choices(self) -> list[str]:
        """See ``World``."""
        found: list[str] = []
        for name in PROCESSES:
            process = self._processes[name]
            if process.paused_at != WAITS or self._server.frozen_at is None:
                found.append(name)
                if name in self._pausing:
                    found.append(f"{name}:pause")
        if self._script and self.cell.broker.running:
            found.append("event")
        if self.cell.broker.running:
            found.append("agents")
        found += TIMES_S
        if self._processes["A"].is_idle and self._processes["B"].is_idle:
            found.append(WORK)
        if self.cell.connections() and self._server.frozen_at is None:
            found.append("a late write arrives")
        if self._server.frozen_at is not None:
            found.append("the server wakes")
        found += self._possible_faults() if self._left else []
        return [choice for choice in found if choice not in self._left_out]

    def _possible_faults(self) -> list[str]:
        found: list[str] = []
        for kind in self._faults:
            if kind in ("crash", "lost reply", "late write"):
                found += [
                    f"{name}: {kind}"
                    for name in ("A", "B")
                    if self._processes[name].paused_at
                    and (kind == "crash" or not self._processes[name].paused_at.startswith(("fetch", "wait")))
                ]
            elif kind == "late reply":
                paused = {name: self._processes[name].paused_at for name in PROCESSES}
                found += [f"{name}: {kind}" for name, at in paused.items() if at and not at.startswith("wait")]
            elif kind == "disconnect":
                found += [f"{name}: {kind}" for name in ("A", "B") if self._processes[name].is_idle]
            elif kind == "eviction":
                present = [key for key in self._server.keys() if any(part in key for part in KINDS_OF_KEYS)]  # noqa: SIM118 - not a dict
                found += [f"eviction of {key}" for key in present]
            elif kind == "duplicate":
                found += [kind] if self.cell.broker.queued(0) else []
            elif kind == "frozen server":
                found += [kind] if self._server.frozen_at is None else []
            else:
                found.append(kind)
        return found

    def take(self, choice: str) -> None:
        """See ``World``."""
        name, _, what = choice.partition(":")
        if name in self._processes and what in ("", "pause"):
            self._run(name, pause_at=0 if what else None)
        elif choice == "event":
            self._publish(self._script.pop(0))
        elif choice == "agents":
            self.cell.agents_act()
        elif choice in TIMES_S:
            self.clock.advance(TIMES_S[choice])
        elif choice == WORK:
            for _ in range(8):
                self.clock.advance(0.5)
                for member in self._members.values():
                    member.step()
        elif choice == "a late write arrives":
            self.cell.connections()[0].arrive()
        elif choice == "the server wakes":
            self.clock.advance(WAKE_S)
            self._server.frozen_at = None
        else:
            self._left -= 1
            self._fail(choice)
        self.known = None

    def _run(self, name: str, *, pause_at: int | None, note: Any = None) -> None:
        process = self._processes[name]
        if process.is_idle:
            self._begun[name] = self.fingerprint()
            self.heard[name] = []
            process.begin(self._work_of(name), pause_at=pause_at)
        else:
            process.resume(pause_at=pause_at, note=note)
        if process.error is not None:
            raise process.error

    def _work_of(self, name: str) -> Callable[[], object]:
        if name in self._members:
            return self._members[name].step
        reader = self._reader if name == "reader" else self._new_reader()
        return lambda: reader.read(5.0)

    def _new_reader(self) -> JudgedReader:
        return JudgedReader(self.cell, self.cell.config.read_design)

    def _publish(self, event: str) -> None:
        node, _, verb = event.partition(" ")
        publisher = self.cell.agents[node].publisher
        if verb:
            publisher.leave()
        else:
            publisher.change({"usage": {"VCPU": 1 + len(self._script)}})
        self.cell.confirm()

    def _fail(self, choice: str) -> None:
        name, _, kind = choice.partition(": ")
        if kind == "crash":
            self._processes[name].kill()
            self._members[name].die()
            self._members[name] = self.cell.members[-1]
        elif kind == "lost reply":
            self._run(name, pause_at=0, note=Fault(done=None))
        elif kind == "late write":
            self._run(name, pause_at=0, note=Fault(done=0, late=True))
        elif kind == "late reply":
            self._run(name, pause_at=0, note=kind)
        elif kind == "disconnect":
            self._members[name].source.inner.disconnect()
        elif choice.startswith("eviction of "):
            self._server.evict(choice.removeprefix("eviction of "))
        elif choice == "flush":
            self._server.flush()
        elif choice == "reboot":
            self.cell.restart_server(0)
            self.cell.broker.stop(lose_unconfirmed=False)
            self.cell.broker.start()
        elif choice == "queue deleted":
            self.cell.broker.lose_queue(0)
        elif choice == "duplicate":
            self.cell.broker.duplicate(0)
        elif choice == "frozen server":
            self._server.frozen_at = self.clock.monotonic()
            self.clock.advance(FREEZE_S)
        else:
            raise ValueError(f"{choice!r} is no choice of this world")

    def fingerprint(self) -> bytes:
        """See ``World``. Of a process that is paused, the digest has its beginning and the replies that it got."""
        if self.known is not None:
            return self.known
        digest = Digest(self.clock.monotonic(), (GroundTruth, CellWorld, _Cell, ManualClock, View))
        for name, process in self._processes.items():
            if process.is_idle:
                digest.add(self._members[name].runs if name in self._members else self._reader)
            else:
                digest.add([self._begun[name], process.calls_count, *self.heard[name]])
        server, truth = self._server, self.cell.truth
        digest.add(server._entries).add(server.frozen_at)
        digest.add(self.cell.broker.layouts).add([agent.publisher.version for agent in self.cell.agents.values()])
        digest.add([(one.at, one.node, one.version, one.confirmed) for one in truth.publications[-8:]])
        digest.add([store.late for store in self.cell.connections()]).add(len(self._script)).add(self._left)
        self.known = self._add_more(digest).result()
        return self.known

    def _add_more(self, digest: Digest) -> Digest:
        """Add the state of a special world."""
        return digest

    def describe(self) -> str:
        """See ``World``."""
        view = self._reader.last
        owners = {name: [held.number for held in member.held] for name, member in self._members.items()}
        pauses = {name: process.paused_at for name, process in self._processes.items() if process.paused_at}
        seen = {} if view is None else {name: tuple(node.version) for name, node in view.nodes.items()}
        told = "nothing read" if view is None else f"read {seen}, incomplete {sorted(view.incomplete)}"
        return f"at {self.clock.monotonic():.1f} s: owned {owners}, {told}, paused {pauses}"

    @property
    def is_idle(self) -> bool:
        """See ``World``."""
        return all(process.is_idle for process in self._processes.values())

    @property
    def must_settle(self) -> bool:
        """See ``World``. Views are judged at once."""
        return False

    def settle(self) -> None:
        """See ``World``."""
        self._finish()
        self.cell.converge()

    def _finish(self) -> None:
        """End the freeze of the server, and let all paused processes finish."""
        self._server.frozen_at = None
        for name, process in self._processes.items():
            while not process.is_idle:
                self._run(name, pause_at=None)

    def close(self) -> None:
        """See ``World``."""
        for process in self._processes.values():
            process.kill()

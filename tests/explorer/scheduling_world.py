"""Two schedulers, two nodes and two instances, with one agent and one consumer for both nodes.

Node n0 has room for one large or two small instances, node n1 for one small instance. A scheduler may pause before each
of its calls of a claim server or of the broker.

Choices:

=====================  ================================================================================================
``s1 boots a`` …       a scheduler begins an operation of the world's script; each operation is begun once
``s1``                 it finishes its operation or step, up to its next wait, or does a whole step
``s1:pause``           it goes on, or begins a step, and pauses before its next call
``s1:order``           likewise, before it makes or sends its next order
``agents``             the agent and the consumer do one step each
``1 s``, ``12 s``      time passes; with ``12 s``, agent and consumer step once a second, and schedulers end their waits
=====================  ================================================================================================

Faults: ``answers are late`` holds all answers of the agent back until ``answers arrive``; ``s1 crashes`` ends a paused
scheduler, and another one takes its place; ``claims are lost`` flushes the claim server; ``the agent is killed``;
``n0 drains``, so its agent refuses the orders that are under way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Final

from nodestate.errors import NotFoundError, StaleViewError
from nodestate.scheduling.orders.boot import Boot, Booted, Failed
from nodestate.scheduling.request import parse, parse_group
from nodestate.scheduling.reservation_claims import Reservation
from tests.explorer.digest import Digest
from tests.explorer.processes import Process, pause
from tests.machines.scheduling_cell import (
    CooperativeClock,
    CrashPoint,
    SchedulerProcess,
    SchedulingCell,
    allowed_errors,
)

SMALL: Final = {"VCPU": 2}
LARGE: Final = {"VCPU": 4}
OPERATIONS: Final = {
    "s1 boots a": ("boot", "a", SMALL),
    "s1 boots a large": ("boot", "a", LARGE),
    "s2 boots b": ("boot", "b", SMALL),
    "s2 reserves b": ("reserve", "b", LARGE),
    "s2 evacuates a": ("evacuate", "a", SMALL),
    "s2 terminates a": ("terminate", "a", SMALL),
}
"""The operations: what is done to which instance of which size. The first word is the scheduler."""
FAULTS: Final = ("answers are late", "crash", "claims are lost", "the agent is killed", "n0 drains")
"""The kinds of faults."""
SETTLE_S: Final = 60.0
"""Time without faults after which every operation has its outcome, and nothing is unfinished."""


class WaitingClock(CooperativeClock):
    """A clock on which a process waits until the explorer lets time pass; other waits take no time."""

    def __init__(self) -> None:
        super().__init__()
        self.settling = False
        """True while waits advance the clock, as at the end of a run."""
        self.wakes_at: dict[str, float] = {}
        """By process that waits, when its wait ends."""

    def sleep(self, seconds: float) -> None:
        """Pause the present process, if any, until the time has come."""
        if self.settling:
            super().sleep(seconds)
        elif Process.current is not None and seconds > 0:
            name, until = Process.current.name, self.monotonic() + seconds
            self.wakes_at[name] = until
            pause("wait", always=True)
            del self.wakes_at[name]


class PausePoint(CrashPoint):
    """Lets a scheduler pause before each call."""

    def count_call(self, _call: str = "") -> None:
        """Pause here if the explorer wants it."""
        process = Process.current
        if process is not None:
            pause(
                _call,
                always=_call in ("make orders", "send an order") and process.name in PausePoint.stop_before_orders,
            )

    stop_before_orders: ClassVar[set[str]] = set()
    """The processes that pause before their next order."""


class _Cell(SchedulingCell):
    crash_points = PausePoint


class SchedulingWorld:
    """See the module.

    Args:
        script: the operations that may begin (keys of ``OPERATIONS``).
        faults: the kinds of faults that may happen (``FAULTS``).
        most_faults: how many of them may happen in one sequence.
        pausing: whether schedulers may pause at every call, and not only before orders.
    """

    def __init__(
        self, script: Sequence[str], faults: Sequence[str] = (), most_faults: int = 1, *, pausing: bool = True
    ) -> None:
        self.known: bytes | None = None
        """The digest of the present state; None if it was not computed."""
        self.clock = WaitingClock()
        self.clock.settling = True
        states: dict[str, Any] = {
            name: {"status": "up", "inventory": {"VCPU": {"total": total}}} for name, total in (("n0", 4), ("n1", 2))
        }
        self.cell = _Cell(states, servers=1, clock=self.clock, claim_ttl_s=10.0, heartbeat_s=2.0)
        self.cell.wait_until_complete()
        self._processes = {name: Process(name) for name in ("s1", "s2")}
        self._schedulers: dict[str, SchedulerProcess] = {
            name: self.cell.start_scheduler(name) for name in self._processes
        }
        for process in self._schedulers.values():
            process.scheduler.refresh()
        self.cell.run_for(12.0)  # no claim record is unsure any longer
        self._script = list(script)
        self._faults = tuple(faults)
        self._left = most_faults
        self._pausing = pausing
        self._begun: dict[str, bytes] = {}  # by process, the state of the world in which its present work began
        self._log: dict[str, list[Any]] = {name: [] for name in self._processes}  # what each did since then
        self._boots: list[Boot] = []
        self._moved: list[Any] = []  # outcomes of evacuations
        self._reserved: list[Reservation] = []
        self._terminated: set[str] = set()
        self.clock.settling = False

    # -- the world

    def choices(self) -> list[str]:
        """See ``World``."""
        found = [one for one in self._script if self._processes[one[:2]].is_idle and self._is_possible(one)]
        for name in self._processes:
            if self.clock.wakes_at.get(name, 0.0) <= self.clock.monotonic():
                found += [name, f"{name}:order"]
                found += [f"{name}:pause"] if self._pausing else []
        found += ["agents", "1 s", "12 s"]
        transit = self.cell.broker.transit
        if transit.holding:
            found.append("answers arrive")
        if self._left:
            found += self._possible_faults()
        return found

    def _is_possible(self, operation: str) -> bool:
        kind, instance, _ = OPERATIONS[operation]
        return kind in ("boot", "reserve") or instance in self.cell.nodes_by_instance()

    def _possible_faults(self) -> list[str]:
        found = [kind for kind in self._faults if kind != "crash"]
        if self.cell.broker.transit.holding and "answers are late" in found:
            found.remove("answers are late")
        if "crash" in self._faults:
            found += [f"{name} crashes" for name, process in self._processes.items() if not process.is_idle]
        return found

    def take(self, choice: str) -> None:
        """See ``World``."""
        name, _, what = choice.partition(":")
        if choice in OPERATIONS:
            self._script.remove(choice)
            self._begin(choice)
        elif name in self._processes:
            self._run(name, what)
        elif choice == "agents":
            self._step_agents()
        elif choice == "1 s":
            self.clock.advance(1.0)
        elif choice == "12 s":
            self._work(12)
        elif choice == "answers arrive":
            self._release_answers()
        else:
            self._left -= 1
            self._fail(choice)
        self.known = None
        self._deliver_orders()
        self._judge()

    def _deliver_orders(self) -> None:
        transit = self.cell.broker.transit
        while orders := [number for number, one in enumerate(transit.under_way) if one.kind == "order"]:
            transit.deliver(orders[0])

    def _begin(self, operation: str) -> None:
        name, (kind, instance, resources) = operation[:2], OPERATIONS[operation]
        scheduler = self._schedulers[name].scheduler
        if kind == "boot":
            self._boots += scheduler.submit(parse({"instances": [instance], "resources": resources}))
        elif kind == "terminate":
            self._terminated.add(instance)
            nodes = self.cell.nodes_by_instance()[instance]
            self._start(name, lambda: scheduler.terminations.terminate([(node, instance) for node in nodes]))
        elif kind == "evacuate":
            [node, *_] = self.cell.nodes_by_instance()[instance]
            self._start(name, lambda: self._moved.extend(scheduler.migrations.evacuate(node, timeout_s=40.0)))
        else:
            wanted = parse_group({"members": [{"instances": [instance], "resources": resources}], "hold_s": 60.0})
            self._start(name, lambda: self._note_reservation(scheduler.reservations.reserve(wanted)))

    def _note_reservation(self, outcome: object) -> None:
        if isinstance(outcome, Reservation):
            self._reserved.append(outcome)

    def _run(self, name: str, what: str) -> None:
        process = self._processes[name]
        if process.is_idle:
            scheduler = self._schedulers[name].scheduler
            self._start(name, lambda: scheduler.step(0.0), what)
        else:
            self._go_on(name, what)

    def _start(self, name: str, work: Callable[[], object], what: str = "") -> None:
        def allowed() -> None:
            with allowed_errors(), suppress(NotFoundError, StaleViewError):
                work()

        self._begun[name] = self.fingerprint()
        self._log[name] = []
        process = self._processes[name]
        self._limit(name, what, lambda: process.begin(allowed, pause_at=0 if what == "pause" else None))

    def _go_on(self, name: str, what: str) -> None:
        process = self._processes[name]
        self._limit(name, what, lambda: process.resume(pause_at=0 if what == "pause" else None))

    def _limit(self, name: str, what: str, run: Callable[[], None]) -> None:
        PausePoint.stop_before_orders.clear()
        if what == "order":
            PausePoint.stop_before_orders.add(name)
        run()
        PausePoint.stop_before_orders.clear()
        process = self._processes[name]
        self._log[name].append((what, process.paused_at, self.clock.monotonic()))
        if process.error is not None:
            raise process.error

    def _step_agents(self) -> None:
        self.cell.step_agents()
        if not self.cell.broker.transit.holding:
            self._release_answers()

    def _work(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.advance(1.0)
            self._deliver_orders()
            self._step_agents()
            for name in self._processes:
                if self.clock.wakes_at.get(name, float("inf")) <= self.clock.monotonic():
                    self._go_on(name, "")

    def _release_answers(self) -> None:
        transit = self.cell.broker.transit
        transit.holding = False
        while transit.under_way:
            transit.deliver()

    def _fail(self, choice: str) -> None:
        name = choice[:2]
        if choice == "answers are late":
            self.cell.broker.transit.holding = True
        elif choice == "claims are lost":
            self.cell.flush_server(0)
        elif choice == "the agent is killed":
            self.cell.restart_agent()
        elif choice == "n0 drains":
            self.cell.fleet.set_status("n0", "draining")
        elif name in self._processes:
            self._processes[name].kill()
            self.clock.wakes_at.pop(name, None)
            self.cell.replace_dead(self._schedulers[name])
            self._schedulers[name] = self.cell.processes[-1]
        else:
            raise ValueError(f"{choice!r} is no choice of this world")

    # -- judging

    def _judge(self) -> None:
        """Assert that no node is over capacity, that reservations keep their room (I8, I9), and that outcomes are true.

        An instance of a failed boot may still be on a node that was asked, because an ``End`` is under way there.
        """
        self.cell.check_agents()
        self.cell.check_claims()
        placed = self.cell.nodes_by_instance()
        for boot in self._boots:
            instance, outcome = boot.placing.instance, boot.outcome
            if isinstance(outcome, Failed) and instance not in self._terminated:
                elsewhere = set(placed.get(instance, ())) - {refusal.node for refusal in outcome.refusals}
                assert not elsewhere, f"{instance} was told as failed, and was moved to {elsewhere}"

    @property
    def must_settle(self) -> bool:
        """True if a boot has failed, so that its instance must not live on."""
        return any(isinstance(boot.outcome, Failed) for boot in self._boots)

    def settle(self) -> None:
        """See ``World``. Each boot's outcome must then be true."""
        self._release_answers()
        for name in self._processes:
            self._processes[name].kill()
        self.clock.wakes_at.clear()
        self.clock.settling = True
        self.cell.run_for(SETTLE_S)
        self._judge()
        placed = self.cell.nodes_by_instance()
        assert {one: nodes for one, nodes in placed.items() if len(nodes) > 1} == {}, "an instance is on two nodes"
        alive = {process.scheduler for process in self.cell.processes}
        for boot in self._boots:
            instance = boot.placing.instance
            if isinstance(boot.outcome, Booted) and instance not in self._terminated:
                assert instance in placed, f"{instance} was told as booted, and is gone"
            if isinstance(boot.outcome, Failed):
                assert instance not in placed, f"{instance} was told as failed, and is on {placed[instance]}"
        assert alive, "there are schedulers"

    def fingerprint(self) -> bytes:
        """See ``World``. Of a process that is paused, the digest has its beginning and its pauses."""
        if self.known is not None:
            return self.known
        cell = self.cell
        digest = Digest(self.clock.monotonic(), (SchedulingWorld, SchedulingCell, CooperativeClock, Process))
        for name, process in self._processes.items():
            if process.is_idle:
                digest.add(self._schedulers[name].scheduler)
            else:
                digest.add([self._begun[name], *self._log[name]])
        digest.add(cell.servers[0]._entries).add(cell.broker.layouts).add(cell.broker.transit.under_way)
        digest.add(cell.broker.transit.holding).add([process.courier.arrived for process in cell.processes])
        digest.add(cell.consumer).add(cell.agent).add(self.clock.wakes_at)
        digest.add([boot.outcome for boot in self._boots]).add(self._moved)
        self.known = digest.add(self._script).add(self._left).result()
        return self.known

    def describe(self) -> str:
        """See ``World``."""
        cell = self.cell
        claims = {
            node: [
                f"{claim.instance} until {claim.until - self.clock.monotonic():+.1f} s" for claim in cell.claims(node)
            ]
            for node in cell.fleet.nodes()
        }
        outcomes = {boot.placing.instance: str(boot.outcome) for boot in self._boots}
        pauses = {name: process.paused_at for name, process in self._processes.items() if process.paused_at}
        return f"allocations {cell.nodes_by_instance()}, claims {claims}, boots {outcomes}, paused {pauses}"

    @property
    def is_idle(self) -> bool:
        """See ``World``."""
        return all(process.is_idle for process in self._processes.values())

    def close(self) -> None:
        """See ``World``."""
        for process in self._processes.values():
            process.kill()

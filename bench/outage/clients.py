"""Processes that use a cell during an outage: a scheduler that boots and reserves, and a reader."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple

from bench.outage.messages import BUSY, REPORT_EVERY_S, BootSample, Command, ReadSample, ReservationSample, WorkerLog
from bench.outage.worker_logs import log_to_file
from bench.worker import ParentLink
from nodestate.broker import KombuCourier
from nodestate.config import Config
from nodestate.designs.reader import Reader
from nodestate.errors import NodestateError, StaleViewError, StoreUnavailableError
from nodestate.model import NEVER, Version
from nodestate.scheduling.orders import Boot, Booted
from nodestate.scheduling.request import parse, parse_group
from nodestate.scheduling.reservations import Confirmed, NotReserved
from nodestate.scheduling.scheduler import Scheduler

MAX_AGE_S: Final = 5.0
"""Greatest age of a view that readers and schedulers accept."""
READ_EVERY_S: Final = 0.05
BOOT_EVERY_S: Final = 0.5
BOOT_LIMIT_S: Final = 60.0
"""A boot without an outcome after this many seconds counts as failed."""
MAX_BOOTS_COUNT: Final = 20
"""Number of boots under way with which a scheduler begins no further one."""
LIFE_S: Final = (4.0, 10.0)
"""Shortest and longest life of an instance."""
RESERVE_EVERY_S: Final = 2.0
RESERVE_LIMIT_S: Final = 2.0
"""Time after which ``reserve`` begins no further try."""
HOLD_S: Final = 30.0
"""``hold_s`` of a reservation."""
DECIDE_AFTER_S: Final = 1.0
"""Time after which a reservation is confirmed or released."""
CONFIRM_LIMIT_S: Final = 20.0
CONFIRMED_SHARE: Final = 0.7
"""Share of the reservations that are confirmed; the others are released."""
STEP_S: Final = 0.02


class _Held(NamedTuple):
    """A reservation that is held."""

    decide_at: float
    """When to confirm or to release it."""
    until: float
    """Until when it is held."""
    id: str
    members: frozenset[str]
    """The instances."""
    confirm: bool
    """Whether it is to be confirmed; otherwise it is released."""


class SchedulerLoad:
    """Boots and ends instances through one scheduler, and makes, confirms and releases reservations."""

    def __init__(self, scheduler: Scheduler, seed: int) -> None:
        self.boots: list[BootSample] = []
        """Boots that ended since the last log."""
        self.reservations: list[ReservationSample] = []
        """Calls that ended since the last log."""
        self._scheduler = scheduler
        self._rng = random.Random(seed)
        # Boots without an outcome, with their beginning.
        self._under_way: dict[int, tuple[float, Boot]] = {}
        # Instances that run: when to end each of them, its node and its id; the node is empty if it is not known.
        self._running: list[tuple[float, str, str]] = []
        # Reservations that are held.
        self._held: list[_Held] = []
        # Members of reservations of which it is not known whether they were built.
        self._unsure: set[str] = set()
        self._boot_at = self._reserve_at = time.monotonic() + self._rng.random()
        self._draining = False

    @property
    def until(self) -> float:
        """The moment before which all boots have ended."""
        return min([time.monotonic(), *(began for began, _ in self._under_way.values())])

    def step(self) -> None:
        """Do everything that is due."""
        now = time.monotonic()
        if not self._draining and now >= self._boot_at and len(self._under_way) < MAX_BOOTS_COUNT:
            self._boot_at = now + BOOT_EVERY_S
            self._boot(now)
        if not self._draining and now >= self._reserve_at:
            self._reserve(now)
            self._reserve_at = time.monotonic() + RESERVE_EVERY_S
        for held in [held for held in self._held if held.decide_at <= now]:
            self._held.remove(held)
            self._decide(held)
        over = [one for one in self._running if one[0] <= now]
        if over:
            self._running = [one for one in self._running if one[0] > now]
            located = self._scheduler.fleet.instances.reporting_node
            found = [(node or located(instance), instance) for _, node, instance in over]
            self._scheduler.terminations.terminate((node, instance) for node, instance in found if node)
        self._scheduler.step(STEP_S)
        for began, boot in list(self._under_way.values()):
            if time.monotonic() - began > BOOT_LIMIT_S:
                self._finish(boot, f"no outcome within {BOOT_LIMIT_S:g} s")

    def drain(self) -> None:
        """Begin nothing more, and end all instances and reservations."""
        self._draining = True
        self._running = [(0.0, node, instance) for _, node, instance in self._running]
        for held in self._held:
            with suppress(NodestateError):
                self._scheduler.reservations.release(held.id)
        self._held.clear()
        for instance in self._unsure:
            with suppress(NodestateError, TimeoutError):
                self._scheduler.terminations.terminate_everywhere([instance])

    # -- inside

    def _boot(self, now: float) -> None:
        amount = self._rng.choice([1, 1, 2, 4])
        [boot] = self._scheduler.submit(parse({"zone": BUSY, "resources": {"VCPU": amount}}))
        self._under_way[id(boot)] = now, boot
        boot.future.add_done_callback(lambda _: self._finish(boot, ""))

    def _finish(self, boot: Boot, reason: str) -> None:
        """Note the end of a boot. ``reason``: why it failed although it has no outcome."""
        now, outcome = time.monotonic(), boot.outcome
        if isinstance(outcome, Booted):
            lifetime_s = 0.0 if self._draining else self._rng.uniform(*LIFE_S)
            self._running.append((now + lifetime_s, outcome.node, outcome.instance))
        elif outcome is not None:
            reason = _words(outcome.reason)
        began, _ = self._under_way.pop(id(boot), (None, boot))
        if began is not None:  # a boot that counts as failed may have an outcome later
            self.boots.append(BootSample(began, now, reason))

    def _reserve(self, now: float) -> None:
        wanted = parse_group(
            {
                "members": [{"zone": BUSY, "resources": {"VCPU": 1}, "count": 2}],
                "group": {"name": f"group-{uuid.uuid4().hex}", "policy": "anti-affinity"},
                "hold_s": HOLD_S,
            }
        )
        try:
            made = self._scheduler.reservations.reserve(wanted, timeout_s=RESERVE_LIMIT_S)
        except NodestateError as error:
            self._note("reserve", now, _words(error))
            return
        if isinstance(made, NotReserved):
            self._note("reserve", now, _words(made.reason))
            return
        self._note("reserve", now, "")
        members = frozenset(member.instance for member in made.members)
        self._unsure |= members
        self._held.append(
            _Held(
                time.monotonic() + DECIDE_AFTER_S,
                now + HOLD_S,
                made.id,
                members,
                self._rng.random() < CONFIRMED_SHARE,
            )
        )

    def _decide(self, held: _Held) -> None:
        """Confirm or release a reservation. While the cell can't tell whether all members are held, try again."""
        now, reservations = time.monotonic(), self._scheduler.reservations
        try:
            if not held.confirm:
                reservations.release(held.id)
                self._unsure -= held.members
                return
            result = reservations.confirm(held.id, timeout_s=CONFIRM_LIMIT_S)
        except (StaleViewError, StoreUnavailableError) as error:
            if time.monotonic() < held.until:
                self._held.append(held._replace(decide_at=time.monotonic() + DECIDE_AFTER_S))
            elif held.confirm:
                self._note("confirm", now, _words(error))
        except (NodestateError, TimeoutError) as error:
            if held.confirm:
                self._note("confirm", now, _words(error))
            end_at = time.monotonic() + LIFE_S[1]
            self._running += [(end_at, "", member) for member in held.members]  # some may have been built
        else:
            if isinstance(result, Confirmed):
                self._note("confirm", now, "")
                end_at = time.monotonic() + self._rng.uniform(*LIFE_S)
                self._running += [(end_at, member.node, member.instance) for member in result.members]
                self._unsure -= held.members
            else:
                self._note("confirm", now, _words(result.failed[0].reason))

    def _note(self, call: str, began: float, reason: str) -> None:
        self.reservations.append(ReservationSample(began, time.monotonic(), call, reason))


def _words(reason: object) -> str:
    """Return the text of a reason, which is not empty."""
    return str(reason) or type(reason).__name__


def run_scheduler(parent: ParentLink, config: Config, name: str, seed: int) -> None:
    """Use one scheduler until the parent asks to stop."""
    log_to_file(config, name)
    courier = KombuCourier(config)
    with Scheduler(config, name=name, seed=seed, max_age=MAX_AGE_S, courier=courier) as scheduler:
        scheduler.refresh()
        load = SchedulerLoad(scheduler, seed)
        parent.report_ready()

        def log() -> WorkerLog:
            until = load.until
            boots, load.boots = load.boots, []
            reservations, load.reservations = load.reservations, []
            return WorkerLog(until, boots=boots, reservations=reservations)

        def step() -> None:
            load.step()
            if parent.receive(0.0) is Command.DRAIN:
                load.drain()

        _repeat(parent, step, log)
    courier.close()


def run_reader(parent: ParentLink, config: Config, name: str, busy: frozenset[str]) -> None:
    """Read every ``READ_EVERY_S`` seconds until the parent asks to stop. ``busy``: nodes whose versions are logged."""
    log_to_file(config, name)
    reads: list[ReadSample] = []
    shown: dict[str, Version | None] = {}
    with Reader(config) as reader:
        parent.report_ready()

        def read() -> None:
            began = time.monotonic()
            try:
                view = reader.read(max_age=MAX_AGE_S, on_stale="refuse")
            except StaleViewError as error:
                ended = time.monotonic()
                reads.append(ReadSample(began, ended, ended - error.age, str(error)))
            else:
                as_of = min(partition.confirmed_at for partition in view.partitions)
                unsure = {p.partition for p in view.partitions if not p.complete or p.lost}
                changed: dict[str, Version | None] = {}
                for node in busy:
                    record = view.nodes.record(node)
                    version = record.version if record is not None else NEVER
                    seen = None if unsure or node in view.incomplete else version
                    if node not in shown or shown[node] != seen:
                        shown[node] = changed[node] = seen
                incomplete = len(view.incomplete)
                reads.append(ReadSample(began, time.monotonic(), as_of, "", changed, incomplete))
            time.sleep(max(0.0, began + READ_EVERY_S - time.monotonic()))

        def log() -> WorkerLog:
            taken = reads.copy()
            reads.clear()
            return WorkerLog(time.monotonic(), reads=taken)

        _repeat(parent, read, log)


def _repeat(parent: ParentLink, step: Callable[[], None], log: Callable[[], WorkerLog]) -> None:
    """Repeat a step until the parent asks to stop, and send logs meanwhile and at the end."""
    report_at = 0.0
    while not parent.should_stop():
        step()
        if time.monotonic() >= report_at:
            report_at = time.monotonic() + REPORT_EVERY_S
            parent.send(log())
    parent.send(log())

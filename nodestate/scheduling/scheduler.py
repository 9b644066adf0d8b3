"""The scheduler: what a user holds. Selects on a view, claims, boots by messages, reserves groups, moves.

Everything goes on in ``step``, which never waits for longer than it is told and runs over an injected clock, store and
courier, so that a seeded simulation can run many schedulers. The other calls are steps until an end::

    step: answers --> orders that are overdue --> a view, where something wants a node --> choose, claim, send --> look after
"""

from __future__ import annotations

import itertools
import os
import random
import socket
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Final, Self

from nodestate.config import Config
from nodestate.errors import BrokerUnavailableError, ConfigError, StaleViewError
from nodestate.opening import open_claims
from nodestate.ports import ClaimStore, Clock, Courier, SystemClock
from nodestate.reader import Reader
from nodestate.scheduling.anchors import Anchors
from nodestate.scheduling.boots import Boot, Boots, Outcome
from nodestate.scheduling.claims import LOOK_AFTER_S
from nodestate.scheduling.fleet import Fleet
from nodestate.scheduling.ledger import Ledger
from nodestate.scheduling.placer import Placer, Placing
from nodestate.scheduling.plugins import Policies, installed
from nodestate.scheduling.request import Request
from nodestate.scheduling.selection import Choice, Explanation, Selector
from nodestate.scheduling.sharing import Sharing
from nodestate.scheduling.tidying import Duty, Tidying
from nodestate.view import View

MAX_WAIT_S: Final = 0.25
"""A step waits for answers so long at most."""


class Scheduler:
    """One of any number of schedulers of a cell. Not safe for several threads, but for ``submit``.

    ``max_age``: how old a view may be, in seconds, where a request says nothing. ``courier`` is needed to boot, not to
    select, claim and reserve. ``name`` stands on its claims; ``seed`` shuffles nodes that are equally good. What is not
    given is opened from the settings, and closed with the scheduler.
    """

    def __init__(
        self,
        config: Config,
        *,
        name: str = "",
        max_age: float = 5.0,
        seed: int | None = None,
        reader: Reader | None = None,
        claims: Sequence[ClaimStore] | None = None,
        courier: Courier | None = None,
        clock: Clock | None = None,
        policies: Policies | None = None,
    ) -> None:
        self.config = config
        self.name = name or f"{socket.gethostname()}:{os.getpid()}"
        self.max_age = max_age
        self.clock = clock or SystemClock()
        self._closing: list[Callable[[], None]] = []
        if reader is None:
            reader = Reader(config, clock=self.clock)
            self._closing.append(reader.close)
        if claims is None:
            claims = open_claims(config, self.clock)
            self._closing += [server.close for server in claims]
        self.reader = reader
        self.courier = courier
        self.fleet = Fleet()
        self.sharing = Sharing(self.name, self.clock, config.claim_s)
        self.ledger = Ledger(config.cell, claims, self.fleet, self.sharing)
        self.random = random.Random(seed if seed is not None else f"{self.name} {os.urandom(8).hex()}")
        self.selector = Selector(self.fleet, policies or installed(), self.random.getrandbits(63), self.sharing)
        self.placer = Placer(self.name, self.fleet, self.selector, self.ledger, Anchors(config.cell, claims))
        self.boots: Boots | None = None
        if courier is not None:
            self.boots = Boots(self.placer, self.fleet, self.ledger, courier, self.clock, config.answer_s)
        self._view: View | None = None
        self._learnt = 0
        self._look_after_at = 0.0
        self._tidying = Tidying(self.fleet, self.ledger, config.claim_s)

    # -- views

    def refresh(self, max_age: float | None = None) -> View:
        """Read a view, and compute on it from now on. Raises ``StaleViewError`` where none is fresh enough."""
        bound = self.max_age if max_age is None else max_age
        view = self.reader.read(max_age=bound, on_stale="exclude")
        if view.age > bound:
            view = self.reader.read(max_age=bound, on_stale="refuse")  # says why
        self.fleet.advance(view)
        self.ledger.follow()
        if self._learnt < len(self.fleet):  # once for each node: what is claimed on it by others
            self.ledger.learn(self.fleet.names[self._learnt :])
            self._learnt = len(self.fleet)
        self.ledger.expire()
        self._view = view
        return view

    @property
    def view(self) -> View:
        """What decisions are made on; read now if none was before."""
        return self._view if self._view is not None else self.refresh()

    # -- selecting

    def select(self, request: Request) -> list[Choice]:
        """Where each instance of the request would go; nothing is claimed."""
        self.refresh(request.max_age)
        return self.selector.choices(request)

    def explain(self, request: Request) -> Explanation:
        """Why, on the view of the last decision."""
        return self.selector.explain(request)

    def claim(self, requests: Iterable[Request]) -> list[Placing]:
        """Choose nodes for all instances of the requests, and claim them for ``claim_s``: many at a time cost little more
        than one. Each has a claim or a failure in the end.
        """
        requests = list(requests)
        ages = [request.max_age for request in requests if request.max_age is not None]
        self.refresh(min(ages, default=None))
        placings = [self.placing(request, instance) for request in requests for instance in request.ids]
        self.placer.place(placings)
        return placings

    def placing(self, request: Request, instance: str) -> Placing:
        """An instance that wants a node."""
        return Placing(request, instance, self.config.claim_s)

    # -- booting

    def submit(self, request: Request) -> list[Boot]:
        """Begin to boot all instances of a request; each has its outcome after some steps. May be called from any thread."""
        boots = [Boot(self.placing(request, instance)) for instance in request.ids]
        self._booting().begin(boots)
        return boots

    def begin(self, boots: Iterable[Boot]) -> None:
        """Take on boots that were made otherwise."""
        self._booting().begin(boots)

    def end(self, instances: Iterable[tuple[str, str]]) -> None:
        """Tell agents to end instances, as (node, instance). What gets lost is told again while views show it."""
        self._booting().end(instances)

    def boot(self, request: Request, timeout_s: float = 60.0) -> list[Outcome]:
        """Boot all instances of a request, and wait for their outcomes. Raises ``TimeoutError`` where some have none yet."""
        boots = self.submit(request)
        self.run(lambda: all(boot.outcome is not None for boot in boots), timeout_s)
        return [boot.outcome for boot in boots if boot.outcome is not None]

    def run(self, until: Callable[[], bool], timeout_s: float) -> None:
        """Step until told to stop. Raises ``TimeoutError`` where that takes too long."""
        deadline = self.clock.monotonic() + timeout_s
        for wait_s in itertools.chain([0.0], itertools.repeat(MAX_WAIT_S)):
            self.step(wait_s)
            if until():
                return
            if self.clock.monotonic() >= deadline:
                raise TimeoutError(f"not done within {timeout_s:g} s")

    def step(self, wait_s: float = 0.0) -> None:
        """Do all that is due, after waiting up to ``wait_s`` for an answer."""
        boots = self.boots
        if boots is not None and self.courier is not None:
            if boots.wanting:
                wait_s = 0.0
            try:
                boots.answered(self.courier.answers(min(wait_s, boots.idle_s)))
            except BrokerUnavailableError:
                self.clock.sleep(min(wait_s, MAX_WAIT_S))
            boots.expire()
            if boots.wanting:
                self.refresh()
                boots.look()
            boots.step()
        self._look_after()

    def _look_after(self) -> None:
        now = self.clock.monotonic()
        if now < self._look_after_at:
            return
        self._look_after_at = now + LOOK_AFTER_S
        self.ledger.expire()
        self.ledger.look_after()
        self.ledger.settle()
        if self.boots is not None:
            self._tidy(now)

    def _tidy(self, now: float) -> None:
        """Finish what others left half done, as far as the last view shows it."""
        assert self.boots is not None, "asked where there are boots"
        try:
            self.refresh()
        except StaleViewError:
            return
        for duty in self._tidying.due(now):
            if duty.placed:
                self._mark(duty)
            else:
                self.boots.end([(duty.node, duty.instance)])

    def _mark(self, duty: Duty) -> None:
        assert self.boots is not None, "asked where there are boots"
        record = self.view.nodes.record(duty.node)
        allocation = (record.state() if record is not None else {}).get("allocations", {}).get(duty.instance)
        if allocation is not None:
            hints = {**allocation.get("hints", {}), "placed": True}
            self.boots.tell(duty.node, duty.instance, allocation["resources"], allocation.get("group"), hints)

    def _booting(self) -> Boots:
        if self.boots is None:
            raise ConfigError("to boot, a scheduler needs a courier: Scheduler(config, courier=KombuCourier(config))")
        return self.boots

    # -- ending

    def close(self) -> None:
        """Close what this opened. Claims stay until they expire, or their instances are allocated."""
        for close in self._closing:
            close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

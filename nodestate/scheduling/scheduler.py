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
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

from nodestate.config import Config
from nodestate.designs.connections import open_claims
from nodestate.designs.reader import Reader
from nodestate.errors import BehindError, BrokerUnavailableError, ConfigError, NotFoundError, StaleViewError
from nodestate.ports import ClaimStore, Clock, Courier, SystemClock
from nodestate.ports.ids import IdSource, SystemIds
from nodestate.scheduling import order_ids
from nodestate.scheduling.claims import CLOCK_S, REASSERT_S, Claim
from nodestate.scheduling.claims.affinity_seed import AffinitySeed
from nodestate.scheduling.claims.claim_table import ClaimTable
from nodestate.scheduling.claims.placer import Placer
from nodestate.scheduling.claims.placing import Placing
from nodestate.scheduling.fleet import Fleet
from nodestate.scheduling.migrations import Migrations
from nodestate.scheduling.orders.boots import Boot, Boots, Outcome, Termination
from nodestate.scheduling.orders.reconciler import Reconciler, RepairAction
from nodestate.scheduling.request import GroupRequest, Request
from nodestate.scheduling.reservations import Confirmed, Groups, NotConfirmed, NotReserved, Reservation
from nodestate.scheduling.selection import Choice, Explanation, Selector
from nodestate.scheduling.selection.node_preference import NodePreference
from nodestate.scheduling.selection.plugins import Policies, installed
from nodestate.view.view import View

MAX_WAIT_S: Final = 0.25
"""A step waits for answers so long at most."""
HEARTBEATS_COUNT: Final = 3
MAX_TELLS_COUNT: Final = 3
"""Times that an agent is told that a reservation is placed; then it is left to ``tidying``."""
CATCH_UP_S: Final = 1.0
"""How long to wait for states that agents have told of already, before an instance is told that there is no node."""


class Scheduler:
    """One of any number of schedulers of a cell. Not safe for several threads, but for ``submit``.

    ``max_age``: how old a view may be, in seconds, where a request says nothing. ``node_max_age``: nodes that gave no
    sign of life for so long are passed over; None: it is not looked at, and agents that are gone refuse by their
    silence. ``courier`` is needed to boot and to move, not to select, claim and reserve. ``name`` stands on its claims;
    ``seed`` shuffles nodes that are equally good; ``ids`` gives the ids of orders, messages and instances. What is not given is opened from the settings, and closed with the
    scheduler.
    """

    def __init__(
        self,
        config: Config,
        *,
        name: str = "",
        max_age: float = 5.0,
        node_max_age: float | None = None,
        seed: int | None = None,
        reader: Reader | None = None,
        claims: Sequence[ClaimStore] | None = None,
        courier: Courier | None = None,
        clock: Clock | None = None,
        ids: IdSource | None = None,
        policies: Policies | None = None,
    ) -> None:
        self.config = config
        self.name = name or f"{socket.gethostname()}:{os.getpid()}"
        self.max_age = max_age
        self.node_max_age = node_max_age
        self.clock = clock or SystemClock()
        self.ids: IdSource = ids or SystemIds()
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
        self.node_preference = NodePreference(self.name, self.clock, config.claim_ttl_s)
        self.claim_table = ClaimTable(config.cell, claims, self.fleet, self.node_preference)
        self.random = random.Random(seed if seed is not None else f"{self.name} {os.urandom(8).hex()}")
        self.selector = Selector(
            self.fleet, policies or installed(), self.random.getrandbits(63), self.node_preference, self.ids
        )
        affinity_seed = AffinitySeed(config.cell, claims)
        self.placer = Placer(
            self.name,
            self.fleet,
            self.selector,
            self.claim_table,
            affinity_seed,
            self._refresh_for_retry,
            self.clock,
            self.ids,
        )
        self.boots: Boots | None = None
        if courier is not None:
            self.boots = Boots(self.placer, self.fleet, self.claim_table, courier, self.clock, self.ids, config)
        self.groups = Groups(self)
        self.moves = Migrations(self)
        self._view: View | None = None
        self._blind: StaleViewError | None = None
        self._learnt = 0
        self._look_after_at = 0.0
        # A claim counts until an agent's answer is in every view that decides: older ones could miss both.
        self._max_safe_age_s = config.claim_ttl_s - config.answer_timeout_s - CLOCK_S
        self._tidying = Reconciler(self.fleet, self.claim_table, config.claim_ttl_s)

    # -- views

    def refresh(self, max_age: float | None = None) -> View:
        """Read a view, and compute on it from now on. Raises ``StaleViewError`` where none is fresh enough."""
        bound = min(self.max_age if max_age is None else max_age, self._max_safe_age_s)
        view = self.reader.read(max_age=bound, node_max_age=self.node_max_age, on_stale="exclude")
        if view.age > bound:
            view = self.reader.read(max_age=bound, on_stale="refuse")  # says why
        self.fleet.advance(view)
        self.claim_table.on_fleet_advanced()
        if self._learnt < len(self.fleet):  # once for each node: what is claimed on it by others
            self.claim_table.read_records(self.fleet.names[self._learnt :])
            self._learnt = len(self.fleet)
        self.claim_table.expire()
        self._view = view
        self._blind = None
        return view

    def hear(self) -> None:
        """Note which nodes gave no sign of life lately (``node_max_age``, or three heartbeats): what they say may be of the past."""
        bound = self.node_max_age or HEARTBEATS_COUNT * self.config.heartbeat_s + self.max_age
        self.fleet.unresponsive = frozenset(
            self.reader.read(max_age=self.max_age, node_max_age=bound, on_stale="flag").stale
        )

    @property
    def view(self) -> View:
        """What decisions are made on; read now if none was before."""
        return self._view if self._view is not None else self.refresh()

    def _refresh_for_retry(self) -> bool:
        """A view that has what claims were dropped for, and the claims of others as they are now."""
        before = self.fleet.changes
        deadline = self.clock.monotonic() + CATCH_UP_S
        for receipt in self.claim_table.receipts_to_await():
            with suppress(BehindError, StaleViewError):
                left_s = max(0.0, deadline - self.clock.monotonic())
                self.reader.read(at_least=receipt, on_stale="flag", timeout=left_s)
        with suppress(StaleViewError):
            self.refresh()
        self.claim_table.read_records(self.claim_table.records.nodes_claimed_by_others(self.name))
        return self.fleet.changes != before

    # -- selecting

    def select(self, request: Request) -> list[Choice]:
        """Where each instance of the request would go; nothing is claimed."""
        self.refresh(request.max_age)
        return self.selector.choices(request)

    def explain(self, request: Request) -> Explanation:
        """Why, on the view of the last decision."""
        return self.selector.explain(request)

    def claim(self, requests: Iterable[Request]) -> list[Placing]:
        """Choose nodes for all instances of the requests, and claim them for ``claim_ttl_s``: many at a time cost little more
        than one. Each has a claim or a failure in the end. Raises ``BadRequestError`` before anything is claimed.
        """
        requests = list(requests)
        for request in requests:
            self.selector.check(request)
        ages = [request.max_age for request in requests if request.max_age is not None]
        self.refresh(min(ages, default=None))
        placings = [
            self.placing(request, instance) for request in requests for instance in request.instance_ids(self.ids)
        ]
        self.placer.place(placings)
        return placings

    def placing(self, request: Request, instance: str) -> Placing:
        """An instance that wants a node."""
        return Placing(request, instance, self.config.claim_ttl_s)

    # -- booting

    def submit(self, request: Request) -> list[Boot]:
        """Begin to boot all instances of a request; each has its outcome after some steps. May be called from any thread.
        Raises ``BadRequestError``.
        """
        self.selector.check(request)
        boots = [Boot(self.placing(request, instance)) for instance in request.instance_ids(self.ids)]
        self._booting().begin(boots)
        return boots

    def begin(self, boots: Iterable[Boot]) -> None:
        """Take on boots that were made otherwise."""
        self._booting().begin(boots)

    def end(self, instances: Iterable[tuple[str, str]]) -> None:
        """Tell agents to end instances for good, as (node, instance). What gets lost is told again while views show it, also
        where somebody who did not know of it yet moved the instance.
        """
        instances = list(instances)
        with suppress(StaleViewError):  # what was changed in place since the last view would not be what is ended
            self.refresh()
        self._end(instances)

    def _end(self, instances: Sequence[tuple[str, str]]) -> list[Termination]:
        endings = [ending for node, instance in instances for ending in self._endings(node, instance)]
        self._booting().end(endings)
        ended = {(ending.node, ending.instance) for ending in endings}
        self._settle(
            (node, claim)
            for node, claim in self.claim_table.own
            if (node, claim.instance) in ended
            and (self.claim_table.own.allocated_version(claim.id) is not None or self._seen_allocated(node, claim))
        )
        return endings

    def end_everywhere(self, instances: Iterable[str], timeout_s: float = 60.0) -> dict[str, list[str]]:
        """End instances for good, and wait until no node reports them; gives the nodes that each was on. Raises ``NotFoundError``
        where no node reports one, before any is ended, and ``TimeoutError`` where views show one for longer.
        """
        self.refresh()
        there = {
            instance: [self.fleet.names[row] for row in self.fleet.instances.reporting_rows(instance)]
            for instance in instances
        }
        nowhere = [instance for instance, nodes in there.items() if not nodes]
        if nowhere:
            raise NotFoundError("instance", f"no node reports {', '.join(nowhere)}; nothing was ended")
        endings = self._end([(node, instance) for instance, nodes in there.items() for node in nodes])
        try:
            self.run(lambda: self._shows_none_of(endings), timeout_s)
        except TimeoutError as error:
            left = [f"{one.instance} on {one.node}" for one in endings if self._booting().shows([one])]
            raise TimeoutError(
                f"{', '.join(left) or 'it'} was told to end, and views show it for {timeout_s:g} s; an agent that is down is to be "
                "told again when it is up"
            ) from error.__cause__
        return there

    def _shows_none_of(self, endings: Iterable[Termination]) -> bool:
        try:
            self.refresh()
        except StaleViewError as error:
            self._blind = error
            return False
        return not self._booting().shows(endings)

    def terminate_duplicates(self, copies: Iterable[tuple[str, str]]) -> None:
        """Tell agents to end what the last view shows on their nodes, as (node, instance): the instances live on elsewhere."""
        self.terminate_orders(
            Termination(node, instance, order_ids.order_id_of(self._hints(node, instance))) for node, instance in copies
        )

    def terminate_orders(self, endings: Iterable[Termination]) -> None:
        """Tell agents to end what these orders built, and nothing else."""
        self._booting().end(endings)

    def undo(self, boots: Iterable[Boot]) -> None:
        """End what was booted, wherever it went since, and nothing else."""
        orders = [boot.order for boot in boots if boot.order is not None]
        self._booting().end(
            Termination(order.node, order.instance, order.id, order_ids.lifetime_id_of(order.hints)) for order in orders
        )

    def _endings(self, node: str, instance: str) -> list[Termination]:
        """How to end the lives of an instance that the last view shows: on the node, and wherever else it is by now."""
        there = {
            self.fleet.names[row]: self.fleet.reports.hints(row, instance)
            for row in self.fleet.instances.reporting_rows(instance)
        }
        endings = [
            Termination(name, instance, order_ids.order_id_of(hints), order_ids.lifetime_id_of(hints))
            for name, hints in there.items()
        ]
        if node not in there:
            own = self._booting().built(node, instance)
            endings.append(own if own is not None else Termination(node, instance))
        return endings

    def _hints(self, node: str, instance: str) -> Mapping[str, Any]:
        row = self.fleet.rows.get(node)
        return self.fleet.reports.hints(row, instance) if row is not None else {}

    def announce_placement(self, boots: Iterable[Boot], mark: Mapping[str, object]) -> None:
        """Tell agents that all members of a reservation are there, of which they have these, until they have answered."""
        booting = self._booting()
        orders = [boot.order for boot in boots if boot.order is not None]
        for _ in range(MAX_TELLS_COUNT):
            told = {booting.tell(order, mark): order for order in orders}
            with suppress(TimeoutError):
                self.run(partial(booting.acknowledged, told), self.config.answer_timeout_s)
            orders = [order for order_id, order in told.items() if not booting.acknowledged([order_id])]
            booting.forget(told)
            if not orders:
                return

    def boot(self, request: Request, timeout_s: float = 60.0) -> list[Outcome]:
        """Boot all instances of a request, and wait for their outcomes. Raises ``TimeoutError`` where some have none yet: those go
        on with the next steps, as do moves, resizes and evacuations.
        """
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
                raise TimeoutError(f"not done within {timeout_s:g} s") from self._blind

    def step(self, wait_s: float = 0.0) -> None:
        """Do all that is due, after waiting up to ``wait_s`` for an answer."""
        boots = self.boots
        if boots is not None and self.courier is not None:
            if boots.wanting and self._blind is None:
                wait_s = 0.0
            try:
                boots.answered(self.courier.answers(min(wait_s, boots.idle_s)))
            except BrokerUnavailableError:
                self.clock.sleep(min(wait_s, MAX_WAIT_S))
            boots.expire()
            if self._sees(boots):
                boots.step()
        self._look_after()

    def _sees(self, boots: Boots) -> bool:
        """Whether there is a view to choose on, where one is wanted. If not, boots wait for one."""
        if not boots.wanting:
            return True
        try:
            view = self.refresh(max(self.max_age, boots.loosest(self.max_age)))
        except StaleViewError as error:
            self._blind = error
            return False
        boots.look()
        boots.fail_if_too_stale(view.age)
        return True

    def _look_after(self) -> None:
        now = self.clock.monotonic()
        if now < self._look_after_at:
            return
        self._look_after_at = now + REASSERT_S
        try:
            self.refresh()
            fresh = True
        except StaleViewError:
            self.claim_table.expire()
            fresh = False
        self.claim_table.reassert_own_claims()
        if fresh:  # members of a reservation may be confirmed yet, by their claims
            self._settle(own for own in self.claim_table.own if not own[1].reservation and self._seen_allocated(*own))
        else:
            self.claim_table.flush_all()
        if fresh and self.boots is not None:
            self.boots.look()
            self._tidy(self.boots, now)

    def _tidy(self, boots: Boots, now: float) -> None:
        """Finish what others left half done, as far as the last view shows it; not where that lost nodes: what it does not show
        may be there.
        """
        if any(partition.lost or not partition.vouched for partition in self.view.partitions):
            return
        if self.fleet.instances.duplicates():
            self.hear()
        for duty in self._tidying.due(now):
            if duty.placed:
                self._mark(boots, duty)
            else:
                self.terminate_duplicates([(duty.node, duty.instance)])

    def _mark(self, boots: Boots, duty: RepairAction) -> None:
        row = self.fleet.rows.get(duty.node)
        allocation = self.fleet.reports.allocations(row).get(duty.instance) if row is not None else None
        if allocation:
            hints = {**allocation.get("hints", {}), "placed": True}
            boots.mark(duty.node, duty.instance, allocation["resources"], allocation.get("group"), hints)

    def _booting(self) -> Boots:
        if self.boots is None:
            raise ConfigError("to boot, a scheduler needs a courier: Scheduler(config, courier=KombuCourier(config))")
        return self.boots

    # -- reserving

    def reserve(self, wanted: GroupRequest, *, owner: str = "", timeout_s: float = 15.0) -> Reservation | NotReserved:
        """Hold nodes for all members of a group, or for none: see ``Groups.reserve``."""
        return self.groups.reserve(wanted, owner=owner, timeout_s=timeout_s)

    def reservations(self) -> list[Reservation]:
        """All that are held in the cell, the eldest first."""
        return self.groups.reservations()

    def confirm(self, reservation: str, *, owner: str = "", timeout_s: float = 60.0) -> Confirmed | NotConfirmed:
        """Build all members of a reservation, or none: see ``Groups.confirm``."""
        return self.groups.confirm(reservation, owner=owner, timeout_s=timeout_s)

    def extend(self, reservation: str, hold_s: float, *, owner: str = "") -> Reservation:
        """Hold it for ``hold_s`` from now on. Raises ``NotFoundError``."""
        return self.groups.extend(reservation, hold_s, owner=owner)

    def release(self, reservation: str, *, owner: str = "") -> None:
        """Give back what it holds. Raises ``NotFoundError``."""
        self.groups.release(reservation, owner=owner)

    # -- moving

    def move(self, instance: str, *, to: str = "", timeout_s: float = 60.0) -> Outcome:
        """An instance to another node, under the request that it was booted with: see ``Migrations.move``."""
        return self.moves.move(instance, to=to, timeout_s=timeout_s)

    def resize(self, instance: str, resources: Mapping[str, int], *, timeout_s: float = 60.0) -> Outcome:
        """Other resources for an instance: see ``Migrations.resize``."""
        return self.moves.resize(instance, resources, timeout_s=timeout_s)

    def evacuate(self, node: str, *, timeout_s: float = 120.0) -> list[Outcome]:
        """Everything off a node: see ``Migrations.evacuate``."""
        return self.moves.evacuate(node, timeout_s=timeout_s)

    # -- ending

    def settle(self) -> None:
        """Drop the claims that became allocations, as far as the last view has them. They count no more for who saw that; for
        others their room is free, when the instance ends, at once and not after ``claim_ttl_s``. Who goes does it before.
        """
        self._settle(own for own in self.claim_table.own if self._seen_allocated(*own))

    def _settle(self, claims: Iterable[tuple[str, Claim]]) -> None:
        for node, claim in list(claims):
            row, told = self.fleet.rows.get(node), self.claim_table.own.allocated_version(claim.id)
            if row is not None and not claim.resize:
                self.claim_table.drop_claim(node, claim.id, told if told is not None else self.fleet.version[row])
        self.claim_table.flush_all()

    def _seen_allocated(self, node: str, claim: Claim) -> bool:
        """Whether the last view has what the claim became; or had, where it went since."""
        row, told = self.fleet.rows.get(node), self.claim_table.own.allocated_version(claim.id)
        if row is None:
            return False
        return self.claim_table.is_allocated(node, claim) or (told is not None and told <= self.fleet.version[row])

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

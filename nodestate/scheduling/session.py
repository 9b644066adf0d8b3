"""The session: the interface of a scheduler for its reservations, migrations and terminations.

A session holds the scheduler's parts and advances them step by step. The order of one step is::

    step: answers --> overdue answers --> a view, if a boot needs a node --> choose, claim, send --> upkeep

The upkeep is due every ``REASSERT_S`` seconds, see ``Session._maintain_claims``.

A step waits no longer than its caller allows, and it uses a clock, stores and a courier that the caller passes. So a
seeded simulation can run many schedulers.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple, TypeVar

from nodestate.config import Config
from nodestate.errors import BrokerUnavailableError, ConfigError, StaleViewError, StoreError
from nodestate.ports import Clock
from nodestate.ports.ids import IdSource
from nodestate.scheduling.claims import REASSERT_S, Claim, Placer
from nodestate.scheduling.fleet_refresh import FleetRefresher
from nodestate.scheduling.orders import Boot, BootOutcome, OrderTracker, Reconciler, outcomes_of
from nodestate.scheduling.selection import Selector
from nodestate.store.refused_answers import add_refused_answers
from nodestate.store.round_trips import run_one
from nodestate.view.view import View

MAX_WAIT_S: Final = 0.25
"""Maximum time in seconds for which one step of ``run`` waits for answers, or a step waits for a lost broker."""

T = TypeVar("T")


class Wait(NamedTuple):
    """The wait of an operation; other work of the scheduler goes on meanwhile."""

    until: Callable[[], bool]
    """Returns True if the operation can go on. It is called after each step."""
    timeout_s: float
    """Seconds after which ``TimeoutError`` is raised in the operation."""
    boots: Sequence[Boot] = ()
    """The boots whose outcomes the operation waits for."""


Operation = Generator[Wait, None, T]
"""An operation that takes several steps. It yields whenever it has to wait, and returns its result.

``Session.complete`` runs one operation and waits for its result. A program with one scheduler for many users runs
several operations at the same time, as ``nodestate serve`` does.
"""


class Session:
    """The parts of one scheduler, and the steps that advance them. Not safe for use by several threads.

    Args:
        config: The cell's settings.
        name: The scheduler's name, which is the holder in its claims.
        clock: The time.
        ids: The source of ids of orders, messages and instances.
        rng: The source of random pauses.
        refresher: Reads the views on which decisions are made, for the fleet and the claim table.
        selector: Ranks nodes.
        placer: Chooses and claims nodes.
        orders: The orders under way; None if the scheduler has no courier.
    """

    def __init__(
        self,
        config: Config,
        name: str,
        clock: Clock,
        ids: IdSource,
        rng: random.Random,
        refresher: FleetRefresher,
        selector: Selector,
        placer: Placer,
        orders: OrderTracker | None,
    ) -> None:
        self.config = config  # the cell's settings
        self.name = name  # the scheduler's name, which is the holder in its claims
        self.clock = clock  # the time
        self.ids = ids  # the source of ids of orders, messages and instances
        self.random = rng  # the source of random pauses
        self.refresher = refresher  # reads the views on which decisions are made
        self.fleet = refresher.fleet  # the nodes as the last view shows them
        self.claim_table = refresher.claim_table  # the claims of this scheduler and of others
        self.selector = selector  # ranks nodes
        self.placer = placer  # chooses and claims nodes
        self._orders = orders  # the orders under way; None without a courier
        self._reconciler = Reconciler(self.fleet, self.claim_table, config.claim_ttl_s)  # finds unfinished operations
        # The last error of ``try_refresh``; None after a successful refresh.
        self._stale_error: StaleViewError | None = None
        self._recorded_answers_count = 0  # refused answers that are in the record of the cell
        self._upkeep_at = 0.0  # the time of the next upkeep, in monotonic seconds

    @property
    def orders(self) -> OrderTracker:
        """The orders under way. Raises ``ConfigError`` if the scheduler has no courier."""
        if self._orders is None:
            raise ConfigError(
                "this scheduler has no courier, so it can't send orders to agents; "
                "pass one: Scheduler(config, courier=KombuCourier(config))"
            )
        return self._orders

    @property
    def boots_under_way_count(self) -> int | None:
        """The number of boots that have no outcome; None if the scheduler has no courier."""
        return self._orders.boots.under_way_count if self._orders is not None else None

    # -- views

    def refresh(self, max_age: float | None = None) -> View:
        """Read a view, and base decisions on it from now on, see ``FleetRefresher.refresh``.

        ``max_age``: the maximum age of the view in seconds; None: the scheduler's ``max_age``. Raises
        ``StaleViewError`` if no view is fresh enough.
        """
        view = self.refresher.refresh(max_age)
        self._stale_error = None
        return view

    def try_refresh(self, max_age: float | None = None) -> bool:
        """Read a view as ``refresh`` does, but do not raise an error.

        Returns True if a view was read. Returns False if no view is fresh enough. If ``run`` times out after that, its
        ``TimeoutError`` has the ``StaleViewError`` as its cause.
        """
        try:
            self.refresh(max_age)
        except StaleViewError as error:
            self._stale_error = error
            return False
        return True

    # -- steps

    def step(self, wait_s: float = 0.0) -> None:
        """Wait up to ``wait_s`` seconds for an answer of an agent, and then do everything that is due.

        A scheduler without a courier does not wait. If a boot needs a node, the step waits only after a failed refresh:
        after a successful one the boot can be placed at once.

        Raises ``PolicyError`` if a filter or a weigher raised an error. The boots that needed a node have failed then.
        """
        orders = self._orders
        if orders is not None:
            if orders.boots.needs_view and self._stale_error is None:
                wait_s = 0.0
            try:
                orders.receive_answers(min(wait_s, orders.boots.idle_s))
            except BrokerUnavailableError:
                self.clock.sleep(min(wait_s, MAX_WAIT_S))
            self._expire_unanswered(orders)
            if self._has_usable_view(orders):
                orders.boots.step()
        self._maintain_claims()

    def run(self, until: Callable[[], bool], timeout_s: float) -> None:
        """Repeat ``step`` until ``until()`` is True. Raises ``TimeoutError`` if that takes ``timeout_s`` seconds."""
        deadline = self.clock.monotonic() + timeout_s
        for wait_s in itertools.chain([0.0], itertools.repeat(MAX_WAIT_S)):
            self.step(wait_s)
            if until():
                return
            if self.clock.monotonic() >= deadline:
                raise TimeoutError(f"not done within {timeout_s:g} s") from self._stale_error

    def complete(self, operation: Operation[T]) -> T:
        """Repeat ``step`` until an operation ends, and return its result. Raises the errors of the operation."""
        try:
            wait = next(operation)
            while True:
                try:
                    self.run(wait.until, wait.timeout_s)
                except TimeoutError as error:
                    wait = operation.throw(error)
                else:
                    wait = next(operation)
        except StopIteration as end:
            result: T = end.value
            return result

    def boot(self, boots: Sequence[Boot], timeout_s: float) -> Operation[list[BootOutcome]]:
        """Begin boots, and return their outcomes once each boot has one.

        Raises ``TimeoutError`` after ``timeout_s`` seconds; later steps go on with the boots. Raises ``ConfigError`` if
        the scheduler has no courier.
        """
        self.orders.boots.add(boots)
        yield Wait(lambda: all(boot.outcome is not None for boot in boots), timeout_s, boots)
        return outcomes_of(boots)

    def run_boots(self, boots: Sequence[Boot], timeout_s: float) -> list[BootOutcome]:
        """Run ``boot``, and return the outcomes."""
        return self.complete(self.boot(boots, timeout_s))

    # -- claims that became allocations

    def drop_allocated_claims(self) -> None:
        """Drop the claims of this scheduler that the last view shows as allocations.

        Otherwise, if the instance ends before the claim expires, other schedulers may count the claim again.
        """
        self._drop(own for own in self.claim_table.own if self._is_seen_allocated(*own))

    def drop_claims_of(self, instances: Collection[tuple[str, str]]) -> None:
        """Drop the claims of this scheduler for instances that are being ended, if the claims became allocations.

        Args:
            instances: The instances, as (node, instance).
        """
        self._drop(
            (node, claim)
            for node, claim in self.claim_table.own
            if (node, claim.instance) in instances
            and (self.claim_table.own.allocated_version(claim.id) is not None or self._is_seen_allocated(node, claim))
        )

    def _drop(self, claims: Iterable[tuple[str, Claim]]) -> None:
        """Drop claims that became allocations, and write their records.

        A scheduler that saw the allocation no longer counts the claim. But a scheduler that never saw the allocation
        would count the claim until its deadline, although the instance may have ended. If the claim is dropped, the
        room is free at once for all schedulers.

        Claims of resizes are skipped, because a resize drops its claim when it is finished.
        """
        for node, claim in list(claims):
            row, allocated = self.fleet.rows.get(node), self.claim_table.own.allocated_version(claim.id)
            if row is not None and not claim.resize:
                seen = allocated if allocated is not None else self.fleet.version[row]
                self.claim_table.drop_claim(node, claim.id, seen)
        self.claim_table.flush_all()

    def _is_seen_allocated(self, node: str, claim: Claim) -> bool:
        """Return whether the last view proves that a claim became an allocation.

        The view proves it in two cases. Either the view shows the allocation. Or an agent confirmed the allocation, and
        the view is as new as the node state that the agent named, or newer: the allocation may have ended since.
        """
        row, allocated = self.fleet.rows.get(node), self.claim_table.own.allocated_version(claim.id)
        if row is None:
            return False
        is_past = allocated is not None and allocated <= self.fleet.version[row]
        return self.claim_table.is_allocated(node, claim) or is_past

    # -- inside a step

    def _expire_unanswered(self, orders: OrderTracker) -> None:
        """Let each boot whose answer is overdue choose another node, unless a new view shows that it succeeded.

        The instance is then ended on the node that did not answer. If only the answer was lost, that would undo a boot
        that succeeded, so a view is read first. If no view is fresh enough, the boots do not wait for one.

        A store that does not answer may delay the view, and other answers arrive meanwhile. So only answers that were
        overdue before that count as missing; the next step receives the others.
        """
        if orders.boots.idle_s > 0:
            return
        overdue_at = self.clock.monotonic()
        if self.try_refresh():
            orders.on_fleet_advanced()
        orders.boots.expire_unanswered(overdue_at)

    def _has_usable_view(self, orders: OrderTracker) -> bool:
        """Read a view if a boot needs a node, and fail the boots for which the view is too old.

        Returns True if nodes can be chosen now, or if no boot needs one. Returns False if a boot needs a node and no
        view is fresh enough: the boots then wait for a later step.
        """
        boots = orders.boots
        if not boots.needs_view:
            return True
        max_age = self.refresher.max_age
        if not self.try_refresh(max(max_age, boots.max_requested_age(max_age))):
            return False
        orders.on_fleet_advanced()
        boots.fail_if_too_stale(self.refresher.view.age)
        return True

    def _maintain_claims(self) -> None:
        """Do the upkeep if it is due, which is every ``REASSERT_S`` seconds.

        Reads some claim records again, records refused answers, writes claims again that were lost, drops claims that
        became allocations, sends orders again whose effect no view shows, and repairs operations that another scheduler
        left unfinished. Without a fresh view, it only writes lost claims again.
        """
        now = self.clock.monotonic()
        if now < self._upkeep_at:
            return
        self._upkeep_at = now + REASSERT_S
        try:
            self.refresh()
            has_view = True
        except StaleViewError:
            self.claim_table.expire()
            has_view = False
        self.claim_table.reassert_own_claims()
        if not has_view:
            self.claim_table.flush_all()
            return
        self.refresher.reread_claims()
        self._record_refused_answers()
        # The claims of a reservation stay, because a later call of ``confirm`` needs the claims of all members.
        self._drop(own for own in self.claim_table.own if not own[1].reservation and self._is_seen_allocated(*own))
        if self._orders is not None:
            self._orders.on_fleet_advanced()
            self._repair(self._orders, now)

    def _record_refused_answers(self) -> None:
        """Add the answers that were refused since the last upkeep to the record that ``nodestate doctor`` reads."""
        if self._orders is None:
            return
        count, reason = self._orders.refused_answers()
        if count > self._recorded_answers_count:
            steps = add_refused_answers(self.config.cell, count - self._recorded_answers_count, self.name, reason)
            with suppress(StoreError):  # it is tried again
                if run_one(next(iter(self.claim_table.servers)), steps):
                    self._recorded_answers_count = count

    def _repair(self, orders: OrderTracker, now: float) -> None:
        """Finish operations that another scheduler left unfinished, as the last view shows them.

        Does nothing if the view is incomplete, because an instance that the view does not show may still exist.

        Args:
            orders: The orders under way.
            now: The present time in monotonic seconds.
        """
        if any(partition.lost or not partition.complete for partition in self.refresher.view.partitions):
            return
        if self.fleet.instances.duplicates():
            self.refresher.refresh_unresponsive_nodes()
        for action in self._reconciler.pending_actions(now):
            if action.set_placed:
                orders.hint_updates.set_placed(action.node, action.instance)
            else:
                orders.terminations.terminate_duplicates([(action.node, action.instance)])

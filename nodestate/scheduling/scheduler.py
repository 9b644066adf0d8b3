"""The scheduler: the object that users create. It assembles the parts of scheduling, and selects, claims and boots.

The other operations are methods of its parts: ``scheduler.reservations`` (reserve, confirm, extend, release),
``scheduler.migrations`` (migrate, resize, evacuate), ``scheduler.terminations`` (terminate), ``scheduler.updates``
(update) and ``scheduler.tag_renewals`` (renew).

All work is done in ``step``. A call that waits, such as ``boot``, repeats ``step`` until its condition is met.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self

from nodestate.auth import allocation_tags
from nodestate.config import Config
from nodestate.designs.connections import open_claims
from nodestate.designs.multi_cell_reader import require_single_cell
from nodestate.designs.reader import Reader
from nodestate.model.inventory_ceilings import InventoryCeilings
from nodestate.ports import ClaimStore, Clock, Courier, SystemClock
from nodestate.ports.forks import call_in_children
from nodestate.ports.ids import IdSource, SystemIds
from nodestate.scheduling.claims import AffinitySeed, ClaimTable, Placer, Placing, join_groups
from nodestate.scheduling.fleet import Fleet
from nodestate.scheduling.fleet_refresh import FleetRefresher
from nodestate.scheduling.migrations import Migrations
from nodestate.scheduling.orders import Boot, BootOutcome, OrderTracker
from nodestate.scheduling.request import Request
from nodestate.scheduling.reservations import Reservations
from nodestate.scheduling.scheduler_stats import SchedulerStats
from nodestate.scheduling.selection import (
    Choice,
    Explanation,
    NodeFaults,
    NodePreference,
    Policies,
    Selector,
    installed,
)
from nodestate.scheduling.session import Operation, Session
from nodestate.scheduling.tag_renewal import TagRenewals
from nodestate.scheduling.terminations import Terminations
from nodestate.scheduling.updates import Updates
from nodestate.view.view import View


class Scheduler:
    """Places instances on the nodes of a cell. A cell may have any number of schedulers at the same time.

    Except for ``submit``, the methods are not safe for use by several threads.

    In a forked child the scheduler starts again with another name, and without claims and boots: those stay with the
    parent.

    Args:
        config: The cell's settings.
        name: The scheduler's name, which is the holder in its claims; empty: host and process id.
        max_age: The maximum age of a view, in seconds, for requests that do not name one.
        node_max_age: No instance is placed on a node that gave no sign of life for this number of seconds. None: the
            age of a node does not matter; an order to an agent that is gone is then refused by the broker or stays
            unanswered.
        seed: The seed for the random order of equally good nodes; None: a random seed.
        reader: Reads the views. None: a reader is opened from the settings, and closed with the scheduler. To schedule
            on several cells, use a scheduler for each, with one of the ``readers`` of a ``MultiCellReader``.
        claims: The servers of claim records. None: they are opened from the settings, and closed with the scheduler.
        courier: The connection to the agents. It is needed to boot, migrate, confirm and terminate, but not to select,
            claim and reserve.
        clock: The time; None: the machine's clock.
        ids: The source of ids of orders, messages and instances; None: random ids.
        policies: The filters and weighers; None: all of nodestate, and of the packages in the setting ``plugins``.

    Raises ``ConfigError`` if ``auth_orders`` needs the secrets of the cell, and ``keys_file`` does not have them.
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
        # The arguments, to start again in a forked child.
        self._arguments: dict[str, Any] = {
            "name": name,
            "max_age": max_age,
            "node_max_age": node_max_age,
            "seed": seed,
            "reader": reader,
            "claims": claims,
            "courier": courier,
            "clock": clock,
            "ids": ids,
            "policies": policies,
        }
        self.config = config  # the cell's settings
        self.name = name or f"{socket.gethostname()}:{os.getpid()}"  # the holder in its claims
        self.stats = SchedulerStats()  # counters since the start
        clock = clock or SystemClock()
        ids = ids or SystemIds()
        self._closing: list[Callable[[], None]] = []  # close the reader and the claim servers, if opened here
        require_single_cell(reader)
        if reader is None:
            reader = Reader(config, clock=clock)
            self._closing.append(reader.close)
        if claims is None:
            claims = open_claims(config, clock)
            self._closing += [server.close for server in claims]
        rng = random.Random(seed if seed is not None else f"{self.name} {os.urandom(8).hex()}")
        ceilings = InventoryCeilings(config.inventory_ceilings)
        self.fleet = Fleet(clock, allocation_tags(config, clock), ceilings)  # the nodes as the last view shows them
        preference = NodePreference(self.name, clock, config.claim_ttl_s)
        faults = NodeFaults(clock)
        # The claims of this scheduler and of others.
        copies = min(config.replicas_count, len(claims))
        self.claim_table = ClaimTable(config.cell, claims, self.fleet, preference, faults, clock, copies=copies)
        self.selector = Selector(  # ranks nodes
            self.fleet, policies or installed(config.plugins), rng.getrandbits(63), preference, ids, faults
        )
        self.refresher = FleetRefresher(  # reads the views on which decisions are made
            reader,
            self.fleet,
            self.claim_table,
            config,
            clock,
            name=self.name,
            max_age=max_age,
            node_max_age=node_max_age,
            stats=self.stats,
        )
        self.placer = Placer(  # chooses and claims nodes
            self.name,
            self.fleet,
            self.selector,
            self.claim_table,
            AffinitySeed(config.cell, claims, copies),
            self.refresher.refresh_for_retry,
            clock,
            ids,
            self.stats,
        )
        orders = None
        if courier is not None:
            orders = OrderTracker(courier, self.placer, self.fleet, self.claim_table, clock, ids, config)
        # The parts above, as reservations, migrations and terminations use them.
        self.session = Session(config, self.name, clock, ids, rng, self.refresher, self.selector, self.placer, orders)
        self.reservations = Reservations(self.session)  # reserves nodes for groups
        self.migrations = Migrations(self.session)  # migrates and resizes instances
        self.terminations = Terminations(self.session)  # ends instances for good
        self.updates = Updates(self.session, self.migrations)  # changes requests of instances
        self.tag_renewals = TagRenewals(self.session)  # renews the tags of allocations
        call_in_children(self._start_again)

    # -- views

    def refresh(self, max_age: float | None = None) -> View:
        """Read a view, and base decisions on it from now on.

        Args:
            max_age: The maximum age of the view in seconds; None: the scheduler's ``max_age``.

        Raises ``StaleViewError`` if no view is fresh enough. Decisions are then still based on the previous view.
        """
        return self.session.refresh(max_age)

    @property
    def view(self) -> View:
        """The view on which decisions are made.

        If no view was read before, reads one, and raises ``StaleViewError`` if none is fresh enough.
        """
        return self.refresher.view

    # -- selecting and claiming

    def select(self, request: Request) -> list[Choice]:
        """Return the node that each instance of a request would get, without claiming anything.

        Raises ``StaleViewError`` if no view is fresh enough.
        """
        self.refresh(request.max_age)
        return self.choose(request)

    def choose(self, request: Request) -> list[Choice]:
        """Do as ``select``, by the view that was read last. Reads no new view."""
        choices = self.selector.choices(request)
        for choice in choices:
            self.stats.count_decision("selected" if choice.node is not None else "no-host", choice.removed)
        return choices

    def explain(self, request: Request) -> Explanation:
        """Explain how the nodes rank for a request, by the view that was read last. Reads no new view."""
        return self.selector.explain(request)

    def claim(self, requests: Iterable[Request]) -> list[Placing]:
        """Choose a node for each instance of the requests, and claim it for ``claim_ttl_s`` seconds.

        Many requests in one call cost little more than one request.

        Returns one placing for each instance, with a claim or a failure.

        Raises ``BadRequestError`` if a request names a weigher that is not installed, and ``StaleViewError`` if no view
        is fresh enough. Nothing has been claimed then.
        """
        requests = list(requests)
        for request in requests:
            self.selector.check(request)
        ages = [request.max_age for request in requests if request.max_age is not None]
        self.refresh(min(ages, default=None))
        placings = [placing for request in requests for placing in self._placings(request)]
        self.placer.place(placings)
        return placings

    # -- booting

    def submit(self, request: Request) -> list[Boot]:
        """Begin to boot all instances of a request, and return one boot for each without waiting.

        Later steps set the outcomes of the boots. May be called from any thread.

        Raises ``BadRequestError`` if the request names a weigher that is not installed, and ``ConfigError`` if the
        scheduler has no courier.
        """
        self.selector.check(request)
        boots = [Boot(placing) for placing in self._placings(request)]
        self.session.orders.boots.add(boots)
        return boots

    def boot(self, request: Request, timeout_s: float = 60.0) -> list[BootOutcome]:
        """Boot all instances of a request, wait for the outcomes, and return them.

        Raises ``TimeoutError`` if outcomes are missing after ``timeout_s`` seconds. Later steps go on with the boots
        that have no outcome. Raises ``BadRequestError`` and ``ConfigError`` as ``submit`` does.
        """
        self.selector.check(request)
        return self.session.run_boots([Boot(placing) for placing in self._placings(request)], timeout_s)

    def booting(self, requests: Iterable[Request], timeout_s: float = 60.0) -> Operation[list[BootOutcome]]:
        """Boot the instances of several requests as ``boot`` does, as an operation that other work can interleave."""
        requests = list(requests)
        for request in requests:
            self.selector.check(request)
        boots = [Boot(placing) for request in requests for placing in self._placings(request)]
        return (yield from self.session.boot(boots, timeout_s))

    def _placings(self, request: Request) -> list[Placing]:
        """Return a placing for each instance of a request."""
        ids = request.instance_ids(self.session.ids)
        placings = [Placing(request, instance, self.config.claim_ttl_s) for instance in ids]
        join_groups(placings, "affinity", "anti-affinity")
        return placings

    # -- steps

    def step(self, wait_s: float = 0.0) -> None:
        """Wait up to ``wait_s`` seconds for an answer of an agent, and then do everything that is due.

        Raises ``PolicyError`` if a filter or a weigher raised an error. The boots that needed a node have failed then.
        """
        self.session.step(wait_s)

    def run(self, until: Callable[[], bool], timeout_s: float) -> None:
        """Repeat ``step`` until ``until`` returns True. Raises ``TimeoutError`` after ``timeout_s`` seconds."""
        self.session.run(until, timeout_s)

    # -- closing

    def drop_allocated_claims(self) -> None:
        """Drop the claims of this scheduler that the last view shows as allocations. Call it before ``close``.

        If such a claim is not dropped, and its instance ends before the claim expires, other schedulers may count the
        claim again.
        """
        self.session.drop_allocated_claims()

    def close(self) -> None:
        """Close the reader and the connections to claim servers that the scheduler opened by itself.

        The scheduler's claims stay until they expire, or until another scheduler sees their allocations.
        """
        for close in self._closing:
            close()

    def _start_again(self) -> None:
        """Become another scheduler after a fork.

        Two processes with one name and the same claims would end each other's claims, and complete each boot twice.
        """
        for close in self._closing:
            close()
        name = self._arguments["name"]
        Scheduler.__init__(self, self.config, **(self._arguments | {"name": f"{name}:{os.getpid()}" if name else ""}))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

"""The fleet refresher: keeps a scheduler's fleet and claim table up to date with the newest view.

A decision needs three things that belong together: a view that is fresh enough, the claims of others on its nodes, and
which of these claims the view already shows as allocations. ``FleetRefresher.refresh`` brings all three up to date.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from nodestate.config import Config
from nodestate.designs.reader import Reader
from nodestate.errors import BehindError, StaleViewError
from nodestate.model import Receipt
from nodestate.ports import Clock
from nodestate.scheduling.claims import CLOCK_S, ClaimTable
from nodestate.scheduling.fleet import Fleet
from nodestate.view.view import View

HEARTBEATS_COUNT: Final = 3
"""A node is unresponsive if it missed this number of heartbeats, unless ``node_max_age`` is set."""
CATCH_UP_S: Final = 1.0
"""How long to wait for states that claim records name, before an instance is told that there is no node."""


class FleetRefresher:
    """The view that one scheduler decides on, and how it is replaced by a newer one.

    Args:
        reader: Gives the views.
        fleet: Is advanced to each view.
        claim_table: Is brought up to date with each view.
        config: The cell's ``claim_ttl_s``, ``answer_timeout_s`` and ``heartbeat_s``.
        clock: For waiting: monotonic seconds.
        name: The scheduler's name, which its claims bear.
        max_age: How old a view may be, in seconds, if a request names no bound.
        node_max_age: Nodes without a sign of life for this number of seconds are left out; None: none is left out.
    """

    def __init__(
        self,
        reader: Reader,
        fleet: Fleet,
        claim_table: ClaimTable,
        config: Config,
        clock: Clock,
        *,
        name: str,
        max_age: float,
        node_max_age: float | None,
    ) -> None:
        self.reader = reader  # gives the views
        self.fleet = fleet  # shows the last view
        self.claim_table = claim_table  # knows the claims on the last view's nodes
        self.max_age = max_age  # how old a view may be, in seconds, if a request names no bound
        self.node_max_age = node_max_age  # nodes without a sign of life for this number of seconds are left out
        self._clock = clock  # for waiting
        self._name = name  # the scheduler's name, which its claims bear
        self._heartbeat_s = config.heartbeat_s  # the interval of the agents' heartbeats
        # A view that is older than this could lack both the claim, which has expired, and the allocation it became.
        self._max_safe_age_s = config.claim_ttl_s - config.answer_timeout_s - CLOCK_S
        self._view: View | None = None  # the last view; None before the first refresh
        self._claims_read_count = 0  # the nodes, in the fleet's order, whose claim records have been read

    @property
    def view(self) -> View:
        """The view that decisions are made on; read now if there was none. Raises ``StaleViewError`` in that case."""
        return self._view if self._view is not None else self.refresh()

    def refresh(self, max_age: float | None = None) -> View:
        """Read a view, and decide on it from now on.

        Args:
            max_age: How old the view may be, in seconds; None: the scheduler's ``max_age``.

        Raises ``StaleViewError`` if no view is fresh enough.
        """
        bound = min(self.max_age if max_age is None else max_age, self._max_safe_age_s)
        view = self.reader.read(max_age=bound, node_max_age=self.node_max_age, on_stale="exclude")
        if view.age > bound:
            view = self.reader.read(max_age=bound, on_stale="refuse")  # raises the error that says why
        self.fleet.advance(view)
        self.claim_table.on_fleet_advanced()
        if self._claims_read_count < len(self.fleet):  # once for each node: others may have claims on it
            self.claim_table.read_records(self.fleet.names[self._claims_read_count :])
            self._claims_read_count = len(self.fleet)
        self.claim_table.expire()
        self._view = view
        return view

    def refresh_for_retry(self) -> bool:
        """Read newer states and claims, before an instance is refused because no node fits.

        Waits up to ``CATCH_UP_S`` seconds for node states that claim records name, then reads the claims of others
        again. Returns whether anything changed.
        """
        before = self.fleet.changes
        deadline = self._clock.monotonic() + CATCH_UP_S
        for receipt in self.claim_table.receipts_to_await():
            with suppress(BehindError, StaleViewError):
                self.wait_for_receipt(receipt, max(0.0, deadline - self._clock.monotonic()))
        with suppress(StaleViewError):
            self.refresh()
        self.claim_table.read_records(self.claim_table.records.nodes_claimed_by_others(self._name))
        return self.fleet.changes != before

    def refresh_unresponsive_nodes(self) -> None:
        """Note in the fleet which nodes gave no sign of life for ``node_max_age``, or for three heartbeats.

        The last report of such a node may be out of date, so no copy of an instance is ended because of it.
        """
        bound = self.node_max_age or HEARTBEATS_COUNT * self._heartbeat_s + self.max_age
        view = self.reader.read(max_age=self.max_age, node_max_age=bound, on_stale="flag")
        self.fleet.unresponsive = frozenset(view.stale)

    def wait_for_receipt(self, receipt: Receipt, timeout_s: float) -> None:
        """Wait until views show at least the node state that a receipt names.

        The fleet does not advance; call ``refresh`` for that. Raises ``BehindError`` after ``timeout_s`` seconds, and
        ``StaleViewError`` if no view can be read.
        """
        self.reader.read(at_least=receipt, on_stale="flag", timeout=timeout_s)

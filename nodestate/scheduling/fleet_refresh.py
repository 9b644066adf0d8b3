"""The fleet refresher: keeps a scheduler's fleet and claim table up to date with the newest view.

A decision needs three things that fit together: a view that is fresh enough, the claims of other schedulers on its
nodes, and the knowledge which of these claims the view already shows as allocations. ``FleetRefresher.refresh`` brings
all three up to date.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from nodestate.config import Config
from nodestate.designs.reader import Reader
from nodestate.errors import BehindError, StaleViewError
from nodestate.model import Receipt, Version
from nodestate.model.partitioning import partition_of
from nodestate.ports import Clock
from nodestate.scheduling.claims import ClaimTable, max_view_age_s
from nodestate.scheduling.fleet import Fleet
from nodestate.scheduling.scheduler_stats import SchedulerStats
from nodestate.view.view import View

HEARTBEATS_COUNT: Final = 3
"""Number of missed heartbeats after which a node is unresponsive, unless ``node_max_age`` is set."""
DOUBT_INTERVAL_S: Final = 10.0
"""Seconds between two looks for claim records that block their nodes."""
DOUBT_AFTER_S: Final = 30.0
"""Seconds, in addition to the greatest age of a view, after which a version is impossible if no view has shown it."""
CATCH_UP_S: Final = 1.0
"""Seconds to wait for the node states that claim records require, before an instance fails for lack of a node."""
REREADS_COUNT: Final = 12
"""Number of calls of ``reread_claims`` in which all claim records are read again."""
REREAD_RECORDS_MIN: Final = 100
"""Number of claim records that one call reads at least."""


class FleetRefresher:
    """Holds the view on which one scheduler decides, and replaces it by newer views.

    Args:
        reader: Reads the views.
        fleet: The scheduler's fleet, which is advanced to each view.
        claim_table: The scheduler's claim table, which is updated with each view.
        config: The cell's ``claim_ttl_s``, ``answer_timeout_s`` and ``heartbeat_s``.
        clock: The time, to limit how long a call waits.
        name: The scheduler's name, which is the holder in its claims.
        max_age: The maximum age of a view, in seconds, for requests that do not name one.
        node_max_age: No instance is placed on a node that gave no sign of life for this number of seconds. None: the
            age of a node does not matter.
        stats: Counts refreshes.
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
        stats: SchedulerStats,
    ) -> None:
        self._stats = stats  # counts refreshes
        self.reader = reader  # reads the views
        self.fleet = fleet  # shows the last view
        self.claim_table = claim_table  # has the claims on the last view's nodes
        self.max_age = max_age  # the maximum age of a view, in seconds, for requests that do not name one
        self.node_max_age = node_max_age  # nodes get no instances after this number of seconds without a sign of life
        self._clock = clock  # the time, to limit how long a call waits
        self._name = name  # the scheduler's name, which is the holder in its claims
        self._heartbeat_s = config.heartbeat_s  # the interval of the agents' heartbeats
        # In an older view, an instance could be missing although its claim has expired: it would not count at all.
        self._max_safe_age_s = max_view_age_s(config.claim_ttl_s, config.answer_timeout_s)
        self._view: View | None = None  # the last view; None before the first refresh
        self._blocked_since: dict[str, tuple[Version, float]] = {}  # by node, its record's ``seen``, and since when
        self._doubt_at = clock.monotonic()  # when to look next for claim records that block their nodes
        self._claims_read_count = 0  # claim records were read for the rows below this number
        self._reread_from = 0  # the row whose claim record is read again next

    @property
    def view(self) -> View:
        """The view on which decisions are made.

        If no view was read before, reads one, and raises ``StaleViewError`` if none is fresh enough.
        """
        return self._view if self._view is not None else self.refresh()

    def refresh(self, max_age: float | None = None) -> View:
        """Read a view, and base decisions on it from now on.

        The age is also limited by the time to live of claims: the view must be so new that it shows every instance
        whose claim has expired.

        Args:
            max_age: The maximum age of the view in seconds; None: the scheduler's ``max_age``.

        Raises ``StaleViewError`` if no view is fresh enough. Decisions are then still based on the previous view.
        """
        began = self._clock.monotonic()
        bound = min(self.max_age if max_age is None else max_age, self._max_safe_age_s)
        view = self.reader.read(max_age=bound, node_max_age=self.node_max_age, on_stale="exclude")
        if view.age > bound:
            view = self.reader.read(max_age=bound, on_stale="refuse")  # raises the error with the cause
        before = self.fleet.changes
        self.fleet.advance(view)
        self.claim_table.on_fleet_advanced(before)
        if self._claims_read_count < len(self.fleet):  # once for each new node: other schedulers may have claims on it
            self.claim_table.read_records(self.fleet.names[self._claims_read_count :])
            self._claims_read_count = len(self.fleet)
        self.claim_table.expire()
        self._replace_impossible_records(view)
        self._view = view
        self._stats.durations_s["refresh"].observe(self._clock.monotonic() - began)
        return view

    def refresh_for_retry(self) -> bool:
        """Read newer node states and claims, before an instance fails because no node fits.

        Waits up to ``CATCH_UP_S`` seconds for the node states that claim records require, and then reads the claims of
        other schedulers again. Returns True if the fleet changed, so that a node may fit now.
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

    def reread_claims(self) -> None:
        """Read the next part of the claim records again, so that each one is read from time to time.

        A scheduler writes to the records that it knows, and does not notice by itself that an idle one was lost, or
        lacks the code of a secret that came into force. The next flush writes such a record again.
        """
        if self._reread_from >= self._claims_read_count:
            self._reread_from = 0
        begin, count = self._reread_from, max(REREAD_RECORDS_MIN, -(-self._claims_read_count // REREADS_COUNT))
        self._reread_from = min(begin + count, self._claims_read_count)
        self.claim_table.read_records(self.fleet.names[begin : self._reread_from])
        self.claim_table.read_returned()

    def _replace_impossible_records(self, view: View) -> None:
        """Replace claim records that would block their nodes for ever, because no view ever shows their ``seen``.

        Schedulers write only versions that a view showed or an agent named. So views soon show this version, or a
        later one, unless the record is damaged or forged. Nodes of which the view is incomplete or stale are skipped.
        """
        now = self._clock.monotonic()
        if now < self._doubt_at:
            return
        self._doubt_at = now + DOUBT_INTERVAL_S
        before, self._blocked_since = self._blocked_since, {}
        unsure = view.incomplete | view.stale | set(view.left_out)
        for node, seen in self.claim_table.receipts_to_await():
            if node not in unsure and f"partition {partition_of(node, len(view.partitions))}" not in unsure:
                known = before.get(node, (seen, now))
                self._blocked_since[node] = known if known[0] == seen else (seen, now)
        wait_s = self._max_safe_age_s + DOUBT_AFTER_S
        impossible = [node for node, (_, since) in self._blocked_since.items() if now - since > wait_s]
        for node in impossible:
            self.claim_table.records.distrust(node)
        self.claim_table.read_records(impossible)

    @property
    def responsive_bound_s(self) -> float:
        """The seconds without a sign of life after which a node is unresponsive."""
        return self.node_max_age or HEARTBEATS_COUNT * self._heartbeat_s + self.max_age

    def refresh_unresponsive_nodes(self) -> None:
        """Set ``fleet.unresponsive`` to the nodes that gave no sign of life for ``node_max_age`` seconds.

        If ``node_max_age`` is not set, the limit is ``HEARTBEATS_COUNT`` intervals of heartbeats plus ``max_age``.

        The last report of an unresponsive node may be out of date. So if it has the authoritative allocation of an
        instance, the copies on other nodes are not ended.
        """
        view = self.reader.read(max_age=self.max_age, node_max_age=self.responsive_bound_s, on_stale="flag")
        self.fleet.unresponsive = frozenset(view.stale)

    def wait_for_receipt(self, receipt: Receipt, timeout_s: float) -> None:
        """Wait until a view shows the node state that a receipt names, or a newer state of that node.

        The fleet still shows the previous view afterwards; call ``refresh`` to advance it.

        Raises ``BehindError`` if no such view was read within ``timeout_s`` seconds, and ``StaleViewError`` if no view
        can be read.
        """
        self.reader.read(at_least=receipt, on_stale="flag", timeout=timeout_s)

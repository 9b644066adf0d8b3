"""The reader of a cell: gives a scheduler views of all nodes. It reads the stores and needs no broker."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, get_args

from nodestate.config import Config
from nodestate.designs import DESIGNS
from nodestate.designs.connections import configured, open_stores
from nodestate.designs.control import Control
from nodestate.designs.control_auth import ControlAuth, control_auth
from nodestate.designs.control_store import fetch_record
from nodestate.designs.followed_design import FollowedDesign
from nodestate.designs.reader_stats import ReaderStats
from nodestate.designs.stored_design import StoredDesign, parse_stored_design
from nodestate.errors import BehindError, ConfigError, NodestateError, StaleViewError
from nodestate.model import NEVER, Receipt
from nodestate.ports import Clock, Store, SystemClock
from nodestate.store.round_trips import Steps, Stores, run
from nodestate.view.columns import ColumnStore
from nodestate.view.follower import NO_HEAD, PartitionState
from nodestate.view.view import OnStale, View

POLL_S = 0.005
"""Seconds between two refreshes while a read waits for a view within its bounds."""


class Reader:
    """Follows a cell and gives views of it. Safe for several threads; each read refreshes the view first.

    A read costs one round trip if nothing has changed. Otherwise it fetches only the changes. If a server does not
    answer, its partitions keep the state that was read before, and age.

    A reader that was given a ``design`` reads only that design. Any other reader reads the design that the cell's
    control record names, or the design that the settings name if there is no record. If the record changes, the reader
    begins to switch at its next refresh::

        reads R --record says X--> reads R, and X beside it --X is complete, and no node older than in R--> reads X

    So a switch between designs causes no error, and no node goes back to an older version (I1).

    Args:
        config: settings of the cell.
        design: the design to read, such as ``snapshot``, or ``snapshot@16`` in a layout that is not the settings'. None
            to follow the control record.
        stores: connections to use; None to open them. ``close`` closes them.
        clock: the reader's clock; None for the machine's clock.
    """

    def __init__(
        self, config: Config, *, design: str | None = None, stores: Stores | None = None, clock: Clock | None = None
    ) -> None:
        # Settings of the cell.
        self.config = config
        # Counters since the start.
        self.stats = ReaderStats()
        first = parse_stored_design(design or config.read_design, config.partitions)
        # Monotonic time, for ages and waits.
        self._clock = clock or SystemClock()
        # True if the caller chose the design. The control record is then not read.
        self._pinned = design is not None
        # The stores that are open. A switch to a design in other stores opens those, too.
        self._stores = stores or open_stores(config, self._clock, [first.design])
        # Columns of the last view, from which the columns of the next view are computed.
        self._columns = ColumnStore()
        # Held during a refresh.
        self._lock = threading.Lock()
        # The design that is read.
        self._live = FollowedDesign(first, config, self._stores, self._clock)
        # The design to read next, once it can replace the design that is read; None if no switch is under way.
        self._coming: FollowedDesign | None = None
        # Checks the signatures of control records; None if the record is not read.
        self._control_auth = None if self._pinned else control_auth(config, self._clock)
        # The newest control record that was read; None if none was read.
        self._control: Control | None = None

    @property
    def design(self) -> str:
        """The design that is read now."""
        return self._live.stored.design

    @property
    def age(self) -> float:
        """The age of the last view in seconds, as ``View.age``. Safe to read from any thread; does not refresh."""
        return self._clock.monotonic() - min(state.confirmed_at for state in self._live.states)

    @property
    def control(self) -> Control | None:
        """The newest control record that was read; None if none was read, or the caller chose the design."""
        return self._control

    def read(
        self,
        *,
        max_age: float | None = None,
        node_max_age: float | None = None,
        at_least: Receipt | None = None,
        on_stale: OnStale = "refuse",
        on_unresponsive: OnStale | None = None,
        timeout: float = 0.0,
    ) -> View:
        """Refresh, and return a view within the caller's bounds.

        At least one of ``max_age``, ``node_max_age`` and ``at_least`` must be given: there is no default bound.

        Args:
            max_age: greatest age of a partition, in seconds: the time since its owner is known to have been caught up.
                The nodes of an older partition are stale.
            node_max_age: greatest age of a node, in seconds: the time since its last sign of life. Older nodes are
                stale.
            at_least: a receipt of a publish. The view must have that version of the node, or a newer one.
            on_stale: decides about stale nodes. With ``"refuse"``, the read raises. With ``"exclude"``, the view lacks
                them, and also lacks incomplete nodes. With ``"flag"``, the view has them and names them in
                ``view.stale``.
            on_unresponsive: decides about nodes over ``node_max_age`` in the same way, and ``on_stale`` then decides
                about partitions only. None: as ``on_stale``.
            timeout: seconds for which the read refreshes again before it raises ``StaleViewError`` or ``BehindError``.

        Raises:
            StaleViewError: if a partition is too old and ``on_stale`` is ``"refuse"``, or if a node is too old and
                ``on_unresponsive`` is.
            BehindError: if the view does not contain ``at_least``.
            TypeError: if no bound is given, or one of the two decisions is none of the three words.
        """
        if max_age is None and node_max_age is None and at_least is None:
            raise TypeError("read() needs a bound: give max_age=…, node_max_age=… or at_least=…")
        require_decisions(on_stale, on_unresponsive)
        deadline = self._clock.monotonic() + timeout
        while True:
            try:
                with self._lock:
                    began = self._clock.monotonic()
                    self._refresh(max_age, with_life=node_max_age is not None)
                    live = self._live
                    self.stats.observe_refresh(
                        live.stored.design, self._clock.monotonic() - began, len(live.errors), len(live.followers)
                    )
                    states = self._live.states
                    self.stats.propagation.observe(states, self._clock)
                    view = View(self.design, states, frozenset(), (), self._columns, self._clock)
                view = view.bounded(max_age, node_max_age, on_stale, on_unresponsive)
                if at_least is not None:
                    view.require(at_least, timeout)
                return view
            except (StaleViewError, BehindError) as error:
                if self._clock.monotonic() >= deadline:
                    self.count_refusal(error)
                    raise
            self._clock.sleep(POLL_S)

    def count_refusal(self, error: StaleViewError | BehindError) -> None:
        """Count a read that was refused with this error. For callers that judge views of this reader themselves."""
        with self._lock:
            self.stats.count_refusal(error)

    def _refresh(self, max_age: float | None, *, with_life: bool) -> None:
        """Refresh the design that is read. Follow a change of the control record, unless the caller chose the design.

        Args:
            max_age: the bound of the read in seconds, or None. See ``_switch_if_possible``.
            with_life: fetch the nodes' signs of life, too.
        """
        live = self._live
        work: dict[int, tuple[Store, Steps[Any]]] = {**live.work(with_life=with_life)}
        auth = self._control_auth
        if auth is not None:  # fetch the record together with the heads, in the same round trip
            servers = {id(store): store for store in live.stores}
            wall = self._clock.time()
            work |= {
                -n: (store, fetch_record(self.config.cell, wall, auth)) for n, store in enumerate(servers.values(), 1)
            }
        results = run(work)
        live.note_errors({p: results[p] for p in range(len(live.followers))})
        records = [found for found in results.values() if isinstance(found, Control)]
        if auth is not None and any(isinstance(found, NodestateError) for n, found in results.items() if n < 0):
            records += self._records_elsewhere(auth)
        control = max(records, key=lambda record: record.version, default=None)
        # A different record of the same version is followed, too: the record from before was lost with its store.
        if (
            control is not None
            and control != self._control
            and (self._control is None or control.version >= self._control.version)
        ):
            self._control = control
            self._coming = self._open(control.reads) if control.reads != live.stored else None
        # As the record says now: this may be the first read.
        live.look_at_replicas(self._stores, with_life=with_life, both_written=self._has_replicas())
        if self._coming is not None:
            self._switch_if_possible(self._coming, max_age, with_life=with_life)

    def _has_replicas(self) -> bool:
        """True if the cell writes both replicas of the design that is read, and the caller chose no design."""
        partner = DESIGNS[self._live.stored.design].partner
        if self._pinned or not partner:
            return False
        written = self._control.writes if self._control is not None else ()
        is_written = StoredDesign(partner, self._live.stored.partitions) in written
        return is_written and self._stores.has(DESIGNS[partner].store_role)

    def _records_elsewhere(self, auth: ControlAuth) -> list[Control]:
        """Return the control records in the stores that this reader does not read now.

        Called while a store that this reader reads is down. Otherwise the reader would not learn that the cell was
        switched away from that store.
        """
        for name in configured(self.config):
            with suppress(ConfigError):  # the store's driver is not installed, so that store's copy cannot be read
                self._reach(name)
        asked = {id(store): store for store in self._stores.everywhere if store not in self._live.stores}
        wall = self._clock.time()
        found = run({key: (store, fetch_record(self.config.cell, wall, auth)) for key, store in asked.items()})
        return [one for one in found.values() if isinstance(one, Control)]

    def _reach(self, design: str) -> None:
        """Open the stores of a design unless they are open. Raises ``ConfigError`` if they cannot be opened."""
        if not self._stores.has(DESIGNS[design].store_role):
            self._stores = self._stores.merged_with(open_stores(self.config, self._clock, [design]))

    def _open(self, stored: StoredDesign) -> FollowedDesign | None:
        """Open a design beside the design that is read.

        If the settings name no store for ``stored``, logs an error and returns None. The reader then keeps reading the
        present design. Once consumers no longer write that design, its views become older and show it by their age.
        """
        try:
            self._reach(stored.design)
            return FollowedDesign(stored, self.config, self._stores, self._clock)
        except (KeyError, ConfigError) as error:
            import structlog  # noqa: PLC0415  it would take half of the time of `import nodestate`

            structlog.get_logger("nodestate.designs.reader").error(
                "cannot follow the control record", design=str(stored), why=str(error)
            )
            return None

    def _switch_if_possible(self, coming: FollowedDesign, max_age: float | None, *, with_life: bool) -> None:
        """Refresh the coming design. Read it from now on if it can replace the present design.

        Args:
            coming: the design that the control record names.
            max_age: the bound of the read, in seconds; None if there is none. If the coming design is within this
                bound, it may be older than the present design.
            with_life: fetch the nodes' signs of life, too.
        """
        try:
            coming.note_errors(run(coming.work(with_life=with_life)))
        except ConfigError:  # a server cannot be used with these settings; keep reading the present design
            return
        fresh_since = self._clock.monotonic() - max_age if max_age is not None else -math.inf
        if not _must_wait(coming.states, self._live.states, fresh_since):
            self._live, self._coming = coming, None

    def close(self) -> None:
        """Close the connections to the stores. Views that were read before stay valid."""
        self._stores.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def require_decisions(on_stale: str, on_unresponsive: str | None) -> None:
    """Raise ``TypeError`` unless both are words of ``OnStale``."""
    for name, word in (("on_stale", on_stale), ("on_unresponsive", on_unresponsive or on_stale)):
        if word not in get_args(OnStale):
            raise TypeError(f"{name} must be 'exclude', 'refuse' or 'flag', not {word!r}")


def _must_wait(coming: Sequence[PartitionState], live: Sequence[PartitionState], fresh_since: float) -> bool:
    """True if the coming design cannot replace the live design now (``_cannot_replace``).

    If both designs have the same number of partitions, they are compared partition by partition. Otherwise all
    partitions are compared together, because the same nodes are in different partitions.
    """
    if len(coming) == len(live):
        return any(_cannot_replace([new], [old], fresh_since) for new, old in zip(coming, live, strict=True))
    return _cannot_replace(coming, live, fresh_since)


def _cannot_replace(news: Sequence[PartitionState], olds: Sequence[PartitionState], fresh_since: float) -> bool:
    """True if the new partitions cannot replace the old partitions now, for one of these reasons:

    - A new partition has no table, or lost a part of it.
    - A new partition is incomplete, although an old partition is complete or cannot be read.
    - The new partitions are older than the old partitions, and also older than ``fresh_since``.
    - The new partitions have a node at an older version than the old partitions, or lack a node of theirs.

    ``fresh_since`` is in monotonic seconds; minus infinity if any age is accepted.
    """
    if any(new.table is None or new.lost for new in news):
        return True
    # A partition without a head is not compared: its nodes are of an epoch that is over, and versions of different
    # epochs cannot be compared (I1).
    shown = [old for old in olds if old.table is not None and old.lost != NO_HEAD]
    if (len(shown) < len(olds) or any(old.complete for old in shown)) and not all(new.complete for new in news):
        return True
    if shown and min(new.confirmed_at for new in news) < min(fresh_since, *(old.confirmed_at for old in shown)):
        return True
    have = {record.name: record.version for new in news if new.table is not None for record in new.table.records()}
    return any(
        have.get(record.name, NEVER) < record.version
        for old in shown
        if old.table is not None
        for record in old.table.records()
    )

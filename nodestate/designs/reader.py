"""The reader of a cell: gives a scheduler views of all nodes. It needs the store, and no broker."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, Self

from nodestate.config import Config
from nodestate.designs import DESIGNS
from nodestate.designs.connections import configured, open_stores
from nodestate.designs.control import Control
from nodestate.designs.control_store import fetch_record
from nodestate.designs.stored_design import StoredDesign, parse_stored_design
from nodestate.errors import BehindError, ConfigError, NodestateError, StaleViewError
from nodestate.model import NEVER, Receipt
from nodestate.ports import Clock, Store, SystemClock
from nodestate.store import keys
from nodestate.store.round_trips import Steps, Stores, run
from nodestate.view.columns import ColumnStore
from nodestate.view.follower import NO_HEAD, Follower, PartitionState
from nodestate.view.view import View, stale_nodes

OnStale = Literal["exclude", "refuse", "flag"]
POLL_S = 0.005
"""Seconds between two refreshes while a read waits for its bounds to be met."""


class _FollowedDesign:
    """The followers of all partitions of one design in one layout."""

    def __init__(self, stored: StoredDesign, cell: str, stores: Stores, clock: Clock) -> None:
        # The design and its layout.
        self.stored = stored
        # By partition, the error of the last refresh.
        self.errors: dict[int, NodestateError] = {}
        letter, make_reader, role = (
            DESIGNS[stored.design].letter,
            DESIGNS[stored.design].reader,
            DESIGNS[stored.design].store_role,
        )
        prefixes = [keys.prefix(cell, stored.partitions, p, letter) for p in range(stored.partitions)]
        # By partition, the store that it is read from.
        self.stores = [stores.of(p, role) for p in range(stored.partitions)]
        # By partition, its follower.
        self.followers = [Follower(p, prefix, make_reader(prefix), clock) for p, prefix in enumerate(prefixes)]

    def work(self, *, with_life: bool) -> dict[int, tuple[Store, Steps[PartitionState]]]:
        """The steps of a refresh of every partition."""
        return {
            p: (store, follower.refresh(with_life))
            for p, (store, follower) in enumerate(zip(self.stores, self.followers, strict=True))
        }

    def note_errors(self, results: Mapping[int, PartitionState | NodestateError]) -> None:
        """Note the partitions whose refresh failed."""
        self.errors = {p: result for p, result in results.items() if isinstance(result, NodestateError)}

    @property
    def states(self) -> tuple[PartitionState, ...]:
        """The state of each partition; one whose refresh failed is marked as lost."""
        if not self.errors:
            return tuple([follower.state for follower in self.followers])
        return tuple(
            f.state._replace(lost=str(self.errors[p])) if p in self.errors else f.state
            for p, f in enumerate(self.followers)
        )


class Reader:
    """Follows a cell and gives views of it. Safe for several threads; each read refreshes the view first.

    A read costs one round trip if nothing changed, and fetches only changes otherwise. If a server does not answer, its
    partitions keep the state that was read before, and age.

    A reader with a ``design`` reads only that design: ``snapshot``, or ``snapshot@16`` in a layout that is not the
    settings'. Without it, a reader reads the design that the cell's control record names, or the settings if there is
    no record. It follows a change of the record within one refresh::

        reads R --record says X--> reads R, and X beside it --X is complete, and no node older than in R--> reads X

    So a switch between designs causes no error, and no node goes back to an older version (I1).
    """

    def __init__(
        self, config: Config, *, design: str | None = None, stores: Stores | None = None, clock: Clock | None = None
    ) -> None:
        # Settings of the cell.
        self.config = config
        first = parse_stored_design(design or config.read_design, config.partitions)
        # The reader's own clock, for ages.
        self._clock = clock or SystemClock()
        # True if the caller chose the design, so that the control record does not matter.
        self._pinned = design is not None
        # The stores that are open; more are opened for a switch.
        self._stores = stores or open_stores(config, self._clock, [first.design])
        # Columns of the last view, which the next view updates.
        self._columns = ColumnStore()
        # Held during a refresh.
        self._lock = threading.Lock()
        # The design that is read.
        self._live = _FollowedDesign(first, config.cell, self._stores, self._clock)
        # The design that the record names, until it can replace the one that is read; None if there is none.
        self._coming: _FollowedDesign | None = None
        # The newest control record that was read.
        self._control: Control | None = None

    @property
    def design(self) -> str:
        """The design that is read now."""
        return self._live.stored.design

    def read(
        self,
        *,
        max_age: float | None = None,
        node_max_age: float | None = None,
        at_least: Receipt | None = None,
        on_stale: OnStale = "refuse",
        timeout: float = 0.0,
    ) -> View:
        """Refresh, and return a view within the caller's bounds.

        At least one of ``max_age``, ``node_max_age`` and ``at_least`` must be given: there is no default bound.

        Args:
            max_age: greatest number of seconds since each partition's owner is known to have been caught up.
            node_max_age: greatest number of seconds since each node's last sign of life.
            at_least: the receipt of a publish that the view must contain.
            on_stale: what to do with stale nodes: ``"exclude"`` leaves them out, together with incomplete nodes;
                ``"refuse"`` raises; ``"flag"`` only names them in ``view.stale``.
            timeout: seconds to wait for the bounds to be met.

        Raises:
            StaleViewError: with ``"refuse"``, if the view is not within the bounds.
            BehindError: if the view does not contain ``at_least``.
            TypeError: if no bound is given.
        """
        if max_age is None and node_max_age is None and at_least is None:
            raise TypeError("read() needs a bound: give max_age=…, node_max_age=… or at_least=…")
        if on_stale not in ("exclude", "refuse", "flag"):
            raise TypeError(f"on_stale must be 'exclude', 'refuse' or 'flag', not {on_stale!r}")
        deadline = self._clock.monotonic() + timeout
        while True:
            try:
                with self._lock:
                    self._refresh(max_age, with_life=node_max_age is not None)
                    view = self._bounded(max_age, node_max_age, on_stale)
                if at_least is not None:
                    self._require(view, at_least, timeout)
                return view
            except (StaleViewError, BehindError):
                if self._clock.monotonic() >= deadline:
                    raise
            self._clock.sleep(POLL_S)

    def _refresh(self, max_age: float | None, *, with_life: bool) -> None:
        live = self._live
        work: dict[int, tuple[Store, Steps[Any]]] = {**live.work(with_life=with_life)}
        if not self._pinned:  # fetch the record together with the heads, in the same round trip
            servers = {id(store): store for store in live.stores}
            work |= {-n: (store, fetch_record(self.config.cell)) for n, store in enumerate(servers.values(), 1)}
        results = run(work)
        live.note_errors({p: results[p] for p in range(len(live.followers))})
        records = [found for found in results.values() if isinstance(found, Control)]
        if not self._pinned and any(isinstance(found, NodestateError) for n, found in results.items() if n < 0):
            records += self._records_elsewhere()
        control = max(records, key=lambda record: record.version, default=None)
        # A different record of the same version: the one that was seen before was lost with its store.
        if (
            control is not None
            and control != self._control
            and (self._control is None or control.version >= self._control.version)
        ):
            self._control = control
            self._coming = self._open(control.reads) if control.reads != live.stored else None
        if self._coming is not None:
            self._come(self._coming, max_age, with_life=with_life)

    def _records_elsewhere(self) -> list[Control]:
        """Look for the control record in stores that this reader does not read now.

        Needed while a store that it does read is down: otherwise the reader would not learn that the cell was switched
        away from that store.
        """
        for name in configured(self.config):
            with suppress(ConfigError):  # its driver is not installed, so its record cannot be read
                self._reach(name)
        asked = {id(store): store for store in self._stores.everywhere if store not in self._live.stores}
        found = run({key: (store, fetch_record(self.config.cell)) for key, store in asked.items()})
        return [one for one in found.values() if isinstance(one, Control)]

    def _reach(self, design: str) -> None:
        """Open the stores of a design unless they are open. Raises ``ConfigError``."""
        if not self._stores.has(DESIGNS[design].store_role):
            self._stores = self._stores.merged_with(open_stores(self.config, self._clock, [design]))

    def _open(self, stored: StoredDesign) -> _FollowedDesign | None:
        """Open a design beside the one that is read.

        Returns None, and logs an error, if the settings name no store for it. The design that is read then ages once it
        is no longer written, and views show that.
        """
        try:
            self._reach(stored.design)
            return _FollowedDesign(stored, self.config.cell, self._stores, self._clock)
        except (KeyError, ConfigError) as error:
            import structlog  # noqa: PLC0415  it would take half of the time of `import nodestate`

            structlog.get_logger("nodestate.designs.reader").error(
                "cannot follow the control record", design=str(stored), why=str(error)
            )
            return None

    def _come(self, coming: _FollowedDesign, max_age: float | None, *, with_life: bool) -> None:
        """Refresh the coming design, and switch to it if it can replace the live one (``_behind``)."""
        try:
            coming.note_errors(run(coming.work(with_life=with_life)))
        except ConfigError:  # a server cannot be used with these settings; the design that is read is still right
            return
        fresh_since = self._clock.monotonic() - max_age if max_age is not None else -math.inf
        if not _behind(coming.states, self._live.states, fresh_since):
            self._live, self._coming = coming, None

    def _bounded(self, max_age: float | None, node_max_age: float | None, on_stale: OnStale) -> View:
        states = self._live.states
        now = self._clock.monotonic()
        stale: list[str] = []
        for state in states:
            stale += stale_nodes(state, now, max_age, node_max_age)
        late = [s.partition for s in states if max_age is not None and now - s.confirmed_at > max_age]
        if on_stale == "refuse" and (stale or late):
            age = now - min(state.confirmed_at for state in states)
            cause = next((states[p].lost for p in late if states[p].lost), "")
            bound = max_age if late and max_age is not None else node_max_age
            raise StaleViewError(age, bound if bound is not None else 0.0, late, () if late else stale, cause)
        left_out: set[str] = set()
        if on_stale == "exclude":
            left_out.update(stale, *(state.table.incomplete for state in states if state.table is not None))
        return View(self.design, states, frozenset(stale), left_out, self._columns, self._clock)

    def _require(self, view: View, receipt: Receipt, timeout: float) -> None:
        record = view.nodes.record(receipt.node)
        version = record.version if record is not None else NEVER
        if version < receipt.version:
            raise BehindError(receipt.node, receipt.version, version if record is not None else None, timeout)

    def close(self) -> None:
        """Close the connections. Views that were read stay valid."""
        self._stores.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _behind(coming: Sequence[PartitionState], live: Sequence[PartitionState], fresh_since: float) -> bool:
    """True if the coming design cannot replace the live one.

    Compares partition by partition if both have the same number of partitions, otherwise all partitions together.
    """
    if len(coming) == len(live):
        return any(_lacks([new], [old], fresh_since) for new, old in zip(coming, live, strict=True))
    return _lacks(coming, live, fresh_since)


def _lacks(news: Sequence[PartitionState], olds: Sequence[PartitionState], fresh_since: float) -> bool:
    """True if the new partitions cannot replace the old ones.

    That is if they are not complete, if they are confirmed neither as late as the old ones nor since ``fresh_since``,
    or if they have a node at an older version than the old ones showed.
    """
    if any(new.table is None or new.lost for new in news):
        return True
    # Nodes of an epoch that is over are not compared: versions of different epochs have no order (I1).
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

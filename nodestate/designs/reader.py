"""The reader: what a scheduler holds. Needs the store, no broker."""

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
from nodestate.designs.control_store import look
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
"""Pause between looks while a read waits for something to become visible."""


class _Following:
    """The followers of one design in one layout: what a reader holds of it, refresh by refresh."""

    def __init__(self, kept: StoredDesign, cell: str, stores: Stores, clock: Clock) -> None:
        self.kept = kept
        self.troubles: dict[int, NodestateError] = {}
        letter, make, where = DESIGNS[kept.design].letter, DESIGNS[kept.design].reader, DESIGNS[kept.design].store_role
        prefixes = [keys.prefix(cell, kept.partitions, p, letter) for p in range(kept.partitions)]
        self.places = [stores.of(p, where) for p in range(kept.partitions)]
        self.followers = [Follower(p, prefix, make(prefix), clock) for p, prefix in enumerate(prefixes)]

    def work(self, *, with_life: bool) -> dict[int, tuple[Store, Steps[PartitionState]]]:
        """A refresh of every partition."""
        return {
            p: (store, follower.refresh(with_life))
            for p, (store, follower) in enumerate(zip(self.places, self.followers, strict=True))
        }

    def settle(self, results: Mapping[int, PartitionState | NodestateError]) -> None:
        """Note what failed."""
        self.troubles = {p: result for p, result in results.items() if isinstance(result, NodestateError)}

    @property
    def states(self) -> tuple[PartitionState, ...]:
        """What is known of each partition."""
        if not self.troubles:
            return tuple([follower.state for follower in self.followers])
        return tuple(
            f.state._replace(lost=str(self.troubles[p])) if p in self.troubles else f.state
            for p, f in enumerate(self.followers)
        )


class Reader:
    """Follows a cell and gives views of it. Safe for several threads; each read is as fresh as it can be.

    A read costs one round trip where nothing changed, and what changed otherwise. Where a server does not
    answer, its partitions keep what was read before, and age.

    ``design`` (as ``snapshot`` or, of a layout that is not the settings', ``snapshot@16``) pins it to one. Otherwise it reads
    what the cell's control record says, or the settings where there is none, and follows the record within one refresh::

        reads R --record says X--> reads R, and X beside it --X is whole, and no node older than in R--> reads X

    So a caller sees no error and no node go back (I1), whatever an operator switches.
    """

    def __init__(
        self, config: Config, *, design: str | None = None, stores: Stores | None = None, clock: Clock | None = None
    ) -> None:
        self.config = config
        first = parse_stored_design(design or config.read_design, config.partitions)
        self._clock = clock or SystemClock()
        self._pinned = design is not None
        self._stores = stores or open_stores(config, self._clock, [first.design])
        self._columns = ColumnStore()
        self._lock = threading.Lock()
        self._live = _Following(first, config.cell, self._stores, self._clock)
        self._coming: _Following | None = None
        self._control: Control | None = None

    @property
    def design(self) -> str:
        """The design that is read now."""
        return self._live.kept.design

    def read(
        self,
        *,
        max_age: float | None = None,
        node_max_age: float | None = None,
        at_least: Receipt | None = None,
        on_stale: OnStale = "refuse",
        timeout: float = 0.0,
    ) -> View:
        """A view within the caller's bounds.

        ``max_age``: seconds since each partition's owner is known to have been caught up; ``node_max_age``: seconds
        since each node's last sign of life; one of them or ``at_least`` must be given, there is no "whatever is
        there". ``at_least``: a receipt of a publish that the view must contain. ``on_stale``: leave stale nodes out
        (``"exclude"``, with incomplete ones), raise (``"refuse"``), or only name them in ``view.stale`` (``"flag"``).
        ``timeout``: how many seconds to wait for the bounds to be met.

        Raises ``StaleViewError`` (with ``"refuse"``), ``BehindError``, and ``TypeError`` where no bound is given.
        """
        if max_age is None and node_max_age is None and at_least is None:
            raise TypeError("say what staleness you accept: max_age=…, node_max_age=… or at_least=…")
        if on_stale not in ("exclude", "refuse", "flag"):
            raise TypeError(f"on_stale is 'exclude', 'refuse' or 'flag', not {on_stale!r}")
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
        if not self._pinned:  # the record is asked for with the heads, in the same round trip
            places = {id(store): store for store in live.places}
            work |= {-n: (store, look(self.config.cell)) for n, store in enumerate(places.values(), 1)}
        results = run(work)
        live.settle({p: results[p] for p in range(len(live.followers))})
        records = [found for found in results.values() if isinstance(found, Control)]
        if not self._pinned and any(isinstance(found, NodestateError) for n, found in results.items() if n < 0):
            records += self._records_elsewhere()
        control = max(records, key=lambda record: record.version, default=None)
        # One of the same version that is another than was seen: that one was lost with its place.
        if (
            control is not None
            and control != self._control
            and (self._control is None or control.version >= self._control.version)
        ):
            self._control = control
            self._coming = self._open(control.reads) if control.reads != live.kept else None
        if self._coming is not None:
            self._come(self._coming, max_age, with_life=with_life)

    def _records_elsewhere(self) -> list[Control]:
        """What places say that are not read now: asked while one of those that are does not answer, or nobody would hear
        that the cell was switched away from it.
        """
        for name in configured(self.config):
            with suppress(ConfigError):  # a driver that is not installed: then there is nothing to be heard from there
                self._reach(name)
        asked = {id(store): store for store in self._stores.everywhere if store not in self._live.places}
        found = run({key: (store, look(self.config.cell)) for key, store in asked.items()})
        return [one for one in found.values() if isinstance(one, Control)]

    def _reach(self, design: str) -> None:
        """Open where a design lives, if it is not open yet. Raises ``ConfigError``."""
        if not self._stores.has(DESIGNS[design].store_role):
            self._stores = self._stores.and_those_of(open_stores(self.config, self._clock, [design]))

    def _open(self, kept: StoredDesign) -> _Following | None:
        """A design beside the one that is read; None where the settings name no place for it (the one that is read ages
        when it is no longer written, and views say so).
        """
        try:
            self._reach(kept.design)
            return _Following(kept, self.config.cell, self._stores, self._clock)
        except (KeyError, ConfigError) as error:
            import structlog  # noqa: PLC0415  half of the time that importing nodestate would take

            structlog.get_logger("nodestate.designs.reader").error(
                "can't follow the control record", design=str(kept), why=str(error)
            )
            return None

    def _come(self, coming: _Following, max_age: float | None, *, with_life: bool) -> None:
        """Read the coming design, and go over to it if it lacks nothing that was shown before or is asked for now."""
        try:
            coming.settle(run(coming.work(with_life=with_life)))
        except ConfigError:  # a server that can't be used as it is set up: what is read now is right all the same
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
        """Close the connections. Views stay good."""
        self._stores.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _behind(coming: Sequence[PartitionState], live: Sequence[PartitionState], fresh_since: float) -> bool:
    """Whether what is coming can't take the place of what is read: partition by partition where both have the same ones, or
    else as a whole.
    """
    if len(coming) == len(live):
        return any(_lacks([new], [old], fresh_since) for new, old in zip(coming, live, strict=True))
    return _lacks(coming, live, fresh_since)


def _lacks(news: Sequence[PartitionState], olds: Sequence[PartitionState], fresh_since: float) -> bool:
    """Whether these partitions are not whole, are confirmed neither as late as the old ones nor late enough, or have a node
    at an earlier version than was shown.
    """
    if any(new.table is None or new.lost for new in news):
        return True
    # Not of an epoch that is over: nothing is newer or older than it (I1).
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

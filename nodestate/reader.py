"""The reader: what a scheduler holds. Needs the store, no broker."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Literal, Self

from nodestate import keys
from nodestate.columns import ColumnStore
from nodestate.config import Config
from nodestate.designs import DESIGNS
from nodestate.errors import BehindError, ConfigError, NodestateError, StaleViewError
from nodestate.lockstep import Stores, run
from nodestate.model import NEVER, Receipt
from nodestate.opening import open_stores
from nodestate.ports import Clock, SystemClock
from nodestate.reading import Follower
from nodestate.view import View, stale_nodes

OnStale = Literal["exclude", "refuse", "flag"]
POLL_S = 0.005
"""Pause between looks while a read waits for something to become visible."""


class Reader:
    """Follows a cell and gives views of it. Safe for several threads; each read is as fresh as it can be.

    A read costs one round trip where nothing changed, and what changed otherwise. Where a server does not
    answer, its partitions keep what was read before, and age.
    """

    def __init__(
        self, config: Config, *, design: str | None = None, stores: Stores | None = None, clock: Clock | None = None
    ) -> None:
        self.config = config
        self.design = design or config.read_design
        if self.design not in DESIGNS:
            raise ConfigError(f"no design {self.design!r}; there are {', '.join(DESIGNS)}")
        self._clock = clock or SystemClock()
        self._stores = stores or open_stores(config, self._clock, [self.design])
        self._columns = ColumnStore()
        self._lock = threading.Lock()
        self._troubles: dict[int, NodestateError] = {}
        letter, make = DESIGNS[self.design].letter, DESIGNS[self.design].reader
        in_database = DESIGNS[self.design].in_database
        self._places = [self._stores.of(p, in_database=in_database) for p in range(config.partitions)]
        prefixes = [keys.prefix(config.cell, p, letter) for p in range(config.partitions)]
        self._followers = [
            Follower(p, prefix, make(prefix), self._clock, config.partitions) for p, prefix in enumerate(prefixes)
        ]

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

        Raises ``StaleViewError`` (with ``"refuse"``), ``BehindError``, ``TypeError`` where no bound is given, and
        ``ConfigError`` where the cell has another number of partitions than the settings say.
        """
        if max_age is None and node_max_age is None and at_least is None:
            raise TypeError("say what staleness you accept: max_age=…, node_max_age=… or at_least=…")
        if on_stale not in ("exclude", "refuse", "flag"):
            raise TypeError(f"on_stale is 'exclude', 'refuse' or 'flag', not {on_stale!r}")
        deadline = self._clock.monotonic() + timeout
        while True:
            try:
                with self._lock:
                    self._refresh(with_life=node_max_age is not None)
                    view = self._bounded(max_age, node_max_age, on_stale)
                if at_least is not None:
                    self._require(view, at_least, timeout)
                return view
            except (StaleViewError, BehindError):
                if self._clock.monotonic() >= deadline:
                    raise
            self._clock.sleep(POLL_S)

    def _refresh(self, *, with_life: bool) -> None:
        work = {
            p: (store, f.refresh(with_life))
            for p, (store, f) in enumerate(zip(self._places, self._followers, strict=True))
        }
        results = run(work)
        self._troubles = {p: result for p, result in results.items() if isinstance(result, NodestateError)}
        for trouble in self._troubles.values():
            if isinstance(trouble, ConfigError):
                raise trouble

    def _bounded(self, max_age: float | None, node_max_age: float | None, on_stale: OnStale) -> View:
        states = tuple(
            f.state._replace(lost=str(self._troubles[p])) if p in self._troubles else f.state
            for p, f in enumerate(self._followers)
        )
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

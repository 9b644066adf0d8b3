"""A store that does not answer is left alone for a while, so that it costs its own partitions and nobody's time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from nodestate.errors import StoreUnavailableError
from nodestate.ports import ClaimStore, Clock, Item, Key, Store, Write, WriteResult
from nodestate.ports.backoff import DoublingPause
from nodestate.store.round_trips import Stores

T = TypeVar("T")

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 2.0


class Breaker:
    """A ``ports.Store`` around another::

        closed --StoreUnavailableError--> open, for a pause --pause over: next call tries--> closed, or open for twice as long

    While open, every call raises the last error at once. A frozen server would otherwise cost its timeout with
    each read and each step of all partitions, those of healthy servers too. A pause is at least as long as the call
    that failed, so that the healthy ones have half of the time.
    """

    def __init__(self, inner: Store, clock: Clock) -> None:
        self._inner = inner
        self._clock = clock
        self._error: StoreUnavailableError | None = None
        self._pause = DoublingPause(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        self._open_until = 0.0

    @property
    def name(self) -> str:
        """The inner store's."""
        return self._inner.name

    @property
    def max_value_bytes(self) -> int:
        """The inner store's."""
        return self._guarded(lambda: self._inner.max_value_bytes)

    def fetch(self, keys: Sequence[Key]) -> dict[Key, Item]:
        """See ``ports.Store``."""
        return self._guarded(lambda: self._inner.fetch(keys))

    def write(self, writes: Sequence[Write]) -> list[WriteResult]:
        """See ``ports.Store``."""
        return self._guarded(lambda: self._inner.write(writes))

    def close(self) -> None:
        """See ``ports.Store``."""
        self._inner.close()

    def _guarded(self, call: Callable[[], T]) -> T:
        if self._error is not None and self._clock.monotonic() < self._open_until:
            raise StoreUnavailableError(self._error.server, self._error.cause)
        began = self._clock.monotonic()
        try:
            result = call()
        except StoreUnavailableError as error:
            now = self._clock.monotonic()
            self._error, self._open_until = error, now + max(self._pause.lengthen(), now - began)
            raise
        self._error = None
        self._pause.reset()
        return result


class ClaimBreaker(Breaker):
    """The same around a ``ports.ClaimStore``."""

    def __init__(self, inner: ClaimStore, clock: Clock) -> None:
        super().__init__(inner, clock)
        self._inner: ClaimStore = inner

    def server_time(self) -> float:
        """See ``ports.ClaimStore``."""
        return self._guarded(self._inner.server_time)


def guarded(
    stores: Sequence[Store], clock: Clock, database: Store | None = None, stores_b: Sequence[Store] = ()
) -> Stores:
    """The servers of a cell, each behind a breaker."""
    return Stores(
        [Breaker(store, clock) for store in stores],
        Breaker(database, clock) if database is not None else None,
        [Breaker(store, clock) for store in stores_b],
    )

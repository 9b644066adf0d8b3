"""Circuit breakers: a store that does not answer is not called for a while, so that it does not delay other stores."""

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
LONGEST_PAUSE_WITH_COPIES_S: Final = 8.0
"""The longest pause for a server whose claim records have a second copy: each call of a frozen one would cost a
scheduler its timeout, and meanwhile the other copy is used.
"""


class Breaker:
    """A ``ports.Store`` that guards another::

        closed --StoreUnavailableError--> open, for a pause
        open --pause over: the next call tries--> closed, or open for twice as long

    While open, every call raises the last error at once. Without the breaker, a frozen server would delay each read and
    each step of all partitions by its timeout, also of partitions on other servers. A pause is at least as long as the
    call that failed, so at least half of the time remains for the other servers.
    """

    def __init__(self, inner: Store, clock: Clock, longest_pause_s: float = LONGEST_PAUSE_S) -> None:
        # The guarded store.
        self._inner = inner
        # Measures the pauses.
        self._clock = clock
        # The error of the last call; None if it succeeded.
        self._error: StoreUnavailableError | None = None
        # Length of the next pause.
        self._pause = DoublingPause(FIRST_PAUSE_S, longest_pause_s)
        # Monotonic time at which the pause is over.
        self._open_until = 0.0

    @property
    def name(self) -> str:
        """See ``ports.Store``."""
        return self._inner.name

    @property
    def max_value_bytes(self) -> int:
        """See ``ports.Store``."""
        return self._guarded(lambda: self._inner.max_value_bytes)

    def fetch(self, keys: Sequence[Key], *, values_only: bool = False) -> dict[Key, Item]:
        """See ``ports.Store``."""
        return self._guarded(lambda: self._inner.fetch(keys, values_only=values_only))

    def write(self, writes: Sequence[Write]) -> list[WriteResult]:
        """See ``ports.Store``."""
        return self._guarded(lambda: self._inner.write(writes))

    def server_time_at(self, moment: float) -> float | None:
        """See ``ports.Store``."""
        return self._inner.server_time_at(moment)

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
    """A breaker around a ``ports.ClaimStore``."""

    def __init__(self, inner: ClaimStore, clock: Clock, longest_pause_s: float = LONGEST_PAUSE_S) -> None:
        super().__init__(inner, clock, longest_pause_s)
        # The guarded store, with the type that has a clock.
        self._inner: ClaimStore = inner

    def server_time(self) -> float:
        """See ``ports.ClaimStore``."""
        return self._guarded(self._inner.server_time)


def guarded(
    stores: Sequence[Store], clock: Clock, database: Store | None = None, stores_b: Sequence[Store] = ()
) -> Stores:
    """The stores of a cell, each server behind a breaker of its own."""
    return Stores(
        [Breaker(store, clock) for store in stores],
        Breaker(database, clock) if database is not None else None,
        [Breaker(store, clock) for store in stores_b],
    )

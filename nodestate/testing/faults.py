"""A store that fails on purpose, as planned by a test."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nodestate.errors import (
    StoreUnavailableError,
)
from nodestate.ports import (
    ClaimStore,
    Item,
    Key,
    Store,
    Write,
    WriteResult,
)
from nodestate.text import count_text


@dataclass(frozen=True, slots=True)
class Fault:
    """How a call fails: the first ``done`` of its writes are carried out (None: all), then it raises.

    With ``late`` the remaining writes are still on their way to the server: see ``FaultyStore.arrive``.
    """

    done: int | None = 0
    late: bool = False


Plan = Callable[[str, int], Fault | None]
"""Called before each call with "fetch" or "write" and the number of keys or writes.

Returns how the call fails, or None.
"""


def script(*faults: Fault | None) -> Plan:
    """A plan with one entry for each call in turn (None: the call works). Later calls work."""
    remaining = iter(faults)
    return lambda _operation, _count: next(remaining, None)


def chance(seed: int, rate: float) -> Plan:
    """A plan in which each call fails with probability ``rate``, in any of the possible ways.

    Depends on ``seed`` alone.
    """
    generator = random.Random(seed)

    def plan(_operation: str, count: int) -> Fault | None:
        if generator.random() >= rate:
            return None
        return Fault(done=generator.randint(0, count), late=generator.random() < 0.5)

    return plan


class FaultyStore:
    """A store that works as ``inner`` does, except for the calls that ``plan`` lets fail with
    ``StoreUnavailableError``.

    A fetch that fails returns nothing. A write that fails may have been carried out before, in part or in full: a
    client sees the same if the server's answer is lost. With ``whole`` the writes of a call are carried out all or
    none, as by a database.

    Late writes wait in ``late``. ``arrive`` carries them out (a packet that was still on its way when its sender gave
    up), ``lose`` drops them (the connection was reset)::

        store = FaultyStore(MemoryStore(server), script(None, Fault(done=1)))
        store.fetch(["key"])       # works
        store.write(two_writes)    # the first is carried out, then StoreUnavailableError is raised
        store.write(two_writes)    # works
    """

    def __init__(self, inner: Store, plan: Plan, *, whole: bool = False) -> None:
        self.inner = inner
        """The store that carries out the calls."""
        self.plan = plan
        """Which calls fail, and how."""
        self.whole = whole
        """Whether a call's writes are carried out all or none."""
        self.late: deque[tuple[Write, ...]] = deque()
        """Late writes, one entry for each call, oldest first."""

    @property
    def name(self) -> str:
        """The inner store's name."""
        return self.inner.name

    @property
    def max_value_bytes(self) -> int:
        """The largest value that the inner store takes."""
        return self.inner.max_value_bytes

    def fetch(self, keys: Sequence[Key], *, values_only: bool = False) -> dict[Key, Item]:
        """See ``ports.Store``. Raises ``StoreUnavailableError`` if the plan says so."""
        if self.plan("fetch", len(keys)) is not None:
            raise StoreUnavailableError(self.name, "made to fail: fetch")
        return self.inner.fetch(keys, values_only=values_only)

    def write(self, writes: Sequence[Write]) -> list[WriteResult]:
        """See ``ports.Store``.

        If the plan says so, raises ``StoreUnavailableError`` after none, some or all of the writes.
        """
        fault = self.plan("write", len(writes))
        if fault is None:
            return self.inner.write(writes)
        done = len(writes) if fault.done is None else fault.done
        if self.whole and done < len(writes):
            done = 0
        self.inner.write(writes[:done])
        if fault.late and done < len(writes):
            self.late.append(tuple(writes[done:]))
        raise StoreUnavailableError(self.name, f"made to fail: {done} of {count_text(len(writes), 'write')} done")

    def server_time(self) -> float:
        """The inner store's clock."""
        assert isinstance(self.inner, ClaimStore), f"{self.name} has no clock to share"
        return self.inner.server_time()

    def server_time_at(self, moment: float) -> float | None:
        """The inner store's clock at a moment."""
        return self.inner.server_time_at(moment)

    def arrive(self) -> list[WriteResult]:
        """Carry out the writes of the earliest late call.

        Returns their outcomes, which the caller never saw; empty if none.
        """
        return self.inner.write(self.late.popleft()) if self.late else []

    def lose(self) -> None:
        """Drop all late writes."""
        self.late.clear()

    def close(self) -> None:
        """Close the inner store."""
        self.inner.close()

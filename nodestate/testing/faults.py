"""A store that fails on purpose: which call fails, and how, is a plan that a test writes."""

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


@dataclass(frozen=True, slots=True)
class Fault:
    """How a call fails: the first ``done`` writes are carried out (None: all), then the caller is told that
    the server does not answer. With ``late`` the rest is still under way, and arrives in its time.
    """

    done: int | None = 0
    late: bool = False


Plan = Callable[[str, int], Fault | None]
"""Asked before each call, with "fetch" or "write" and the number of keys or writes: whether and how it fails."""


def script(*faults: Fault | None) -> Plan:
    """One fault (None: a good call) for each call in turn; afterwards all is well."""
    remaining = iter(faults)
    return lambda _operation, _count: next(remaining, None)


def chance(seed: int, rate: float) -> Plan:
    """Each call fails with probability ``rate``, in one of the ways that there are; the same for the same seed."""
    generator = random.Random(seed)

    def plan(_operation: str, count: int) -> Fault | None:
        if generator.random() >= rate:
            return None
        return Fault(done=generator.randint(0, count), late=generator.random() < 0.5)

    return plan


class FaultyStore:
    """A store that fails on purpose: as ``inner``, but for the calls that ``plan`` picks.

    With ``whole`` the writes of a call are carried out or none, as by a database: a fault that would stop half-way stops
    before. Writes that are late stand in ``late`` until ``arrive`` carries them out (a packet that was still under way
    when its sender gave up) or ``lose`` drops them (its connection was reset).
    """

    def __init__(self, inner: Store, plan: Plan, *, whole: bool = False) -> None:
        self.inner = inner
        self.plan = plan
        self.whole = whole
        self.late: deque[tuple[Write, ...]] = deque()

    @property
    def name(self) -> str:
        """The inner store's name."""
        return self.inner.name

    @property
    def max_value_bytes(self) -> int:
        """The inner store's limit."""
        return self.inner.max_value_bytes

    def fetch(self, keys: Sequence[Key]) -> dict[Key, Item]:
        """As the inner store, or StoreUnavailableError."""
        if self.plan("fetch", len(keys)) is not None:
            raise StoreUnavailableError(self.name, "made to fail: fetch")
        return self.inner.fetch(keys)

    def write(self, writes: Sequence[Write]) -> list[WriteResult]:
        """As the inner store, or StoreUnavailableError after none, some or all of the writes."""
        fault = self.plan("write", len(writes))
        if fault is None:
            return self.inner.write(writes)
        done = len(writes) if fault.done is None else fault.done
        if self.whole and done < len(writes):
            done = 0
        self.inner.write(writes[:done])
        if fault.late and done < len(writes):
            self.late.append(tuple(writes[done:]))
        raise StoreUnavailableError(self.name, f"made to fail: {done} of {len(writes)} writes done")

    def server_time(self) -> float:
        """As the inner store."""
        assert isinstance(self.inner, ClaimStore), f"{self.name} has no clock to share"
        return self.inner.server_time()

    def arrive(self) -> list[WriteResult]:
        """The earliest call under way arrives; the outcomes that nobody gets to see. Empty if there is none."""
        return self.inner.write(self.late.popleft()) if self.late else []

    def lose(self) -> None:
        """Drop what is under way."""
        self.late.clear()

    def close(self) -> None:
        """Close the inner store."""
        self.inner.close()

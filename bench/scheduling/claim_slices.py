"""Samples of the rate at which one scheduler claims, batch after batch."""

from __future__ import annotations

import time
from typing import Final, NamedTuple

from bench.scheduling.claim_audit import HeldClaim
from bench.scheduling.hosts import RequestStream
from bench.workload import require
from nodestate.scheduling.claims import Placing
from nodestate.scheduling.scheduler import Scheduler

BATCHES: Final = (1, 10, 100)
"""Numbers of requests that are claimed at a time."""
SLICE_CLAIMS: Final = 500
"""Claims of one sample of a rate. They are given back afterwards, so that all samples start with the same fleet."""
CLAIM_TTL_S: Final = 3_600.0
"""``claim_ttl_s`` of the schedulers: the consumer writes only when it is stepped, and a scheduler refuses views that
are older than that.
"""


class ClaimSlice(NamedTuple):
    """The claims of one sample, with the wall time and processor time that they took."""

    placings: list[Placing]
    seconds: float
    cpu_s: float

    @property
    def rate(self) -> float:
        """Claims per second."""
        return len(self.placings) / self.seconds

    @property
    def cpu_us(self) -> float:
        """Microseconds of processor time per claim."""
        return self.cpu_s / len(self.placings) * 1e6

    @property
    def held(self) -> list[HeldClaim]:
        """The claims, as an audit compares them with the records."""
        return [(one.node or "", one.claim.id) for one in self.placings if one.claim is not None]


def claim_slice(scheduler: Scheduler, wants: RequestStream, batch: int, count: int = SLICE_CLAIMS) -> ClaimSlice:
    """Time ``count`` claims in batches of ``batch``. Raises ``WrongResultError`` if a request got no claim."""
    batches = [wants.take(batch) for _ in range(max(1, count // batch))]
    placings: list[Placing] = []
    cpu_began, began = time.process_time(), time.perf_counter()
    for requests in batches:
        placings += scheduler.claim(requests)
    took_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    require(all(placing.claim is not None for placing in placings), "a request got no claim")
    return ClaimSlice(placings, took_s, cpu_s)

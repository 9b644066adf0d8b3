"""Schedulers in processes of their own that all claim on the same fleet at the same time.

Each scheduler claims batch after batch of requests and gives back its oldest claims, so that the fleet stays equally
full. It learns of the claims of the others as any scheduler does: from records that have changed since it read them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bench.scheduling.claim_audit import HeldClaim
from bench.scheduling.hosts import RequestStream
from bench.stepped_cell import MAX_AGE_S
from bench.worker import ParentLink
from bench.workload import require
from nodestate.config import Config
from nodestate.scheduling.claims import Placing
from nodestate.scheduling.scheduler import Scheduler
from nodestate.scheduling.selection import node_preference, ranking

BATCH_COUNT: Final = 10
"""Requests of one batch."""
WARM_UP_BATCHES: Final = 20
NO_WIDTH: Final = 1e-9
"""Width of ties with which only nodes of exactly equal weight count as equally good."""
GO_S: Final = 60.0
"""Longest wait for the start of a race."""


@dataclass(frozen=True, slots=True)
class Race:
    """The task of each scheduler in a race."""

    seconds: float
    held_most: int
    """Claims that a scheduler holds at most."""
    shared: bool
    """Whether each scheduler orders nearly equal nodes in its own way and prefers some of them, as in production.

    If false, all schedulers take the very best nodes in the same order.
    """
    seed: int


@dataclass(frozen=True, slots=True)
class RaceResult:
    """The outcome of a race for one scheduler."""

    name: str
    claims: int
    nowhere: int
    """Requests for which no node had room."""
    given_up: int
    """Requests for which some node had room, but that the scheduler gave up after conflicts."""
    written: int
    """Compare-and-swaps that succeeded."""
    lost: int
    """Compare-and-swaps that failed because another scheduler had written first."""
    seconds: float
    cpu_s: float
    held: Sequence[HeldClaim]
    """Claims that the scheduler holds at the end."""


def race(parent: ParentLink, config: Config, name: str, own: Race) -> RaceResult:
    """Warm up, wait for the start, and claim until the time is over. The start is a time of the monotonic clock."""
    if not own.shared:
        vars(ranking)["TIE_WIDTH"] = NO_WIDTH  # changes this process only, which runs one race and ends
        vars(node_preference)["PREFERENCE_BONUS"] = 0.0
    seed = hash_of(name, own.seed) if own.shared else own.seed
    wants = RequestStream(own.seed, name)
    with Scheduler(config, name=name, seed=seed, max_age=MAX_AGE_S) as scheduler:
        held: deque[Placing] = deque()
        for _ in range(WARM_UP_BATCHES):
            held += (placing for placing in scheduler.claim(wants.take(BATCH_COUNT)) if placing.claim is not None)
        scheduler.placer.give_back(held)
        held.clear()
        parent.report_ready()
        start = parent.receive(GO_S)
        require(start is not None, f"the parent did not start the race within {GO_S:g} s")
        time.sleep(max(0.0, start - time.monotonic()))
        stats = scheduler.claim_table.stats
        written, lost = stats.written, stats.conflicts
        claims = nowhere = given_up = 0
        cpu_began, began = time.process_time(), time.monotonic()
        while time.monotonic() < began + own.seconds:
            while len(held) > own.held_most:
                old = held.popleft()
                assert old.node is not None, "claimed"
                assert old.claim is not None, "claimed"
                scheduler.claim_table.drop_claim(old.node, old.claim.id)  # written with the next claims
            for placing in scheduler.claim(wants.take(BATCH_COUNT)):
                if placing.claim is not None:
                    held.append(placing)
                    claims += 1
                elif placing.failure is not None and placing.failure.remaining:
                    nowhere += 1
                else:
                    given_up += 1
        took_s, cpu_s = time.monotonic() - began, time.process_time() - cpu_began
        scheduler.claim_table.flush_all()
        require(not scheduler.claim_table.edited, f"{name} could not write all of its claims")
        return RaceResult(
            name,
            claims,
            nowhere,
            given_up,
            stats.written - written,
            stats.conflicts - lost,
            took_s,
            cpu_s,
            [(placing.node or "", placing.claim.id) for placing in held if placing.claim is not None],
        )


def hash_of(name: str, seed: int) -> int:
    """Return a seed that differs between names and is equal in every run."""
    return seed * 1_000 + sum(name.encode())

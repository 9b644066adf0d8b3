"""Schedulers in processes of their own, all claiming on the same fleet at the same time.

Each claims batch after batch of what its tenants want, and gives back its oldest claims, so that the fleet stays as full as
it is. It learns of the others' claims as any scheduler does: from records that changed under it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bench.scheduling.claim_audit import HeldClaim
from bench.scheduling.hosts import Wants
from bench.stepped_cell import MAX_AGE_S
from bench.worker import ParentLink
from bench.workload import require
from nodestate.config import Config
from nodestate.scheduling.claims import Placing
from nodestate.scheduling.scheduler import Scheduler
from nodestate.scheduling.selection import node_preference, ranking

BATCH_COUNT: Final = 10
"""Requests that a scheduler decides on at a time."""
WARM_UP_BATCHES: Final = 20
NO_WIDTH: Final = 1e-9
"""Only nodes that are exactly alike count as equally good."""
GO_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Race:
    """What a scheduler is to do. ``shared``: as it does, nodes that are about equally good are in an order of its own, and
    some of them its own; without, all schedulers take the very best, in the same order.
    """

    seconds: float
    held_most: int
    shared: bool
    seed: int


@dataclass(frozen=True, slots=True)
class Raced:
    """What one scheduler did, and what it holds in the end. ``lost``: compare-and-swaps that somebody else was faster
    with, of ``written`` and these; ``nowhere``: wants that no node had room for.
    """

    name: str
    claims: int
    nowhere: int
    given_up: int
    written: int
    lost: int
    seconds: float
    cpu_s: float
    held: Sequence[HeldClaim]


def race(parent: ParentLink, config: Config, name: str, own: Race) -> Raced:
    """Begin, wait for the start, race, and tell. The start is a time of the machine's monotonic clock."""
    if not own.shared:
        vars(ranking)["TIE_WIDTH"] = NO_WIDTH  # this process exists for nothing else
        vars(node_preference)["PREFERENCE_BONUS"] = 0.0
    seed = hash_of(name, own.seed) if own.shared else own.seed
    wants = Wants(own.seed, name)
    with Scheduler(config, name=name, seed=seed, max_age=MAX_AGE_S) as scheduler:
        held: deque[Placing] = deque()
        for _ in range(WARM_UP_BATCHES):
            held += (placing for placing in scheduler.claim(wants.take(BATCH_COUNT)) if placing.claim is not None)
        scheduler.placer.give_back(held)
        held.clear()
        parent.report_ready()
        start = parent.receive(GO_S)
        require(start is not None, "nobody said when to start")
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
        require(not scheduler.claim_table.edited, f"{name} could not give back all that it wanted to")
        return Raced(
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
    """A seed of its own for each name; the same in every run."""
    return seed * 1_000 + sum(name.encode())

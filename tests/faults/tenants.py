"""A scheduler with its users in a process of its own, which books, ends, reserves and confirms as they come to mind.

``python -m tests.faults.tenants NAME SEED``: until its stdin ends; then it prints its counters as one JSON object.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from select import select
from typing import Any

from nodestate.broker import KombuCourier
from nodestate.config import load
from nodestate.errors import BadRequestError, NodestateError
from nodestate.scheduling.orders.boot import Booted
from nodestate.scheduling.request import parse, parse_group
from nodestate.scheduling.reservation_claims import Reservation
from nodestate.scheduling.reservations import Confirmed
from nodestate.scheduling.scheduler import Scheduler

GROUPS_COUNT = 6
CONFIRM_S = 20.0
KEPT_COUNT = 60
"""Instances that one of these keeps, if they fit: together more than there is room for."""


class Tenant:
    """Users of one scheduler."""

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.rng = random.Random(seed)
        config = load()
        self.courier = KombuCourier(config)
        self.scheduler = Scheduler(config, name=name, seed=seed, courier=self.courier)
        self.has: dict[str, str] = {}
        self.counters = Counter[str]()
        self._made = 0

    def act(self) -> None:
        """Whatever comes to mind."""
        rng = self.rng
        kind = rng.random()
        if len(self.has) >= KEPT_COUNT or (self.has and kind < 0.1):
            instance = rng.choice(sorted(self.has))
            self.scheduler.terminations.terminate([(self.has.pop(instance), instance)])
            self.counters["ended"] += 1
        elif kind < 0.7:
            self._boot()
        elif kind < 0.95 or not self.has:
            self._reserve()
        else:
            instance = rng.choice(sorted(self.has))
            outcome = self.scheduler.migrations.migrate(instance, timeout_s=CONFIRM_S)
            if isinstance(outcome, Booted):
                self.has[instance] = outcome.node
            self.counters[f"move {type(outcome).__name__}"] += 1

    def _wanted(self) -> dict[str, Any]:
        self._made += 1
        size = self.rng.choice([1, 1, 2, 4])
        return {"instances": [f"{self.name}-{self._made}"], "resources": {"VCPU": size, "MEMORY_MB": 512 * size}}

    def _boot(self) -> None:
        requests = []
        for _ in range(self.rng.randint(1, 5)):
            wanted = self._wanted()
            if self.rng.random() < 0.3:
                wanted["group"] = {"name": f"g{self.rng.randrange(GROUPS_COUNT)}", "policy": "anti-affinity"}
            requests.append(parse(wanted))
        boots = [boot for request in requests for boot in self.scheduler.submit(request)]
        self.scheduler.run(lambda: all(boot.outcome is not None for boot in boots), 30.0)
        for boot in boots:
            self.counters[f"boot {type(boot.outcome).__name__}"] += 1
            if isinstance(boot.outcome, Booted):
                self.has[boot.outcome.instance] = boot.outcome.node
                self.counters["conflicts"] += boot.outcome.conflicts
                for refused in boot.outcome.refusals:
                    self.counters[f"refused {refused.reason}"] += 1

    def _reserve(self) -> None:
        wanted: dict[str, Any] = {"members": [self._wanted() for _ in range(self.rng.randint(2, 6))], "hold_s": 10}
        if self.rng.random() < 0.5:
            wanted["group"] = {"name": f"{self.name} {self._made}", "policy": "anti-affinity"}
        held = self.scheduler.reservations.reserve(parse_group(wanted), timeout_s=3.0)
        self.counters[type(held).__name__] += 1
        if not isinstance(held, Reservation):
            return
        if self.rng.random() < 0.2:
            self.scheduler.reservations.release(held.id)
            return
        confirmed = self.scheduler.reservations.confirm(held.id, timeout_s=CONFIRM_S)
        self.counters[type(confirmed).__name__] += 1
        if isinstance(confirmed, Confirmed):
            self.has.update({member.instance: member.node for member in confirmed.members})


def main(name: str, seed: int) -> None:
    """Until stdin ends."""
    tenant = Tenant(name, seed)
    while not select([sys.stdin], [], [], 0)[0]:
        try:
            tenant.act()
        except (BadRequestError, TimeoutError, NodestateError) as error:  # servers are away, or it took too long
            tenant.counters[type(error).__name__] += 1
    claim_table = tenant.scheduler.claim_table.stats
    sys.stdout.write(json.dumps({**tenant.counters, "lost": claim_table.lost, "put back": claim_table.put_back}))
    sys.stdout.flush()
    tenant.scheduler.close()
    tenant.courier.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

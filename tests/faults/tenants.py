"""A scheduler with random users in a process of its own: they boot, terminate, migrate, reserve and confirm.

``python -m tests.faults.tenants NAME SEED CONFIRM_S`` runs until its stdin ends; then it prints its counters as one
JSON object.
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
KEPT_COUNT = 120
"""Instances that a tenant keeps if they fit. All tenants together want more than there is room for."""


class Tenant:
    """The users of one scheduler."""

    def __init__(self, name: str, seed: int, confirm_s: float) -> None:
        self.name = name
        self.confirm_s = confirm_s
        """Seconds that a migration or a confirmation may take."""
        self.rng = random.Random(seed)
        config = load()
        self.courier = KombuCourier(config)
        self.scheduler = Scheduler(config, name=name, seed=seed, courier=self.courier)
        self.nodes: dict[str, str] = {}
        """The node of each instance."""
        self.counters = Counter[str]()
        self._requests_count = 0

    def act(self) -> None:
        """Do one random thing that users do."""
        rng = self.rng
        kind = rng.random()
        if len(self.nodes) >= KEPT_COUNT or (self.nodes and kind < 0.1):
            instance = rng.choice(sorted(self.nodes))
            self.scheduler.terminations.terminate([(self.nodes.pop(instance), instance)])
            self.counters["ended"] += 1
        elif kind < 0.7:
            self._boot()
        elif kind < 0.95 or not self.nodes:
            self._reserve()
        else:
            instance = rng.choice(sorted(self.nodes))
            outcome = self.scheduler.migrations.migrate(instance, timeout_s=self.confirm_s)
            if isinstance(outcome, Booted):
                self.nodes[instance] = outcome.node
            self.counters[f"move {type(outcome).__name__}"] += 1

    def _wanted(self) -> dict[str, Any]:
        self._requests_count += 1
        size = self.rng.choice([2, 2, 4, 8])
        return {
            "instances": [f"{self.name}-{self._requests_count}"],
            "resources": {"VCPU": size, "MEMORY_MB": 512 * size},
        }

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
                self.nodes[boot.outcome.instance] = boot.outcome.node
                self.counters["conflicts"] += boot.outcome.conflicts
                for refused in boot.outcome.refusals:
                    self.counters[f"refused {refused.reason}"] += 1

    def _reserve(self) -> None:
        wanted: dict[str, Any] = {"members": [self._wanted() for _ in range(self.rng.randint(2, 6))], "hold_s": 5}
        if self.rng.random() < 0.5:
            wanted["group"] = {"name": f"{self.name} {self._requests_count}", "policy": "anti-affinity"}
        reservation = self.scheduler.reservations.reserve(parse_group(wanted), timeout_s=3.0)
        self.counters[type(reservation).__name__] += 1
        if not isinstance(reservation, Reservation):
            return
        if self.rng.random() < 0.2:
            self.scheduler.reservations.release(reservation.id)
            return
        confirmed = self.scheduler.reservations.confirm(reservation.id, timeout_s=self.confirm_s)
        self.counters[type(confirmed).__name__] += 1
        if isinstance(confirmed, Confirmed):
            self.nodes.update({member.instance: member.node for member in confirmed.members})


def main(name: str, seed: int, confirm_s: float) -> None:
    """Act until stdin ends."""
    tenant = Tenant(name, seed, confirm_s)
    while not select([sys.stdin], [], [], 0)[0]:
        try:
            tenant.act()
        except (
            BadRequestError,
            TimeoutError,
            NodestateError,
        ) as error:  # servers are away, or the request took too long
            tenant.counters[type(error).__name__] += 1
    claim_table = tenant.scheduler.claim_table.stats
    sys.stdout.write(json.dumps({**tenant.counters, "lost": claim_table.lost, "put back": claim_table.restored}))
    sys.stdout.flush()
    tenant.scheduler.close()
    tenant.courier.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))

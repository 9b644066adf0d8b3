"""A scheduler without users, which only repairs what other schedulers left behind.

``python -m tests.faults.repairing_scheduler`` runs until its stdin ends.
"""

from __future__ import annotations

import sys
from select import select

from nodestate.broker import KombuCourier
from nodestate.config import load
from nodestate.scheduling.scheduler import Scheduler

STEP_S = 0.1


def main() -> None:
    """Let the scheduler work until stdin ends."""
    config = load()
    courier = KombuCourier(config)
    with Scheduler(config, name="repairing", courier=courier) as scheduler:
        while not select([sys.stdin], [], [], 0)[0]:
            scheduler.step(STEP_S)
    courier.close()
    sys.stdout.write("{}")


if __name__ == "__main__":
    main()

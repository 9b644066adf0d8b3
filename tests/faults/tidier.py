"""A scheduler that has no users of its own: it looks after what others left, for some seconds."""

from __future__ import annotations

import sys
import time

from nodestate.broker import KombuCourier
from nodestate.config import load
from nodestate.scheduling.scheduler import Scheduler


def main(seconds: float) -> None:
    """For so long."""
    config = load()
    courier = KombuCourier(config)
    with Scheduler(config, name="tidier", courier=courier) as scheduler:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            scheduler.step(0.1)
    courier.close()
    sys.stdout.write("{}")


if __name__ == "__main__":
    main(float(sys.argv[1]))

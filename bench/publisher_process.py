"""A publisher in a process of its own, that keeps to a rate and notes when it called."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bench.worker import ParentLink
from bench.workload import require
from nodestate.broker import KombuSink
from nodestate.config import Config

PATIENCE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Sent:
    """For each event, on the clock that all processes of a machine share: when it was to be published, when it was."""

    due: Sequence[float]
    called: Sequence[float]


def send(parent: ParentLink, config: Config, events: Sequence[tuple[int, bytes]], rate: float = math.inf) -> Sent:
    """Publish events, with their buckets, so many a second, and wait until the broker has confirmed all."""
    sink = KombuSink(config, control=False)
    confirmed: list[bool] = []
    sink.resyncs(0.0)  # connects
    due: list[float] = []
    called: list[float] = []
    parent.report_ready()
    began = time.monotonic()
    for number, (bucket, body) in enumerate(events):
        due.append(began + number / rate)
        while (early_s := due[-1] - time.monotonic()) > 0:
            time.sleep(early_s)
        called.append(time.monotonic())
        sink.publish(bucket, body, confirmed.append)
    sink.flush(PATIENCE_S)
    sink.close()
    require(confirmed.count(True) == len(events), "the broker did not confirm every event")
    return Sent(due, called)

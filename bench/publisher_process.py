"""A publisher in a process of its own that keeps a rate and notes the time of each call."""

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
class PublishTimes:
    """Times of each event, in seconds of the monotonic clock, which all processes of a machine share."""

    due: Sequence[float]
    """When the rate demanded it."""
    called: Sequence[float]
    """When the publisher was called."""


def send(
    parent: ParentLink, config: Config, events: Sequence[tuple[int, bytes]], rate: float = math.inf
) -> PublishTimes:
    """Publish events, each with its bucket, at ``rate`` a second, and wait until the broker has confirmed all."""
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
    return PublishTimes(due, called)

"""The least that consuming with kombu can cost: what the figures of consumers are held against."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import kombu

from bench.workload import require

TIMEOUT_S: Final = 30


@dataclass(frozen=True, slots=True)
class Stretch:
    """How many messages went through, in how long, for how much of one CPU."""

    messages: int
    seconds: float
    cpu_s: float

    @property
    def rate(self) -> float:
        """Messages per second."""
        return self.messages / self.seconds

    @property
    def cpu_us(self) -> float:
        """Microseconds of CPU per message."""
        return self.cpu_s / self.messages * 1e6


NOTHING: Final = Stretch(0, 0.0, 0.0)


class StopWatch:
    """Runs from now on."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._cpu_began = time.process_time()

    def stretch(self, messages: int) -> Stretch:
        """So many went through since."""
        return Stretch(messages, time.perf_counter() - self._began, time.process_time() - self._cpu_began)


@dataclass(frozen=True, slots=True)
class Drained:
    """What came out of the queues."""

    size_bytes: int
    stretch: Stretch


def drain_queues(url: str, queues: Sequence[str], fill: Callable[[], int], prefetch: int, ack_every: int) -> Drained:
    """Consume with kombu what ``fill`` puts into empty queues, ack batches with one frame, and look at nothing.

    The clock starts when the queues are full; ``fill`` says of how many messages.
    """
    came = size = count = 0

    def take(message: Any) -> None:
        nonlocal came, size
        came += 1
        size += len(message.body)
        if came % ack_every == 0 or came == count:
            message.channel.basic_ack(message.delivery_tag, multiple=True)

    with kombu.Connection(url) as connection:
        taken_from = [kombu.Queue(name, no_declare=True) for name in queues]
        with connection.Consumer(taken_from, on_message=take, prefetch_count=prefetch, auto_declare=False):
            require(not came, "messages were left in the queues")
            count = fill()
            watch = StopWatch()
            while came < count:
                connection.drain_events(timeout=TIMEOUT_S)
            stretch = watch.stretch(came)
    return Drained(size, stretch)

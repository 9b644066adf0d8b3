"""Baseline for consumers: the least that receiving the same messages with kombu can cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import kombu

from bench.workload import require

TIMEOUT_S: Final = 30


@dataclass(frozen=True, slots=True)
class DrainTimes:
    """A number of messages, with the wall time and processor time that they took."""

    messages: int
    seconds: float
    cpu_s: float

    @property
    def rate(self) -> float:
        """Messages per second."""
        return self.messages / self.seconds

    @property
    def cpu_us(self) -> float:
        """Microseconds of processor time per message."""
        return self.cpu_s / self.messages * 1e6


NOTHING: Final = DrainTimes(0, 0.0, 0.0)


class StopWatch:
    """A stop watch that runs from its creation."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._cpu_began = time.process_time()

    def stretch(self, messages: int) -> DrainTimes:
        """Return the times since the creation, for this number of messages."""
        return DrainTimes(messages, time.perf_counter() - self._began, time.process_time() - self._cpu_began)


@dataclass(frozen=True, slots=True)
class DrainResult:
    """The messages that were received."""

    size_bytes: int
    stretch: DrainTimes


def drain_queues(
    url: str, queues: Sequence[str], fill: Callable[[], int], prefetch: int, ack_every: int
) -> DrainResult:
    """Receive with kombu the messages that ``fill`` puts into empty queues, and acknowledge each batch with one frame.

    ``fill`` returns the number of messages. The clock starts when ``fill`` has returned.
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
    return DrainResult(size, stretch)

"""The parts that all deciding routes use: the scheduler's thread, operations, decisions and repeated requests."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import suppress

from nodestate.broker import KombuCourier
from nodestate.config import Config
from nodestate.scheduling import Scheduler
from nodestate.scheduling.fleet_refresh import HEARTBEATS_COUNT
from nodestate.serve.decisions import Decision, DecisionLog, DecisionRecorder
from nodestate.serve.event_hub import EventHub
from nodestate.serve.operations import Operations
from nodestate.serve.parameters import DEFAULT_MAX_AGE_S
from nodestate.serve.repeated_requests import RepeatedRequests
from nodestate.serve.scheduler_thread import SchedulerThread


class Scheduling:
    """The parts of a service that decide. Belongs to the event loop, but for the recorder.

    Args:
        open_scheduler: opens the scheduler; called in its thread.
        hub: gets an event for each decision.
    """

    def __init__(self, open_scheduler: Callable[[], Scheduler], hub: EventHub) -> None:
        self.decisions = DecisionLog(lambda event: hub.publish("decisions", event))
        """The last decisions."""
        self.recorder = DecisionRecorder(self._publish)
        """Records decisions; belongs to the scheduler's thread."""
        self.thread = SchedulerThread(open_scheduler, _close, self.recorder.explain_pending)
        """The thread with the scheduler."""
        self.operations = Operations(self.thread, self.recorder)
        """The operations that take long."""
        self.repeats = RepeatedRequests()
        """The requests with an Idempotency-Key."""
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Start the thread. Call it in the event loop."""
        self._loop = asyncio.get_running_loop()
        self.operations.start()
        self.thread.start()

    def end_waits(self) -> None:
        """Refuse further requests, and let none wait for an operation."""
        self.thread.end_waits()
        self.operations.end_waits()

    async def stop(self) -> None:
        """End the thread."""
        self.end_waits()
        await self.thread.stop()

    def _publish(self, decisions: list[Decision]) -> None:
        """Hand new decisions to the event loop. Called in the scheduler's thread."""
        assert self._loop is not None, "start() comes first"
        with suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(self.decisions.add, decisions)


def scheduler_of(config: Config) -> Scheduler:
    """Open a scheduler by the settings, with a courier that connects to the broker at the first order."""
    return Scheduler(
        config,
        name=f"serve@{socket.gethostname()}:{os.getpid()}",
        max_age=DEFAULT_MAX_AGE_S,
        # The view itself may be ``DEFAULT_MAX_AGE_S`` old when the last heartbeat is missed.
        node_max_age=HEARTBEATS_COUNT * config.heartbeat_s + DEFAULT_MAX_AGE_S,
        courier=KombuCourier(config),
    )


def _close(scheduler: Scheduler) -> None:
    """Close a scheduler with its courier; claims that became allocations are dropped before."""
    scheduler.drop_allocated_claims()
    scheduler.close()

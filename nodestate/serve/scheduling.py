"""The parts that all deciding routes use: the scheduler's thread, operations, decisions and repeated requests."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from nodestate.broker import KombuCourier
from nodestate.config import Config
from nodestate.errors import NodestateError
from nodestate.scheduling import Scheduler
from nodestate.scheduling.fleet_refresh import HEARTBEATS_COUNT
from nodestate.serve.decision_recorder import DecisionRecorder
from nodestate.serve.decisions import Decision, DecisionLog
from nodestate.serve.event_hub import EventHub
from nodestate.serve.operations import Operations
from nodestate.serve.parameters import DEFAULT_MAX_AGE_S
from nodestate.serve.repeated_requests import RepeatedRequests
from nodestate.serve.scheduler_thread import SchedulerThread


class Scheduling:
    """The parts of a service that decide. Belongs to the event loop, but for the recorder.

    Args:
        config: settings of the cell.
        open_scheduler: opens the scheduler; called in its thread. None: by the settings, with a courier.
        hub: gets an event for each decision.
    """

    def __init__(self, config: Config, open_scheduler: Callable[[], Scheduler] | None, hub: EventHub) -> None:
        # The connection to the agents; it connects at the first order. None if the opener brings its own.
        self._courier = KombuCourier(config) if open_scheduler is None else None
        self._config = config
        self.decisions = DecisionLog(partial(hub.publish, "decisions"))
        """The last decisions."""
        self.recorder = DecisionRecorder(self._publish)
        """Records decisions; belongs to the scheduler's thread."""
        open_scheduler = open_scheduler or self._open
        self.thread = SchedulerThread(
            lambda: self._observed(open_scheduler()), self._close, self.recorder.explain_pending
        )
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

    def _open(self) -> Scheduler:
        """Open a scheduler by the settings. Called in the scheduler's thread."""
        return Scheduler(
            self._config,
            name=f"serve@{socket.gethostname()}:{os.getpid()}",
            max_age=DEFAULT_MAX_AGE_S,
            # The view itself may be ``DEFAULT_MAX_AGE_S`` old when the last heartbeat is missed.
            node_max_age=HEARTBEATS_COUNT * self._config.heartbeat_s + DEFAULT_MAX_AGE_S,
            courier=self._courier,
        )

    def _observed(self, scheduler: Scheduler) -> Scheduler:
        """Let the recorder see each choice of the scheduler. Called in the scheduler's thread."""
        scheduler.placer.on_placed = partial(self.recorder.note_placings, scheduler)
        return scheduler

    def _close(self, scheduler: Scheduler) -> None:
        """Close the scheduler and its courier. Called in the scheduler's thread."""
        try:
            with suppress(NodestateError):  # a claim that stays expires by itself
                scheduler.drop_allocated_claims()
        finally:
            scheduler.close()
            if self._courier is not None:
                self._courier.close()

"""The scheduler thread: owns one ``Scheduler``, and does the jobs of requests one after the other.

A scheduler is not safe for use by several threads, and its calls wait for stores. So handlers only put jobs into a
bounded queue and await the results. Between two jobs the thread steps the scheduler, and continues the operations that
wait for agents::

    handler --run: a job--> queue --> thread: jobs --> step --> operations that can go on --> jobs ...
            <------- result --------/

A job that raises an error is answered with that error, and the thread goes on.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import structlog

from nodestate.errors import NodestateError
from nodestate.scheduling import Scheduler
from nodestate.scheduling.session import Operation, Wait
from nodestate.serve.problems import ProblemError, blank, problem

T = TypeVar("T")

MAX_JOBS_COUNT: Final = 256
"""Most jobs that wait; further requests are refused with 503."""
MAX_OPERATIONS_COUNT: Final = 256
"""Most operations that are under way; further ones are refused with 503."""
BUSY_WAIT_S: Final = 0.005
"""Longest wait for answers of agents in one step while orders are under way; a job may wait for it."""
IDLE_WAIT_S: Final = 0.1
"""Longest wait for a job while no orders are under way."""
IDLE_STEP_S: Final = 1.0
"""Seconds between two steps while no orders are under way."""
PAUSE_S: Final = 0.01
"""Wait for a job after a step while orders are under way."""
STOP_TIMEOUT_S: Final = 15.0
"""Longest wait for the thread's end. A job that hangs in a store may take longer; the thread is then left alone."""
FAILED: Final = "the scheduler failed to do the request: the service's log has the cause"

_log: Final = structlog.get_logger("nodestate.serve.scheduler")


@dataclass(eq=False)
class RunningOperation:
    """An operation that is under way in the thread."""

    steps: Operation[Any]
    """The operation itself."""
    wait: Wait
    """Its present wait."""
    deadline: float
    """Monotonic time of the scheduler's clock at which the wait ends with ``TimeoutError``."""
    on_wait: Callable[[Wait], None]
    """Called in the thread with each further wait."""
    on_end: Callable[[Any, Exception | None], None]
    """Called in the thread with the result, or with the error."""


class SchedulerThread:
    """Runs one scheduler in a thread of its own, from ``start`` to ``stop``.

    Args:
        open_scheduler: opens the scheduler; called in the thread at the first job, and again if it failed.
        close_scheduler: called in the thread at its end.
        after_step: called in the thread after each round of jobs and steps, with True if no job came.
    """

    def __init__(
        self,
        open_scheduler: Callable[[], Scheduler],
        close_scheduler: Callable[[Scheduler], None] = Scheduler.close,
        after_step: Callable[[Scheduler, bool], None] | None = None,
    ) -> None:
        self._open = open_scheduler
        self._close = close_scheduler
        self._after_step = after_step or (lambda _scheduler, _is_idle: None)
        self._jobs: queue.Queue[tuple[Callable[[Scheduler], Any], Future[Any]]] = queue.Queue(MAX_JOBS_COUNT)
        # The scheduler, once it is open. Belongs to the thread.
        self._scheduler: Scheduler | None = None
        # The operations under way. Belongs to the thread.
        self._operations: list[RunningOperation] = []
        self._stopping = False
        # True if no job came in the last round.
        self._is_idle = True
        # Monotonic time of the next step while no orders are under way.
        self._step_at = 0.0
        self._thread = threading.Thread(target=self._run, name="nodestate-scheduler", daemon=True)

    # -- in the event loop ------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    @property
    def scheduler(self) -> Scheduler | None:
        """The scheduler, for its counters; None before the first job."""
        return self._scheduler

    def end_waits(self) -> None:
        """Refuse further jobs, and let the thread end after its present job."""
        self._stopping = True

    async def stop(self) -> None:
        """End the thread after its present job, and close the scheduler. Operations under way are left."""
        self.end_waits()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join, STOP_TIMEOUT_S)

    async def run(self, job: Callable[[Scheduler], T]) -> T:
        """Run a job in the thread, and return its result or raise its error.

        If the caller is cancelled before the job has begun, the job is dropped.

        Raises ``ProblemError`` of the type ``overloaded`` if too many jobs wait, or if the thread has ended; of the
        status 500 if the job failed for an unknown cause.
        """
        if self._stopping:
            raise problem("overloaded", "the service stops; send the request to another one, or repeat it later")
        if not self.is_alive:
            raise problem("overloaded", "the scheduler's thread has ended: restart the service")
        future: Future[T] = Future()
        try:
            self._jobs.put_nowait((job, future))
        except queue.Full:
            raise problem(
                "overloaded", f"{MAX_JOBS_COUNT} requests wait for the scheduler; repeat the request later"
            ) from None
        return await asyncio.wrap_future(future)

    async def complete(self, make: Callable[[Scheduler], Operation[T]]) -> T:
        """Run an operation in the thread among other work, and return its result or raise its error.

        Args:
            make: makes the operation; called in the thread.

        Raises ``ProblemError`` as ``run`` does.
        """
        ended: Future[T] = Future()

        def on_end(result: T, error: Exception | None) -> None:
            if error is None:
                ended.set_result(result)
            elif isinstance(error, (NodestateError, ProblemError)):
                ended.set_exception(error)
            else:
                ended.set_exception(blank(500, FAILED))

        def job(scheduler: Scheduler) -> None:
            ended.set_running_or_notify_cancel()
            self.begin(make(scheduler), lambda _wait: None, on_end)

        await self.run(job)
        return await asyncio.wrap_future(ended)

    # -- in the thread ----------------------------------------------------------------------------

    def begin(
        self,
        steps: Operation[Any],
        on_wait: Callable[[Wait], None],
        on_end: Callable[[Any, Exception | None], None],
    ) -> None:
        """Begin an operation; call it in a job.

        The first part of the operation, until it waits, is done before this returns: its errors are raised here, and
        nothing was begun.

        Args:
            steps: the operation.
            on_wait: called with each wait, the first one too.
            on_end: called at the end with the result and None, or with None and the error.
        """
        assert self._scheduler is not None, "in a job"
        if len(self._operations) >= MAX_OPERATIONS_COUNT:
            raise problem("overloaded", f"{MAX_OPERATIONS_COUNT} operations are under way; repeat the request later")
        try:
            wait = next(steps)
        except StopIteration as end:
            on_end(end.value, None)
            return
        on_wait(wait)
        deadline = self._scheduler.session.clock.monotonic() + wait.timeout_s
        self._operations.append(RunningOperation(steps, wait, deadline, on_wait, on_end))

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._is_idle = not self._do_jobs(PAUSE_S if self._is_busy() or not self._is_idle else IDLE_WAIT_S)
                if self._scheduler is not None:
                    try:
                        self._step(self._scheduler)
                    except Exception:  # noqa: BLE001  the thread must outlive every fault of a step
                        _log.exception("a step of the scheduler failed")
                        time.sleep(IDLE_WAIT_S)
        finally:
            self._stopping = True
            self._refuse_jobs()
            if self._scheduler is not None:
                self._close(self._scheduler)

    def _is_busy(self) -> bool:
        """True while answers of agents are awaited."""
        scheduler = self._scheduler
        return scheduler is not None and bool(self._operations or scheduler.session.boots_under_way_count)

    def _do_jobs(self, wait_s: float) -> bool:
        """Do the jobs that wait; wait up to ``wait_s`` seconds for the first. Returns False if none came."""
        for number in range(MAX_JOBS_COUNT):
            try:
                entry = self._jobs.get(timeout=wait_s) if wait_s else self._jobs.get_nowait()
            except queue.Empty:
                return number > 0
            wait_s = 0.0
            self._do_job(*entry)
            if self._stopping:
                break
        return True

    def _do_job(self, job: Callable[[Scheduler], Any], future: Future[Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            if self._scheduler is None:
                self._scheduler = self._open()
            future.set_result(job(self._scheduler))
        except (NodestateError, ProblemError) as error:
            future.set_exception(error)
        except Exception:  # noqa: BLE001  the thread must outlive every fault of a job
            _log.exception("a job of the scheduler failed")
            future.set_exception(blank(500, FAILED))
        except BaseException:
            future.set_exception(problem("overloaded", "the scheduler's thread has ended: restart the service"))
            raise

    def _step(self, scheduler: Scheduler) -> None:
        """Step the scheduler if that is due, and continue the operations whose wait is over."""
        if self._is_busy():
            scheduler.step(0.0 if not self._jobs.empty() else BUSY_WAIT_S)
            for operation in list(self._operations):
                self._continue(scheduler, operation)
            self._step_at = time.monotonic() + IDLE_STEP_S
        elif time.monotonic() >= self._step_at:
            self._step_at = time.monotonic() + IDLE_STEP_S
            scheduler.step(0.0)
        self._after_step(scheduler, self._is_idle)

    def _continue(self, scheduler: Scheduler, operation: RunningOperation) -> None:
        """Continue an operation if its wait is over, or if its time is."""
        clock = scheduler.session.clock
        try:
            if operation.wait.until():
                operation.wait = next(operation.steps)
            elif clock.monotonic() >= operation.deadline:
                late = TimeoutError(f"not done within {operation.wait.timeout_s:g} s")
                operation.wait = operation.steps.throw(late)
            else:
                return
            operation.on_wait(operation.wait)
            operation.deadline = clock.monotonic() + operation.wait.timeout_s
        except StopIteration as end:
            self._operations.remove(operation)
            operation.on_end(end.value, None)
        except Exception as error:  # noqa: BLE001  the thread must outlive every fault of an operation
            self._operations.remove(operation)
            if not isinstance(error, (NodestateError, ProblemError, TimeoutError)):
                _log.exception("an operation failed")
            operation.on_end(None, error)

    def _refuse_jobs(self) -> None:
        """Answer the jobs that wait at the end of the thread."""
        while True:
            try:
                entry = self._jobs.get_nowait()
            except queue.Empty:
                return
            if entry[1].set_running_or_notify_cancel():
                entry[1].set_exception(problem("overloaded", "the service stops; repeat the request later"))

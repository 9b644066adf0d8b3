"""Simulated processes that can be paused, and can die, at each of their calls of a server.

Each process runs in a thread, but only one thread runs at a time: a process hands control back to the explorer at each
pause, and gets it again when the explorer chooses to. So every run is deterministic.

    idle --begin--> running --a call of a server--> paused --resume--> running --the work returned--> idle
    paused --kill--> idle: the work ends with ``Killed`` at the call
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, Final

MAX_IDLE_THREADS_COUNT: Final = 16
"""Threads that wait for the next work. Starting a thread costs more than all steps of a short run."""


class Killed(BaseException):
    """The process dies at this call. No ``except Exception`` of the product catches it."""


class _Thread:
    """A thread that carries out one work after the other."""

    idle: ClassVar[deque[_Thread]] = deque()
    """The threads without work."""

    def __init__(self) -> None:
        self.go = threading.Lock()
        """Released by the explorer when the thread may run."""
        self.go.acquire()
        self.yielded = threading.Lock()
        """Released by the thread when the explorer may run."""
        self.yielded.acquire()
        self.work: Callable[[], None] = lambda: None
        """The next work."""
        threading.Thread(target=self._loop, daemon=True).start()

    @classmethod
    def take(cls) -> _Thread:
        """Return an idle thread, or a new one."""
        return cls.idle.pop() if cls.idle else cls()

    def _loop(self) -> None:
        while True:
            self.go.acquire()
            self.work()
            self.yielded.release()

    def run_until_yield(self) -> None:
        """Let the thread run until it yields or its work is done."""
        self.go.release()
        self.yielded.acquire()

    def yield_to_explorer(self) -> None:
        """Called in the thread: let the explorer run until it lets this thread run again."""
        self.yielded.release()
        self.go.acquire()


# A forked child has none of the threads of its parent.
os.register_at_fork(after_in_child=_Thread.idle.clear)


class Process:
    """One simulated process. The explorer begins, resumes and kills its work."""

    current: Process | None = None
    """The process that runs now; None while the explorer itself runs."""

    def __init__(self, name: str) -> None:
        self.name = name
        """Its name in choices and traces."""
        self.paused_at = ""
        """The call at which it is paused, in words; empty if it is idle."""
        self.calls_count = 0
        """Number of calls that the present work has begun."""
        self.error: BaseException | None = None
        """The exception that ended the last work, other than ``Killed``."""
        self._thread: _Thread | None = None
        self._pause_after = 0  # number of calls to let pass before the next pause; -1: never pause
        self._killed = False
        self._note: Any = None  # what the explorer says to the call at which the process is resumed

    @property
    def is_idle(self) -> bool:
        """True if the process has no work."""
        return self._thread is None

    def begin(self, work: Callable[[], object], *, pause_at: int | None) -> None:
        """Begin a work, and pause at its call number ``pause_at`` (from 0); None: run it to its end."""
        assert self._thread is None, f"{self.name} works already"
        thread = self._thread = _Thread.take()
        self.error, self._killed, self.calls_count = None, False, 0

        def run() -> None:
            try:
                work()
            except Killed:
                pass
            except BaseException as error:  # noqa: BLE001 - the explorer judges it
                self.error = error

        thread.work = run
        self._go_on(-1 if pause_at is None else pause_at, None)

    def resume(self, *, pause_at: int | None, note: Any = None) -> None:
        """Go on with the paused call, and pause at the call ``pause_at`` after it (from 0); None: run to the end.

        ``note`` is returned by the ``pause`` at which the process waits.
        """
        assert self._thread is not None, f"{self.name} is idle"
        self._go_on(-1 if pause_at is None else pause_at, note)

    def kill(self) -> None:
        """End the work at the call at which it is paused. The call is not carried out."""
        if self._thread is not None:
            self._killed = True
            self._go_on(-1, None)

    def _go_on(self, pause_after: int, note: Any) -> None:
        thread = self._thread
        assert thread is not None
        self._pause_after, self._note, self.paused_at = pause_after, note, ""
        before, Process.current = Process.current, self
        thread.run_until_yield()
        Process.current = before
        if not self.paused_at:
            self._thread = None
            if len(_Thread.idle) < MAX_IDLE_THREADS_COUNT:
                _Thread.idle.append(thread)
            if self.error is not None and not isinstance(self.error, Exception):
                raise self.error

    def pause(self, call: str, *, always: bool = False) -> Any:
        """Called in the process at each call of a server: wait here if it is its turn to pause, or ``always``.

        Returns the note with which the explorer resumed the process; None if it did not pause. Raises ``Killed``.
        """
        if self._killed:
            raise Killed
        self.calls_count += 1
        if self._pause_after and not always:
            self._pause_after -= 1
            return None
        self.paused_at = call
        assert self._thread is not None
        self._thread.yield_to_explorer()
        if self._killed:
            raise Killed
        note, self._note = self._note, None
        return note


def pause(call: str, *, always: bool = False) -> Any:
    """See ``Process.pause``, of the process that runs now. Does nothing while the explorer itself runs."""
    return Process.current.pause(call, always=always) if Process.current is not None else None

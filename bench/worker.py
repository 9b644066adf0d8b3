"""Functions that run in processes of their own while another process measures: readers, publishers, schedulers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Concatenate, Final, Generic, NamedTuple, ParamSpec, Self, TypeVar, cast

from bench.fresh_process import log_warnings_only
from bench.workload import require

P = ParamSpec("P")
T = TypeVar("T")

READY_TIMEOUT_S: Final = 60.0
"""Time that a worker has until it reports that it is ready: many workers share few cores."""
END_TIMEOUT_S: Final = 60.0
STOP: Final = b"stop"
READY: Final = b"ready"


class _Message(NamedTuple):
    """A value that one side sends to the other while the function runs."""

    content: Any


class ParentLink:
    """The first argument of a worker's function: the connection to the process that started the worker."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        # Messages that have arrived but that the function has not received.
        self._inbox: deque[Any] = deque()
        # True after the parent asked the function to return, or died.
        self._stopped = False

    def report_ready(self) -> None:
        """Tell the parent that everything is prepared."""
        self._connection.send(READY)

    def send(self, content: object) -> None:
        """Send a value to the parent."""
        self._connection.send(_Message(content))

    def receive(self, wait_s: float) -> Any:
        """Return the next value from the parent, or None if none arrives within ``wait_s`` or the worker is to stop."""
        if not self._inbox:
            self._poll(wait_s)
        return self._inbox.popleft() if self._inbox else None

    def should_stop(self, wait_s: float = 0.0) -> bool:
        """Return whether the parent asked the function to return; wait up to ``wait_s`` for that request."""
        self._poll(wait_s)
        return self._stopped

    def _poll(self, wait_s: float) -> None:
        if self._stopped or not self._connection.poll(max(0.0, wait_s)):
            return
        try:
            received = self._connection.recv()
        except EOFError:  # the parent is gone
            received = STOP
        if isinstance(received, _Message):
            self._inbox.append(received.content)
        else:
            self._stopped = True


class Worker(Generic[T]):
    """One call of a function in a process of its own::

    (new) --the function reports that it is ready--> ready --it returns or raises, by itself or on request--> ended

    A context manager, which kills a process that has not ended. Arguments and results are pickled.
    """

    def __init__(self, function: Callable[Concatenate[ParentLink, P], T], /, *args: P.args, **kwargs: P.kwargs) -> None:
        spawn = get_context("spawn")
        self._connection, child_end = spawn.Pipe()
        self._process = spawn.Process(target=_run, args=(child_end, function, args, kwargs), daemon=True)
        self._process.start()
        child_end.close()
        # Whether the function returned, and its result or exception; None while it runs.
        self._outcome: tuple[bool, Any] | None = None
        # Messages that have arrived but that were not received.
        self._inbox: deque[Any] = deque()

    def wait_until_ready(self) -> None:
        """Wait until the function has reported that it is ready. Raises the function's exception if it fails first."""
        require(self.is_ready(READY_TIMEOUT_S), f"a worker was not ready within {READY_TIMEOUT_S:g} s")

    def is_ready(self, wait_s: float) -> bool:
        """Return whether the function has reported that it is ready; wait up to ``wait_s`` for the report.

        Raises the function's exception if it failed first.
        """
        if not self._connection.poll(wait_s):
            return False
        received = self._recv()
        if received != READY:
            self._outcome = received
            self.result()
            raise AssertionError("the function ended before it reported that it is ready")
        return True

    def send(self, content: object) -> None:
        """Send a value to the function, which must call ``ParentLink.receive`` for it."""
        self._connection.send(_Message(content))

    def receive(self, wait_s: float) -> Any:
        """Return the next value from the function, or None if none arrives within ``wait_s``.

        Raises the function's exception if it failed.
        """
        if not self._inbox and self.has_ended(wait_s):
            self.result()
        return self._inbox.popleft() if self._inbox else None

    def has_ended(self, wait_s: float) -> bool:
        """Return whether the function has ended; wait up to ``wait_s`` for its end or for a message."""
        if self._outcome is None and self._connection.poll(wait_s):
            received = self._recv()
            if isinstance(received, _Message):
                self._inbox.append(received.content)
            else:
                self._outcome = received
        return self._outcome is not None

    def stop(self) -> None:
        """Ask the function to return, unless it has ended already."""
        if not self.has_ended(0.0):
            self._connection.send(STOP)

    def result(self) -> T:
        """Wait for the end of the function; return its result or raise its exception."""
        deadline = time.monotonic() + END_TIMEOUT_S
        while not self.has_ended(max(0.0, deadline - time.monotonic())):
            require(time.monotonic() < deadline, f"a worker did not end within {END_TIMEOUT_S:g} s")
        assert self._outcome is not None, "the function has ended"
        returned, value = self._outcome
        if not returned:
            raise value
        return cast("T", value)

    def _recv(self) -> Any:
        try:
            return self._connection.recv()
        except EOFError:
            self._process.join()
            return False, RuntimeError(f"a worker process died with exit code {self._process.exitcode}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.join(0.0 if self._outcome is None else END_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._connection.close()


def _run(connection: Connection, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
    log_warnings_only()
    try:
        outcome = True, function(ParentLink(connection), *args, **kwargs)
    except Exception as error:  # noqa: BLE001 - the parent raises it again
        outcome = False, error
    connection.send(outcome)

"""Functions that run in processes of their own while something else is measured: readers, publishers, schedulers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Concatenate, Final, Generic, NamedTuple, ParamSpec, Self, TypeVar, cast

from bench.fresh_process import quiet
from bench.workload import require

P = ParamSpec("P")
T = TypeVar("T")

BEGIN_S: Final = 60.0
"""How long a process may take until it says that it has begun: many of them share few cores."""
END_S: Final = 60.0
STOP: Final = b"stop"
BEGUN: Final = b"begun"


class _Said(NamedTuple):
    """A message between the two while the function runs."""

    what: Any


class Line:
    """What such a function is given first: its line to the process that started it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._heard: deque[Any] = deque()
        self._stopped = False

    def begun(self) -> None:
        """Say that all is prepared."""
        self._connection.send(BEGUN)

    def say(self, what: object) -> None:
        """Tell the other side something."""
        self._connection.send(_Said(what))

    def hear(self, wait_s: float) -> Any:
        """What the other side said next; None if nothing came within that time, or it was to stop."""
        if not self._heard:
            self._take(wait_s)
        return self._heard.popleft() if self._heard else None

    def told_to_stop(self, wait_s: float = 0.0) -> bool:
        """Whether it is time to end; waits so long for it."""
        self._take(wait_s)
        return self._stopped

    def _take(self, wait_s: float) -> None:
        if self._stopped or not self._connection.poll(max(0.0, wait_s)):
            return
        try:
            came = self._connection.recv()
        except EOFError:  # who started it is gone
            came = STOP
        if isinstance(came, _Said):
            self._heard.append(came.what)
        else:
            self._stopped = True


class Beside(Generic[T]):
    """One call in a process of its own::

    (new) --the function says that it has begun--> begun --it returns or raises, by itself or told to stop--> ended

    A context manager, which kills a process that did not end. What it is given and gives is pickled.
    """

    def __init__(self, function: Callable[Concatenate[Line, P], T], /, *args: P.args, **kwargs: P.kwargs) -> None:
        spawn = get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_run, args=(theirs, function, args, kwargs), daemon=True)
        self._process.start()
        theirs.close()
        self._outcome: tuple[bool, Any] | None = None
        self._heard: deque[Any] = deque()

    def wait_until_begun(self) -> None:
        """Return when the function said so; raise what it raised, if it ended instead."""
        require(self.has_begun(BEGIN_S), f"a process beside did not begin within {BEGIN_S:g} s")

    def has_begun(self, wait_s: float) -> bool:
        """Whether the function said so; waits so long for it. Raises what it raised, if it ended instead."""
        if not self._connection.poll(wait_s):
            return False
        said = self._receive()
        if said != BEGUN:
            self._outcome = said
            self.result()
            raise AssertionError("it ended without having begun")
        return True

    def say(self, what: object) -> None:
        """Tell the function something, which it must be waiting to ``hear``."""
        self._connection.send(_Said(what))

    def hear(self, wait_s: float) -> Any:
        """What the function said next; None if nothing came within that time. Raises what it raised, if it ended so."""
        if not self._heard and self.ended(wait_s):
            self.result()
        return self._heard.popleft() if self._heard else None

    def ended(self, wait_s: float) -> bool:
        """Whether its outcome is there; waits so long for it, or for something that the function says."""
        if self._outcome is None and self._connection.poll(wait_s):
            came = self._receive()
            if isinstance(came, _Said):
                self._heard.append(came.what)
            else:
                self._outcome = came
        return self._outcome is not None

    def stop(self) -> None:
        """Tell it to end. One that has ended need not be told."""
        if not self.ended(0.0):
            self._connection.send(STOP)

    def result(self) -> T:
        """What the function returned or raised, when it did."""
        deadline = time.monotonic() + END_S
        while not self.ended(max(0.0, deadline - time.monotonic())):
            require(time.monotonic() < deadline, f"a process beside did not end within {END_S:g} s")
        assert self._outcome is not None, "it ended"
        good, value = self._outcome
        if not good:
            raise value
        return cast("T", value)

    def _receive(self) -> Any:
        try:
            return self._connection.recv()
        except EOFError:
            self._process.join()
            return False, RuntimeError(f"a process beside died with {self._process.exitcode}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.join(0.0 if self._outcome is None else END_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._connection.close()


def _run(connection: Connection, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
    quiet()
    try:
        outcome = True, function(Line(connection), *args, **kwargs)
    except Exception as error:  # noqa: BLE001 - raised again where it is asked for
        outcome = False, error
    connection.send(outcome)

"""Standard streams that may be closed, full, or a pipe without a reader.

stderr has logs and messages. A line that can't be written is lost and counted, and the work goes on: a full log disk
must not end a consumer. stdout has results. A result that can't be written ends the command with exit code 1.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import Any, ClassVar, Final

import click

from nodestate.errors import NodestateError
from nodestate.text import count_text

STDIN: Final = 0
STDOUT: Final = 1
STDERR: Final = 2
LOG_PATIENCE_S: Final = 1.0
"""Longest wait for a reader of stderr that is slow. After that, lines are lost without a wait until it reads again."""
READ_AHEAD_BYTES: Final = 128 * 1024


class OutputError(NodestateError):
    """Raised if a result cannot be written to stdout."""

    kind: ClassVar[str] = "output"

    def __init__(self, cause: str) -> None:
        super().__init__(f"the result can't be written to stdout: {cause}; give another file or pipe")
        self.cause = cause


class _Descriptor(io.RawIOBase):
    """A file descriptor that this process did not open, and does not close."""

    def __init__(self, number: int, *, is_open: bool) -> None:
        super().__init__()
        self._number = number
        # False if the process was started with this stream closed.
        self._is_open = is_open

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def _require_open(self) -> None:
        if not self._is_open:
            raise OSError(errno.EBADF, "it is closed")


class _Input(_Descriptor):
    """stdin."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            self._require_open()
            return os.readv(self._number, [buffer])
        except OSError as error:
            raise click.UsageError(f"stdin can't be read: {error.strerror}. Give a FILE, or pipe its content") from None


class _Output(_Descriptor):
    """stdout. The first error is raised; after it everything is dropped, so that the process can end."""

    def __init__(self, number: int, *, is_open: bool) -> None:
        super().__init__(number, is_open=is_open)
        # True after the first error.
        self._failed = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self._failed:
            return len(data)
        try:
            self._require_open()
            return os.write(self._number, data)
        except BlockingIOError:  # another process that has this descriptor made it non-blocking
            _wait_until_writable(self._number, None)
            return 0 if len(data) == 0 else self.write(data)
        except OSError as error:
            self._failed = True
            if error.errno == errno.EPIPE:  # as after `| head`: click ends the command without a message
                raise
            raise OutputError(error.strerror or str(error)) from None


class _LogOutput(_Descriptor):
    """stderr. It never fails, and never waits for longer than ``LOG_PATIENCE_S``."""

    def __init__(self, number: int, *, is_open: bool) -> None:
        super().__init__(number, is_open=is_open)
        self.lost = 0
        """Lines that could not be written."""
        # How long the next write may wait, in seconds.
        self._patience_s = LOG_PATIENCE_S

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        size, view = len(data), memoryview(data).cast("B")
        try:
            self._require_open()
            while view:
                if not _wait_until_writable(self._number, self._patience_s):
                    self._patience_s = 0.0
                    raise BlockingIOError(errno.EAGAIN, "its reader does not read")
                view = view[os.write(self._number, view[: select.PIPE_BUF]) :]  # so much never waits
                self._patience_s = LOG_PATIENCE_S
        except OSError:
            self.lost += max(1, bytes(view).count(b"\n"))
        return size


_stderr: Final = _LogOutput(STDERR, is_open=sys.stderr is not None)


def lost_log_lines() -> int:
    """Return the number of lines of logs and messages that this process could not write to stderr."""
    return _stderr.lost


def lost_log_lines_text() -> str:
    """Return the end of a summary: the number of lost lines, empty if there are none."""
    return f"; {count_text(_stderr.lost, 'log line')} could not be written to stderr" if _stderr.lost else ""


def set_up_streams() -> None:
    """Replace the three streams of the process. Streams that a test or a program has replaced stay as they are."""
    # The next file or connection that is opened gets the lowest free number. It must not be that of a closed stream,
    # or logs would be written into it.
    closed = [stream is None for stream in (sys.stdin, sys.stdout, sys.stderr)]
    for number in (STDIN, STDOUT, STDERR):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdin is sys.__stdin__:
        source = io.BufferedReader(_Input(STDIN, is_open=not closed[STDIN]), READ_AHEAD_BYTES)
        sys.stdin = io.TextIOWrapper(source, encoding=_encoding(sys.stdin))
    if sys.stdout is sys.__stdout__:
        results = io.BufferedWriter(_Output(STDOUT, is_open=not closed[STDOUT]))
        sys.stdout = io.TextIOWrapper(results, encoding=_encoding(sys.stdout), errors="backslashreplace")
    if sys.stderr is sys.__stderr__:
        logs = io.BufferedWriter(_stderr)
        sys.stderr = io.TextIOWrapper(
            logs, encoding=_encoding(sys.stderr), errors="backslashreplace", line_buffering=True
        )


def _encoding(stream: Any) -> str:
    return getattr(stream, "encoding", None) or "utf-8"


def _wait_until_writable(number: int, seconds: float | None) -> bool:
    poller = select.poll()
    poller.register(number, select.POLLOUT)
    return bool(poller.poll(None if seconds is None else seconds * 1000))

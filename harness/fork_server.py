"""Start Python modules as processes within milliseconds: one process imports nodestate once and forks the others.

A new interpreter needs half a second of processor time to import a command of nodestate with its libraries. A test run
starts hundreds of commands, consumers and schedulers. Each of them is still a process of its own, with its own
arguments, environment, streams and session, and is killed, frozen and ended as any other.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, NamedTuple, Self

ROOT: Final = Path(__file__).parents[1]
PRELOADED: Final = (
    "kombu.transport.pyamqp",
    "nodestate.agent.agent",
    "nodestate.scheduling.scheduler",
    "nodestate.store.memcached",
)
"""Modules that the server imports in addition to all commands: commands import them when they run."""
REQUEST_BYTES: Final = 1 << 17
"""Longest request; most of it is the environment."""
STREAMS_COUNT: Final = 3


class ForkedProcess:
    """A running module, with those methods of ``subprocess.Popen`` that tests use. Its pipes carry bytes."""

    def __init__(self, pid: int, ended: int, pipes: Sequence[IO[bytes] | None]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        """Exit code, or minus the number of the signal that ended it; None until ``poll`` or ``wait`` saw the end."""
        self.stdin, self.stdout, self.stderr = pipes
        self._ended = ended
        """A pipe, from which the exit code can be read after the end."""
        self._lock = threading.Lock()
        """Held while the exit code is taken over."""

    def poll(self) -> int | None:
        """Return the exit code, or None if the process runs."""
        return self._await_end(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code. Raises ``subprocess.TimeoutExpired``."""
        code = self._await_end(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return code

    def communicate(self, given: bytes | None = None, timeout: float | None = None) -> tuple[bytes, bytes]:
        """Write ``given`` to stdin and close it, read both outputs and wait for the end.

        Returns what stdout and stderr gave; nothing if they are no pipes. Raises ``subprocess.TimeoutExpired``.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        told: dict[str, bytes] = {}

        def feed(pipe: IO[bytes]) -> None:
            with suppress(BrokenPipeError), pipe:  # it ended, or does not read
                pipe.write(given or b"")

        def take(name: str, pipe: IO[bytes]) -> None:
            with pipe:
                told[name] = pipe.read()

        threads = [threading.Thread(target=feed, args=(self.stdin,), daemon=True)] if self.stdin is not None else []
        for name, pipe in (("out", self.stdout), ("err", self.stderr)):
            if pipe is not None and not pipe.closed:
                threads.append(threading.Thread(target=take, args=(name, pipe), daemon=True))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        self.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return told.get("out", b""), told.get("err", b"")

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in (self.stdin, self.stdout, self.stderr):
            if pipe is not None:
                with suppress(BrokenPipeError):  # input that it never read
                    pipe.close()
        self.wait()

    def _await_end(self, timeout_s: float | None) -> int | None:
        if self.returncode is None and _has_input(self._ended, timeout_s):
            with self._lock:
                if self.returncode is None:
                    code = os.read(self._ended, 16)
                    os.close(self._ended)
                    self.returncode = int(code) if code else -signal.SIGKILL  # the server ended first
        return self.returncode


def _has_input(descriptor: int, timeout_s: float | None) -> bool:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(None if timeout_s is None else timeout_s * 1000))


class ForkServer:
    """The process that has imported nodestate. It starts at the first use, and ends with this process or at
    ``close``.
    """

    def __init__(self) -> None:
        self._requests, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        """Held from a request to its reply."""
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def is_possible() -> bool:
        """True on Linux: the server uses its system calls."""
        return hasattr(os, "pidfd_open") and hasattr(socket, "SOCK_SEQPACKET")

    def start(
        self,
        module: str,
        words: Sequence[str],
        environment: Mapping[str, str],
        *,
        folder: Path | None = None,
        stdin: int = subprocess.DEVNULL,
        stdout: int | IO[bytes] = subprocess.PIPE,
        stderr: int | IO[bytes] | None = subprocess.PIPE,
    ) -> ForkedProcess:
        """Run ``python -m MODULE WORDS`` in a new process; the streams are given as to ``subprocess.Popen``."""
        theirs: list[int] = []
        mine: list[IO[bytes] | None] = []
        for stream, asked in enumerate((stdin, stdout, stderr)):
            if asked == subprocess.PIPE:
                reading, writing = os.pipe()
                theirs.append(writing if stream else reading)
                mine.append(os.fdopen(reading, "rb") if stream else os.fdopen(writing, "wb"))
            else:
                mine.append(None)
                if isinstance(asked, int):
                    theirs.append(os.open(os.devnull, os.O_RDWR))
                else:
                    theirs.append(os.dup(stream if asked is None else asked.fileno()))
        ended, theirs_ended = os.pipe()
        theirs.append(theirs_ended)
        request = [module, list(words), dict(environment), str(folder or Path.cwd())]
        try:
            with self._lock:
                if self._process is None:
                    self._process = self._start_server()
                socket.send_fds(self._requests, [json.dumps(request).encode()], theirs)
                reply = self._requests.recv(REQUEST_BYTES)
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        assert reply, "the server that forks processes has ended"
        return ForkedProcess(int(reply), ended, mine)

    def close(self) -> None:
        """End the server. Processes that it started go on."""
        self._requests.close()
        self._theirs.close()
        if self._process is not None:
            self._process.wait()

    def _start_server(self) -> subprocess.Popen[bytes]:
        with self._theirs as theirs:
            return subprocess.Popen(  # noqa: S603 - this module
                [sys.executable, "-m", "harness.fork_server", str(theirs.fileno())],
                cwd=ROOT,
                env={name: value for name, value in os.environ.items() if not name.startswith("NODESTATE_")},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C must reach the test run only, which ends its processes in order
            )


class _Job(NamedTuple):
    """The work of a forked process."""

    module: str
    words: list[str]
    environment: dict[str, str]
    folder: str

    def begin(self, streams: Sequence[int]) -> None:
        """Make this process look like one that was started for the job."""
        os.setsid()
        for number, descriptor in enumerate(streams):
            os.dup2(descriptor, number)
        os.closerange(STREAMS_COUNT, os.sysconf("SC_OPEN_MAX"))
        os.environ.clear()
        os.environ.update(self.environment)
        time.tzset()
        os.chdir(self.folder)
        sys.argv = [self.module, *self.words]


def _serve(requests: socket.socket) -> _Job | None:
    """Fork a process for each request. Returns its job in the new process; None in the server after the last one."""
    children: dict[int, tuple[int, int]] = {}
    poller = select.poll()
    poller.register(requests, select.POLLIN)
    while True:
        for descriptor, _ in poller.poll():
            if descriptor in children:
                pid, ended = children.pop(descriptor)
                poller.unregister(descriptor)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with suppress(BrokenPipeError):  # its starter has ended
                    os.write(ended, str(code).encode())
                os.close(ended)
                os.close(descriptor)
                continue
            request, given, _, _ = socket.recv_fds(requests, REQUEST_BYTES, STREAMS_COUNT + 1)
            if not request:
                return None
            pid = os.fork()
            if pid == 0:
                requests.detach()  # its descriptor is closed with all others
                job = _Job(*json.loads(request))
                job.begin(given[:STREAMS_COUNT])
                return job
            for stream in given[:STREAMS_COUNT]:
                os.close(stream)
            watched = os.pidfd_open(pid)
            children[watched] = (pid, given[STREAMS_COUNT])
            poller.register(watched, select.POLLIN)
            requests.send(str(pid).encode())


def _main() -> None:
    commands: Any = importlib.import_module("nodestate.cli")
    commands.every_command()
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or the first collection of each process would copy all pages
    job = _serve(socket.socket(fileno=int(sys.argv[1])))
    if job is not None:
        runpy.run_module(job.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()

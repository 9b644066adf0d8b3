"""The life of a server that a test or a benchmark owns."""

from __future__ import annotations

import signal
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from harness.servers.errors import ServerFailedError
from harness.servers.hosts import ServerHost, ServerProcess

START_TIMEOUT_S: Final = 180.0
"""Starts take seconds, but a busy machine may need much longer."""
PROBE_TIMEOUT_S: Final = 2.0
PROBE_INTERVAL_S: Final = 0.02
REPLY_BYTES: Final = 4_096
DATABASE: Final = "bench"
USER: Final = "bench"


class Server(ABC):
    """A server in the states that the package describes. It has started when it answers its own protocol."""

    def __init__(self, port: int, host: ServerHost, start_timeout_s: float) -> None:
        self.port = port
        self.host = host
        """The process or container that runs it."""
        self._start_timeout_s = start_timeout_s

    @property
    def address(self) -> str:
        """``127.0.0.1:port``; it stays the same when the server starts again."""
        return f"127.0.0.1:{self.port}"

    @property
    @abstractmethod
    def url(self) -> str:
        """The address of the server, as nodestate's settings take it."""

    @abstractmethod
    def _answers(self) -> bool:
        """True if the server gives the right answer to the first question of its protocol."""

    @property
    def running(self) -> bool:
        """True while the server lives, also while it is paused."""
        return self.host.running()

    def start(self) -> Self:
        """Start the server and wait until it answers.

        Raises ServerFailedError with the end of its log if it does not.
        """
        assert not self.running, f"the server at {self.address} runs already"
        self.host.start()
        deadline = time.monotonic() + self._start_timeout_s
        while not self._answers():
            ended = not self.running
            if ended or time.monotonic() > deadline:
                problem = "ended" if ended else f"did not answer within {self._start_timeout_s:.0f} s"
                message = f"{type(self).__name__} at {self.address} {problem}:\n{self.host.log_tail()}"
                self.host.kill()
                raise ServerFailedError(message)
            time.sleep(PROBE_INTERVAL_S)
        return self

    def stop(self) -> None:
        """End the server in order and keep its files. Does nothing if it does not run."""
        self.host.stop()

    def kill(self) -> None:
        """End the server by SIGKILL and keep its files. Does nothing if it does not run."""
        self.host.kill()

    def restart(self) -> Self:
        """Stop the server and start it again, with the same port and files."""
        self.stop()
        return self.start()

    def pause(self) -> None:
        """Freeze the server: its connections stay open, and it answers no request."""
        self.host.pause()

    def resume(self) -> None:
        """Let a paused server continue."""
        self.host.resume()

    def close(self) -> None:
        """Kill the server and remove its files."""
        self.host.remove()

    def __enter__(self) -> Self:
        try:
            return self if self.running else self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()


class ProbedServer(Server):
    """A server that answers one probe over TCP when it is ready. ``version`` is that of its program."""

    scheme = ""

    def __init__(
        self, port: int, command: Sequence[str], folder: Path, version: str, *, end: signal.Signals = signal.SIGTERM
    ) -> None:
        super().__init__(port, ServerProcess(command, folder, end=end), START_TIMEOUT_S)
        self.version = version
        self.folder = folder

    @property
    def url(self) -> str:
        """``scheme://127.0.0.1:port``."""
        return f"{self.scheme}://{self.address}"

    def probe(self, question: bytes) -> bytes:
        """Send ``question`` over a new connection; returns the first bytes of the reply, or none if nothing answers."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), PROBE_TIMEOUT_S) as connection:
                connection.settimeout(PROBE_TIMEOUT_S)
                connection.sendall(question)
                return connection.recv(REPLY_BYTES)
        except OSError:
            return b""

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

DATABASE_START_TIMEOUT_S: Final = 60.0
PROBE_TIMEOUT_S: Final = 2.0
PROBE_INTERVAL_S: Final = 0.02
REPLY_BYTES: Final = 4_096
DATABASE: Final = "bench"
USER: Final = "bench"


class Server(ABC):
    """What both kinds share: the states of the module's docstring, and waiting until the server really answers."""

    def __init__(self, port: int, host: ServerHost, start_timeout_s: float) -> None:
        self.port = port
        self.host = host
        self._start_timeout_s = start_timeout_s

    @property
    def address(self) -> str:
        """``127.0.0.1:port``, the same for the server's whole life."""
        return f"127.0.0.1:{self.port}"

    @property
    @abstractmethod
    def url(self) -> str:
        """The server's address as nodestate's settings take it."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether the server gives a right answer to its own protocol's first question."""

    @property
    def running(self) -> bool:
        """Whether the server lives, be it paused."""
        return self.host.running()

    def start(self) -> Self:
        """Start the server and return when it answers; raise ServerFailedError, with its log, where it does not."""
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
        """End the server in order and keep its files. A server that does not run is left as it is."""
        self.host.stop()

    def kill(self) -> None:
        """End the server by SIGKILL and keep its files. A server that does not run is left as it is."""
        self.host.kill()

    def restart(self) -> Self:
        """Stop and start, on the same port and files."""
        self.stop()
        return self.start()

    def pause(self) -> None:
        """Freeze the server: its connections stay, and nothing is answered."""
        self.host.pause()

    def resume(self) -> None:
        """Let a paused server go on."""
        self.host.resume()

    def close(self) -> None:
        """End the server for good, in no order that takes time, and remove its files."""
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
    """A server that is asked one question over TCP; ``version`` is what its program says."""

    scheme = ""

    def __init__(
        self, port: int, command: Sequence[str], folder: Path, version: str, *, end: signal.Signals = signal.SIGTERM
    ) -> None:
        super().__init__(port, ServerProcess(command, folder, end=end), DATABASE_START_TIMEOUT_S)
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

"""Where a server runs: a process of this machine, or a container."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import psutil

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer

STOP_TIMEOUT_S: Final = 30.0
DOCKER_TIMEOUT_S: Final = 60
"""An image may have to be pulled."""
LOG_TAIL_BYTES: Final = 4_000


class ServerHost(Protocol):
    """The process, processes or container in which one server runs."""

    def start(self) -> None:
        """Start the server; does not wait until it answers."""

    def running(self) -> bool:
        """True from the start to the end of the server, also while it is paused."""

    def stop(self) -> None:
        """End the server in order and keep its files. Does nothing if it does not run."""

    def kill(self) -> None:
        """End the server by SIGKILL and keep its files. Does nothing if it does not run."""

    def pause(self) -> None:
        """Freeze the server."""

    def resume(self) -> None:
        """Let a paused server continue."""

    def log_tail(self) -> str:
        """Return the end of the server's log."""

    def remove(self) -> None:
        """Kill the server if it runs and remove its files."""


class ServerProcess:
    """A program of this machine. It writes to ``folder/log`` and owns its folder."""

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        environment: Mapping[str, str] | None = None,
        *,
        end: signal.Signals = signal.SIGTERM,
    ) -> None:
        self._command = command
        self._environment = environment
        """Replaces this process's environment; None: the server inherits it."""
        self._folder = folder
        self._end = end
        """The signal that ends the server in order."""
        self._log = folder / "log"
        self._popen: psutil.Popen | None = None

    def start(self) -> None:
        """Start the server; does not wait until it answers."""
        with self._log.open("ab") as log:
            self._popen = psutil.Popen(
                self._command,
                env=self._environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C must reach the test run only, which ends its servers in order
            )

    def running(self) -> bool:
        """True from the start to the end of the server, also while it is paused."""
        return self._popen is not None and self._popen.poll() is None

    def stop(self) -> None:
        """End the server in order and keep its files. Does nothing if it does not run."""
        if self._popen is None or not self.running():
            return
        self._popen.resume()  # a paused process would not see the signal
        children = self._popen.children(recursive=True)
        self._popen.send_signal(self._end)
        try:
            self._popen.wait(STOP_TIMEOUT_S)
        except psutil.TimeoutExpired:
            self.kill()
        end_processes(children)

    def kill(self) -> None:
        """End the server by SIGKILL and keep its files. Does nothing if it does not run."""
        if self._popen is None or not self.running():
            return
        self._popen.suspend()  # or it could start another child, which would survive
        children = self._popen.children(recursive=True)
        self._popen.kill()
        self._popen.wait()
        end_processes(children)

    def pause(self) -> None:
        """Freeze the server."""
        assert self._popen is not None
        self._popen.suspend()

    def resume(self) -> None:
        """Let a paused server continue."""
        assert self._popen is not None
        self._popen.resume()

    def children(self) -> list[psutil.Process]:
        """Return the child processes of the server and their children."""
        assert self._popen is not None
        children: list[psutil.Process] = self._popen.children(recursive=True)
        return children

    def log_tail(self) -> str:
        """Return the end of the server's log."""
        return self._log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace") if self._log.exists() else ""

    def remove(self) -> None:
        """Kill the server if it runs and remove its files."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


def end_processes(processes: Sequence[psutil.Process]) -> None:
    """Kill the processes that a server left behind. psutil compares start times, so it never kills a reused
    process id.
    """
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()  # they are orphans, which init reaps


class ServerContainer:
    """A container. Its first start creates it; container and data stay until it is removed."""

    def __init__(self, image: str, inner_port: int, port: int, command: Sequence[str] = ()) -> None:
        # The reaper is a container more, and privileged; the owner of a server closes it.
        os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
        from testcontainers.core.container import DockerContainer  # noqa: PLC0415 - reads the line above

        self._container: DockerContainer = DockerContainer(image)
        # docker-py takes an address with the port, testcontainers' annotation does not know it. Without one, the
        # port of a broker whose password is "guest" would be open to the whole network.
        self._container.ports[f"{inner_port}/tcp"] = ("127.0.0.1", port)  # type: ignore[assignment]
        if command:
            self._container.with_command(list(command))
        self._made = False

    def start(self) -> None:
        """Start the server; does not wait until it answers."""
        if self._made:
            self._container.get_wrapped_container().start()
        else:
            self._made = True
            self._container.start()

    def running(self) -> bool:
        """True from the start to the end of the server, also while it is paused."""
        if not self._made:
            return False
        self._container.reload()
        return self._container.status in {"running", "paused"}

    def stop(self) -> None:
        """End the server in order and keep its files. Does nothing if it does not run."""
        if self.running():
            self.resume()
            self._container.get_wrapped_container().stop(timeout=int(STOP_TIMEOUT_S))

    def kill(self) -> None:
        """End the server by SIGKILL and keep its files. Does nothing if it does not run."""
        if self.running():
            self._container.get_wrapped_container().kill()
            self._container.get_wrapped_container().wait()

    def pause(self) -> None:
        """Freeze the server."""
        self._container.get_wrapped_container().pause()

    def resume(self) -> None:
        """Let a paused server continue."""
        self._container.reload()
        if self._container.status == "paused":
            self._container.get_wrapped_container().unpause()

    def log_tail(self) -> str:
        """Return the end of the server's log."""
        tail: bytes = self._container.get_wrapped_container().logs(tail=40)
        return tail.decode(errors="replace")

    def remove(self) -> None:
        """Kill the server if it runs and remove its files."""
        if self._made:  # a fixture and the end of the run may both close it
            self._made = False
            self._container.stop(force=True, delete_volume=True)


@functools.cache
def docker_answers() -> bool:
    """True if a Docker daemon answers on this machine."""
    try:
        import docker  # noqa: PLC0415 - comes with testcontainers, which programs of this machine do not need
    except ImportError:
        return False
    try:
        client = docker.from_env(timeout=DOCKER_TIMEOUT_S)
    except docker.errors.DockerException:  # no socket, or none that may be opened
        return False
    with closing(client):
        try:
            return bool(client.ping())
        except (OSError, docker.errors.DockerException):
            return False

"""A PostgreSQL for one test run or benchmark."""

from __future__ import annotations

import signal
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psutil

from harness.servers.hosts import ServerProcess
from harness.servers.programs import free_ports, make_folder, prepare, require_program, run_as, version_of
from harness.servers.server import USER, ProbedServer

POSTGRES_PROTOCOL: Final = 196_608
"""Version 3.0 of PostgreSQL's protocol."""


class PostgresServer(ProbedServer):
    """A PostgreSQL that trusts its superuser, without a password. Raises ServerMissingError.

    ``extra`` is appended to the command line, e.g. ``("-c", "fsync=off")``.
    """

    scheme = "postgresql+psycopg"

    def __init__(self, *, extra: Sequence[str] = ()) -> None:
        package = "postgresql"
        newest = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), key=_major, reverse=True)
        program = require_program("postgres", package, *newest)
        initdb = require_program("initdb", package, *newest)
        [port] = free_ports(1)
        folder = make_folder("postgres")
        user = run_as("postgres", package, folder)
        data = str(folder / "data")
        prepare([*user, initdb, "-D", data, "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C"], folder)
        command = [
            *[*user, program, "-D", data, "-p", str(port)],
            *["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="],
            *extra,
        ]
        # SIGINT ends it in order without waiting until all clients have disconnected.
        super().__init__(port, command, folder, version_of(program, "--version"), end=signal.SIGINT)

    @property
    def url(self) -> str:
        """The URL of its database, as SQLAlchemy takes it."""
        return f"{self.scheme}://{USER}@{self.address}/postgres"

    @property
    def admin_url(self) -> str:
        """The URL for a user with all rights, as this user is."""
        return self.url

    def pause(self) -> None:
        """Freeze the server and its child processes, each of which serves one connection."""
        super().pause()
        for process in self._serving():
            process.suspend()

    def resume(self) -> None:
        """Let the paused server and its child processes continue."""
        for process in self._serving():
            process.resume()
        super().resume()

    def _serving(self) -> list[psutil.Process]:
        assert isinstance(self.host, ServerProcess)
        return self.host.children()

    def close(self) -> None:
        """End the server in order: a killed PostgreSQL leaves shared memory behind, which is not among its files."""
        self.stop()
        super().close()

    def _answers(self) -> bool:
        return self.probe(self.login())[:1] == b"R"

    @staticmethod
    def login() -> bytes:
        """The first message of a client."""
        content = struct.pack("!i", POSTGRES_PROTOCOL) + f"user\0{USER}\0database\0postgres\0\0".encode()
        return struct.pack("!i", len(content) + 4) + content


def _major(folder: str) -> float:
    return float(Path(folder).parent.name)

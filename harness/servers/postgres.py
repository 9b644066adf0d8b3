"""A PostgreSQL of one's own."""

from __future__ import annotations

import signal
import struct
from pathlib import Path
from typing import Final

import psutil

from harness.servers.hosts import ServerProcess
from harness.servers.programs import free_ports, make_folder, prepare, require_program, run_as, version_of
from harness.servers.server import USER, ProbedServer

POSTGRES_PROTOCOL: Final = 196_608
"""Version 3.0 of PostgreSQL's protocol."""


class PostgresServer(ProbedServer):
    """A PostgreSQL whose superuser is trusted. Raises ServerMissingError."""

    scheme = "postgresql+psycopg"

    def __init__(self) -> None:
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
        ]
        # In order, but without waiting until everybody has hung up.
        super().__init__(port, command, folder, version_of(program, "--version"), end=signal.SIGINT)

    @property
    def url(self) -> str:
        """As SQLAlchemy takes it."""
        return f"{self.scheme}://{USER}@{self.address}/postgres"

    @property
    def admin_url(self) -> str:
        """For a user who may do everything, which this one may."""
        return self.url

    def pause(self) -> None:
        """Freeze the server, with those of its processes that serve a connection each."""
        super().pause()
        for process in self._serving():
            process.suspend()

    def resume(self) -> None:
        """Let a paused server go on."""
        for process in self._serving():
            process.resume()
        super().resume()

    def _serving(self) -> list[psutil.Process]:
        assert isinstance(self.host, ServerProcess)
        return self.host.children()

    def close(self) -> None:
        """End the server in order: killed, it would leave shared memory behind, which is in no folder."""
        self.stop()
        super().close()

    def _answers(self) -> bool:
        content = struct.pack("!i", POSTGRES_PROTOCOL) + f"user\0{USER}\0database\0postgres\0\0".encode()
        return self.probe(struct.pack("!i", len(content) + 4) + content)[:1] == b"R"


def _major(folder: str) -> float:
    return float(Path(folder).parent.name)

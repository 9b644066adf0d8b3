"""A memcached for one test or benchmark."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from harness.servers.errors import ServerMissingError
from harness.servers.hosts import ServerContainer, ServerHost, ServerProcess, docker_answers
from harness.servers.programs import find_program, free_ports
from harness.servers.server import PROBE_TIMEOUT_S, START_TIMEOUT_S, Server

MEMCACHED_IMAGE: Final = "memcached:1.6"


class MemcachedServer(Server):
    """A memcached with ``memory_mb`` for items of at most ``item_max``; ``no_evict`` is ``-M``.

    Nothing survives a stop. ``extra`` is appended to the command line, e.g. ``("-o", "no_lru_crawler")``. With ``unix``
    it listens on ``socket_path`` instead of a port. Raises ServerMissingError.
    """

    def __init__(
        self,
        memory_mb: int = 64,
        item_max: str = "1m",
        *,
        no_evict: bool = False,
        unix: bool = False,
        extra: Sequence[str] = (),
    ) -> None:
        self.socket_path: Path | None = None
        [port] = free_ports(1)
        limits = ["-m", str(memory_mb), "-I", item_max, *(["-M"] if no_evict else []), *extra]
        host: ServerHost
        if program := find_program("memcached"):
            # memcached refuses to run as root unless it gets the name of another user.
            user = ["-u", "nobody"] if os.geteuid() == 0 else []
            folder = Path(tempfile.mkdtemp(prefix="nodestate-memcached-"))
            place = ["-l", "127.0.0.1", "-p", str(port), "-U", "0"]
            if unix:
                self.socket_path = folder / "socket"
                place = ["-s", str(self.socket_path)]
                if user:
                    shutil.chown(folder, "nobody")
            host = ServerProcess([program, *place, *user, *limits], folder)
        elif docker_answers():
            # On IPv4 only, as the program above: memcached counts each socket on which it listens as a connection.
            command = ["memcached", "-l", "0.0.0.0", *limits]  # noqa: S104 - the addresses of the container
            host = ServerContainer(MEMCACHED_IMAGE, 11211, port, command)
        else:
            message = "memcached is neither installed (apt-get install memcached) nor to be had through Docker"
            raise ServerMissingError(message)
        super().__init__(port, host, START_TIMEOUT_S)

    @property
    def url(self) -> str:
        """``memcached://127.0.0.1:port``."""
        return f"memcached://{self.address}"

    def stop(self) -> None:
        """End the server by ``kill()``: it has nothing to save, and its orderly end takes a second."""
        self.kill()

    def _answers(self) -> bool:
        """True if it answers, or asks for a login, or closes the connection because it expects TLS."""
        try:
            with socket.socket(socket.AF_UNIX if self.socket_path else socket.AF_INET) as connection:
                connection.settimeout(PROBE_TIMEOUT_S)
                connection.connect(str(self.socket_path) if self.socket_path else ("127.0.0.1", self.port))
                connection.sendall(b"version\r\n")
                reply = connection.recv(64)
                return not reply or reply.startswith((b"VERSION ", b"CLIENT_ERROR unauthenticated"))
        except ConnectionResetError:
            return True
        except OSError:
            return False

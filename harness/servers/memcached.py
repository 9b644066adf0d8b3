"""A memcached for one test or benchmark."""

from __future__ import annotations

import os
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

    Nothing survives a stop. ``extra`` is appended to the command line, e.g. ``("-o", "no_lru_crawler")``.
    Raises ServerMissingError.
    """

    def __init__(
        self, memory_mb: int = 64, item_max: str = "1m", *, no_evict: bool = False, extra: Sequence[str] = ()
    ) -> None:
        [port] = free_ports(1)
        limits = ["-m", str(memory_mb), "-I", item_max, *(["-M"] if no_evict else []), *extra]
        host: ServerHost
        if program := find_program("memcached"):
            # memcached refuses to run as root unless it gets the name of another user.
            user = ["-u", "nobody"] if os.geteuid() == 0 else []
            command = [program, "-l", "127.0.0.1", "-p", str(port), "-U", "0", *user, *limits]
            host = ServerProcess(command, Path(tempfile.mkdtemp(prefix="nodestate-memcached-")))
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
        try:
            with socket.create_connection(("127.0.0.1", self.port), PROBE_TIMEOUT_S) as connection:
                connection.sendall(b"version\r\n")
                return connection.recv(64).startswith(b"VERSION ")
        except OSError:
            return False

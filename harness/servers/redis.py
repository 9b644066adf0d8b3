"""A Redis for one test run or benchmark."""

from __future__ import annotations

from harness.servers.programs import free_ports, make_folder, require_program, version_of
from harness.servers.server import ProbedServer


class RedisServer(ProbedServer):
    """A Redis server that writes nothing to disk, as memcached does not. Raises ServerMissingError."""

    scheme = "redis"

    def __init__(self) -> None:
        program = require_program("redis-server", "redis-server")
        [port] = free_ports(1)
        folder = make_folder("redis")
        command = [
            *[program, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)],
            *["--save", "", "--appendonly", "no"],
        ]
        super().__init__(port, command, folder, version_of(program, "--version"))

    def _answers(self) -> bool:
        return self.probe(b"PING\r\n") == b"+PONG\r\n"

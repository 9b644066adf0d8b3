"""The servers of the peers: programs of this machine that listen on 127.0.0.1, each with a folder of its own.

The servers keep the default settings of their programs, except for memory and for addresses beyond this machine: data
that is durable by default stays durable. If bench runs as root, servers that refuse root run as the users that their
Debian packages created. A server is ended by its process id.
"""

from __future__ import annotations

from harness.servers import (
    DATABASE,
    MariadbServer,
    PostgresServer,
    ProbedServer,
    RedisServer,
    free_ports,
    make_folder,
    require_program,
    version_of,
)

__all__ = ["DATABASE", "EtcdServer", "MariadbServer", "NatsServer", "PostgresServer", "RedisServer"]


class NatsServer(ProbedServer):
    """A NATS server with JetStream on files. Raises ServerMissingError."""

    scheme = "nats"

    def __init__(self) -> None:
        program = require_program("nats-server", "nats-server")
        [port] = free_ports(1)
        folder = make_folder("nats")
        command = [program, "-js", "-sd", str(folder / "data"), "-a", "127.0.0.1", "-p", str(port)]
        super().__init__(port, command, folder, version_of(program, "--version"))

    def _answers(self) -> bool:
        return b'"jetstream":true' in self.probe(b"")


class EtcdServer(ProbedServer):
    """An etcd of one member. Raises ServerMissingError."""

    scheme = "http"

    def __init__(self) -> None:
        program = require_program("etcd", "etcd-server")
        port, peer_port = free_ports(2)
        folder = make_folder("etcd")
        own, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
        command = [
            *[program, "--data-dir", str(folder / "data"), "--logger", "zap", "--log-level", "warn"],
            *["--listen-client-urls", own, "--advertise-client-urls", own],
            *["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer],
            *["--initial-cluster", f"default={peer}"],
        ]
        super().__init__(port, command, folder, version_of(program, "--version"))

    def _answers(self) -> bool:
        return b'"health":"true"' in self.probe(b"GET /health HTTP/1.0\r\n\r\n")

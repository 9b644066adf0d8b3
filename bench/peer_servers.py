"""The servers of the peers: programs of this machine, on loopback, with folders of their own, ended by their pid.

They keep their programs' own settings but for memory and what would reach beyond this machine: what a default makes
durable stays durable. Run as root, those that refuse root become the user that their Debian package made.
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

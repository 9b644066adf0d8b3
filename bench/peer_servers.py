"""The servers of the peers: programs of this machine, on loopback, with folders of their own, ended by their pid.

They keep their programs' own settings but for memory and what would reach beyond this machine: what a default makes
durable stays durable. Run as root, those that refuse root become the user that their Debian package made.
"""

from __future__ import annotations

from tests.services.servers import (
    DATABASE,
    MariadbServer,
    PostgresServer,
    _AskedServer,
    _folder,
    _require,
    _version,
    free_ports,
)

__all__ = ["DATABASE", "EtcdServer", "MariadbServer", "NatsServer", "PostgresServer", "RedisServer"]


class RedisServer(_AskedServer):
    """A Redis that writes nothing to disk, as memcached does not. Raises ServiceMissing."""

    scheme = "redis"

    def __init__(self) -> None:
        program = _require("redis-server", "redis-server")
        [port] = free_ports(1)
        folder = _folder("redis")
        command = [
            *[program, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)],
            *["--save", "", "--appendonly", "no"],
        ]
        super().__init__(port, command, folder, _version(program, "--version"))

    def _answers(self) -> bool:
        return self._asked(b"PING\r\n") == b"+PONG\r\n"


class NatsServer(_AskedServer):
    """A NATS server with JetStream on files. Raises ServiceMissing."""

    scheme = "nats"

    def __init__(self) -> None:
        program = _require("nats-server", "nats-server")
        [port] = free_ports(1)
        folder = _folder("nats")
        command = [program, "-js", "-sd", str(folder / "data"), "-a", "127.0.0.1", "-p", str(port)]
        super().__init__(port, command, folder, _version(program, "--version"))

    def _answers(self) -> bool:
        return b'"jetstream":true' in self._asked(b"")


class EtcdServer(_AskedServer):
    """An etcd of one member. Raises ServiceMissing."""

    scheme = "http"

    def __init__(self) -> None:
        program = _require("etcd", "etcd-server")
        port, peer_port = free_ports(2)
        folder = _folder("etcd")
        own, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
        command = [
            *[program, "--data-dir", str(folder / "data"), "--logger", "zap", "--log-level", "warn"],
            *["--listen-client-urls", own, "--advertise-client-urls", own],
            *["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer],
            *["--initial-cluster", f"default={peer}"],
        ]
        super().__init__(port, command, folder, _version(program, "--version"))

    def _answers(self) -> bool:
        return b'"health":"true"' in self._asked(b"GET /health HTTP/1.0\r\n\r\n")

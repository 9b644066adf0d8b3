"""The servers of the peers: programs of this machine, on loopback, with folders of their own, ended by their pid.

They keep their programs' own settings but for memory and what would reach beyond this machine: what a default makes
durable stays durable. Run as root, those that refuse root become the user that their Debian package made.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.services.servers import (
    PROBE_TIMEOUT_S,
    ServiceFailed,
    ServiceMissing,
    _Process,
    _program,
    _Server,
    free_ports,
)

START_TIMEOUT_S: Final = 60.0
MARIADB_POOL_MB: Final = 512
DATABASE: Final = "bench"
USER: Final = "bench"
POSTGRES_PROTOCOL: Final = 196_608  # 3.0
REPLY_BYTES: Final = 4_096


def _require(name: str, package: str, *first: str) -> str:
    """The path of a program; raises ServiceMissing with the Debian package that has it."""
    if program := _program(name, *first):
        return program
    raise ServiceMissing(f"{name} is not installed: apt-get install {package}")


def _version(program: str, *arguments: str) -> str:
    """The first number with a dot in what a program says of itself."""
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=True)  # noqa: S603 - a server's own tool
    found = re.search(r"\d+\.[\w.+~-]+", done.stdout)
    return found.group() if found else "unknown"


def _folder(name: str) -> Path:
    return Path(tempfile.mkdtemp(prefix=f"nodestate-{name}-"))


def _owned_by(user: str, package: str, folder: Path) -> list[str]:
    """What to put before a command so that it runs as ``user``, who is given the folder; nothing unless run by root."""
    if os.geteuid() != 0:
        return []
    try:
        shutil.chown(folder, user, user)
        # It becomes the command instead of waiting for it as its parent, so the pid started is the server's own.
        setpriv = _require("setpriv", "util-linux")
    except (LookupError, ServiceMissing) as error:
        folder.rmdir()
        raise ServiceMissing(f"there is no user {user}, or no setpriv: apt-get install {package} util-linux") from error
    return [setpriv, f"--reuid={user}", f"--regid={user}", "--init-groups", "--"]


def _prepare(command: Sequence[str], folder: Path) -> None:
    """Run what makes a server's data folder."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)  # noqa: S603 - ditto
    if done.returncode != 0:
        shutil.rmtree(folder, ignore_errors=True)
        raise ServiceFailed(f"{Path(command[0]).name} failed:\n{done.stdout[-2_000:]}{done.stderr[-2_000:]}")


class _PeerServer(_Server):
    """A server that is asked one question over TCP; ``version`` is what its program says."""

    scheme = ""

    def __init__(self, port: int, command: Sequence[str], folder: Path, version: str) -> None:
        super().__init__(port, _Process(command, folder), START_TIMEOUT_S)
        self.version = version

    @property
    def url(self) -> str:
        """``scheme://127.0.0.1:port``."""
        return f"{self.scheme}://{self.address}"

    def _asked(self, question: bytes) -> bytes:
        try:
            with socket.create_connection(("127.0.0.1", self.port), PROBE_TIMEOUT_S) as connection:
                connection.settimeout(PROBE_TIMEOUT_S)
                connection.sendall(question)
                return connection.recv(REPLY_BYTES)
        except OSError:
            return b""


class MariadbServer(_PeerServer):
    """A MariaDB with databases, and a user without a password who may do anything in them. Raises ServiceMissing."""

    scheme = "mysql+pymysql"

    def __init__(self, others: Sequence[str] = ()) -> None:
        package = "mariadb-server"
        program = _require("mariadbd", package)
        install = _require("mariadb-install-db", package)
        [port] = free_ports(1)
        folder = _folder("mariadb")
        user = _owned_by("mysql", package, folder)
        first = folder / "first.sql"
        first.write_text(
            f"CREATE USER IF NOT EXISTS '{USER}'@'127.0.0.1';\n"
            + "".join(
                f"CREATE DATABASE IF NOT EXISTS {name};\nGRANT ALL ON {name}.* TO '{USER}'@'127.0.0.1';\n"
                for name in (DATABASE, *others)
            ),
            encoding="utf-8",
        )
        first.chmod(0o644)
        data = ["--no-defaults", f"--datadir={folder / 'data'}"]
        _prepare([*user, install, *data, "--skip-test-db", "--auth-root-authentication-method=normal"], folder)
        command = [
            *[*user, program, *data],
            *[f"--port={port}", "--bind-address=127.0.0.1", "--skip-name-resolve", f"--init-file={first}"],
            *[f"--socket={folder / 'socket'}", f"--pid-file={folder / 'pid'}"],
            f"--innodb-buffer-pool-size={MARIADB_POOL_MB}M",
        ]
        super().__init__(port, command, folder, _version(program, "--version"))

    @property
    def url(self) -> str:
        """As SQLAlchemy takes it."""
        return f"{self.scheme}://{USER}@{self.address}/{DATABASE}"

    def _answers(self) -> bool:
        return self._asked(b"")[4:5] == b"\x0a"  # the protocol version of its greeting


class PostgresServer(_PeerServer):
    """A PostgreSQL whose superuser is trusted. Raises ServiceMissing."""

    scheme = "postgresql+psycopg"

    def __init__(self) -> None:
        package = "postgresql"
        newest = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), key=_major, reverse=True)
        program = _require("postgres", package, *newest)
        initdb = _require("initdb", package, *newest)
        [port] = free_ports(1)
        folder = _folder("postgres")
        user = _owned_by("postgres", package, folder)
        data = str(folder / "data")
        _prepare([*user, initdb, "-D", data, "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C"], folder)
        command = [
            *[*user, program, "-D", data, "-p", str(port)],
            *["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="],
        ]
        super().__init__(port, command, folder, _version(program, "--version"))

    @property
    def url(self) -> str:
        """As SQLAlchemy takes it."""
        return f"{self.scheme}://{USER}@{self.address}/postgres"

    def close(self) -> None:
        """End the server in order: killed, it would leave shared memory behind, which is in no folder."""
        self.stop()
        super().close()

    def _answers(self) -> bool:
        content = struct.pack("!i", POSTGRES_PROTOCOL) + f"user\0{USER}\0database\0postgres\0\0".encode()
        return self._asked(struct.pack("!i", len(content) + 4) + content)[:1] == b"R"


def _major(folder: str) -> float:
    return float(Path(folder).parent.name)


class RedisServer(_PeerServer):
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


class NatsServer(_PeerServer):
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


class EtcdServer(_PeerServer):
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

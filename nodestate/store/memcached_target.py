"""Where a memcached server listens, and how a connection to it begins: TCP or unix socket, TLS, and login."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from nodestate.errors import ConfigError
from nodestate.ports.tls import TlsFiles, client_context, tls_cause

KEEPALIVE: Final = {socket.TCP_KEEPIDLE: 5, socket.TCP_KEEPINTVL: 2, socket.TCP_KEEPCNT: 3}
MAX_LINE_BYTES: Final = 2_048
UNAUTHENTICATED: Final = "unauthenticated"
"""The error of a server with an authentication file if the first command is no login."""


@dataclass(frozen=True, slots=True)
class MemcachedTarget:
    """One server.

    Args:
        name: host:port, or the path of a unix socket.
        tls: files for TLS; None for a connection without.
        login: user and password; None for none.
    """

    name: str
    tls: TlsFiles | None = None
    login: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        host, _, port = self.name.rpartition(":")
        if not self.name.startswith("/") and not (host and port.isdigit()):
            raise ConfigError(f"store {self.name!r} is no address of a memcached server; give host:port")

    def connectors(self) -> Iterator[Callable[[float], socket.socket]]:
        """For each address of the server, the function that connects there within a number of seconds.

        All addresses of a name are tried, because 'localhost' has two.
        """
        if self.name.startswith("/"):
            yield partial(self._connected, socket.AF_UNIX, self.name)
            return
        host, _, port = self.name.rpartition(":")
        for family, _, _, _, place in socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM):
            yield partial(self._connected, family, place)

    def cause_of(self, error: ssl.SSLError) -> str:
        """Explain an error of TLS."""
        assert self.tls is not None, "an error of TLS comes from a connection with TLS"
        return tls_cause(error, self.tls, self.name)

    def _connected(self, family: int, place: Any, timeout_s: float) -> socket.socket:
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout_s)
            if family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for option, value in KEEPALIVE.items():
                    connection.setsockopt(socket.IPPROTO_TCP, option, value)
            connection.connect(place)
            if self.tls is not None:
                host = self.name.rpartition(":")[0].strip("[]")
                connection = client_context(self.tls).wrap_socket(connection, server_hostname=host)
            if self.login is not None:
                _log_in(connection, *self.login)
        except BaseException:
            connection.close()
            raise
        return connection


def _log_in(connection: socket.socket, user: str, password: str) -> None:
    """Log in, if the server asks for it.

    The login has the form of a write. A server without an authentication file would keep the password as an item that
    every client can read. So a first command shows whether the server asks for a login.
    """
    if UNAUTHENTICATED.encode() not in _asked(connection, b"version\r\n"):
        return
    login = f"{user} {password}".encode()
    answer = _asked(connection, b"set login 0 0 %d\r\n%b\r\n" % (len(login), login))
    if answer != b"STORED\r\n":
        raise ConnectionError(
            "it refuses the login: compare the settings store_user and store_password with the file of memcached's -Y"
        )


def _asked(connection: socket.socket, request: bytes) -> bytes:
    connection.sendall(request)
    reply = b""
    while not reply.endswith(b"\n"):
        piece = connection.recv(MAX_LINE_BYTES)
        if not piece or len(reply) > MAX_LINE_BYTES:
            raise ConnectionResetError("the server closed the connection")
        reply += piece
    return reply

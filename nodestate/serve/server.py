"""The HTTP server: where it listens, and how it starts and stops."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import resource
import socket
import ssl
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from nodestate.errors import ConfigError
from nodestate.listening import bound_socket
from nodestate.serve.guarded_protocol import guarded_protocol
from nodestate.serve.limits import (
    KEEP_ALIVE_S,
    MAX_HEAD_BYTES,
    REFUSED_CONNECTIONS_COUNT,
    TLS_HANDSHAKE_TIMEOUT_S,
    Limits,
)
from nodestate.setting_files import require_secret

UNIX_PREFIX: Final = "unix:"
BACKLOG: Final = 256
OWN_FILES_COUNT: Final = 100
"""Open files of the process besides the connections of clients."""
GRACE_S: Final = 5
"""Seconds that running requests get to end when the server stops."""


@dataclass(frozen=True)
class Listener:
    """A bound socket on which the server accepts connections."""

    socket: socket.socket
    url: str
    """URL of the server, or ``unix:PATH``."""
    is_loopback: bool
    """True if only programs of this machine can connect."""
    path: Path | None = None
    """The file of a unix socket; None for TCP."""

    def close(self) -> None:
        """Close the socket and remove its file."""
        self.socket.close()
        if self.path is not None:
            with suppress(OSError):
                self.path.unlink()


def listen(address: str, *, tls: bool = False) -> Listener:
    """Bind a socket.

    Args:
        address: ``host:port``, ``[host]:port`` for IPv6, or ``unix:PATH``. Port 0: any free one.
        tls: True if the server will speak TLS there; for the URL only.

    Raises:
        ConfigError: if the address is wrong or taken.
    """
    if address.startswith(UNIX_PREFIX):
        return _listen_on_file(Path(address.removeprefix(UNIX_PREFIX)))
    bound = bound_socket("--listen", address, BACKLOG, also=", or unix:PATH")
    bound.setblocking(False)
    host = address.rpartition(":")[0]
    is_loopback = ipaddress.ip_address(bound.getsockname()[0]).is_loopback
    return Listener(bound, f"{'https' if tls else 'http'}://{host}:{bound.getsockname()[1]}", is_loopback)


def _listen_on_file(path: Path) -> Listener:
    """Bind a unix socket that only this user can connect to. A socket that a dead process left is replaced."""
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                try:
                    probe.connect(str(path))
                except ConnectionRefusedError:
                    path.unlink()
        bound.bind(str(path))
        path.chmod(0o600)
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"--listen {UNIX_PREFIX}{path}: {error.strerror or error}; give another path, or end its program"
        ) from None
    bound.setblocking(False)
    return Listener(bound, f"{UNIX_PREFIX}{path}", is_loopback=True, path=path)


class _Server(uvicorn.Server):
    """The server of uvicorn, which ends when ``stop`` returns True. The caller handles signals."""

    def __init__(
        self,
        config: uvicorn.Config,
        protocol: type[H11Protocol],
        stop: Callable[[], bool],
        on_start: Callable[[], None],
        on_stop: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._on_stop = on_stop
        self._protocol = protocol
        self._stop = stop
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start as uvicorn does, but with a limit for TLS handshakes, and report it."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise ConfigError("the service cannot start: its log has the cause")
        loop, config = asyncio.get_running_loop(), self.config

        def connect() -> asyncio.Protocol:
            return self._protocol(config, self.server_state, self.lifespan.state)

        handshake_s = TLS_HANDSHAKE_TIMEOUT_S if config.ssl is not None else None
        self.servers = [
            await loop.create_server(
                connect, sock=one, ssl=config.ssl, backlog=BACKLOG, ssl_handshake_timeout=handshake_s
            )
            for one in sockets or []
        ]
        self.started = True
        self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop as uvicorn does, once long requests were told to end."""
        self._on_stop()
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Return True if the server must end; called ten times a second."""
        return await super().on_tick(counter) or self._stop()


def tls_context(cert: str, key: str) -> ssl.SSLContext:
    """Return the context of a server with a certificate. Raises ``ConfigError`` if the files cannot be used.

    Args:
        cert: PEM file with the certificate, followed by the certificates of its authorities, if any.
        key: PEM file with its private key; empty: it is in the same file.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        require_secret(Path(key or cert).stat(), key or cert, "--tls-key" if key else "--tls-cert")
        context.load_cert_chain(cert, key or None, password=lambda: "")
    except OSError as error:
        raise ConfigError(
            f"--tls-cert {cert} with --tls-key {key or cert} is no certificate in PEM with its private key without a "
            f"password: {getattr(error, 'reason', None) or error.strerror or error}"
        ) from None
    return context


def run_server(
    app: ASGIApp,
    listener: Listener,
    stop: Callable[[], bool],
    on_start: Callable[[], None] = lambda: None,
    on_stop: Callable[[], None] = lambda: None,
    *,
    limits: Limits | None = None,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Serve requests until ``stop`` returns True.

    Args:
        app: the application.
        listener: where to listen; closed at the end.
        stop: asked ten times a second.
        on_start: called once requests are accepted.
        on_stop: called in the event loop before the server waits for running requests.
        limits: the limits of connections.
        tls: the context for TLS; None: without TLS.
    """
    limits = limits or Limits()
    _raise_open_files(limits.max_connections + REFUSED_CONNECTIONS_COUNT + OWN_FILES_COUNT)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # a client's mistakes are no warnings
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_graceful_shutdown=GRACE_S,
        lifespan="on",
        timeout_keep_alive=KEEP_ALIVE_S,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )
    config.load()
    config.ssl = tls
    server = _Server(config, guarded_protocol(limits), stop, on_start, on_stop)
    try:
        asyncio.run(server._serve([listener.socket]))  # noqa: SLF001 - serve() would replace the caller's signal handlers
    finally:
        listener.close()


def _raise_open_files(count: int) -> None:
    """Let this process open at least ``count`` files, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard) if hard >= 0 else count, hard))

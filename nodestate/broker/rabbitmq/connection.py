"""One AMQP connection: opening it, waiting for frames, and ending it."""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

import amqp
import kombu
import kombu.exceptions

from nodestate.broker.rabbitmq.frames import frame_handler
from nodestate.broker.sessions import ServerFacts, unavailable
from nodestate.config import Config
from nodestate.errors import BrokerUnavailableError
from nodestate.ports.forks import sever_in_children
from nodestate.ports.tls import TlsFiles, client_context, tls_cause

READ_AHEAD_BYTES: Final = 64 * 1024
CLOSE_TIMEOUT_S: Final = 1.0
DEFAULT_USER: Final = "guest"
"""The login if a URL has none."""
BEATS_PER_HEARTBEAT_COUNT: Final = 2
"""Heartbeat frames that py-amqp sends within one heartbeat."""

_KOMBU_TRANSPORTS: Final = {"amqp": "pyamqp", "pyamqp": "pyamqp", "amqps": "amqps"}


class _ReadAheadBuffer:
    """Reads the socket in large pieces.

    py-amqp reads every frame in three steps, which costs nine calls of the kernel for each message. Serving those reads
    from one buffer doubles the rate of a consumer.
    """

    def __init__(self, transport: Any) -> None:
        self._recv: Callable[[int], bytes] = transport._quick_recv  # noqa: SLF001 - the seam between frames and socket
        """Reads up to that many bytes from the socket."""
        self._piece = b""
        """The bytes that were read last."""
        self._at = 0
        """Index of the first byte in ``_piece`` that is not yet served."""
        transport._quick_recv = self  # noqa: SLF001 - ditto

    def __call__(self, size: int) -> bytes:
        if self._at >= len(self._piece):
            self._piece = self._recv(READ_AHEAD_BYTES)
            self._at = 0
        end = self._at + size
        part = self._piece[self._at : end]
        self._at = end
        return part

    @property
    def waiting(self) -> bool:
        """True while the buffer holds bytes that are not yet served."""
        return self._at < len(self._piece)


class RabbitConnection:
    """One AMQP connection. No call on it waits for longer than ``broker_timeout_s``.

    connected --close, drop--> gone

    Raises ``BrokerUnavailableError`` from its constructor; afterwards the exceptions of ``errors``.
    """

    errors: ClassVar[tuple[type[BaseException], ...]] = (OSError, amqp.AMQPError, kombu.exceptions.KombuError)
    """Exception classes after which the connection must be dropped."""

    def __init__(self, config: Config, url: str, scheme: str, name: str, heartbeat_s: float) -> None:
        self.broker = config.broker_safe
        """The broker's URLs without passwords, for error messages."""
        self.url = url
        """The URL of the server."""
        self.blocked = ""
        """Why the broker takes no messages from this connection (it is short of memory or disk), as of the last
        ``read``; empty if it takes them.
        """
        self.fail_if_blocked = False
        """Whether to raise ``BrokerUnavailableError`` as soon as the broker says that it takes no messages."""
        self._kombu: Any = kombu.Connection(
            url,
            transport=_KOMBU_TRANSPORTS[scheme],
            ssl=_tls_options(config.broker_tls, url) if scheme == "amqps" else False,
            connect_timeout=config.broker_timeout_s,
            heartbeat=heartbeat_s,
            transport_options={
                "client_properties": {"connection_name": name},
                "frame_handler": frame_handler,
                # py-amqp's default gives up after one second of unacknowledged data, which is less than RabbitMQ takes
                # to page messages out.
                "socket_settings": {socket.TCP_USER_TIMEOUT: int(config.broker_timeout_s * 1000)},
            },
        )
        """kombu's connection, which owns the AMQP connection."""
        self.user: str = self._kombu.userid or DEFAULT_USER
        """The login."""
        try:
            if scheme == "amqps":
                client_context(config.broker_tls)  # its errors name the setting, unlike the errors of py-amqp
            # One attempt: the caller decides when to try again.
            self._kombu.ensure_connection(max_retries=0, reraise_as_library_errors=False)
            self._amqp: Any = self._kombu.connection
            """py-amqp's connection."""
            self._amqp.on_blocked = self._on_blocked
            self._amqp.on_unblocked = self._on_unblocked
            self._ahead = _ReadAheadBuffer(self._amqp.transport)
            """Bytes that were read from the socket and are not yet parsed."""
            self.socket = self._amqp.transport.sock
            """The connection's socket."""
            self.socket.settimeout(config.broker_timeout_s)
            sever_in_children(self)
            self._readable = select.poll()
            """Polls the socket for input."""
            self._readable.register(self.socket, select.POLLIN)
            self.control: Any = self._amqp.channel()
            """The channel for declarations, and for single messages that are sent without a confirm."""
        except self.errors as error:
            self._kombu.collect()
            if isinstance(error, ssl.SSLError):
                cause = tls_cause(error, config.broker_tls, urlsplit(url).netloc.rpartition("@")[2])
                raise BrokerUnavailableError(self.broker, cause) from error
            raise unavailable(config, error) from error
        except BaseException:
            self._kombu.collect()
            raise

    @property
    def facts(self) -> ServerFacts:
        """Product and version, as the server reports them."""
        properties = self._amqp.server_properties
        return ServerFacts(
            "amqp", str(properties.get("product", "?")), str(properties.get("version", "?")), fails_over=True
        )

    def channel(self) -> Any:
        """Open another channel. Message bodies on it are bytes."""
        channel = self._amqp.channel()
        channel.auto_decode = False
        return channel

    # -- waiting for frames

    def has_input(self, timeout_s: float) -> bool:
        """True as soon as there is something to ``read``; False after ``timeout_s``."""
        if self._ahead.waiting:
            return True
        # Rounded up, as poll takes whole milliseconds and a caller's loop would spin through the last one.
        return bool(self._readable.poll(int(timeout_s * 1000) + 1 if timeout_s > 0 else 0))

    def read(self) -> None:
        """Process one frame, and call the callback that waits for it."""
        self._amqp.blocking_read(None)

    def pump(self, timeout_s: float) -> bool:
        """Process one frame; False if none came within ``timeout_s``."""
        came = self.has_input(timeout_s)
        if came:
            self.read()
        return came

    def drain(self) -> None:
        """Process all frames that have arrived. ``blocked`` is then up to date."""
        while self.has_input(0):
            self.read()

    @property
    def alarm(self) -> str:
        """Text that says why the broker takes no messages, as of the last ``read``; empty if it takes them."""
        return f"it is short of memory or disk, and takes no messages: {self.blocked}" if self.blocked else ""

    def check_not_blocked(self) -> None:
        """Raise ``BrokerUnavailableError`` if the broker takes no messages, as of the last ``read``."""
        if self.blocked:
            raise BrokerUnavailableError(self.broker, self.alarm)

    def beat(self) -> None:
        """Send a heartbeat if one is due. Raises if the server's heartbeats are missing.

        Call at least twice within each heartbeat.
        """
        self._amqp.heartbeat_tick(BEATS_PER_HEARTBEAT_COUNT)

    def descriptors(self) -> list[int]:
        """See ``ports.forks.SocketOwner``."""
        descriptor = self.socket.fileno()
        return [descriptor] if descriptor >= 0 else []

    # -- ending

    def close(self) -> None:
        """Close the connection properly. Messages that were not acked go back to their queue, in order."""
        with suppress(OSError):
            self.socket.settimeout(CLOSE_TIMEOUT_S)
        if not self.blocked:  # a blocked broker reads no request to close, and its heartbeats defeat the timeout
            with suppress(*self.errors):
                self._amqp.close()
        self.drop()

    def drop(self) -> None:
        """Give up the connection without notifying the server, which may be gone."""
        with suppress(OSError):
            self.socket.settimeout(0)  # with TLS, py-amqp would wait for the server's last message
        self._kombu.collect()

    def _on_blocked(self, reason: str) -> None:
        self.blocked = reason
        if self.fail_if_blocked:
            self.check_not_blocked()

    def _on_unblocked(self) -> None:
        self.blocked = ""


def _tls_options(files: TlsFiles, url: str) -> dict[str, Any]:
    """py-amqp's arguments for a connection that verifies the server's certificate and its name."""
    options = {"ca_certs": files.ca, "certfile": files.cert, "keyfile": files.key}
    given = {name: value for name, value in options.items() if value}
    # py-amqp compares the certificate's name only with a name that it is given.
    return {"server_hostname": urlsplit(url).hostname or "localhost", "cert_reqs": ssl.CERT_REQUIRED, **given}

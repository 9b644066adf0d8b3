"""One connection of a virtual transport: opening it, sending, fetching, and ending it."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

import amqp
import kombu
import kombu.exceptions

from nodestate.broker.sessions import FetchedMessage, ServerFacts, unavailable
from nodestate.broker.topology import CONTENT_TYPE
from nodestate.broker.virtual.memory import MEMORY_LOCK, MemoryTransport
from nodestate.config import Config
from nodestate.model.limits import CUT_BODY_BYTES, MAX_BODY_BYTES
from nodestate.ports.tls import TlsFiles

REDIS_VISIBILITY_S: Final = 60
"""Redis has no connection that a delivery belongs to: a message that was not acked for this long is delivered again."""
REDIS_SCHEMES: Final = frozenset({"redis", "rediss"})
MEMORY_POLL_S: Final = 0.005
"""Pause of ``pump`` between two looks into the queues of ``memory://``."""
MAX_RESTORED_COUNT: Final = 1_000
"""Overdue messages that one ``restore_overdue`` puts back."""

_COMMON_ERRORS: Final = (OSError, amqp.AMQPError, kombu.exceptions.KombuError)


class VirtualConnection:
    """One connection of a kombu transport that emulates AMQP.

    connected --close, drop--> gone

    kombu compares every binding of an exchange with each message. So a partition's queue is bound once, with the key
    "partition/partitions", not once for each bucket; and publishers look up queues by themselves (``bindings``).

    Raises ``BrokerUnavailableError`` from its constructor; afterwards the exceptions of ``errors``.
    """

    def __init__(self, config: Config, url: str) -> None:
        self._kombu: Any = _kombu_connection(config, url)
        """kombu's connection."""
        self.errors: tuple[type[BaseException], ...] = (
            *_COMMON_ERRORS,
            *self._kombu.connection_errors,
            *self._kombu.channel_errors,
        )
        """Exception classes after which the connection must be dropped. They depend on the transport."""
        self._unacked: dict[Any, None] = {}
        """Tags of the messages that were fetched and not acked, oldest first."""
        self.on_close: list[Callable[[], None]] = []
        """Functions for ``close`` to call; each deletes a queue that belongs to this connection."""
        try:
            self._kombu.ensure_connection(max_retries=0, reraise_as_library_errors=False)
            self.channel: Any = self._kombu.channel()
            """The channel for everything but the session's own queues."""
        except self.errors as error:
            self.drop()
            raise unavailable(config, error) from error
        except BaseException:
            self.drop()
            raise

    @property
    def facts(self) -> ServerFacts:
        """Name and version of the transport, as kombu reports them."""
        transport = self._kombu.transport
        return ServerFacts(
            transport.driver_type, transport.driver_name, str(transport.driver_version()), fails_over=False
        )

    def open_channel(self) -> Any:
        """Open another channel."""
        return self._kombu.channel()

    def send(
        self, exchange: str, key: str, body: bytes, kind: str | None = None, headers: Mapping[str, Any] | None = None
    ) -> None:
        """Publish; the message is in its queue when this returns. ``kind`` is its ``type`` property."""
        properties = {"delivery_mode": 2, "type": kind}
        message = self.channel.prepare_message(body, content_type=CONTENT_TYPE, headers=headers, properties=properties)
        self.channel.basic_publish(message, exchange, key)

    def fetch(self, queue: str) -> FetchedMessage | None:
        """Fetch one message, or None if the queue is empty. If it is not acked it goes back, in order, on ``close``."""
        message = self.channel.basic_get(queue)
        if message is None:
            return None
        self._unacked[message.delivery_tag] = None
        redelivered = bool(message.headers.get("redelivered") or message.delivery_info.get("redelivered"))
        body, cut_from = message.body or b"", 0
        if len(body) > MAX_BODY_BYTES:
            body, cut_from = body[:CUT_BODY_BYTES], len(body)
        return FetchedMessage(body, message.delivery_tag, redelivered, message.headers, cut_from)

    def ack(self, tag: Any) -> None:
        """Ack one message. kombu's virtual channels cannot ack several at once."""
        self.channel.basic_ack(tag)
        self._unacked.pop(tag, None)

    def restore_overdue(self) -> None:
        """Put back messages that a consumer fetched before it died. Only Redis keeps any; call about once a second."""
        self.channel.qos.restore_visible(num=MAX_RESTORED_COUNT, interval=1)

    def pump(self, timeout_s: float) -> bool:
        """Deliver the next message of the session's own queues; False if none came within ``timeout_s``."""
        try:
            self._kombu.drain_events(timeout=timeout_s)
        except TimeoutError:
            return False
        return True

    def bindings(self, exchange: str) -> Sequence[tuple[str, str, str]]:
        """Key, pattern and queue of every binding of an exchange, made by any process; empty if there are none."""
        with MEMORY_LOCK:
            try:
                return list(self.channel.get_table(exchange))
            except (KeyError, kombu.exceptions.InconsistencyError):
                return []

    def close(self) -> None:
        """Put back all messages that were not acked, in order; delete the connection's own queues; and end."""
        with suppress(*self.errors):
            # kombu's Redis channel would put them back in reverse order; the memory channel needs no help.
            if hasattr(self.channel.qos, "restore_by_tag"):
                for tag in reversed(self._unacked):
                    self.channel.qos.restore_by_tag(tag)
            for action in self.on_close:
                action()
        self.drop()

    def drop(self) -> None:
        """End at once: a virtual connection has no server to wait for."""
        with suppress(*self.errors):
            self._kombu.release()


def _kombu_connection(config: Config, url: str) -> Any:
    if urlsplit(url).scheme == "memory":
        options: dict[str, Any] = {"polling_interval": MEMORY_POLL_S, "body_encoding": None}
        return kombu.Connection(url, transport=MemoryTransport, transport_options=options)
    options = {
        "priority_steps": [0],
        "visibility_timeout": REDIS_VISIBILITY_S,
        "socket_timeout": config.broker_timeout_s,
        "socket_connect_timeout": config.broker_timeout_s,
    }
    if urlsplit(url).scheme not in REDIS_SCHEMES:
        return kombu.Connection(url, transport_options=options)
    from nodestate.broker.virtual.redis import RedisTransport  # noqa: PLC0415 - the client of Redis is optional

    tls = _tls_options(config.broker_tls) if urlsplit(url).scheme == "rediss" else False
    return kombu.Connection(url, transport=RedisTransport, transport_options=options, ssl=tls)


def _tls_options(files: TlsFiles) -> dict[str, Any]:
    """The arguments of Redis's client for a connection that verifies the server's certificate and its name."""
    options = {"ssl_ca_certs": files.ca, "ssl_certfile": files.cert, "ssl_keyfile": files.key}
    given = {name: value for name, value in options.items() if value}
    return {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True, **given}

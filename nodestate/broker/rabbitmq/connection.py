"""Connections to the broker. The only importer of kombu and amqp: their types and exceptions stop here.

Two kinds: ``AmqpLink`` (RabbitMQ through py-amqp) pushes deliveries and confirms publishes; ``VirtualLink`` (kombu's
``memory://`` and Redis transports) is polled, and takes a publish as done when the call returns.

A link lives once: connected --close, drop--> gone. Whoever holds it opens another. Not safe for several threads.
"""

from __future__ import annotations

import functools
import select
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from queue import Queue
from typing import Any, ClassVar, Final, NamedTuple
from urllib.parse import urlsplit

import amqp
import kombu
import kombu.exceptions
from amqp import spec
from kombu.transport import memory

from nodestate.broker.topology import CONTENT_TYPE, DEAD_KEY, Topology
from nodestate.config import Config
from nodestate.errors import BrokerUnavailableError, ConfigError

READ_AHEAD_BYTES: Final = 64 * 1024
CLOSE_TIMEOUT_S: Final = 1.0
CONTROL_QUEUE_MAX_LENGTH: Final = 1_000
"""Resync requests that wait for an agent that does not look; older ones are dropped."""
REDIS_VISIBILITY_S: Final = 60
"""Redis has no connection to tie a delivery to: what was not acked for so long is given out again."""

_AMQP_SCHEMES: Final = {"amqp": "pyamqp", "pyamqp": "pyamqp", "amqps": "amqps"}
_ANY_ERROR: Final = (OSError, amqp.AMQPError, kombu.exceptions.KombuError)


class Facts(NamedTuple):
    """What answers at the other end."""

    transport: str
    product: str
    version: str


class Fetched(NamedTuple):
    """A message taken out of a queue by asking. ``tag`` acks it."""

    body: bytes
    tag: Any
    redelivered: bool
    headers: Mapping[str, Any]


class Depth(NamedTuple):
    """Ready messages of a queue, and its consumers where the transport can tell."""

    ready: int
    consumers: int | None


@contextmanager
def translated(config: Config, errors: tuple[type[BaseException], ...] = _ANY_ERROR) -> Iterator[None]:
    """Turn what the transport raises into ``BrokerUnavailableError``."""
    try:
        yield
    except errors as error:
        raise unavailable(config, error) from error


def unavailable(config: Config, error: BaseException) -> BrokerUnavailableError:
    """What is told to those who know nothing of kombu."""
    return BrokerUnavailableError(config.broker_safe, str(error) or type(error).__name__)


# -- opening --------------------------------------------------------------------------------------


def open_link(config: Config, role: str, heartbeat_s: float = 0, *, layout: bool = False) -> AmqpLink | VirtualLink:
    """Connect, to the first of the URLs (separated by ``;``) that answers, and declare the cell; with ``layout`` also the
    queues of the settings' layout, as is done anyway where the cell is new.

    Raises ``BrokerUnavailableError``, or ``ConfigError`` where no retry would help.
    """
    failure: BrokerUnavailableError | None = None
    for url in config.broker.split(";"):
        try:
            link = _open(config, url.strip(), role, heartbeat_s)
        except BrokerUnavailableError as error:
            failure = error
            continue
        try:
            with translated(config, link.errors):
                link.declare(Topology.of(config), layout=layout)
        except BaseException:
            link.drop()
            raise
        return link
    assert failure is not None
    raise failure


def _open(config: Config, url: str, role: str, heartbeat_s: float) -> AmqpLink | VirtualLink:
    scheme = urlsplit(url).scheme
    try:
        if "://" not in url:
            raise ValueError("no URL")  # noqa: TRY301 - told as all that kombu finds wrong with it
        if scheme in _AMQP_SCHEMES:
            connection = kombu.Connection(
                url,
                transport=_AMQP_SCHEMES[scheme],
                connect_timeout=config.broker_timeout_s,
                heartbeat=heartbeat_s,
                transport_options={
                    "client_properties": {"connection_name": f"nodestate {role} {config.cell}"},
                    # py-amqp's default gives up after one second of unacknowledged data: less than what RabbitMQ
                    # takes to page messages out.
                    "socket_settings": {socket.TCP_USER_TIMEOUT: int(config.broker_timeout_s * 1000)},
                },
            )
            return AmqpLink(config, connection)
        if scheme == "memory":
            options: dict[str, Any] = {"polling_interval": 0.005, "body_encoding": None}
            return VirtualLink(config, kombu.Connection(url, transport=_MemoryTransport, transport_options=options))
        options = {
            "priority_steps": [0],
            "visibility_timeout": REDIS_VISIBILITY_S,
            "socket_timeout": config.broker_timeout_s,
            "socket_connect_timeout": config.broker_timeout_s,
        }
        return VirtualLink(config, kombu.Connection(url, transport_options=options))
    except (KeyError, ValueError) as error:
        raise ConfigError(f"broker {config.broker_safe!r}: {error}; want amqp://, redis:// or memory://") from error
    except ImportError as error:
        raise ConfigError(f"broker {config.broker_safe!r}: {error}; try pip install nodestate[redis]") from error


# -- AMQP -----------------------------------------------------------------------------------------


class _ReadAhead:
    """Reads the socket in large pieces. py-amqp asks for every frame in three, which is nine calls of the kernel a
    message; handing them out of one buffer doubles the rate of a consumer.
    """

    def __init__(self, transport: Any) -> None:
        self._recv: Callable[[int], bytes] = transport._quick_recv  # noqa: SLF001 - the seam between frames and socket
        self._piece = b""
        self._at = 0
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
        """True while bytes are at hand that were not asked for yet."""
        return self._at < len(self._piece)


class _Prepared(amqp.Message):  # type: ignore[misc]  # amqp has no types
    """A message for many bodies: its properties are encoded once."""

    def __init__(self, **properties: Any) -> None:
        super().__init__(b"", **properties)
        self._encoded: bytes = super()._serialize_properties()

    def _serialize_properties(self) -> bytes:
        return self._encoded


class AmqpLink:
    """One AMQP connection. Nothing on it waits for longer than ``broker_timeout_s``.

    ``blocked``: why the broker takes nothing from this connection (it is short of memory or disk), empty where it does;
    as of the last ``read``.
    """

    errors: ClassVar[tuple[type[BaseException], ...]] = _ANY_ERROR

    def __init__(self, config: Config, connection: Any) -> None:
        self._kombu = connection
        self.blocked = ""
        try:
            with translated(config, self.errors):
                # One try: who calls decides when to try again.
                connection.ensure_connection(max_retries=0, reraise_as_library_errors=False)
                self._amqp: Any = connection.connection
                self._amqp.on_blocked = self._on_blocked
                self._amqp.on_unblocked = self._on_unblocked
                self._ahead = _ReadAhead(self._amqp.transport)
                self._socket = self._amqp.transport.sock
                self._socket.settimeout(config.broker_timeout_s)
                self._readable = select.poll()
                self._readable.register(self._socket, select.POLLIN)
                self._ops: Any = self._amqp.channel()
                self._binder: Any = None
        except BaseException:
            connection.collect()
            raise

    @property
    def facts(self) -> Facts:
        """What the server says of itself."""
        properties = self._amqp.server_properties
        return Facts("amqp", str(properties.get("product", "?")), str(properties.get("version", "?")))

    def _on_blocked(self, reason: str) -> None:
        self.blocked = reason

    def _on_unblocked(self) -> None:
        self.blocked = ""

    # -- waiting

    def has_input(self, timeout_s: float) -> bool:
        """True as soon as there is something to ``read``; False after ``timeout_s``."""
        if self._ahead.waiting:
            return True
        # Rounded up, as poll takes whole milliseconds and a caller's loop would spin through the last one.
        return bool(self._readable.poll(int(timeout_s * 1000) + 1 if timeout_s > 0 else 0))

    def read(self) -> None:
        """Take in one frame, and call whom it is for."""
        self._amqp.blocking_read(None)

    def take_in(self) -> None:
        """Read all that came; ``blocked`` is then as of now."""
        while self.has_input(0):
            self.read()

    def beat(self) -> None:
        """Send a heartbeat if one is due; raises if the peer's are missing. Call twice per heartbeat or more often."""
        self._amqp.heartbeat_tick(2)

    # -- publishing

    def prepared(self) -> Any:
        """A persistent message for ``post``, to be used for many bodies."""
        return _Prepared(content_type=CONTENT_TYPE, delivery_mode=2)

    def fleeting(self, expires_s: float) -> Any:
        """A message for ``post`` that RabbitMQ drops where it waits for so long, to be used for many bodies."""
        return _Prepared(content_type=CONTENT_TYPE, delivery_mode=1, expiration=str(max(1, int(expires_s * 1000))))

    def confirming(self, on_settled: Callable[[int, bool, bool], None]) -> Any:
        """A channel on which the broker answers for each ``post``: ``on_settled(tag, multiple, ok)``.

        A message that no queue would take breaks the link: its queue was deleted, and comes again with the next.
        """
        channel = self._amqp.channel()
        channel.confirm_select()
        channel.events["basic_ack"].add(lambda tag, multiple: on_settled(tag, multiple, True))
        channel.events["basic_nack"].add(lambda tag, multiple: on_settled(tag, multiple, False))
        channel.events["basic_return"].add(_raise_returned)
        return channel

    def asking(self, on_returned: Callable[[bytes], None]) -> Any:
        """A channel without confirms for ``post``; a message that no queue would take is given back."""
        channel = self._amqp.channel()
        channel.auto_decode = False
        channel.events["basic_return"].add(lambda _error, _exchange, _key, message: on_returned(message.body or b""))
        return channel

    def post(self, channel: Any, exchange: str, key: str, body: bytes, message: Any) -> None:
        """Publish on a channel of the two kinds above, without waiting. Straight to the frame writer: ``basic_publish`` would
        first look for input each time, which is half its cost, and which the callers here do when it pays.
        """
        message.body = body
        channel.send_method(spec.Basic.Publish, "Bssbb", (0, exchange, key, True, False), message)

    def letter(self, body: bytes, headers: Mapping[str, Any]) -> Any:
        """A persistent message with headers, for one ``post``."""
        message = amqp.Message(content_type=CONTENT_TYPE, delivery_mode=2, application_headers=dict(headers))
        message.body = body
        return message

    def send(self, exchange: str, key: str, body: bytes, kind: str | None = None) -> None:
        """Publish something that may get lost, unconfirmed."""
        message = amqp.Message(body, content_type=CONTENT_TYPE, delivery_mode=1, type=kind)
        self._ops.send_method(spec.Basic.Publish, "Bssbb", (0, exchange, key, False, False), message)

    # -- consuming

    def consume(self, queue: str, prefetch: int, on_message: Callable[[bytes, int, bool], None]) -> Any:
        """Consume on a channel of its own, so that one ack can cover many; ``on_message(body, tag, redelivered)``."""
        channel = self._amqp.channel()
        channel.auto_decode = False
        channel.basic_qos(0, prefetch, False)

        def deliver(message: Any) -> None:
            about = message.delivery_info
            on_message(message.body or b"", about["delivery_tag"], about["redelivered"])

        channel.basic_consume(queue, callback=deliver)
        return channel

    def ack(self, channel: Any, tag: int, *, multiple: bool) -> None:
        """Ack one of a channel's deliveries, or all up to it."""
        channel.basic_ack(tag, multiple=multiple)

    def listen(self, on_message: Callable[[bytes], None], exchange: str = "") -> str:
        """A queue of this link alone, bound to a fanout exchange where one is given; without acks. Returns its name."""
        channel = self._amqp.channel()
        channel.auto_decode = False
        arguments = {"x-max-length": CONTROL_QUEUE_MAX_LENGTH} if exchange else None
        name: str = channel.queue_declare("", exclusive=True, auto_delete=True, arguments=arguments).queue
        if exchange:
            channel.queue_bind(name, exchange)
        channel.basic_consume(name, callback=lambda message: on_message(message.body or b""), no_ack=True)
        return name

    def bind(self, queue: str, exchange: str, keys: Iterable[str]) -> None:
        """Have a queue of ``listen`` take these keys of an exchange; not waited for, as there may be ten thousand."""
        channel = self._binding()
        for key in keys:
            channel.queue_bind(queue, exchange, key, nowait=True)

    def unbind(self, queue: str, exchange: str, keys: Iterable[str]) -> None:
        """The reverse; not waited for either: the replies find nobody who waits, and are passed over."""
        channel = self._binding()
        for key in keys:
            channel.send_method(spec.Queue.Unbind, "BsssF", (0, queue, exchange, key, {}))

    def _binding(self) -> Any:
        if self._binder is None:
            self._binder = self._amqp.channel()  # its own, as the broker takes a channel's frames in their order
        return self._binder

    def fetch(self, queue: str) -> Fetched | None:
        """Take one message by asking. What is not acked goes back when the link closes."""
        message = self._ops.basic_get(queue)
        if message is None:
            return None
        about = message.delivery_info
        headers = message.headers or {}
        return Fetched(message.body or b"", about["delivery_tag"], about["redelivered"], headers)

    # -- queues

    def declare(self, topology: Topology, *, layout: bool) -> None:
        """Declare the cell, and its ``layout`` if asked to or if no layout was ever declared. Raises ``ConfigError`` where
        something else is there.
        """
        ops = self._ops
        try:
            if not layout:
                try:
                    ops.exchange_declare(topology.control, "fanout", passive=True)
                except amqp.NotFound:
                    layout = True
            if layout:
                for exchange in (topology.exchange, topology.dead, topology.orders):
                    ops.exchange_declare(exchange, "direct", durable=True, auto_delete=False, nowait=True)
                ops.queue_declare(topology.dead, durable=True, auto_delete=False, nowait=True)
                ops.queue_bind(topology.dead, topology.dead, DEAD_KEY, nowait=True)
                for partition, name in topology.queues():
                    ops.queue_declare(
                        name, durable=True, auto_delete=False, arguments=topology.queue_arguments, nowait=True
                    )
                    for bucket in topology.buckets(partition):
                        ops.queue_bind(name, topology.exchange, str(bucket), nowait=True)
            # Last, as its being there says that all of a layout is; and answered, so that an error of any before shows here.
            ops.exchange_declare(topology.control, "fanout", durable=True, auto_delete=False)
        except amqp.PreconditionFailed as error:
            raise ConfigError(
                f"cell {topology.cell!r} has queues of another kind at the broker: {error.reply_text}. "
                f"Set queue_type (now {topology.queue_type}) back, or drain and delete the queues"
            ) from error

    def depth(self, queue: str) -> Depth | None:
        """What waits in a queue; None where there is none."""
        try:
            answer = self._ops.queue_declare(queue, passive=True)
        except amqp.NotFound:
            return None
        return Depth(answer.message_count, answer.consumer_count)

    def delete(self, topology: Topology) -> bool:
        """Delete the queues of a layout, with what waits in them. False where somebody consumes from one, which stays, as do those
        behind it; the link is of no use then.
        """
        try:
            for _, name in topology.queues():
                # RabbitMQ takes no conditions for quorum queues: there the look before must do.
                self._ops.queue_delete(name, if_unused=topology.queue_type == "classic")
        except amqp.PreconditionFailed:
            return False
        return True

    def set_aside(self, topology: Topology, partition: int, queue: str) -> None:
        """Unbind a partition's queue, so that nothing new comes, and delete it if nothing waits in it and nobody consumes from it."""
        for bucket in topology.buckets(partition):
            self._ops.queue_unbind(queue, topology.exchange, str(bucket))
        depth = self.depth(queue)
        if depth == Depth(0, 0):
            classic = topology.queue_type == "classic"  # as in ``delete``
            self._ops.queue_delete(queue, if_unused=classic, if_empty=classic)

    # -- ending

    def close(self) -> None:
        """Part in order. What was not acked goes back to its queue, in order."""
        with suppress(OSError):
            self._socket.settimeout(CLOSE_TIMEOUT_S)
        if not self.blocked:  # its broker would not hear it, and heartbeats keep the timeout from running out
            with suppress(*self.errors):
                self._amqp.close()
        self.drop()

    def drop(self) -> None:
        """Part without a word, as the other end may be gone."""
        self._kombu.collect()


def _raise_returned(error: Exception, exchange: str, key: str, _message: object) -> None:
    raise amqp.ChannelError(f"no queue takes {exchange}/{key}: {error}")


# -- virtual transports ---------------------------------------------------------------------------


class VirtualLink:
    """One connection of a kombu transport that emulates AMQP: in-process memory, or Redis.

    Its exchanges look at all bindings for each message. So a partition's queue is bound once, not once for each bucket, and
    ``publish`` looks for the queues itself.
    """

    def __init__(self, config: Config, connection: Any) -> None:
        self._kombu = connection
        # The error classes depend on the transport: Redis has its own.
        self.errors: tuple[type[BaseException], ...] = (
            *_ANY_ERROR,
            *connection.connection_errors,
            *connection.channel_errors,
        )
        self._taken: dict[Any, None] = {}
        self._boxes: list[tuple[str, str]] = []
        self._bound: dict[tuple[str, str], dict[str, None]] = {}
        try:
            with translated(config, self.errors):
                connection.ensure_connection(max_retries=0, reraise_as_library_errors=False)
                self._ops: Any = connection.channel()
        except BaseException:
            with suppress(*self.errors):
                connection.release()
            raise

    @property
    def facts(self) -> Facts:
        """What kombu says of the transport."""
        transport = self._kombu.transport
        return Facts(transport.driver_type, transport.driver_name, str(transport.driver_version()))

    def send(
        self, exchange: str, key: str, body: bytes, kind: str | None = None, headers: Mapping[str, Any] | None = None
    ) -> None:
        """Publish; it is in its queue when this returns."""
        properties = {"delivery_mode": 2, "type": kind}
        message = self._ops.prepare_message(body, content_type=CONTENT_TYPE, headers=headers, properties=properties)
        self._ops.basic_publish(message, exchange, key)

    def publish(self, exchange: str, bucket: int, body: bytes) -> None:
        """Publish an event into the queue of its partition in each layout. Straight to the queue: what a consumer gives back
        goes where it was published to, and must not get into other layouts again.
        """
        queues = [queue for key, _, queue in self._bindings(exchange) if _takes(key, bucket)]
        if not queues:
            raise amqp.ChannelError(f"no queue takes {exchange}/{bucket}")
        for queue in queues:
            self.send("", queue, body)

    def fetch(self, queue: str) -> Fetched | None:
        """Take one message. What is not acked goes back, in order, when the link closes."""
        message = self._ops.basic_get(queue)
        if message is None:
            return None
        self._taken[message.delivery_tag] = None
        redelivered = bool(message.headers.get("redelivered") or message.delivery_info.get("redelivered"))
        return Fetched(message.body or b"", message.delivery_tag, redelivered, message.headers)

    def ack(self, tag: Any) -> None:
        """Forget one message; kombu's virtual channels know no ``multiple``."""
        self._ops.basic_ack(tag)
        self._taken.pop(tag, None)

    def restore_overdue(self) -> None:
        """Give out again what a consumer took and then died with. Only Redis has such; call about once a second."""
        self._ops.qos.restore_visible(num=1000, interval=1)

    def listen(self, on_message: Callable[[bytes], None], exchange: str = "") -> str:
        """A queue of this link alone, bound to a fanout exchange where one is given; read by ``pump``. Returns its name."""
        channel = self._kombu.channel()
        name: str = self.open_box(exchange)
        channel.basic_consume(
            name, no_ack=True, callback=lambda message: on_message(message.body or b""), consumer_tag=name
        )
        self.pump(0)  # Redis subscribes with the first poll
        return name

    def open_box(self, exchange: str = "") -> str:
        """A queue of this link alone, that goes with it, bound to a fanout exchange where one is given."""
        name: str = f"nodestate.box.{kombu.uuid()}"
        self._ops.queue_declare(name, auto_delete=True, exclusive=True)
        if exchange:
            self._ops.queue_bind(name, exchange)
        self._boxes.append((name, exchange))
        return name

    def bind(self, queue: str, exchange: str, keys: Iterable[str]) -> None:
        """Have a queue of ``listen`` take these keys of an exchange."""
        for key in keys:
            self._ops.queue_bind(queue, exchange, key)
            self._bound.setdefault((queue, exchange), {})[key] = None

    def unbind(self, queue: str, exchange: str, keys: Iterable[str]) -> None:
        """The reverse. With Redis the binding stays until the link closes: kombu knows it only with its queue."""
        gone = set(keys)
        with _MEMORY_LOCK:
            for key in gone:
                self._ops.state.binding_delete(queue, exchange, key)
            # Once for all, as kombu's own queue_unbind goes through the table for each.
            table = self._ops.state.exchanges[exchange]["table"]
            table[:] = [binding for binding in table if binding[2] != queue or binding[0] not in gone]

    def routes(self, exchange: str) -> dict[str, list[str]]:
        """By key, the queues that are bound to a direct exchange now."""
        with _MEMORY_LOCK:
            table = list(self._ops.get_table(exchange))
        routes: dict[str, list[str]] = {}
        for key, _, queue in table:
            routes.setdefault(key, []).append(queue)
        return routes

    def pump(self, timeout_s: float) -> bool:
        """Deliver the next message to whom ``listen`` was given; False if none came within ``timeout_s``."""
        try:
            self._kombu.drain_events(timeout=timeout_s)
        except TimeoutError:
            return False
        return True

    def declare(self, topology: Topology, *, layout: bool) -> None:
        """Declare the cell, and its ``layout`` if asked to or if there is none."""
        ops = self._ops
        for exchange, kind in (
            (topology.exchange, "direct"),
            (topology.dead, "direct"),
            (topology.control, "fanout"),
            (topology.orders, "direct"),
        ):
            ops.exchange_declare(exchange, kind, durable=True)
        ops.queue_declare(topology.dead, durable=True)
        ops.queue_bind(topology.dead, topology.dead, DEAD_KEY)
        for partition, name in topology.queues() if layout or not self._bindings(topology.exchange) else ():
            ops.queue_declare(name, durable=True)
            ops.queue_bind(name, topology.exchange, f"{partition}/{topology.partitions}")

    def depth(self, queue: str) -> Depth | None:
        """What waits in a queue; virtual transports can't count consumers, and Redis has no empty queues."""
        return Depth(self._ops.queue_declare(queue).message_count, None)

    def delete(self, topology: Topology) -> bool:
        """Delete the queues of a layout, with what waits in them; whether somebody consumes from them can't be told."""
        for partition, name in topology.queues():
            self._delete(name, topology.exchange, f"{partition}/{topology.partitions}")
        return True

    def close(self) -> None:
        """Part in order."""
        with suppress(*self.errors):
            # kombu's Redis channel would put these back in reverse; the memory channel below does it right by itself.
            if hasattr(self._ops.qos, "restore_by_tag"):
                for tag in reversed(self._taken):
                    self._ops.qos.restore_by_tag(tag)
            for (name, exchange), keys in self._bound.items():
                self.unbind(name, exchange, keys)
                for key in keys:
                    self._ops._delete(name, exchange, key, "", name)  # noqa: SLF001 - as below
            for name, exchange in self._boxes:
                self._delete(name, exchange, "")
        self.drop()

    def _delete(self, queue: str, exchange: str, key: str) -> None:
        # Both, as kombu's queue_delete leaves bindings behind (and fills the queue again with each broadcast), and does
        # not delete a queue that has none.
        if exchange:
            self._ops.queue_unbind(queue, exchange, key)
        self._ops._delete(queue, exchange, key, None, queue)  # noqa: SLF001 - a hook of virtual channels

    def _bindings(self, exchange: str) -> Sequence[tuple[str, str, str]]:
        """Key, pattern and queue of all that is bound to an exchange, by any process."""
        try:
            return list(self._ops.get_table(exchange))
        except (KeyError, kombu.exceptions.InconsistencyError):  # nothing was bound yet
            return []

    def drop(self) -> None:
        """Part; a virtual connection has nobody to wait for."""
        with suppress(*self.errors):
            self._kombu.release()


def _takes(key: str, bucket: int) -> bool:
    """Whether a queue that is bound with "partition/partitions" takes events of a bucket."""
    partition, _, partitions = key.partition("/")
    return bucket % int(partitions) == int(partition)


_MEMORY_LOCK: Final = threading.RLock()


def _one_at_a_time(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def locked(*args: Any, **kwargs: Any) -> Any:
        with _MEMORY_LOCK:
            return method(*args, **kwargs)

    return locked


class _MemoryChannel(memory.Channel):
    """kombu's memory channel, made safe for a publisher and a consumer in different threads of a process, and with
    unacked messages going back to the front of their queue, in order, when their consumer closes.
    """

    do_restore = True

    def _new_queue(self, queue: str, **_: Any) -> None:
        self._queue_for(queue)

    def _queue_for(self, queue: str) -> Any:
        with _MEMORY_LOCK:
            if queue not in self.queues:
                self.queues[queue] = Queue()
            return self.queues[queue]

    def _restore(self, message: Any) -> None:
        # Called for the newest first, so each goes before the one restored before it.
        payload = message.serializable()
        payload["properties"]["delivery_info"]["redelivered"] = True
        about = message.delivery_info
        for name in self._lookup(about["exchange"], about["routing_key"]):
            waiting = self._queue_for(name)
            with waiting.mutex:
                waiting.queue.appendleft(payload)

    _lookup = _one_at_a_time(memory.Channel._lookup)  # noqa: SLF001 - a hook of subclasses
    exchange_declare = _one_at_a_time(memory.Channel.exchange_declare)
    queue_bind = _one_at_a_time(memory.Channel.queue_bind)
    queue_unbind = _one_at_a_time(memory.Channel.queue_unbind)
    queue_delete = _one_at_a_time(memory.Channel.queue_delete)
    close = _one_at_a_time(memory.Channel.close)


class _MemoryTransport(memory.Transport):
    """``memory://``: the queues are the process's, and outlive every connection."""

    Channel = _MemoryChannel

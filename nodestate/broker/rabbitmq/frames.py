"""Frames of a connection: the messages that RabbitMQ delivers, with bounds on the work that a message may cause.

py-amqp's own handler decodes all properties of a message, its exchange and its routing key while it reads the frames.
Any publisher can write bytes there that it cannot decode; then the connection breaks, and again at the next delivery of
the same message. Here properties, exchange and routing key stay encoded until one of the functions below is called for
them, and a body over ``MAX_BODY_BYTES`` is cut while it arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from struct import unpack_from
from typing import Any, Final

from amqp import spec
from amqp.exceptions import UnexpectedFrame
from amqp.serialization import decode_properties_basic

from nodestate.model.limits import CUT_BODY_BYTES, MAX_BODY_BYTES

METHOD: Final = 1
HEADER: Final = 2
BODY: Final = 3
HEARTBEAT: Final = 8

_SIGNATURE_BYTES: Final = 4
_NO_NAMES: Final = b"\0\0"
"""An empty exchange and an empty routing key."""
_FLAGS_BYTES: Final = 2
_TABLE_BYTES: Final = 4
_HAS_USER: Final = 1 << 4
_PROPERTIES_BEFORE_USER: Final = (
    (1 << 15, 0),  # content type
    (1 << 14, 0),  # content encoding
    (1 << 13, _TABLE_BYTES),  # headers
    (1 << 12, 1),  # delivery mode
    (1 << 11, 1),  # priority
    (1 << 10, 0),  # correlation id
    (1 << 9, 0),  # reply to
    (1 << 8, 0),  # expiration
    (1 << 7, 0),  # message id
    (1 << 6, 8),  # timestamp
    (1 << 5, 0),  # type
)
"""Flag and size of each property that stands before the user id; size 0: a short text; a table follows its size."""

OnMethod = Callable[[int, tuple[int, int], bytes, Any], Any]
"""Called with each complete method: channel, signature, encoded arguments, and the message or None."""


class InboundMessage:
    """A message from the broker. Stands in for py-amqp's own type, which is slower to make."""

    __slots__ = (
        "_chunks",
        "_missing_bytes",
        "_received_bytes",
        "body",
        "body_size",
        "channel",
        "cut_from",
        "delivery_info",
        "encoded_names",
        "encoded_properties",
        "frame_args",
        "frame_method",
    )

    def __init__(self, signature: tuple[int, int], arguments: bytes, names: bytes) -> None:
        self.frame_method = signature
        """The method that carries the message."""
        self.frame_args = arguments
        """The encoded arguments of the method, with empty names."""
        self.encoded_names = names
        """The exchange and the routing key, as the broker sent them."""
        self.body = b""
        """The body, or its beginning."""
        self.body_size = 0
        """Size of the whole body; 0 until the header came."""
        self.cut_from = 0
        """Size of the whole body if ``body`` is only its beginning; 0 if ``body`` is whole."""
        self.encoded_properties = b""
        """The properties, as the publisher sent them."""
        self.channel: Any = None
        """The channel; py-amqp sets it when it calls back."""
        self.delivery_info: dict[str, Any] = {}
        """The method's arguments; py-amqp sets them when it calls back."""
        self._chunks: list[bytes] = []
        """The kept parts of a body that comes in several frames."""
        self._missing_bytes = 0
        """Bytes of the body that are kept, and are still to come."""
        self._received_bytes = 0
        """Bytes of the body that came."""

    def take_header(self, payload: bytes) -> bool:
        """Take the header frame. Returns True if the message is complete."""
        (self.body_size,) = unpack_from(">Q", payload, 4)
        self.encoded_properties = payload[12:]
        if self.body_size > MAX_BODY_BYTES:
            self.cut_from = self.body_size
            self._missing_bytes = CUT_BODY_BYTES
        else:
            self._missing_bytes = self.body_size
        return not self.body_size

    def take_body(self, payload: bytes) -> bool:
        """Take the next frame of the body. Returns True if the message is complete."""
        if len(payload) == self._missing_bytes == self.body_size:  # the usual case: one frame
            self.body = payload
            return True
        self._received_bytes += len(payload)
        if self._missing_bytes:
            self._chunks.append(payload[: self._missing_bytes])
            self._missing_bytes -= len(self._chunks[-1])
        if self._received_bytes < self.body_size:
            return False
        self.body = b"".join(self._chunks)
        self._chunks.clear()
        return True


def decoded_headers(message: Any) -> Mapping[str, Any]:
    """Decode the header table of an ``InboundMessage``; empty if it has none, or if its properties are malformed."""
    try:
        properties, _ = decode_properties_basic(message.encoded_properties, 0)
    except Exception:  # noqa: BLE001 - bytes of any publisher, and py-amqp names no exceptions
        return {}
    return properties.get("application_headers") or {}


def has_exchange(message: Any) -> bool:
    """True if an ``InboundMessage`` came through an exchange, and not straight to its queue."""
    return bool(message.encoded_names[0])


def routing_key(message: Any) -> str:
    """Decode the routing key of an ``InboundMessage``. Bytes that are not UTF-8 become question marks."""
    names: bytes = message.encoded_names
    return names[names[0] + 2 :].decode("utf-8", "replace")


def user_of(message: Any) -> str:
    """The user id of an ``InboundMessage``; empty if it has none, or if its properties are malformed.

    RabbitMQ refuses a message whose user id is not the login of its publisher.
    """
    properties: bytes = message.encoded_properties
    if len(properties) < _FLAGS_BYTES or not properties[1] & _HAS_USER:
        return ""
    try:
        (flags,) = unpack_from(">H", properties, 0)
        at = _FLAGS_BYTES
        for flag, size in _PROPERTIES_BEFORE_USER:
            if flags & flag:
                at += size or 1 + properties[at]
                if size == _TABLE_BYTES:
                    at += int.from_bytes(properties[at - size : at], "big")
        end = at + 1 + properties[at]
        return properties[at + 1 : end].decode() if end <= len(properties) else ""
    except (IndexError, UnicodeDecodeError):
        return ""


def frame_handler(connection: Any, on_method: OnMethod) -> Callable[[tuple[int, int, bytes]], bool]:
    """Make the function that takes the frames of a connection, for py-amqp's argument of the same name.

    The function returns True if the frame completed a method.
    """
    messages: dict[int, InboundMessage] = {}
    """By channel, the message whose header or body is still to come."""

    def take(frame: tuple[int, int, bytes]) -> bool:
        kind, channel, payload = frame
        connection.bytes_recv += 1  # py-amqp looks at it for heartbeats
        if kind == HEARTBEAT:
            return False
        message = messages.get(channel)
        expected = METHOD if message is None else HEADER if not message.body_size else BODY
        if kind != expected:
            raise UnexpectedFrame(f"frame of type {kind} in place of type {expected}")
        if message is None:
            signature = unpack_from(">HH", payload, 0)
            find_names = _NAMES.get(signature)
            if find_names is not None:
                start, end = find_names(payload)
                arguments = payload[:start] + _NO_NAMES + payload[end:]
                messages[channel] = InboundMessage(signature, arguments, payload[start:end])
                return False
            on_method(channel, signature, payload, None)
            return True
        if not (message.take_header(payload) if kind == HEADER else message.take_body(payload)):
            return False
        del messages[channel]
        on_method(channel, message.frame_method, message.frame_args, message)
        return True

    return take


def _names_of_deliver(arguments: bytes) -> tuple[int, int]:
    """Consumer tag, delivery tag, redelivered, then the names."""
    tag_end = _SIGNATURE_BYTES + 1 + arguments[_SIGNATURE_BYTES]
    return tag_end + 9, len(arguments)


def _names_of_get_ok(arguments: bytes) -> tuple[int, int]:
    """Delivery tag, redelivered, then the names, then the message count."""
    return _SIGNATURE_BYTES + 9, len(arguments) - 4


def _names_of_return(arguments: bytes) -> tuple[int, int]:
    """Reply code, reply text, then the names."""
    text_at = _SIGNATURE_BYTES + 2
    return text_at + 1 + arguments[text_at], len(arguments)


_NAMES: Final[Mapping[tuple[int, int], Callable[[bytes], tuple[int, int]]]] = {
    spec.Basic.Deliver: _names_of_deliver,
    spec.Basic.GetOk: _names_of_get_ok,
    spec.Basic.Return: _names_of_return,
}
"""The methods that carry a message, each with the function that finds exchange and routing key in its arguments."""

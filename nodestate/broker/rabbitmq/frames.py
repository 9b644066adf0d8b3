"""Frames of a connection: the messages that RabbitMQ delivers, with bounds on the work that a message may cause.

py-amqp's own handler decodes all properties of a message, its exchange and its routing key while it reads the frames.
Any publisher can write bytes there that it cannot decode; then the connection breaks, and again at the next delivery of
the same message. Here the properties stay encoded until ``decoded_headers`` is called, exchange and routing key are
discarded, and a body over ``MAX_BODY_BYTES`` is cut while it arrives.
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
        "encoded_properties",
        "frame_args",
        "frame_method",
    )

    def __init__(self, signature: tuple[int, int], arguments: bytes) -> None:
        self.frame_method = signature
        """The method that carries the message."""
        self.frame_args = arguments
        """The encoded arguments of the method."""
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
            strip = _STRIPPED.get(signature)
            if strip is not None:
                messages[channel] = InboundMessage(signature, strip(payload))
                return False
            on_method(channel, signature, payload, None)
            return True
        if not (message.take_header(payload) if kind == HEADER else message.take_body(payload)):
            return False
        del messages[channel]
        on_method(channel, message.frame_method, message.frame_args, message)
        return True

    return take


def _stripped_deliver(arguments: bytes) -> bytes:
    """Without names: consumer tag, delivery tag, redelivered, exchange, routing key."""
    tag_end = _SIGNATURE_BYTES + 1 + arguments[_SIGNATURE_BYTES]
    return arguments[: tag_end + 9] + _NO_NAMES


def _stripped_get_ok(arguments: bytes) -> bytes:
    """Without names: delivery tag, redelivered, exchange, routing key, message count."""
    return arguments[: _SIGNATURE_BYTES + 9] + _NO_NAMES + arguments[-4:]


def _stripped_return(arguments: bytes) -> bytes:
    """Without names: reply code, reply text, exchange, routing key."""
    text_at = _SIGNATURE_BYTES + 2
    return arguments[: text_at + 1 + arguments[text_at]] + _NO_NAMES


_STRIPPED: Final[Mapping[tuple[int, int], Callable[[bytes], bytes]]] = {
    spec.Basic.Deliver: _stripped_deliver,
    spec.Basic.GetOk: _stripped_get_ok,
    spec.Basic.Return: _stripped_return,
}
"""The methods that carry a message, each with the function that discards its exchange and routing key."""

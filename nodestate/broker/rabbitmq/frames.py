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

import amqp
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


class InboundMessage(amqp.Message):  # type: ignore[misc]  # amqp has no types
    """A message from the broker."""

    def __init__(self, signature: tuple[int, int], arguments: bytes) -> None:
        super().__init__(frame_method=signature, frame_args=arguments)
        self.encoded_properties = b""
        """The properties, as the publisher sent them."""
        self._missing_bytes = 0
        """Bytes of the body that are kept, and are still to come."""

    @property
    def cut_from(self) -> int:
        """Size of the whole body if ``body`` is only its beginning; 0 if ``body`` is whole."""
        return self.body_size if self.body_size > MAX_BODY_BYTES else 0

    def inbound_header(self, buf: bytes, offset: int = 0) -> int:
        """Take the header frame."""
        (self.body_size,) = unpack_from(">Q", buf, offset + 4)
        self.encoded_properties = buf[offset + 12 :]
        self._missing_bytes = CUT_BODY_BYTES if self.cut_from else self.body_size
        self.ready = not self.body_size
        return len(buf)

    def inbound_body(self, buf: bytes) -> None:
        """Take the next frame of the body."""
        self.body_received += len(buf)
        chunks: list[bytes] = self._pending_chunks
        if self._missing_bytes:
            chunks.append(buf if len(buf) <= self._missing_bytes else buf[: self._missing_bytes])
            self._missing_bytes -= len(chunks[-1])
        if self.body_received >= self.body_size:
            self.body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            chunks.clear()
            self.ready = True


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
        if kind == HEADER:
            message.inbound_header(payload)
        else:
            message.inbound_body(payload)
        if not message.ready:
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

"""Messages that py-amqp cannot decode, as any publisher can send them to RabbitMQ: bytes of AMQP properties."""

from __future__ import annotations

import struct
from typing import Any, Final

import amqp
from amqp import spec

CONTENT_TYPE_FLAG: Final = 0x8000
HEADERS_FLAG: Final = 0x2000
MESSAGE_ID_FLAG: Final = 0x0080
NESTED_COUNT: Final = 2_000


class RawMessage(amqp.Message):  # type: ignore[misc]  # amqp has no types
    """A message with these bytes as its properties."""

    def __init__(self, body: bytes, properties: bytes) -> None:
        super().__init__(body)
        self._raw = properties

    def _serialize_properties(self) -> bytes:
        return self._raw


def short_text(raw: bytes) -> bytes:
    return bytes([len(raw)]) + raw


def table(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


def with_headers(content: bytes) -> bytes:
    """Properties that consist of a header table."""
    return struct.pack(">H", HEADERS_FLAG) + table(content)


def _nested(count: int) -> bytes:
    content = b""
    for _ in range(count):
        content = short_text(b"k") + b"F" + table(content)
    return content


PROPERTIES: Final[dict[str, bytes]] = {
    "a content type that is not UTF-8": struct.pack(">H", CONTENT_TYPE_FLAG) + short_text(b"\xff\xfe"),
    "a message id that is not UTF-8": struct.pack(">H", MESSAGE_ID_FLAG) + short_text(b"\xc3\x28"),
    "a header of the year 11476": with_headers(short_text(b"t") + b"T" + struct.pack(">Q", 300_000_000_000)),
    "a header of the time 2**63-1": with_headers(short_text(b"t") + b"T" + struct.pack(">Q", 2**63 - 1)),
    "headers nested 2,000 deep": with_headers(_nested(NESTED_COUNT)),
    "headers of a dead letter with other types": with_headers(
        short_text(b"reason")
        + b"I"
        + struct.pack(">i", 7)
        + short_text(b"detail")
        + b"S"
        + table(b"\x1b[2J\xff")
        + short_text(b"partition")
        + b"S"
        + table(b"none")
        + short_text(b"at")
        + b"S"
        + table(b"yesterday")
    ),
}
"""Each by its description."""


def send_raw(channel: Any, exchange: str, key: str | bytes, body: bytes, properties: bytes) -> None:
    """Publish without waiting."""
    channel.send_method(spec.Basic.Publish, "Bssbb", (0, exchange, key, False, False), RawMessage(body, properties))

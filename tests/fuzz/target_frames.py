"""AMQP properties and headers: a message arrives whatever they are, and dead letters' headers give text and numbers."""

from __future__ import annotations

import struct
from random import Random
from typing import Any, Final

from amqp import spec
from amqp.serialization import dumps

from nodestate.broker.diagnostics import dead_letter_of
from nodestate.broker.rabbitmq.frames import InboundMessage, decoded_headers, frame_handler, routing_key, user_of
from nodestate.broker.sessions import FetchedMessage
from nodestate.model.limits import CUT_BODY_BYTES, MAX_BODY_BYTES
from tests.fuzz.mutation import mutated_bytes
from tests.hostile_messages import PROPERTIES, short_text, table, with_headers

LETTER: Final = {"reason": "clock", "detail": "d", "partition": 3, "at": 1_763_787_600, "x": {"y": [1]}}
HEADERS: Final = dumps("F", [LETTER])[4:]
TYPES: Final = b"SsxbBUuIiLlfdDFAtTV?"
ALL_FLAGS: Final = 0xFFFC


class _Connection:
    bytes_recv = 0


def run(data: Random) -> bool:
    """Receive one message in frames."""
    names = short_text(data.randbytes(data.randrange(40))) + short_text(data.randbytes(data.randrange(256)))
    deliver = struct.pack(">HH", *spec.Basic.Deliver) + short_text(b"tag") + struct.pack(">QB", 7, data.randrange(2))
    size = data.choice((0, 1, 100, MAX_BODY_BYTES, MAX_BODY_BYTES + 1)) if data.random() < 0.1 else data.randrange(50)
    properties = _properties(data)
    received: list[InboundMessage] = []
    take = frame_handler(_Connection(), lambda *method: received.append(method[-1]))
    take((1, 1, deliver + names))
    take((2, 1, struct.pack(">HHQ", 60, 0, size) + properties))
    body = bytes(size)
    for at in range(0, size, 100_000):
        take((3, 1, body[at : at + 100_000]))
    [message] = received
    assert message.body_size == size
    assert len(message.body) == (CUT_BODY_BYTES if message.cut_from else size)
    assert isinstance(user_of(message), str)
    assert isinstance(routing_key(message), str)
    letter = dead_letter_of(FetchedMessage(b"", 1, False, decoded_headers(message)))
    assert isinstance(letter.reason, str)
    assert isinstance(letter.detail, str)
    assert letter.partition is None or isinstance(letter.partition, int)
    assert isinstance(letter.at, int)
    return True


def _properties(data: Random) -> bytes:
    kind = data.randrange(5)
    if kind == 0:
        return data.choice(list(PROPERTIES.values()))
    if kind == 1:
        return struct.pack(">H", data.choice((ALL_FLAGS, 0xFFFF, data.randrange(2**16)))) + data.randbytes(60)
    if kind == 2:
        return mutated_bytes(data, with_headers(HEADERS))
    return with_headers(b"".join(_field(data, 3) for _ in range(data.randrange(4))))


def _field(data: Random, depth: int) -> bytes:
    """One header, whose value is of any type, and often malformed."""
    name = data.choice((b"reason", b"detail", b"partition", b"at", b"x-first-death-reason", data.randbytes(3)))
    return short_text(name) + _value(data, depth)


def _value(data: Random, depth: int) -> Any:
    kind = bytes([data.choice(TYPES)])
    if kind in b"SxFA":
        if kind == b"F" and depth:
            content = b"".join(_field(data, depth - 1) for _ in range(data.randrange(3)))
        elif kind == b"A" and depth:
            content = b"".join(_value(data, depth - 1) for _ in range(data.randrange(3)))
        else:
            content = data.choice((b"text", b"\x1b[2J", b"\xff\xfe", b""))
        return kind + (table(content) if data.random() < 0.9 else struct.pack(">I", data.randrange(2**32)) + content)
    return kind + data.choice((data.randbytes(8), b"\xff" * 8, struct.pack(">Q", data.randrange(2**62))))

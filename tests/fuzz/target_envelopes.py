"""Envelopes of the virtual transports: each becomes a message with a body of bytes."""

from __future__ import annotations

import json
from random import Random
from typing import Any, Final

import kombu

from nodestate.broker.virtual.envelopes import EnvelopeMessage, envelope_of
from nodestate.broker.virtual.memory import MemoryTransport
from tests.fuzz.mutation import mutated

CHANNEL: Final[Any] = kombu.Connection("memory://", transport=MemoryTransport).channel()
ENVELOPE: Final = {**envelope_of(b"body", "queue"), "content-type": "text/plain", "content-encoding": "binary"}


def run(data: Random) -> bool:
    """Make a message of one mutated envelope."""
    payload = json.loads(json.dumps(mutated(data, ENVELOPE), default=repr))
    message = EnvelopeMessage(payload, channel=CHANNEL)
    assert isinstance(message.body, bytes | None)
    assert isinstance(message.delivery_tag, str)
    assert bool(message.headers.get("redelivered") or message.delivery_info.get("redelivered")) in {True, False}
    return isinstance(payload, dict)

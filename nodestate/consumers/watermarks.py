"""Watermark messages: how an owner proves that it has taken everything that its partition's queue held.

An owner sends a message to itself through the queue of its partition. A queue keeps its order, so when the message
comes back, everything that was in the queue when it was sent has come before it. An idle consumer has no simpler proof:
it can't tell an empty queue from a dead connection, nor from a queue that another consumer is the active one of.
"""

from __future__ import annotations

import math

from nodestate.ports import ACTIVATION


def watermark_message(owner: str, now: float) -> bytes:
    """The message that ``owner`` sends to itself at ``now`` (its monotonic clock, in seconds)."""
    return ACTIVATION + f"{owner} {now!r}".encode()


def is_marker(body: bytes) -> bool:
    """True for a watermark message, and for the activation message with which a broker adapter finds out whether this
    consumer is the active one of a queue. Both carry no event.
    """
    return body.startswith(ACTIVATION)


def watermark_of(body: bytes, owner: str) -> float:
    """When ``owner`` sent this marker, in seconds of its monotonic clock. Returns minus infinity if another owner sent
    it, or if it is an activation message.
    """
    sender, _, sent_at = body[len(ACTIVATION) :].decode(errors="replace").partition(" ")
    try:
        return float(sent_at) if sender == owner else -math.inf
    except ValueError:
        return -math.inf

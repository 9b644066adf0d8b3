"""Watermark messages: proof for an owner that it has taken every message that was in its partition's queue.

An owner sends a message to itself through the queue of its partition. A queue keeps its order. So when the message
comes back, the owner has taken every message that was in the queue when the watermark message was sent.

An idle consumer has no simpler proof. It cannot tell an empty queue from a dead connection, or from a queue whose
active consumer is another one.
"""

from __future__ import annotations

import math

from nodestate.ports import ACTIVATION


def watermark_message(owner: str, now: float) -> bytes:
    """Make the watermark message that ``owner`` sends to itself at ``now``, in seconds of its monotonic clock."""
    return ACTIVATION + f"{owner} {now!r}".encode()


def is_marker(body: bytes) -> bool:
    """True for a marker: a watermark message, an activation message or a handover message.

    A broker adapter sends an activation message to find out whether this consumer is the active consumer of a queue.
    """
    return body.startswith(ACTIVATION)


def watermark_of(body: bytes, owner: str) -> float:
    """Return when ``owner`` sent this marker, in seconds of the owner's monotonic clock.

    Returns minus infinity for an activation message, and for a watermark message of another owner.
    """
    sender, _, sent_at = body[len(ACTIVATION) :].decode(errors="replace").partition(" ")
    try:
        return float(sent_at) if sender == owner else -math.inf
    except ValueError:
        return -math.inf

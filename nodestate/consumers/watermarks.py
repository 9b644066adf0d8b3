"""Watermark messages: proof for an owner that it has taken every message that was in its partition's queue.

An owner sends a message to itself through the queue of its partition. A queue keeps its order. So when the message
comes back, the owner has taken every message that was in the queue when the watermark message was sent.

An idle consumer has no simpler proof. It cannot tell an empty queue from a dead connection, or from a queue whose
active consumer is another one.

Every publisher can put messages into the queue. A forged watermark message could make a partition with a backlog look
as if it had caught up. So each one carries a code (HMAC), whose key only the memory of its owner has.
"""

from __future__ import annotations

import hmac
import math
from typing import Final

from nodestate.ports import ACTIVATION

KEY_BYTES: Final = 16
_CODE_CHARS: Final = 32
"""Characters of the code: 16 bytes as hexadecimal digits."""


class Watermarks:
    """Makes one owner's watermark messages, and recognizes them.

    Args:
        key: ``KEY_BYTES`` random bytes that nothing else uses.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        """The key of the codes."""

    def message(self, partition: int, now: float) -> bytes:
        """Make the watermark message for a partition at ``now``, in seconds of the owner's monotonic clock."""
        sent_at = f"{now!r}"
        return ACTIVATION + f"{sent_at} {self._code(partition, sent_at)}".encode()

    def sent_at(self, partition: int, body: bytes) -> float:
        """Return when the owner sent this marker, in seconds of its monotonic clock.

        Returns minus infinity for any other marker, for example a watermark message of a former owner.
        """
        sent_at, _, code = body[len(ACTIVATION) :].decode("ascii", errors="replace").partition(" ")
        if len(code) != _CODE_CHARS or not hmac.compare_digest(code.encode(), self._code(partition, sent_at).encode()):
            return -math.inf
        return float(sent_at)

    def _code(self, partition: int, sent_at: str) -> str:
        return hmac.digest(self._key, f"{partition} {sent_at}".encode(), "sha256").hex()[:_CODE_CHARS]


def is_marker(body: bytes) -> bool:
    """True for a marker: a watermark message, an activation message or a handover message.

    A broker adapter sends an activation message to find out whether this consumer is the active consumer of a queue.
    """
    return body.startswith(ACTIVATION)

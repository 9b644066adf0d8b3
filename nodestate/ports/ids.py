"""Where new ids come from: random ones in production, seeded ones in a simulation that has to repeat exactly."""

from __future__ import annotations

import random
import secrets
import uuid
from typing import Final, Protocol

ORDER_SUFFIX_BYTES: Final = 6
"""Random bytes at the end of an order id; written as twice as many hexadecimal digits."""


class IdSource(Protocol):
    """A source of ids that no other call has returned. Several threads may call it at the same time."""

    def order_suffix(self) -> str:
        """Return the random half of an order id: twelve hexadecimal digits."""

    def instance_id(self) -> str:
        """Return the id of a new instance: a version 4 UUID in its usual text form."""

    def message_id(self) -> str:
        """Return the id of a message whose answer is matched by it: 32 hexadecimal digits."""


class SystemIds:
    """Ids from the operating system's random generator: unique among all processes of a cell."""

    def order_suffix(self) -> str:
        """Return twelve random hexadecimal digits."""
        return secrets.token_hex(ORDER_SUFFIX_BYTES)

    def instance_id(self) -> str:
        """Return a random UUID."""
        return str(uuid.uuid4())

    def message_id(self) -> str:
        """Return a random UUID without its dashes."""
        return uuid.uuid4().hex


class SeededIds:
    """Ids that depend on the seed and on the order of the calls alone, for simulations and tests.

    Two sources with different seeds return different ids; give each scheduler of a simulation a seed of its own.

    Args:
        seed: Two sources with the same seed return the same ids.
    """

    def __init__(self, seed: int | str) -> None:
        self._random: Final = random.Random(f"nodestate ids {seed}")

    def order_suffix(self) -> str:
        """Return the next twelve hexadecimal digits."""
        return self._random.randbytes(ORDER_SUFFIX_BYTES).hex()

    def instance_id(self) -> str:
        """Return the next UUID."""
        return str(self._uuid())

    def message_id(self) -> str:
        """Return the next UUID without its dashes."""
        return self._uuid().hex

    def _uuid(self) -> uuid.UUID:
        return uuid.UUID(bytes=self._random.randbytes(16), version=4)

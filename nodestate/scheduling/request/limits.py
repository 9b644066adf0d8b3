"""Limits of requests: a request outside of these counts, sizes and durations is refused."""

from __future__ import annotations

from typing import Final

from nodestate.model import MAX_CLASSES_COUNT, MAX_WORD_CHARS
from nodestate.model.orders import MAX_ORDER_BYTES

MAX_COUNT: Final = 1_000
"""Largest number of instances in one request."""
MAX_GROUP_COUNT: Final = 256
"""Largest number of members in one reservation."""
MAX_ALTERNATES_COUNT: Final = 32
"""Largest number of alternate nodes returned for one instance."""
MAX_NAMES_COUNT: Final = 10_000
"""Largest number of nodes or instances that one field of a request may name."""
MAX_WEIGHT: Final = 1e6
"""Largest multiplier that a request may give to a weigher. The smallest one is ``-MAX_WEIGHT``."""
MIN_HOLD_S: Final = 1.0
"""Smallest ``hold_s`` of a reservation: the seconds until it expires if it is neither confirmed nor extended."""
MAX_HOLD_S: Final = 24 * 3600.0
"""Largest ``hold_s`` of a reservation: the seconds until it expires if it is neither confirmed nor extended."""
MAX_HINTS_BYTES: Final = 32 * 1024
"""Largest size in bytes of the encoded hints that an agent stores with an allocation."""
assert MAX_HINTS_BYTES + MAX_CLASSES_COUNT * (MAX_WORD_CHARS + 12) < MAX_ORDER_BYTES - 4_096, "a request fits an order"

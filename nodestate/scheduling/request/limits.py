"""Limits of requests: the counts, sizes and durations that a valid request keeps."""

from __future__ import annotations

from typing import Final

from nodestate.model import MAX_CLASSES_COUNT, MAX_WORD_CHARS
from nodestate.model.orders import MAX_ORDER_BYTES

MAX_COUNT: Final = 1_000
"""Most instances of one request."""
MAX_GROUP_COUNT: Final = 256
"""Most members of one reservation."""
MAX_ALTERNATES_COUNT: Final = 32
"""Most alternate nodes returned for one instance."""
MAX_NAMES_COUNT: Final = 10_000
"""Most nodes or instances that one field of a request names."""
MAX_WEIGHT: Final = 1e6
"""Largest multiplier of a weigher; its negative is the smallest."""
MIN_HOLD_S: Final = 1.0
"""Shortest time in seconds for which a reservation is held without being extended."""
MAX_HOLD_S: Final = 24 * 3600.0
"""Longest time in seconds for which a reservation is held without being extended."""
MAX_HINTS_BYTES: Final = 32 * 1024
"""Largest size in bytes of the encoded hints that an agent stores with an allocation."""
assert MAX_HINTS_BYTES + MAX_CLASSES_COUNT * (MAX_WORD_CHARS + 12) < MAX_ORDER_BYTES - 4_096, "a request fits an order"

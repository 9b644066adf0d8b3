"""Limits of requests: the counts, sizes and durations that a valid request keeps."""

from __future__ import annotations

from typing import Final

from nodestate.model import MAX_CLASSES_COUNT, MAX_WORD_CHARS
from nodestate.model.orders import MAX_ORDER_BYTES

MAX_COUNT: Final = 1_000
"""Instances of one request."""
MAX_GROUP_COUNT: Final = 256
"""Members of one group reservation."""
MAX_ALTERNATES_COUNT: Final = 32
MAX_NAMES_COUNT: Final = 10_000
"""Nodes or instances that a hint may name."""
MAX_WEIGHT: Final = 1e6
MIN_HOLD_S: Final = 1.0
MAX_HOLD_S: Final = 24 * 3600.0
"""How long a reservation may be kept without being extended."""
MAX_HINTS_BYTES: Final = 32 * 1024
"""What stays with an allocation, encoded."""
assert MAX_HINTS_BYTES + MAX_CLASSES_COUNT * (MAX_WORD_CHARS + 12) < MAX_ORDER_BYTES - 4_096, "a request fits an order"

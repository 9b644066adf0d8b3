"""Limits of events and states. Each name ends with its unit; relations between limits are asserted here."""

from __future__ import annotations

from typing import Final

FORMAT_VERSION: Final = 1
"""Version of the event format, the field ``v`` of an event."""
MAX_NODE_NAME_CHARS: Final = 200
NODE_NAME_CHARACTERS: Final = "A-Za-z0-9._:-"
"""The characters that the name of a node may have, as the inside of a character class of a regular expression."""
NODE_NAME_PATTERN: Final = f"[{NODE_NAME_CHARACTERS}]{{1,{MAX_NODE_NAME_CHARS}}}"
"""The rule for the name of a node, as a regular expression that must match the whole name."""
MAX_WORD_CHARS: Final = 255
"""Longest resource class, trait, aggregate, zone or metric name, as in OpenStack."""
MAX_QUEUE_NAME_BYTES: Final = 255
"""Longest name that AMQP carries."""
MAX_TRAITS_COUNT: Final = 1_000
MAX_AGGREGATES_COUNT: Final = 1_000
MAX_TAINTS_COUNT: Final = 1_000
MAX_CLASSES_COUNT: Final = 100
MAX_ALLOCATIONS_COUNT: Final = 10_000
MAX_METRICS_COUNT: Final = 1_000
MAX_FREE_DEPTH: Final = 16
"""Deepest nesting of maps and lists inside ``namespaces`` and ``hints``."""
MAX_AMOUNT: Final = 2**48
MAX_RATIO: Final = 10_000.0
MAX_COUNTER: Final = 2**53
"""Largest incarnation or generation. A double represents it exactly, so JSON readers in other languages keep it."""
MAX_CLOCK_AHEAD_S: Final = 86_400.0
"""An event whose time or incarnation is further ahead of the consumer's clock than this is refused.

Its incarnation would win over all later ones.
"""
MIN_CLOCK_S: Final = 1_000_000_000.0
"""A moment in 2001, in seconds since 1970. An event whose time or incarnation is earlier is refused, because the clock
of its agent was never set.
"""
MAX_EVENT_BYTES: Final = 256 * 1024
MAX_STATE_BYTES: Final = 384 * 1024
MAX_BODY_BYTES: Final = 2 * MAX_EVENT_BYTES
"""Largest body of any message. Of a larger one, only the first ``CUT_BODY_BYTES`` are kept in memory."""
CUT_BODY_BYTES: Final = 4 * 1024
assert MAX_AMOUNT * MAX_RATIO < 2**63, "a capacity fits the int64 of the columns"
assert MAX_EVENT_BYTES < MAX_STATE_BYTES, "the state of an event that is small enough is small enough as well"
assert MAX_EVENT_BYTES < MAX_BODY_BYTES, "no event is cut before its size is refused with its reason"

"""Mutations of values and of bytes, for targets: small steps away from valid values, and values at the limits."""

from __future__ import annotations

import math
from random import Random
from typing import Any, Final

from nodestate.store.wire import ENVELOPE_BYTES, seal
from tests.planted_values import content, sealed

NUMBERS: Final = (
    *(-(10**12), -1, 0, 1, 2, 3, 100, 255, 256, 65_535, 65_536, 100_000, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40),
    *(2**48, 2**53, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1, -(2**31), -(2**63)),
)
"""Integers at which counts, sizes and positions break."""
FLOATS: Final = (0.0, -0.0, -1.0, 0.5, 1e18, 1e300, -1e300, math.inf, -math.inf, math.nan)
TEXTS: Final = (
    "",
    "~",
    "\x1b[2J",
    "\u202e",
    "\x00",
    "n" * 300,
    "é" * 200,
    "/",
    "\ud7ff",
    "up",
    "VCPU",
    " ",
    "snapshot",
)
BYTES: Final = (b"", b"\x00", b"\xff" * 3, b"\x80", b"\xc1", b"\xff" * 8, b"\x91" * 2_000, bytes(4_096))
MAX_STEPS_COUNT: Final = 3
"""Most mutations of one input."""


def mutated(data: Random, value: Any) -> Any:
    """A copy of a msgpack value (scalars, lists and maps) with one to three of its parts changed."""
    for _ in range(data.randint(1, MAX_STEPS_COUNT)):
        value = _mutated_once(data, value)
    return value


def mutated_bytes(data: Random, raw: bytes) -> bytes:
    """Bytes with some of them changed, cut off, doubled or added."""
    changed = bytearray(raw)
    for _ in range(data.randint(1, MAX_STEPS_COUNT)):
        at = data.randrange(len(changed) + 1)
        kind = data.randrange(5)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << data.randrange(8)
        elif kind == 1 and at < len(changed):
            changed[at] = data.randrange(256)
        elif kind == 2:
            del changed[at:]
        elif kind == 3:
            del changed[at : at + data.randint(1, 8)]
        else:
            changed[at:at] = changed[at : at + data.randint(1, 8)] or data.randbytes(data.randint(1, 8))
    return bytes(changed)


def mutated_item(data: Random, raw: bytes) -> tuple[bytes, bool]:
    """A stored value with changes, and whether its checksum is right: nine of ten have their content changed."""
    kind = data.random()
    if kind < 0.75:
        return sealed(mutated(data, content(raw))), True
    if kind < 0.9:
        return seal(mutated_bytes(data, raw[ENVELOPE_BYTES:])), True
    return mutated_bytes(data, raw), False


def odd_value(data: Random) -> Any:
    """A value that may stand anywhere: at a limit, of another type, or deeply nested."""
    kind = data.randrange(8)
    if kind < 3:
        return data.choice(NUMBERS)
    if kind == 3:
        return data.choice(FLOATS)
    if kind == 4:
        return data.choice(TEXTS)
    if kind == 5:
        return data.choice(BYTES)
    if kind == 6:
        return data.choice((None, True, False, [], {}, [[]], {"": None}))
    nested: Any = []
    for _ in range(data.choice((2, 50, 400))):
        nested = [nested]
    return nested


def _mutated_once(data: Random, value: Any) -> Any:
    if isinstance(value, list) and value and data.random() < 0.9:
        at = data.randrange(len(value))
        kind = data.randrange(12)
        if kind < 8:
            return [*value[:at], _mutated_once(data, value[at]), *value[at + 1 :]]
        if kind == 8:
            return [*value[:at], *value[at + 1 :]]
        if kind == 9:
            return [*value[: at + 1], *value[at:]]
        if kind == 10:
            return value[:at]
        other = data.randrange(len(value))
        swapped = list(value)
        swapped[at], swapped[other] = swapped[other], swapped[at]
        return swapped
    if isinstance(value, dict) and value and data.random() < 0.9:
        key = data.choice(list(value))
        kind = data.randrange(8)
        if kind < 6:
            return {**value, key: _mutated_once(data, value[key])}
        if kind == 6:
            return {k: v for k, v in value.items() if k != key}
        return {**value, data.choice(TEXTS): odd_value(data)}
    if isinstance(value, bytes) and data.random() < 0.7:
        return mutated_bytes(data, value)
    if isinstance(value, int) and not isinstance(value, bool) and data.random() < 0.5:
        return max(-(2**63), min(value + data.choice((-2, -1, 1, 2, 1_000)), 2**64 - 1))
    return odd_value(data)

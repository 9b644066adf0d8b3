"""Texts for people, which messages of all parts share: counts, ages, kinds of values, and causes of errors.

Text from outside, such as a zone, or the detail of a refusal or a dead letter, may contain control characters, which a
terminal obeys, and marks that reverse the direction of text. Every output for people passes ``printable``: consoles,
error messages and logs. JSON passes ``printable_json``, which keeps its values exactly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Final

_KINDS: Final = {
    dict: "a map",
    list: "a list",
    tuple: "a list",
    str: "a text",
    bytes: "bytes",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}

LINES: Final = "\n\t"
"""Characters that text of several lines may have in addition."""


def time_text(seconds: float) -> str:
    """A time in seconds since 1970 as text, in UTC; the number itself if no calendar has it."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return f"{seconds:g} s after 1970"


def count_text(count: int, singular: str, plural: str = "") -> str:
    """A number with its noun, as ``1 node`` or ``1,000 nodes``.

    Args:
        count: the number.
        singular: the noun for one, perhaps with a verb, as ``queue has``.
        plural: the same for all other numbers, as ``queues have``; empty: the singular with an "s".
    """
    return f"{count:,} {singular if count == 1 else plural or f'{singular}s'}"


def range_text(numbers: Sequence[int]) -> str:
    """Return the range of some numbers as text: ``3 to 7``, or ``3`` if all are equal."""
    return f"{min(numbers)}" if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"


def span_text(seconds: float) -> str:
    """Return a duration as text, in the largest unit that fits into it twice: ``90 min`` for 5,400 seconds."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def age_text(age_s: float) -> str:
    """The age of a view: ``3.2 s old``, or ``never confirmed`` if it is infinite."""
    return f"{age_s:.1f} s old" if math.isfinite(age_s) else "never confirmed"


def kind_text(value: object) -> str:
    """The kind of a value in words of JSON, as ``a list``; a value of another kind is named by its Python type."""
    return _KINDS.get(type(value), f"a Python {type(value).__name__}")


def error_text(error: BaseException) -> str:
    """The text of an error of a connection. Some libraries raise errors without a text: the cause in words then."""
    if text := str(error):
        return text
    return "no reply in time" if isinstance(error, TimeoutError) else "the connection broke"


def printable(text: str, keep: str = LINES) -> str:
    """Replace each character that a terminal may not print as such by an escape, as in JSON.

    Escaped are control characters, marks of direction and other invisible format characters, separators other than the
    space, and surrogates.

    Args:
        text: any text.
        keep: characters that stay as they are.
    """
    if text.isprintable():
        return text
    for character in set(text):
        if not character.isprintable() and character not in keep:
            text = text.replace(character, _escape(character))
    return text


def printable_json(encoded: bytes) -> bytes:
    """Write a JSON text with escapes in place of all characters that are not printable. Its value stays the same."""
    return printable(encoded.decode(), keep="\n").encode()


def _escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))

"""Text from outside, made printable: zones, details of refusals and dead letters, and all else that others wrote.

Such text may contain control characters, which a terminal obeys, and marks that reverse the direction of text. Every
output for people passes ``printable``: consoles, error messages and logs. JSON passes ``printable_json``, which keeps
its values exactly.
"""

from __future__ import annotations

from typing import Final

LINES: Final = "\n\t"
"""Characters that text of several lines may have in addition."""


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

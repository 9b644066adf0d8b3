"""Valid names of resource classes and traits: OpenStack's names, and custom names, which begin with CUSTOM_."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from functools import cache
from typing import Final

import os_resource_classes
import os_traits

from nodestate.errors import BadRequestError
from nodestate.model import MAX_WORD_CHARS

CUSTOM: Final = "CUSTOM_"
"""The beginning of every custom name."""
_CUSTOM: Final = re.compile(rf"{CUSTOM}[A-Z0-9_]{{1,{MAX_WORD_CHARS - len(CUSTOM)}}}")
"""The form of a custom name, by OpenStack's rule. The resource classes in a node's state follow the same rule."""


@cache
def _classes() -> frozenset[str]:
    """Return the names of OpenStack's resource classes."""
    return frozenset(os_resource_classes.STANDARDS)


@cache
def _traits() -> frozenset[str]:
    """Return the names of OpenStack's traits."""
    return frozenset(os_traits.get_traits())


def check_class(field: str, name: str) -> None:
    """Check that ``name`` is a resource class of OpenStack, or a valid custom name.

    Raises ``BadRequestError`` if it is neither. The error names ``field``.

    Args:
        field: The field of the request that contains the name.
        name: The name to check.
    """
    _check(field, "resource class", name, _classes())


def check_trait(field: str, name: str) -> None:
    """Check that ``name`` is a trait of OpenStack, or a valid custom name.

    Raises ``BadRequestError`` if it is neither. The error names ``field``.

    Args:
        field: The field of the request that contains the name.
        name: The name to check.
    """
    _check(field, "trait", name, _traits())


def _check(field: str, kind: str, name: str, known: Collection[str]) -> None:
    """Check a name of the given kind. Raises ``BadRequestError`` unless it is in ``known`` or a valid custom name."""
    if name in known or _CUSTOM.fullmatch(name):
        return
    if name.startswith(CUSTOM):
        raise BadRequestError(
            field,
            f"{name!r:.80} is no {kind}: use A to Z, 0 to 9 and _ after {CUSTOM}, at most {MAX_WORD_CHARS} in all",
        )
    close = difflib.get_close_matches(name[:MAX_WORD_CHARS].upper(), known, 1)
    meant = f"; did you mean {close[0]}?" if close else ""
    raise BadRequestError(field, f"OpenStack has no {kind} {name!r:.80}, and it does not begin with {CUSTOM}{meant}")

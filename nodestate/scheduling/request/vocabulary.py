"""The words that requests may use: OpenStack's resource classes and traits, and everybody's own that begin with CUSTOM_."""

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
_CUSTOM: Final = re.compile(rf"{CUSTOM}[A-Z0-9_]{{1,{MAX_WORD_CHARS - len(CUSTOM)}}}")
"""As OpenStack has it, and as a node's state must name its classes."""


@cache
def _classes() -> frozenset[str]:
    return frozenset(os_resource_classes.STANDARDS)


@cache
def _traits() -> frozenset[str]:
    return frozenset(os_traits.get_traits())


def check_class(field: str, name: str) -> None:
    """Raises ``BadRequestError`` where there is no such resource class."""
    _check(field, "resource class", name, _classes())


def check_trait(field: str, name: str) -> None:
    """Raises ``BadRequestError`` where there is no such trait."""
    _check(field, "trait", name, _traits())


def _check(field: str, kind: str, name: str, known: Collection[str]) -> None:
    if name in known or _CUSTOM.fullmatch(name):
        return
    if name.startswith(CUSTOM):
        raise BadRequestError(
            field, f"no {kind} {name!r:.80}: after {CUSTOM} come A to Z, 0 to 9 and _, up to {MAX_WORD_CHARS} in all"
        )
    close = difflib.get_close_matches(name[:MAX_WORD_CHARS].upper(), known, 1)
    meant = f"; did you mean {close[0]}?" if close else ""
    raise BadRequestError(field, f"no {kind} {name!r:.80} in OpenStack's vocabulary, and it is not {CUSTOM}…{meant}")

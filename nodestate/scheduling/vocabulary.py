"""The words that requests may use: OpenStack's resource classes and traits, and everybody's own that begin with CUSTOM_."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from functools import cache

import os_resource_classes
import os_traits

from nodestate.errors import BadRequestError

CUSTOM: str = "CUSTOM_"


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
    if name in known or (name.startswith(CUSTOM) and len(name) > len(CUSTOM)):
        return
    close = difflib.get_close_matches(name, known, 1)
    meant = f"; did you mean {close[0]}?" if close else ""
    raise BadRequestError(field, f"no {kind} {name!r} in OpenStack's vocabulary, and it is not {CUSTOM}…{meant}")

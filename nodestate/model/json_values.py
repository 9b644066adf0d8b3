"""Values that JSON can carry: the check of the parts of an event that nodestate carries and never interprets."""

from __future__ import annotations

import math
from typing import Any, Final

from nodestate.errors import BadEventError
from nodestate.model.limits import MAX_FREE_DEPTH
from nodestate.text import kind_text

_PLAIN_TYPES: Final = frozenset({str, int, float, bool, type(None)})


def require_json_value(value: Any, field: str, depth: int = 0) -> None:
    """Reject a value that JSON cannot carry or that nests too deep.

    Used for ``namespaces``, ``hints``, and fields of later versions.

    Args:
        value: the decoded value.
        field: name of the field, for the error message.
        depth: nesting depth of ``value``; its children are one level deeper.

    Raises:
        BadEventError: with the reason ``too-deep`` or ``wrong-type``.
    """
    if depth > MAX_FREE_DEPTH:
        raise BadEventError("too-deep", f"{field} nests deeper than {MAX_FREE_DEPTH} levels")
    if type(value) is dict:
        for key in value:
            if type(key) is not str:
                raise BadEventError("wrong-type", f"{field} has a key that is not text: {key!r:.40}")
        children = list(value.values())
    elif type(value) is list:
        children = value
    else:
        children = [value]
    for child in children:
        if type(child) is float and not math.isfinite(child):
            raise BadEventError("wrong-type", f"{field} holds {child}, which JSON cannot carry")
        if type(child) in _PLAIN_TYPES:
            continue
        if type(child) is not dict and type(child) is not list:
            raise BadEventError("wrong-type", f"{field} holds {kind_text(child)}, which JSON cannot carry")
        require_json_value(child, field, depth + 1)

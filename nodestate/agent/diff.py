"""The inverse of a merge patch."""

from __future__ import annotations

from typing import Any

import msgspec

_encode = msgspec.msgpack.Encoder().encode


class InexpressibleError(ValueError):
    """Raised when no merge patch leads from one state to the other: null in a patch means "remove"."""


def diff_patch(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The smallest RFC 7396 patch that leads from one state to another: merged into ``old`` it gives ``new``.

    Empty where they are equal (1, 1.0 and True are different values). Neither is changed; the patch shares parts of
    ``new``. Raises ``InexpressibleError`` where a value that changed is or holds a null outside of a list.
    """
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        if key not in old:
            patch[key] = _set(value)
            continue
        before = old[key]
        if isinstance(value, dict) and isinstance(before, dict):
            inner = diff_patch(before, value)
            if inner:
                patch[key] = inner
        elif type(value) is not type(before) or _encode(value) != _encode(before):
            patch[key] = _set(value)
    return patch


def _set(value: Any) -> Any:
    """A value as a patch that sets it, where nothing or something else is."""
    if value is None:
        raise InexpressibleError("a merge patch can't set null")
    if isinstance(value, dict):
        return {key: _set(inner) for key, inner in value.items()}
    return value

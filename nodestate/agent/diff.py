"""The merge patch that turns one state into another."""

from __future__ import annotations

from typing import Any

import msgspec

_encode = msgspec.msgpack.Encoder().encode


class InexpressibleError(ValueError):
    """No merge patch turns one state into the other: a patch can't set a field to null, because null means "remove"."""


def diff_patch(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return the smallest RFC 7396 merge patch that turns ``old`` into ``new``.

    The patch is empty if both are equal; 1, 1.0 and True count as different values. ``old`` and ``new`` are not
    changed. The patch shares objects with ``new``.

    Raises:
        InexpressibleError: if a changed value is null, or contains a null outside of a list.
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
    """Return a patch that sets a field to ``value``.

    Raises ``InexpressibleError`` if the value is null, or contains a null outside of a list.
    """
    if value is None:
        raise InexpressibleError("a merge patch can't set a field to null")
    if isinstance(value, dict):
        return {key: _set(inner) for key, inner in value.items()}
    return value

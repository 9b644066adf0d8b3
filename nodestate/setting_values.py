"""The values that settings may have, in words."""

from __future__ import annotations

import msgspec


def allowed_values(kind: msgspec.inspect.Type) -> str:
    """Return the values that a setting of this type may have, as text: ``a whole number from 1 to 240``."""
    if isinstance(kind, msgspec.inspect.IntType | msgspec.inspect.FloatType):
        number = "a whole number" if isinstance(kind, msgspec.inspect.IntType) else "a finite number"
        if kind.ge is not None and kind.le is not None:
            return f"{number} from {kind.ge:,.12g} to {kind.le:,.12g}"
        return (
            f"{number} of at least {kind.ge:,.12g}" if kind.ge is not None else f"{number} above {kind.gt or 0:,.12g}"
        )
    if isinstance(kind, msgspec.inspect.VarTupleType) and getattr(kind.item_type, "pattern", None):
        return f"{allowed_values(kind.item_type)}; several are separated by commas"
    if isinstance(kind, msgspec.inspect.StrType) and kind.pattern:
        pattern = kind.pattern.removeprefix(r"\A").removesuffix(r"\Z")
        return " or ".join(pattern.strip("()").split("|")) if "|" in pattern else f"text of the form {pattern}"
    return "text" if isinstance(kind, msgspec.inspect.StrType) else "one or more names, separated by commas"

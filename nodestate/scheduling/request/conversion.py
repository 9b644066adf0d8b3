"""Conversion: makes requests from maps of fields, and checks the fields of requests that code has made.

Both ways have the same rules. A field that is None is unset. A whole float such as 1.0 is an integer. The number -1,
which other systems use for *unlimited*, is refused: a request has no unlimited amounts. Every error names a field.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final, TypeVar, get_args

import msgspec

from nodestate.errors import BadRequestError
from nodestate.model.type_info import build_type_info
from nodestate.scheduling.request.fields import Domain, Policy, SpreadBy, Weight

T = TypeVar("T", bound=msgspec.Struct)


def convert(content: Mapping[str, Any], kind: type[T]) -> T:
    """Convert a map of fields to an object of type ``kind``. A ``BadRequestError`` names the field that is invalid."""
    unknown = next((name for name in content if name not in kind.__struct_fields__), None)
    if unknown is not None:
        raise BadRequestError(str(unknown), f"unknown field; the fields are {', '.join(kind.__struct_fields__)}")
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError:
        return _convert_normal(_normal(content), kind)


def _convert_normal(content: Mapping[str, Any], kind: type[T]) -> T:
    """Convert a map without fields that are None, and without whole floats, see ``convert``."""
    unlimited = next(_unlimited(content), None)
    if unlimited is not None:
        raise BadRequestError(unlimited, UNLIMITED)
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        text, path = _MESSAGE.fullmatch(str(error)).groups()  # type: ignore[union-attr]  # any text matches
        field, in_a_map, _ = (path or "").partition("[...]")
        if in_a_map:
            field = f"{field}.{_key_of_invalid_value(content[field], _VALUES[field])}"
        about = _FIELD.search(text)
        if about is not None:
            field = f"{field}.{about[1]}" if field else about[1]
        if field in _CHOICES and text.startswith("Invalid enum value"):
            text = f"{text}; want {' or '.join(choice for choice in _CHOICES[field] if choice)}"
        raise BadRequestError(field or "request", text[:1].lower() + text[1:]) from None


def check_fields(made: msgspec.Struct) -> None:
    """Check the types and limits of all fields of an object that a constructor was called for.

    Values in another form, such as a list for a tuple, are replaced by their usual form. Raises ``BadRequestError``.
    """
    kind = type(made)
    try:
        converted = msgspec.convert(made, _unchecked(kind), from_attributes=True)
    except msgspec.ValidationError:
        fields = {name: getattr(made, name) for name in kind.__struct_fields__}
        converted = _convert_normal(_normal(fields), _unchecked(kind))
    if msgspec.structs.astuple(converted) != msgspec.structs.astuple(made):
        for name in kind.__struct_fields__:
            msgspec.structs.force_setattr(made, name, getattr(converted, name))


def prepare(*kinds: type[msgspec.Struct]) -> None:
    """Make types ready for ``convert`` and ``check_fields`` in several threads, see ``build_type_info``."""
    build_type_info(*kinds, *map(_unchecked, kinds))


@cache
def _unchecked(kind: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """Return a type with the same fields as ``kind`` whose constructor checks nothing."""
    fields: list[Any] = []
    for field in msgspec.structs.fields(kind):
        if field.required:
            fields.append((field.name, field.type))
        elif field.default_factory is not msgspec.NODEFAULT:
            fields.append((field.name, field.type, msgspec.field(default_factory=field.default_factory)))
        else:
            fields.append((field.name, field.type, field.default))
    return msgspec.defstruct(kind.__name__, fields, kw_only=True)


def _normal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the map without the fields that are None, and with integers for whole floats.

    The maps in the map are changed in the same way.
    """
    return {
        name: _normal(value) if isinstance(value, Mapping) else _whole(value)
        for name, value in content.items()
        if value is not None
    }


def _whole(value: Any) -> Any:
    """Return the integer for a whole float, and any other value unchanged."""
    return int(value) if isinstance(value, float) and abs(value) < _MAX_WHOLE and value.is_integer() else value


def _unlimited(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the fields that are -1. Multipliers of weighers are skipped, because they may be negative."""
    for name, value in content.items():
        if isinstance(value, Mapping) and name != "weights":
            yield from _unlimited(value, f"{prefix}{name}.")
        elif type(value) is int and value == -1:
            yield f"{prefix}{name}"


UNLIMITED: Final = "-1 for unlimited is not allowed; give a number, or leave the field out"
"""The reason for the refusal of a field that is -1."""
_MAX_WHOLE: Final = 2.0**63
"""A float of this absolute value, or of a larger one, is not converted: it fits no field for integers."""
_MESSAGE: Final = re.compile(r"(.*?)(?: - at (?:`key` in )?`\$\.?(.*)`)?", re.DOTALL)
"""Splits an error message of msgspec into the text and the path of the invalid value."""
_FIELD: Final = re.compile(r"(?:missing required|unknown) field `(.*)`")
"""Finds a missing or unknown field in the text of such a message: msgspec does not put that field into the path."""
_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "group.policy": get_args(Policy),
    "policy": get_args(Policy),
    "spread.by": get_args(Domain),
    "by": get_args(Domain),
    "spread_by": get_args(SpreadBy),
}
"""The valid values of each field that has a fixed set of values. They are needed because msgspec does not list them."""
_VALUES: Final[Mapping[str, Any]] = {"resources": int, "weights": Weight}
"""The type of the values of each field that is a map.

Msgspec does not name the key of an invalid value, so the key is searched by this type.
"""


def _key_of_invalid_value(values: Mapping[str, Any], kind: Any) -> str:
    """Return the first key whose value is not of the type ``kind``. The caller knows that there is one."""
    for name, value in values.items():
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError:
            return name
    raise AssertionError("msgspec found an invalid value, so there is one")

"""Documents that clients send: their decoding, and errors that show the expected shape."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, Final, TypeVar

import msgspec
from msgspec import inspect

from nodestate.serve.problems import bad_request

T = TypeVar("T", bound=msgspec.Struct)

_MISSING: Final = re.compile(r"Object missing required field `(.+)`")
_UNKNOWN: Final = "Object contains unknown field"
_STEP: Final = re.compile(r"[^.\[\]]+")


def decoded(content: bytes, kind: type[T], parameter: str = "") -> T:
    """Decode a document of JSON.

    Args:
        content: the document.
        kind: its type.
        parameter: the parameter that it is the value of; empty: it is the body.

    Raises ``ProblemError`` of the type ``bad-request``, which names the field that is missing or wrong. If a field is
    missing, or the document is no object, the problem also shows the expected shape.
    """
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason, _, path = str(error).partition(" - at `$")
        steps = [parameter, path.strip("`.")]
        missing = _MISSING.fullmatch(reason)
        if missing is not None:
            steps.append(missing[1])
            reason = "the field is missing"
        if missing is not None or not (path or reason.startswith(_UNKNOWN)):
            reason = f"{reason}; expected an object such as {_shape_at(kind, path)}"
        field = ".".join(step for step in steps if step).replace(".[", "[")
        raise bad_request(field or "body", reason) from None


@cache
def _shape_at(kind: type[msgspec.Struct], path: str) -> str:
    """Return the smallest object of the type that a path of a document has, as JSON."""
    found = plain_type(inspect.type_info(kind))
    for step in _STEP.findall(path.strip("`")):
        if isinstance(found, inspect.StructType):
            found = next(field.type for field in found.fields if field.encode_name == step)
        elif isinstance(found, inspect.ListType):
            found = found.item_type
        elif isinstance(found, inspect.DictType):
            found = found.value_type
        found = plain_type(found)
    return msgspec.json.encode(_example(found)).decode()


def plain_type(kind: inspect.Type) -> inspect.Type:
    """Return a type without its constraints, and without its alternatives."""
    while isinstance(kind, (inspect.Metadata, inspect.UnionType)):
        kind = kind.type if isinstance(kind, inspect.Metadata) else kind.types[0]
    return kind


def _example(kind: inspect.Type) -> Any:
    """Return a small value of a type: of an object the required fields, otherwise the example of its description."""
    if isinstance(kind, inspect.Metadata) and (examples := (kind.extra_json_schema or {}).get("examples")):
        return examples[0]
    kind = plain_type(kind)
    if isinstance(kind, inspect.StructType):
        return {field.encode_name: _example(field.type) for field in kind.fields if field.required}
    if isinstance(kind, inspect.ListType):
        return [_example(kind.item_type)]
    if isinstance(kind, inspect.LiteralType):
        return kind.values[0]
    values: dict[type, Any] = {inspect.StrType: "name", inspect.IntType: 1, inspect.FloatType: 60, inspect.DictType: {}}
    return values.get(type(kind))

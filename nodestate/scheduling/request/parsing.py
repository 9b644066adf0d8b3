"""Parsing: makes requests from JSON, from maps, and from the hints of an allocation. Every error names a field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar, get_args

import msgspec

from nodestate.errors import BadRequestError
from nodestate.scheduling.request.limits import MAX_GROUP_COUNT
from nodestate.scheduling.request.request import STORED_FIELDS, GroupRequest, Policy, Request, SpreadBy, Weight

T = TypeVar("T", bound=msgspec.Struct)


def request_of(instance: str, resources: Mapping[str, int], group: str | None, hints: Mapping[str, Any]) -> Request:
    """Rebuild a request from an existing allocation, for example to migrate the instance under its old constraints.

    Args:
        instance: The instance's id.
        resources: The allocation's resources: amounts by resource class.
        group: The name of the instance's group; None if the instance has no group.
        hints: The allocation's hints. Only the hints that ``hints_of`` stores are read, because other services may have
            stored hints of their own.

    Raises:
        BadRequestError: A value is invalid, or two values contradict each other. The error names the field.
    """
    fields: dict[str, Any] = {field: hints[field] for field in STORED_FIELDS if field in hints}
    if group is not None and "group_policy" in hints:
        fields["group"] = {"name": group, "policy": hints["group_policy"], "max_per_node": hints.get("max_per_node", 1)}
    return parse({"resources": dict(resources), "instances": [instance], **fields})


def parse(content: Mapping[str, Any] | str | bytes) -> Request:
    """Parse a request for one instance, or for several equal ones.

    Args:
        content: A map of fields, or the same as JSON text.

    Raises:
        BadRequestError: The content is no valid request. The error names the invalid field.
    """
    content = _map_of(content)
    if "members" in content:
        raise BadRequestError("members", "this is a group request; use 'nodestate reserve', or parse_group")
    return _request(content)


def _request(content: Mapping[str, Any]) -> Request:
    """Make a request from a map of fields."""
    ids = content.get("instances")
    if isinstance(ids, (list, tuple)) and ids:  # without a count, the number of ids is the count
        content = {"count": len(ids), **content}
    return _converted(content, Request)


def parse_group(content: Mapping[str, Any] | str | bytes) -> GroupRequest:
    """Parse a request for a reservation.

    Args:
        content: A map of fields, or the same as JSON text.

    Raises:
        BadRequestError: The content is no valid group request. The error names the invalid field; for a field of a
            member it also gives the member's number, as in ``members[0].zone``.
    """
    content = dict(_map_of(content))
    if "members" not in content and "resources" in content:
        reason = (
            "a group request has members; use 'nodestate boot' or 'select', or parse, for a request without members"
        )
        raise BadRequestError("resources", reason)
    members = content.get("members")
    if isinstance(members, (list, tuple)):
        if len(members) > MAX_GROUP_COUNT:
            raise BadRequestError("members", f"{len(members):,}; a reservation has 1 to {MAX_GROUP_COUNT}")
        content["members"] = tuple(_member(number, member) for number, member in enumerate(members))
    return _converted(content, GroupRequest)


def _member(number: int, content: Any) -> Request:
    """Make the request of one member of a group request. Errors name the member by its number."""
    try:
        return _request(_map_of(content))
    except BadRequestError as error:
        field = "" if error.field == "request" else f".{error.field}"
        raise BadRequestError(f"members[{number}]{field}", error.reason) from None


def _map_of(content: Any) -> Mapping[str, Any]:
    """Return a map unchanged, or decode it from JSON. Raises ``BadRequestError`` if the content is neither."""
    try:
        if isinstance(content, (str, bytes)):
            content = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequestError("request", f"not valid JSON: {error}") from None
    if not isinstance(content, Mapping):
        raise BadRequestError("request", f"want a map of fields, not a {type(content).__name__}")
    return content


def _converted(content: Mapping[str, Any], kind: type[T]) -> T:
    """Convert a map of fields to an object of type ``kind``. A ``BadRequestError`` names the field that is invalid."""
    unknown = next((name for name in content if name not in kind.__struct_fields__), None)
    if unknown is not None:
        raise BadRequestError(str(unknown), f"unknown field; the fields are {', '.join(kind.__struct_fields__)}")
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


_MESSAGE: Final = re.compile(r"(.*?)(?: - at (?:`key` in )?`\$\.?(.*)`)?", re.DOTALL)
"""Splits an error message of msgspec into the text and the path of the invalid value."""
_FIELD: Final = re.compile(r"(?:missing required|unknown) field `(.*)`")
"""Finds a missing or unknown field in the text of such a message: msgspec does not put that field into the path."""
_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {"group.policy": get_args(Policy), "spread_by": get_args(SpreadBy)}
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

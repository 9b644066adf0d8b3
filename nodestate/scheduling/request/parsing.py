"""Parsing: makes requests from JSON, from maps, and from the hints of an allocation. Every error names a field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from nodestate.errors import BadRequestError
from nodestate.scheduling.request.conversion import convert
from nodestate.scheduling.request.limits import MAX_GROUP_COUNT
from nodestate.scheduling.request.request import STORED_FIELDS, GroupRequest, Request
from nodestate.text import kind_text


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
    if isinstance(ids, (list, tuple)) and ids and content.get("count") is None:  # the number of ids is the count
        content = {**content, "count": len(ids)}
    return convert(content, Request)


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
    return convert(content, GroupRequest)


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
        raise BadRequestError("request", f"want a map of fields, not {kind_text(content)}")
    return content

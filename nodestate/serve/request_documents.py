"""Requests for instances as the HTTP API accepts them. They have the fields of ``nodestate.scheduling.Request``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from nodestate.errors import BadRequestError
from nodestate.model import MAX_AMOUNT, MAX_CLASSES_COUNT, MAX_WORD_CHARS, Word
from nodestate.scheduling import GroupRequest, Request, parse, parse_group
from nodestate.scheduling.request import (
    MAX_ALTERNATES_COUNT,
    MAX_COUNT,
    MAX_GROUP_COUNT,
    MAX_HOLD_S,
    MAX_NAMES_COUNT,
    MIN_HOLD_S,
)
from nodestate.serve.parameters import NodeNameParameter
from nodestate.text import count_text

MAX_REQUESTS_COUNT = 1_000
"""Most requests, and most instances of them together, in one POST."""

Words = Annotated[list[Word], Meta(max_length=1_000)]
Instances = Annotated[list[Word], Meta(max_length=MAX_NAMES_COUNT)]
NodeNames = Annotated[list[NodeNameParameter], Meta(max_length=MAX_NAMES_COUNT)]
# The limits of classes and amounts are only described here: ``parse`` checks them, and names the class that was meant.
ClassAmount = Annotated[int, Meta(ge=0, extra_json_schema={"maximum": MAX_AMOUNT})]
CLASS_NAMES = {"propertyNames": {"pattern": f"^[A-Z0-9_]{{1,{MAX_WORD_CHARS}}}$"}}
Amounts = Annotated[
    dict[str, ClassAmount],
    Meta(
        description="For each resource class the amount that one instance needs.",
        examples=[{"VCPU": 2, "MEMORY_MB": 4096}],
        max_length=MAX_CLASSES_COUNT,
        extra_json_schema=CLASS_NAMES,
    ),
]


class GroupDocument(msgspec.Struct, forbid_unknown_fields=True):
    """The group of instances to which an instance belongs."""

    name: Annotated[Word, Meta(description="Name of the group; all instances with it are members.")]
    policy: Annotated[
        Literal["affinity", "anti-affinity", "soft-affinity", "soft-anti-affinity"],
        Meta(description="Whether members must, or should, be on one node or on different nodes."),
    ]
    max_per_node: (
        Annotated[int, Meta(ge=1, le=MAX_COUNT, description="Most members on one node, for anti-affinity.")] | UnsetType
    ) = UNSET


class SpreadDocument(msgspec.Struct, forbid_unknown_fields=True):
    """How the members of a group must be spread."""

    by: Annotated[Literal["zone", "aggregate"], Meta(description="Spread over zones, or over aggregates.")]
    max_skew: (
        Annotated[
            int, Meta(ge=1, le=MAX_COUNT, description="Most members that one domain may have more than the emptiest.")
        ]
        | UnsetType
    ) = UNSET


class RequestDocument(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A request for one instance, or for several equal ones."""

    resources: Amounts
    count: Annotated[int, Meta(ge=1, le=MAX_COUNT, description="Number of equal instances.")] | UnsetType = UNSET
    instances: (
        Annotated[Instances, Meta(description="Ids of the instances, as many as count; without it, new ids.")]
        | UnsetType
    ) = UNSET
    required_traits: Annotated[Words, Meta(description="The node must have all of these.")] | UnsetType = UNSET
    any_traits: Annotated[Words, Meta(description="The node must have at least one of these.")] | UnsetType = UNSET
    forbidden_traits: Annotated[Words, Meta(description="The node must have none of these.")] | UnsetType = UNSET
    zone: (
        Annotated[str, Meta(description="The node must be in this zone; empty: any.", max_length=MAX_WORD_CHARS)]
        | UnsetType
    ) = UNSET
    aggregates: Annotated[Words, Meta(description="The node must be in at least one of these.")] | UnsetType = UNSET
    aggregates_all: Annotated[Words, Meta(description="The node must be in all of these.")] | UnsetType = UNSET
    aggregates_none: Annotated[Words, Meta(description="The node must be in none of these.")] | UnsetType = UNSET
    tolerations: Annotated[Words, Meta(description="The taints that the node may have.")] | UnsetType = UNSET
    group: Annotated[GroupDocument, Meta(description="The group of the instances.")] | UnsetType = UNSET
    same_host: (
        Annotated[Instances, Meta(description="At least one of these instances must be on the node.")] | UnsetType
    ) = UNSET
    different_host: (
        Annotated[Instances, Meta(description="None of these instances may be on the node.")] | UnsetType
    ) = UNSET
    force_nodes: Annotated[NodeNames, Meta(description="The node must be one of these.")] | UnsetType = UNSET
    ignore_nodes: Annotated[NodeNames, Meta(description="The node must be none of these.")] | UnsetType = UNSET
    spread_by: (
        Annotated[
            Literal["", "zone", "aggregate"],
            Meta(description="Prefer zones or aggregates with few members of the group; empty: neither."),
        ]
        | UnsetType
    ) = UNSET
    spread: Annotated[SpreadDocument, Meta(description="How the group is spread.")] | UnsetType = UNSET
    weights: (
        Annotated[
            dict[str, Annotated[float, Meta(ge=-1e6, le=1e6)]],
            Meta(description="By weigher, the multiplier for this request."),
        ]
        | UnsetType
    ) = UNSET
    alternates: (
        Annotated[int, Meta(ge=0, le=MAX_ALTERNATES_COUNT, description="Nodes to name besides the best one.")]
        | UnsetType
    ) = UNSET
    max_age: (
        Annotated[float, Meta(gt=0, description="Accepted age of the view in seconds, for this request.")] | UnsetType
    ) = UNSET


class RequestsBody(msgspec.Struct, forbid_unknown_fields=True):
    """One or several requests; many in one POST cost little more than one."""

    requests: Annotated[
        list[RequestDocument],
        Meta(description="The requests.", min_length=1, max_length=MAX_REQUESTS_COUNT),
    ]


class SelectBody(RequestsBody, forbid_unknown_fields=True):
    """Requests to choose nodes for."""

    explain: Annotated[
        bool, Meta(description="Answer also with how many nodes each filter left, and the weights of the best nodes.")
    ] = False


class GroupBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A request for a reservation: members that are placed all together or not at all."""

    members: Annotated[
        list[RequestDocument],
        Meta(description="The requests of the members.", min_length=1, max_length=MAX_GROUP_COUNT),
    ]
    group: Annotated[GroupDocument, Meta(description="The group of the instances.")] | UnsetType = UNSET
    hold_s: (
        Annotated[
            float,
            Meta(ge=MIN_HOLD_S, le=MAX_HOLD_S, description="Seconds until the nodes are released; without it, 60."),
        ]
        | UnsetType
    ) = UNSET
    max_age: Annotated[float, Meta(gt=0, description="Accepted age of the view in seconds.")] | UnsetType = UNSET
    owner: Annotated[
        str, Meta(description="Owner of the reservation; empty: the name of the token.", max_length=200)
    ] = ""


def request_of(document: RequestDocument, field: str, max_age: float | None) -> Request:
    """Return the request of a document. Raises ``BadRequestError``.

    Args:
        document: the document.
        field: where it was given, for the error.
        max_age: accepted age of the view in seconds if the document names no lower one; None: the scheduler's.
    """
    fields: dict[str, Any] = msgspec.to_builtins(document)
    if max_age is not None:
        fields["max_age"] = min(max_age, fields.get("max_age", max_age))
    try:
        return parse(fields)
    except BadRequestError as error:
        raise BadRequestError(f"{field}.{error.field}", error.reason) from None


def requests_of(documents: list[RequestDocument], max_age: float | None) -> list[Request]:
    """Return the requests of a body, as ``request_of`` does. Raises ``BadRequestError``."""
    found = [request_of(document, f"requests[{number}]", max_age) for number, document in enumerate(documents)]
    total = sum(request.count for request in found)
    if total > MAX_REQUESTS_COUNT:
        raise BadRequestError(
            "requests", f"{count_text(total, 'instance')}; one POST has at most {MAX_REQUESTS_COUNT:,}"
        )
    return found


def group_of(body: GroupBody, max_age: float | None) -> GroupRequest:
    """Return the group request of a body; ``max_age`` as for ``requests_of``. Raises ``BadRequestError``."""
    fields = msgspec.to_builtins(body)
    del fields["owner"]
    if max_age is not None:
        fields["max_age"] = min(max_age, fields.get("max_age", max_age))
    return parse_group(fields)

"""The types of requests.

The annotations of the fields state types, lengths and ranges. The constructors check them, as ``parse`` and
``parse_group`` do, and they check names, amounts, and fields that contradict each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from nodestate.errors import BadRequestError
from nodestate.model import MAX_AMOUNT, MAX_CLASSES_COUNT, MAX_WORD_CHARS, Word
from nodestate.ports.ids import IdSource
from nodestate.scheduling.request.conversion import UNLIMITED, check_fields, prepare
from nodestate.scheduling.request.fields import Domain, Instances, Members, Names, Policy, SpreadBy, Weight, Words
from nodestate.scheduling.request.limits import (
    MAX_ALTERNATES_COUNT,
    MAX_COUNT,
    MAX_GROUP_COUNT,
    MAX_HINTS_BYTES,
    MAX_HOLD_S,
    MIN_HOLD_S,
)
from nodestate.scheduling.request.vocabulary import check_class
from nodestate.text import count_text


class InstanceGroup(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The group to which an instance belongs: the equivalent of a server group of OpenStack.

    The constructor raises ``BadRequestError`` if a field has a wrong type, or if ``max_per_node`` is set for a policy
    other than anti-affinity.
    """

    name: Word
    """The group's name. All instances whose group has this name are members of one group."""
    policy: Policy
    """``affinity``: all members must be on one node. ``anti-affinity``: members must be on different nodes. A soft
    policy prefers such nodes, but allows all others.
    """
    max_per_node: Members = 1
    """Largest number of members on one node, for the policy ``anti-affinity``."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.max_per_node != 1 and self.policy != "anti-affinity":
            reason = f"only the policy anti-affinity has a max_per_node; leave it out for {self.policy}"
            raise BadRequestError("group.max_per_node", reason)


class Spread(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the members of a group must be spread over zones or aggregates, called domains.

    The constructor raises ``BadRequestError`` if a field has a wrong type.
    """

    by: Domain
    """``zone``: the domains are zones. ``aggregate``: the domains are the aggregates that the request names in
    ``aggregates``, or all aggregates if it names none there.
    """
    max_skew: Members = 1
    """How many members more than the domain with the fewest members the domain of the chosen node may have, with the
    new member.
    """

    def __post_init__(self) -> None:
        check_fields(self)


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, dict=True):
    """A request for one instance, or for several equal ones. The names of the fields follow OpenStack.

    The constructor raises ``BadRequestError`` if a type, a resource class, an amount, a trait or a number is invalid,
    if two fields contradict each other, or if the request is too large to be stored as hints. The error names the
    field.
    """

    resources: Annotated[dict[str, int], Meta(max_length=MAX_CLASSES_COUNT)]
    """For each resource class the amount that one instance needs. An amount of 0 is removed."""
    count: int = 1
    """How many instances to place."""
    instances: Instances = ()
    """The ids of the instances, as many as ``count``. If empty, ``instance_ids`` makes new ids."""
    required_traits: Words = ()
    """The node must have all of these traits."""
    any_traits: Words = ()
    """The node must have at least one of these traits, unless the field is empty."""
    forbidden_traits: Words = ()
    """The node must have none of these traits."""
    zone: Annotated[str, Meta(max_length=MAX_WORD_CHARS)] = ""
    """The node must be in this availability zone, unless the field is empty."""
    aggregates: Words = ()
    """The node must be in at least one of these aggregates, unless the field is empty."""
    aggregates_all: Words = ()
    """The node must be in all of these aggregates."""
    aggregates_none: Words = ()
    """The node must be in none of these aggregates."""
    tolerations: Words = ()
    """The taints that the node may have. A node with any other taint repels the instance."""
    group: InstanceGroup | None = None
    """The group to which the instances belong; None if they belong to no group."""
    same_host: Instances = ()
    """At least one of these instances must be on the node, unless the field is empty."""
    different_host: Instances = ()
    """None of these instances may be on the node."""
    force_nodes: Names = ()
    """The node must be one of these nodes, unless the field is empty."""
    ignore_nodes: Names = ()
    """The node must be none of these nodes."""
    spread_by: SpreadBy = ""
    """``zone``: prefer nodes in zones with few members of the group. ``aggregate``: prefer nodes in aggregates with few
    members of the group. Both need a ``group``. Empty: neither.
    """
    spread: Spread | None = None
    """How the members of the group must be spread; needs a ``group``. None: in any way. ``spread_by`` is the preference
    that does not exclude a node.
    """
    weights: dict[str, Weight] = {}
    """Multipliers for this request, by the name of the weigher. They replace the weighers' own multipliers."""
    alternates: int = 0
    """Number of nodes that ``select`` returns for each instance in addition to the best node."""
    max_age: Annotated[float, Meta(gt=0)] | None = None
    """The greatest age in seconds of the view that is decided on. If None, the scheduler's ``max_age`` applies."""

    def __post_init__(self) -> None:
        check_fields(self)
        _check_resources(self.resources)
        if not all(self.resources.values()):
            amounts = {name: amount for name, amount in self.resources.items() if amount}
            msgspec.structs.force_setattr(self, "resources", amounts)
        _check_between("count", self.count, 1, MAX_COUNT)
        _check_between("alternates", self.alternates, 0, MAX_ALTERNATES_COUNT)
        if self.instances and len(self.instances) != self.count:
            reason = (
                f"{len(self.instances)} ids for a count of {self.count}; give one id for each instance, or no count"
            )
            raise BadRequestError("instances", reason)
        _check_named_once("instances", self.instances)
        _check_disjoint("forbidden_traits", self.forbidden_traits, "required_traits", self.required_traits)
        if self.any_traits and set(self.any_traits) <= set(self.forbidden_traits):
            reason = "all of them are in forbidden_traits too, so no node matches; remove one of them there"
            raise BadRequestError("any_traits", reason)
        _check_disjoint("different_host", self.different_host, "same_host", self.same_host)
        _check_disjoint("aggregates_none", self.aggregates_none, "aggregates_all", self.aggregates_all)
        if self.aggregates and set(self.aggregates) <= set(self.aggregates_none):
            reason = "all of them are in aggregates_none too, so no node matches; remove one of them there"
            raise BadRequestError("aggregates", reason)
        if self.force_nodes and set(self.force_nodes) <= set(self.ignore_nodes):
            reason = "all of them are in ignore_nodes too, so no node matches; remove one of them there"
            raise BadRequestError("force_nodes", reason)
        for field in ("spread_by", "spread"):
            if getattr(self, field) and self.group is None:
                raise BadRequestError(field, "needs a group, whose members are to be spread; set group, too")
        if self.spread is not None and self.group is not None and self.group.policy == "affinity":
            reason = "the policy affinity puts all members of the group on one node; choose another policy"
            raise BadRequestError("spread", reason)
        _check_hints(hints_of(self))

    def instance_ids(self, source: IdSource) -> tuple[str, ...]:
        """Return the ids of the instances: ``instances``, or new ids from ``source`` if that field is empty.

        The first call makes the new ids, and later calls return the same ids.
        """
        if self.instances:
            return self.instances
        made: tuple[str, ...] | None = self.__dict__.get("made_ids")
        if made is None:
            made = self.__dict__["made_ids"] = tuple(source.instance_id() for _ in range(self.count))
        return made

    @cached_property
    def shape(self) -> bytes:
        """The fields that decide how nodes are filtered and weighed, encoded.

        Two requests of the same shape differ at most in ``count``, ``instances``, ``alternates`` and ``max_age``. The
        ranking of the nodes is the same for both, so a selector computes it only once.
        """
        return _encode([getattr(self, field) for field in self.__struct_fields__ if field not in _NO_SHAPE_FIELDS])


class JointRequest(Request, frozen=True, forbid_unknown_fields=True, kw_only=True, dict=True):
    """A request for one node for several instances together, as an affinity group needs it.

    ``resources`` is the sum of their resources. All other fields come from the request of the first instance.
    """

    parts: tuple[dict[str, int], ...]
    """The resources of each instance, without repetitions."""


class GroupRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A request for a reservation: members that are placed all together or not at all. Each has its own requirements.

    The constructor raises ``BadRequestError`` if a field has a wrong type, if there are no members or too many, if
    ``hold_s`` is invalid, if an instance is named twice, or if both the request and a member have a group. The error
    names the field.
    """

    members: Annotated[tuple[Request, ...], Meta(max_length=MAX_GROUP_COUNT)]
    """The requests of the members. A request with a ``count`` of 3 stands for three members that are equal."""
    group: InstanceGroup | None = None
    """The group to which all members belong. If it is None, each member's request may name a group of its own."""
    hold_s: float = 60.0
    """Seconds after which the reservation expires if it is neither confirmed nor extended."""
    max_age: Annotated[float, Meta(gt=0)] | None = None
    """As ``Request.max_age``, for all members. The members' own ``max_age`` is ignored."""

    def __post_init__(self) -> None:
        check_fields(self)
        size = sum(member.count for member in self.members)
        if not 1 <= size <= MAX_GROUP_COUNT:
            raise BadRequestError(
                "members", f"{count_text(size, 'instance')}; a reservation has 1 to {MAX_GROUP_COUNT}"
            )
        check_hold(self.hold_s)
        for number, member in enumerate(self.members):
            if member.group is not None and self.group is not None:
                reason = "the reservation has a group for all members; leave out one of the two"
                raise BadRequestError(f"members[{number}].group", reason)
        _check_named_once("members", [instance for member in self.members for instance in member.instances])


_encode = msgspec.msgpack.Encoder(order="sorted").encode

_NO_SHAPE_FIELDS: Final = frozenset({"count", "instances", "alternates", "max_age"})
"""The fields that ``Request.shape`` does not encode."""
STORED_FIELDS: Final = (
    "required_traits", "any_traits", "forbidden_traits", "zone", "aggregates",
    "same_host", "different_host", "force_nodes", "ignore_nodes", "spread_by", "weights",
    "aggregates_all", "aggregates_none", "tolerations", "spread",
)  # fmt: skip
"""The fields of a request that are stored as hints under the same names. The group's policy is stored, too."""


prepare(InstanceGroup, Spread, Request, JointRequest, GroupRequest)


def joint_request(requests: Sequence[Request]) -> JointRequest:
    """Return the request for one node for one instance of each of these requests."""
    amounts: dict[str, int] = {}
    parts: list[dict[str, int]] = []
    for request in requests:
        for name, amount in request.resources.items():
            amounts[name] = amounts.get(name, 0) + amount
        if request.resources not in parts:
            parts.append(request.resources)
    fields = {field: getattr(requests[0], field) for field in Request.__struct_fields__}
    one = {"resources": amounts, "count": 1, "instances": requests[0].instances[:1], "parts": tuple(parts)}
    return JointRequest(**{**fields, **one})


def parts_of(request: Request) -> Sequence[Mapping[str, int]]:
    """Return the resources of each instance that a request is for, without repetitions."""
    return request.parts if isinstance(request, JointRequest) else (request.resources,)


def hints_of(request: Request) -> dict[str, Any]:
    """Return the hints of a request: the constraints that it sets, apart from resources and the group's name.

    The agent stores the hints with the allocation as long as the allocation exists, so a later migration can apply the
    same constraints. Resources and the group's name are fields of the allocation itself. The hints ``group_policy`` and
    ``max_per_node`` describe the group.
    """
    hints = {field: value for field in STORED_FIELDS if (value := getattr(request, field))}
    hints = {field: list(value) if isinstance(value, tuple) else value for field, value in hints.items()}
    if request.spread is not None:
        hints["spread"] = msgspec.to_builtins(request.spread)
    if request.group is not None:
        hints["group_policy"] = request.group.policy
        if request.group.max_per_node != 1:
            hints["max_per_node"] = request.group.max_per_node
    return hints


def check_hold(seconds: float) -> None:
    """Check that ``seconds`` is a valid ``hold_s`` of a reservation. Raises ``BadRequestError`` if it is not."""
    if not MIN_HOLD_S <= seconds <= MAX_HOLD_S:
        reason = UNLIMITED if seconds == -1 else f"{seconds:g} s; want {MIN_HOLD_S:g} to {MAX_HOLD_S:g} s"
        raise BadRequestError("hold_s", reason)


def _check_resources(resources: Mapping[str, int]) -> None:
    """Raise ``BadRequestError`` unless all classes and amounts are valid."""
    for name, amount in resources.items():
        field = f"resources.{name}"
        check_class(field, name)
        if not 0 <= amount <= MAX_AMOUNT:
            raise BadRequestError(field, UNLIMITED if amount == -1 else f"{amount:,}; want 0 to {MAX_AMOUNT:,}")


def _check_hints(hints: Mapping[str, Any]) -> None:
    """Raise ``BadRequestError`` if the encoded hints are too large. The error names the field with the largest hint."""
    size = len(_encode(hints))
    if size > MAX_HINTS_BYTES:
        largest = max(hints, key=lambda field: len(_encode(hints[field])))
        raise BadRequestError(
            largest,
            f"the hints of the request take {size:,} bytes together, over {MAX_HINTS_BYTES:,}; shorten this field",
        )


def _check_between(field: str, value: int, least: int, most: int) -> None:
    """Raise ``BadRequestError`` for ``field`` unless its value is from ``least`` to ``most``."""
    if not least <= value <= most:
        raise BadRequestError(field, UNLIMITED if value == -1 else f"{value:,}; want {least} to {most:,}")


def _check_disjoint(field: str, names: tuple[str, ...], other: str, others: tuple[str, ...]) -> None:
    """Raise ``BadRequestError`` for ``field`` if one of its ``names`` also occurs in the field ``other``."""
    both = sorted(set(names) & set(others))
    if both:
        raise BadRequestError(field, f"{both[0]} is in {other} too, so no node matches; remove it from one of the two")


def _check_named_once(field: str, names: Sequence[str]) -> None:
    """Raise ``BadRequestError`` for ``field`` if ``names`` contains the same instance twice."""
    if len(set(names)) != len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise BadRequestError(field, f"the instance {twice} is named twice; name each instance once")

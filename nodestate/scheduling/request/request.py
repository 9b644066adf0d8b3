"""The request types. A request names the instances that a user wants placed; it is validated when it is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from nodestate.errors import BadRequestError
from nodestate.model import MAX_AMOUNT, MAX_CLASSES_COUNT, MAX_WORD_CHARS, NodeName, Word
from nodestate.ports.ids import IdSource
from nodestate.scheduling.request.limits import (
    MAX_ALTERNATES_COUNT,
    MAX_COUNT,
    MAX_GROUP_COUNT,
    MAX_HINTS_BYTES,
    MAX_HOLD_S,
    MAX_NAMES_COUNT,
    MAX_WEIGHT,
    MIN_HOLD_S,
)
from nodestate.scheduling.request.vocabulary import check_class, check_trait

Policy = Literal["affinity", "anti-affinity", "soft-affinity", "soft-anti-affinity"]
SpreadBy = Literal["", "zone", "aggregate"]
Names = Annotated[tuple[NodeName, ...], Meta(max_length=MAX_NAMES_COUNT)]
Instances = Annotated[tuple[Word, ...], Meta(max_length=MAX_NAMES_COUNT)]
Words = Annotated[tuple[Word, ...], Meta(max_length=1_000)]
Weight = Annotated[float, Meta(ge=-MAX_WEIGHT, le=MAX_WEIGHT)]


class InstanceGroup(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The group that an instance belongs to, as a server group of OpenStack.

    Raises ``BadRequestError`` if ``max_per_node`` is set for a policy other than anti-affinity.
    """

    name: Word
    """The group's name; instances with the same name are members of one group."""
    policy: Policy
    """Whether members go to one node (affinity) or to different nodes (anti-affinity); soft policies prefer that."""
    max_per_node: Annotated[int, Meta(ge=1, le=MAX_COUNT)] = 1
    """How many members of an anti-affinity group may share a node."""

    def __post_init__(self) -> None:
        if self.max_per_node != 1 and self.policy != "anti-affinity":
            reason = f"only the policy anti-affinity has a max_per_node; leave it out for {self.policy}"
            raise BadRequestError("group.max_per_node", reason)


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, dict=True):
    """A request for one or several equal instances. The names of the fields follow OpenStack.

    Raises ``BadRequestError``, which names the field, if a field is invalid or contradicts another one.
    """

    resources: Annotated[dict[str, int], Meta(max_length=MAX_CLASSES_COUNT)]
    """The amount of each resource class that one instance needs."""
    count: int = 1
    """How many instances to place."""
    instances: Instances = ()
    """The ids of the instances, one for each; if empty, ids are made."""
    required_traits: Words = ()
    """Traits that the node must have, all of them."""
    any_traits: Words = ()
    """Traits of which the node must have at least one."""
    forbidden_traits: Words = ()
    """Traits of which the node must have none."""
    zone: Annotated[str, Meta(max_length=MAX_WORD_CHARS)] = ""
    """The availability zone that the node must be in; empty if any will do."""
    aggregates: Words = ()
    """Aggregates of which the node must be in at least one; empty if any node will do."""
    group: InstanceGroup | None = None
    """The group that the instances belong to."""
    same_host: Instances = ()
    """Instances of which at least one must be on the node."""
    different_host: Instances = ()
    """Instances of which none may be on the node."""
    force_nodes: Names = ()
    """The only nodes that are allowed; empty if any node is."""
    ignore_nodes: Names = ()
    """Nodes that are not allowed."""
    spread_by: SpreadBy = ""
    """Prefer zones, or aggregates, that have few members of the group."""
    weights: dict[str, Weight] = {}
    """Multipliers by weigher, for this request, in place of the weighers' own."""
    alternates: int = 0
    """How many further nodes to return for each instance."""
    max_age: Annotated[float, Meta(gt=0)] | None = None
    """The greatest age of the view in seconds; None for the scheduler's own bound."""

    def __post_init__(self) -> None:
        _check_resources(self.resources)
        _check_between("count", self.count, 1, MAX_COUNT)
        _check_between("alternates", self.alternates, 0, MAX_ALTERNATES_COUNT)
        for field in ("required_traits", "any_traits", "forbidden_traits"):
            for trait in getattr(self, field):
                check_trait(field, trait)
        if self.instances and len(self.instances) != self.count:
            reason = (
                f"{len(self.instances)} ids for a count of {self.count}; give one id for each instance, or no count"
            )
            raise BadRequestError("instances", reason)
        _check_named_once("instances", self.instances)
        _check_apart("forbidden_traits", self.forbidden_traits, "required_traits", self.required_traits)
        if self.any_traits and set(self.any_traits) <= set(self.forbidden_traits):
            reason = "all of them are in forbidden_traits too, so no node matches; remove one of them there"
            raise BadRequestError("any_traits", reason)
        _check_apart("different_host", self.different_host, "same_host", self.same_host)
        if self.force_nodes and set(self.force_nodes) <= set(self.ignore_nodes):
            reason = "all of them are in ignore_nodes too, so no node matches; remove one of them there"
            raise BadRequestError("force_nodes", reason)
        if self.spread_by and self.group is None:
            raise BadRequestError("spread_by", "needs a group, whose members are to be spread; set group, too")
        _check_hints(hints_of(self))

    def instance_ids(self, source: IdSource) -> tuple[str, ...]:
        """Return the ids of the instances: the ids that the request names, else new ones from ``source``.

        New ids are made at the first call and kept, so that all later calls return the same ones.
        """
        if self.instances:
            return self.instances
        made: tuple[str, ...] | None = self.__dict__.get("made_ids")
        if made is None:
            made = self.__dict__["made_ids"] = tuple(source.instance_id() for _ in range(self.count))
        return made

    @cached_property
    def shape(self) -> bytes:
        """The fields by which nodes are judged, encoded. Requests of one shape rank all nodes alike: they differ at
        most in ``count``, ``instances``, ``alternates`` and ``max_age``.
        """
        return _encode(
            msgspec.structs.replace(self, count=1, instances=(), alternates=0, max_age=None),
        )


class GroupRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A request for a reservation: members that are placed together or not at all, each with requirements of its own.

    Raises ``BadRequestError``, which names the field, if a field is invalid or contradicts another one.
    """

    members: Annotated[tuple[Request, ...], Meta(max_length=MAX_GROUP_COUNT)]
    """The members; a member with a ``count`` stands for that many instances."""
    group: InstanceGroup | None = None
    """The group that all members belong to; members may have groups of their own only if this is None."""
    hold_s: float = 60.0
    """Seconds for which the nodes are held unless the reservation is confirmed or extended."""
    max_age: Annotated[float, Meta(gt=0)] | None = None
    """The greatest age of the view in seconds; None for the scheduler's own bound."""

    def __post_init__(self) -> None:
        size = sum(member.count for member in self.members)
        if not 1 <= size <= MAX_GROUP_COUNT:
            raise BadRequestError("members", f"{size:,} instances; a reservation has 1 to {MAX_GROUP_COUNT}")
        check_hold(self.hold_s)
        for number, member in enumerate(self.members):
            if member.group is not None and self.group is not None:
                reason = "the reservation has a group for all members; leave out one of the two"
                raise BadRequestError(f"members[{number}].group", reason)
        _check_named_once("members", [instance for member in self.members for instance in member.instances])


_encode = msgspec.msgpack.Encoder(order="sorted").encode

STORED_FIELDS: Final = (
    "required_traits", "any_traits", "forbidden_traits", "zone", "aggregates",
    "same_host", "different_host", "force_nodes", "ignore_nodes", "spread_by", "weights",
)  # fmt: skip
"""The fields of a request that are stored as hints, under their own names."""


def hints_of(request: Request) -> dict[str, Any]:
    """The hints that an agent stores with an allocation as long as it exists: the constraints that the request sets.

    Resources and the group's name are not among them, as they are fields of the allocation itself. The group's policy
    is stored under the names that Nova uses.
    """
    hints = {field: value for field in STORED_FIELDS if (value := getattr(request, field))}
    hints = {field: list(value) if isinstance(value, tuple) else value for field, value in hints.items()}
    if request.group is not None:
        hints["group_policy"] = request.group.policy
        if request.group.max_per_node != 1:
            hints["max_per_node"] = request.group.max_per_node
    return hints


def check_hold(seconds: float) -> None:
    """Raise ``BadRequestError`` unless a reservation may be held for this number of seconds."""
    if not MIN_HOLD_S <= seconds <= MAX_HOLD_S:
        raise BadRequestError("hold_s", f"{seconds:g} s; want {MIN_HOLD_S:g} to {MAX_HOLD_S:g} s")


def _check_resources(resources: Mapping[str, int]) -> None:
    if not resources:
        raise BadRequestError("resources", "empty; name at least one resource class, as in VCPU: 1")
    for name, amount in resources.items():
        field = f"resources.{name}"
        check_class(field, name)
        if not 0 < amount <= MAX_AMOUNT:
            raise BadRequestError(field, f"{amount:,}; want 1 to {MAX_AMOUNT:,}")


def _check_hints(hints: Mapping[str, Any]) -> None:
    size = len(_encode(hints))
    if size > MAX_HINTS_BYTES:
        largest = max(hints, key=lambda field: len(_encode(hints[field])))
        raise BadRequestError(
            largest,
            f"the hints of the request take {size:,} bytes together, over {MAX_HINTS_BYTES:,}; shorten this field",
        )


def _check_between(field: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise BadRequestError(field, f"{value:,}; want {least} to {most:,}")


def _check_apart(field: str, names: tuple[str, ...], other: str, others: tuple[str, ...]) -> None:
    both = sorted(set(names) & set(others))
    if both:
        raise BadRequestError(field, f"{both[0]} is in {other} too, so no node matches; remove it from one of the two")


def _check_named_once(field: str, names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise BadRequestError(field, f"the instance {twice} is named twice; name each instance once")

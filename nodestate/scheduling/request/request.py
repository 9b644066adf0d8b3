"""What somebody wants placed: validated once, when it comes in, and frozen from then on."""

from __future__ import annotations

from collections.abc import Mapping
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
    """The group that an instance belongs to. ``max_per_node`` is how many of an anti-affinity group may share a node."""

    name: Word
    policy: Policy
    max_per_node: Annotated[int, Meta(ge=1, le=MAX_COUNT)] = 1

    def __post_init__(self) -> None:
        if self.max_per_node != 1 and self.policy != "anti-affinity":
            raise BadRequestError("group.max_per_node", f"only anti-affinity has one, not {self.policy}")


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, dict=True):
    """Instances that are all alike. Fields are as OpenStack names them.

    ``resources``: amounts by resource class. ``required_traits``: all of them; ``any_traits``: at least one;
    ``forbidden_traits``: none. ``zone``: the node's; ``aggregates``: the node is in at least one. ``same_host``,
    ``different_host``: instances that must, or must not, be on the node. ``force_nodes``: no others;
    ``ignore_nodes``: not these. ``spread_by``: prefer zones, or aggregates, that have few of the group. ``weights``:
    multipliers by weigher, for this request. ``max_age``: seconds; how old the view may be. ``instances``: their ids, made
    up where they are not given. ``alternates``: further nodes to return for each.

    Raises ``BadRequestError``, which names the field, when it is made and can't be right.
    """

    resources: Annotated[dict[str, int], Meta(max_length=MAX_CLASSES_COUNT)]
    count: int = 1
    instances: Instances = ()
    required_traits: Words = ()
    any_traits: Words = ()
    forbidden_traits: Words = ()
    zone: Annotated[str, Meta(max_length=MAX_WORD_CHARS)] = ""
    aggregates: Words = ()
    group: InstanceGroup | None = None
    same_host: Instances = ()
    different_host: Instances = ()
    force_nodes: Names = ()
    ignore_nodes: Names = ()
    spread_by: SpreadBy = ""
    weights: dict[str, Weight] = {}
    alternates: int = 0
    max_age: Annotated[float, Meta(gt=0)] | None = None

    def __post_init__(self) -> None:
        _check_resources(self.resources)
        _check_between("count", self.count, 1, MAX_COUNT)
        _check_between("alternates", self.alternates, 0, MAX_ALTERNATES_COUNT)
        for field in ("required_traits", "any_traits", "forbidden_traits"):
            for trait in getattr(self, field):
                check_trait(field, trait)
        if self.instances and len(self.instances) != self.count:
            raise BadRequestError("instances", f"{len(self.instances)} ids for a count of {self.count}")
        if len(set(self.instances)) != len(self.instances):
            raise BadRequestError("instances", "one of them is named twice")
        _check_apart("forbidden_traits", self.forbidden_traits, "required_traits", self.required_traits)
        if self.any_traits and set(self.any_traits) <= set(self.forbidden_traits):
            raise BadRequestError("any_traits", "all of them are in forbidden_traits, so no node could do")
        _check_apart("different_host", self.different_host, "same_host", self.same_host)
        if self.force_nodes and set(self.force_nodes) <= set(self.ignore_nodes):
            raise BadRequestError("force_nodes", "all of them are in ignore_nodes, so no node could do")
        if self.spread_by and self.group is None:
            raise BadRequestError("spread_by", "needs a group, whose members it spreads")
        _check_hints(hints_of(self))

    def instance_ids(self, source: IdSource) -> tuple[str, ...]:
        """Return the ids of the instances: those that the request names, else new ones from ``source``.

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
        """The same for requests that every node is as good for: all that counts but who asks, how many and how fresh."""
        return _encode(
            msgspec.structs.replace(self, count=1, instances=(), alternates=0, max_age=None),
        )


class GroupRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Members that are placed all or not at all; each may ask for something else, and is one instance or ``count`` of them.

    ``group`` holds for all members. ``hold_s``: how long the nodes are kept for it if nobody confirms or extends.
    Raises ``BadRequestError`` when it is made and can't be right.
    """

    members: Annotated[tuple[Request, ...], Meta(max_length=MAX_GROUP_COUNT)]
    group: InstanceGroup | None = None
    hold_s: float = 60.0
    max_age: Annotated[float, Meta(gt=0)] | None = None

    def __post_init__(self) -> None:
        size = sum(member.count for member in self.members)
        if not 1 <= size <= MAX_GROUP_COUNT:
            raise BadRequestError("members", f"{size:,} instances; a reservation has 1 to {MAX_GROUP_COUNT}")
        check_hold(self.hold_s)
        for number, member in enumerate(self.members):
            if member.group is not None and self.group is not None:
                raise BadRequestError(f"members[{number}].group", "the reservation has a group already")
        ids = [instance for member in self.members for instance in member.instances]
        if len(set(ids)) != len(ids):
            raise BadRequestError("members", "an instance is named twice")


_encode = msgspec.msgpack.Encoder(order="sorted").encode

STORED_FIELDS: Final = (
    "required_traits", "any_traits", "forbidden_traits", "zone", "aggregates",
    "same_host", "different_host", "force_nodes", "ignore_nodes", "spread_by", "weights",
)  # fmt: skip


def hints_of(request: Request) -> dict[str, Any]:
    """What stays with an allocation for its life: the request but its resources and its group's name, which stand beside
    it. Only what was asked for; the names of the group's policy are those of Nova.
    """
    hints = {field: value for field in STORED_FIELDS if (value := getattr(request, field))}
    hints = {field: list(value) if isinstance(value, tuple) else value for field, value in hints.items()}
    if request.group is not None:
        hints["group_policy"] = request.group.policy
        if request.group.max_per_node != 1:
            hints["max_per_node"] = request.group.max_per_node
    return hints


def check_hold(seconds: float) -> None:
    """Raises ``BadRequestError`` where a reservation can't be held for so long."""
    if not MIN_HOLD_S <= seconds <= MAX_HOLD_S:
        raise BadRequestError("hold_s", f"{seconds:g} s; want {MIN_HOLD_S:g} to {MAX_HOLD_S:g}")


def _check_resources(resources: Mapping[str, int]) -> None:
    if not resources:
        raise BadRequestError("resources", "empty; what should a node have for it?")
    for name, amount in resources.items():
        field = f"resources.{name}"
        check_class(field, name)
        if not 0 < amount <= MAX_AMOUNT:
            raise BadRequestError(field, f"{amount:,}; want 1 to {MAX_AMOUNT:,}")


def _check_hints(hints: Mapping[str, Any]) -> None:
    size = len(_encode(hints))
    if size > MAX_HINTS_BYTES:
        largest = max(hints, key=lambda field: len(_encode(hints[field])))
        raise BadRequestError(largest, f"all hints of a request may have {MAX_HINTS_BYTES:,} bytes, and have {size:,}")


def _check_between(field: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise BadRequestError(field, f"{value:,}; want {least} to {most:,}")


def _check_apart(field: str, names: tuple[str, ...], other: str, others: tuple[str, ...]) -> None:
    both = sorted(set(names) & set(others))
    if both:
        raise BadRequestError(field, f"{both[0]} is in {other}, too")

"""The typed state of a node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from nodestate.model.fields import Amount, ClassName, Measure, NodeStatus, Ratio, Unit, Word
from nodestate.model.limits import (
    MAX_AGGREGATES_COUNT,
    MAX_ALLOCATIONS_COUNT,
    MAX_AMOUNT,
    MAX_CLASSES_COUNT,
    MAX_METRICS_COUNT,
    MAX_TAINTS_COUNT,
    MAX_TRAITS_COUNT,
    MAX_WORD_CHARS,
)
from nodestate.model.type_info import build_type_info


class Inventory(msgspec.Struct, gc=False):
    """One resource class of a node; capacity = (total - reserved) x allocation_ratio."""

    total: Amount
    reserved: Amount = 0
    allocation_ratio: Ratio = 1.0
    min_unit: Unit = 1
    """Smallest amount that one allocation may have."""
    max_unit: Unit = MAX_AMOUNT
    """Largest amount that one allocation may have."""
    step_size: Unit = 1
    """The amount of one allocation must be a multiple of this."""

    @property
    def capacity(self) -> int:
        """Amount that can be allocated, rounded down, never negative."""
        return max(0, int((self.total - self.reserved) * self.allocation_ratio))


class Allocation(msgspec.Struct):
    """The resources that one consumer (VM, job) holds on a node, with the group and hints of its request."""

    resources: Annotated[dict[ClassName, Amount], Meta(max_length=MAX_CLASSES_COUNT)]
    group: str | None = None
    hints: dict[str, Any] = {}


class State(msgspec.Struct, kw_only=True):
    """A node's state, typed: the content of a report. The encoded state may have more fields, of later versions."""

    status: NodeStatus = "up"
    zone: Annotated[str, Meta(max_length=MAX_WORD_CHARS)] = ""
    inventory: Annotated[Mapping[ClassName, Inventory], Meta(max_length=MAX_CLASSES_COUNT)] = {}
    usage: Annotated[dict[ClassName, Amount], Meta(max_length=MAX_CLASSES_COUNT)] = {}
    traits: Annotated[list[Word], Meta(max_length=MAX_TRAITS_COUNT)] = []
    aggregates: Annotated[list[Word], Meta(max_length=MAX_AGGREGATES_COUNT)] = []
    taints: Annotated[list[Word], Meta(max_length=MAX_TAINTS_COUNT)] = []
    """Words that repel the requests which do not tolerate them."""
    allocations: Annotated[Mapping[Word, Allocation], Meta(max_length=MAX_ALLOCATIONS_COUNT)] = {}
    metrics: Annotated[dict[Word, Measure], Meta(max_length=MAX_METRICS_COUNT)] = {}
    namespaces: dict[str, Any] = {}


build_type_info(Inventory, Allocation, State)

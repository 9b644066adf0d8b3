"""Types of the fields of requests, with the limits that are checked when a request is made."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from nodestate.model import NodeName, Word
from nodestate.scheduling.request.limits import MAX_COUNT, MAX_NAMES_COUNT, MAX_WEIGHT

Policy = Literal["affinity", "anti-affinity", "soft-affinity", "soft-anti-affinity"]
Domain = Literal["zone", "aggregate"]
"""The kind of domains over which the members of a group are spread."""
SpreadBy = Literal["", "zone", "aggregate"]
Members = Annotated[int, Meta(ge=1, le=MAX_COUNT)]
"""A number of members of a group."""
Names = Annotated[tuple[NodeName, ...], Meta(max_length=MAX_NAMES_COUNT)]
Instances = Annotated[tuple[Word, ...], Meta(max_length=MAX_NAMES_COUNT)]
Words = Annotated[tuple[Word, ...], Meta(max_length=1_000)]
Weight = Annotated[float, Meta(ge=-MAX_WEIGHT, le=MAX_WEIGHT)]

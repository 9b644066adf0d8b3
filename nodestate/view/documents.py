"""A view as a document: the form that ``nodestate view --json`` prints and the HTTP API returns.

Programs depend on these documents, so the names of their fields are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from nodestate.errors import CorruptItemError
from nodestate.model import NodeRecord
from nodestate.view.view import View

FreeState = Annotated[
    dict[str, Any],
    Meta(
        description="The state as the node's agent reported it: status, zone, inventory, usage, traits, aggregates, "
        "taints, allocations, metrics, namespaces and fields of later versions (docs/reference/wire.md). Free by "
        "contract, so this schema does not restrict it."
    ),
]


class PositionDocument(msgspec.Struct):
    """The commit that one partition of a view is as of."""

    epoch: Annotated[str, Meta(description="Life of the store, a hexadecimal number.")]
    offset: Annotated[int, Meta(description="Number of the commit within the epoch.")]


class NodeDocument(msgspec.Struct):
    """One node of a view."""

    incarnation: Annotated[int, Meta(description="Which life of the agent reported the state.")]
    generation: Annotated[int, Meta(description="Number of the event within that life.")]
    state: FreeState


class ViewDocument(msgspec.Struct, omit_defaults=True):
    """All nodes of a view."""

    position: Annotated[
        list[PositionDocument | None],
        Meta(description="For each partition the commit that the view is as of; null if it was never read."),
    ]
    age: Annotated[
        float | None,
        Meta(
            description="Seconds since the owners of all partitions are known to have been caught up; null if a "
            "partition was never confirmed."
        ),
    ]
    nodes: Annotated[dict[str, NodeDocument], Meta(description="The nodes by name.")]
    stale: Annotated[list[str], Meta(description="Names of the nodes that are older than accepted.")]
    incomplete: Annotated[
        list[str],
        Meta(
            description="Names of the nodes of which a newer version is known to exist, and 'partition N' for each "
            "partition that does not have all nodes."
        ),
    ]
    damaged: Annotated[
        list[str], Meta(description="Names of the nodes whose stored state is damaged; it is shown empty.")
    ] = []


def finite_or_none(seconds: float) -> float | None:
    """Return the seconds, or None if they are infinite: JSON has no infinite numbers."""
    return seconds if math.isfinite(seconds) else None


def position_documents(view: View) -> list[PositionDocument | None]:
    """Return the position of a view as documents, by partition."""
    return [PositionDocument(f"{p.epoch:x}", p.offset) if p else None for p in view.position]


def position_text(view: View) -> str:
    """Return the position of a view as one word, without spaces. It also names the design.

    Two texts are equal if and only if the views are as of the same commits of the same design.
    """
    commits = ",".join(f"{p.epoch:x}.{p.offset}" if p else "-" for p in view.position)
    return f"{view.design}/{commits}"


def node_document(record: NodeRecord, fields: Collection[str] | None = None) -> NodeDocument:
    """Return a node as a document. Raises ``CorruptItemError`` if its stored state is damaged.

    ``fields``: the fields of the state to return; None: all.
    """
    state = record.state()
    if fields is not None:
        state = {name: value for name, value in state.items() if name in fields}
    return NodeDocument(record.incarnation, record.generation, state)


def view_document(
    view: View, names: Iterable[str] | None = None, fields: Collection[str] | None = None
) -> ViewDocument:
    """Return a view as a document.

    Args:
        view: the view.
        names: the nodes to return; None: all.
        fields: the fields of states to return; None: all.
    """
    nodes: dict[str, NodeDocument] = {}
    damaged: list[str] = []
    for record in _records(view, names):
        try:
            nodes[record.name] = node_document(record, fields)
        except CorruptItemError:
            nodes[record.name] = NodeDocument(record.incarnation, record.generation, {})
            damaged.append(record.name)
    return ViewDocument(
        position_documents(view),
        finite_or_none(view.age),
        nodes,
        sorted(view.stale),
        sorted(view.incomplete),
        damaged,
    )


def _records(view: View, names: Iterable[str] | None) -> Iterable[NodeRecord]:
    if names is None:
        return (record for record in view.nodes.records() if record.live and record.name not in view.left_out)
    found = (view.nodes.record(name) for name in names)
    return (record for record in found if record is not None)


class _Zone(msgspec.Struct):
    zone: str = ""


_decode_zone: Final = msgspec.msgpack.Decoder(_Zone).decode


def zone_of(record: NodeRecord) -> str:
    """Return a node's zone without decoding the rest of its state; empty if it has none or is damaged."""
    try:
        return _decode_zone(record.rest).zone if record.rest else ""
    except (msgspec.DecodeError, RecursionError, ValueError):
        return ""


def capacity_and_usage(record: NodeRecord) -> Mapping[str, tuple[int, int]]:
    """Return the capacity and the usage of each resource class of a node."""
    names = record.classes.split()
    amounts = memoryview(record.columns).cast("q")
    return {name: (amounts[at], amounts[at + len(names)]) for at, name in enumerate(names)}

"""The fields of a node's state that decide where an instance may go; all other fields are skipped without decoding."""

from __future__ import annotations

from typing import Any

import msgspec

from nodestate.model import NodeRecord
from nodestate.scheduling.fleet.placement_marks import PlacementMark


class AllocationFields(msgspec.Struct, gc=False):
    """The fields of one allocation that placement needs: the instance's group and its reservation's mark."""

    group: str | None = None
    hints: PlacementMark = PlacementMark()


class PlacementFields(msgspec.Struct, gc=False):
    """The fields of one node's state that placement needs."""

    zone: str = ""
    traits: tuple[str, ...] = ()
    aggregates: tuple[str, ...] = ()
    allocations: dict[str, AllocationFields] = {}


class _HintedAllocation(msgspec.Struct, gc=False):
    hints: Any = None


class _HintedState(msgspec.Struct, gc=False):
    allocations: dict[str, _HintedAllocation] = {}


_decode_hinted = msgspec.msgpack.Decoder(_HintedState).decode
_decode_placement = msgspec.msgpack.Decoder(PlacementFields).decode
_decode_plain = msgspec.msgpack.Decoder(dict[str, Any]).decode
_NOTHING = PlacementFields()


def placement_fields_of(record: NodeRecord) -> PlacementFields:
    """The placement fields of a node's state; all of them empty if the node is gone.

    Any service may store hints. If another service's hint has the name of one of ours and another type, all hints of
    that allocation are ignored, and the other allocations of the node keep their marks.
    """
    if not record.live:
        return _NOTHING
    try:
        return _decode_placement(record.rest)
    except msgspec.ValidationError:
        plain = _decode_plain(record.rest)
        for allocation in plain.get("allocations", {}).values():
            try:
                msgspec.convert(allocation, AllocationFields)
            except msgspec.ValidationError:
                del allocation["hints"]
        return msgspec.convert(plain, PlacementFields)


def hints_of_allocations(record: NodeRecord) -> dict[str, dict[str, Any]]:
    """The hints of each allocation in a node's state, by instance; allocations whose hints are no map are left out."""
    allocations = _decode_hinted(record.rest).allocations.items()
    return {instance: one.hints for instance, one in allocations if isinstance(one.hints, dict)}

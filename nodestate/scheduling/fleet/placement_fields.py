"""Placement fields: the fields of a node's state that the fleet needs, apart from status and amounts.

A state may be large. So only these fields are decoded, and the decoder skips all other fields.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from nodestate.errors import CorruptItemError
from nodestate.model import NodeRecord
from nodestate.scheduling.fleet.placement_marks import PlacementMark


class AllocationFields(msgspec.Struct, gc=False):
    """The fields of one allocation that the fleet needs."""

    group: str | None = None
    """The name of the instance's group; None if it has no group."""
    hints: PlacementMark = PlacementMark()
    """The placement mark in the allocation's hints; the default if the hints contain no mark."""


class PlacementFields(msgspec.Struct, gc=False):
    """The fields of one node's state that the fleet needs, apart from status and amounts."""

    zone: str = ""
    """The node's availability zone."""
    traits: tuple[str, ...] = ()
    """The node's traits."""
    aggregates: tuple[str, ...] = ()
    """The aggregates that the node is in."""
    taints: tuple[str, ...] = ()
    """The node's taints."""
    inventory: msgspec.Raw = msgspec.Raw()
    """The node's inventory, encoded, because it is decoded only if it changed; empty if the node has none."""
    allocations: dict[str, AllocationFields] = {}
    """The node's allocations, by instance."""


class _HintedAllocation(msgspec.Struct, gc=False):
    """The hints of one allocation."""

    hints: Any = None


class _HintedState(msgspec.Struct, gc=False):
    """The hints of all allocations of a node, by instance."""

    allocations: dict[str, _HintedAllocation] = {}


class _EncodedAllocations(msgspec.Struct, gc=False):
    """The encoded allocations of a node, by instance."""

    allocations: dict[str, msgspec.Raw] = {}


_decode_encoded = msgspec.msgpack.Decoder(_EncodedAllocations).decode
_decode_allocation = msgspec.msgpack.Decoder(dict[str, Any]).decode
_decode_hinted = msgspec.msgpack.Decoder(_HintedState).decode
_decode_placement = msgspec.msgpack.Decoder(PlacementFields).decode
_encode = msgspec.msgpack.Encoder().encode
_decode_plain = msgspec.msgpack.Decoder(dict[str, Any]).decode
_NOTHING = PlacementFields()


def placement_fields_of(record: NodeRecord) -> PlacementFields:
    """Decode the placement fields of a node's state. All fields are empty if the node is gone or its state is unknown.

    The placement mark of an allocation is decoded from its hints. Any service may store hints, so a hint may have the
    name of a field of ``PlacementMark`` but a value of another type. Such an allocation has no placement mark; the
    node's other allocations keep theirs.

    Raises ``CorruptItemError`` if the stored state is damaged.
    """
    if not record.live:
        return _NOTHING
    try:
        return _decode_placement(record.rest)
    except msgspec.ValidationError:
        with _as_corrupt(record):
            plain = _decode_plain(record.rest)
            for allocation in plain.get("allocations", {}).values():
                try:
                    msgspec.convert(allocation, AllocationFields)
                except msgspec.ValidationError:
                    del allocation["hints"]
            inventory = plain.pop("inventory", None)
            fields = msgspec.convert(plain, PlacementFields)
            if inventory is not None:
                fields.inventory = msgspec.Raw(_encode(inventory))
            return fields
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise _corrupt(record, error) from None


def allocations_of(record: NodeRecord) -> dict[str, dict[str, Any]]:
    """Decode all allocations in a node's state, by instance. Each has resources, and hints that are a map or missing.

    Raises ``CorruptItemError`` if the stored state is damaged.
    """
    with _as_corrupt(record):
        allocations = msgspec.convert(record.state().get("allocations", {}), dict[str, dict[str, Any]])
        for allocation in allocations.values():
            msgspec.convert(allocation.get("resources"), dict[str, int])
            msgspec.convert(allocation.get("hints", {}), dict[str, Any])
    return allocations


@contextmanager
def _as_corrupt(record: NodeRecord) -> Iterator[None]:
    """Raise ``CorruptItemError`` for the errors that the decoding of a damaged state causes."""
    try:
        yield
    except (msgspec.DecodeError, RecursionError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise _corrupt(record, error) from None


def _corrupt(record: NodeRecord, error: Exception) -> CorruptItemError:
    return CorruptItemError(f"the stored state of node {record.name} is damaged: {str(error)!a}")


def encoded_allocations_of(record: NodeRecord) -> dict[str, msgspec.Raw]:
    """Return the encoded allocations in a node's state, by instance; empty if the node is gone or unknown.

    Raises ``CorruptItemError`` if the stored state is damaged.
    """
    if not record.live:
        return {}
    with _as_corrupt(record):
        return _decode_encoded(record.rest).allocations


def decoded_allocation(record: NodeRecord, encoded: msgspec.Raw) -> dict[str, Any]:
    """Decode one allocation of ``encoded_allocations_of``. Raises ``CorruptItemError`` if it is damaged."""
    with _as_corrupt(record):
        return _decode_allocation(encoded)


def hints_of_allocations(record: NodeRecord) -> dict[str, dict[str, Any]]:
    """Decode the hints of all allocations in a node's state, by instance.

    Allocations without hints are missing, and so are allocations whose hints are no map.

    Raises ``CorruptItemError`` if the stored state is damaged.
    """
    with _as_corrupt(record):
        allocations = _decode_hinted(record.rest).allocations.items()
    return {instance: one.hints for instance, one in allocations if isinstance(one.hints, dict)}

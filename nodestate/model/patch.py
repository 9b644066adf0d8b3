"""Merge patches (RFC 7396): their types, their validation and their application."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from nodestate.model.fields import Amount, ClassName, Measure, NodeStatus, Ratio, Unit, Word
from nodestate.model.json_values import require_json_value
from nodestate.model.normalization import decoded_map, normalize
from nodestate.model.type_info import build_type_info


class FrequentPatch(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The patches that agents send most often: new usage, new metrics, allocations that began or ended.

    Decoding checks the types of single values only; ``fold`` checks the rest.
    """

    usage: dict[str, Amount] | UnsetType = UNSET
    metrics: dict[Word, Measure] | UnsetType = UNSET
    allocations: msgspec.Raw | UnsetType = UNSET


class _InventoryPatch(msgspec.Struct, kw_only=True):
    total: Amount | UnsetType = UNSET
    reserved: Amount | UnsetType | None = UNSET
    allocation_ratio: Ratio | UnsetType | None = UNSET
    min_unit: Unit | UnsetType | None = UNSET
    max_unit: Unit | UnsetType | None = UNSET
    step_size: Unit | UnsetType | None = UNSET


class _AnyPatch(msgspec.Struct, kw_only=True):
    """The shape that every patch must have, whatever state it is merged into. Null removes an optional value."""

    status: NodeStatus | UnsetType | None = UNSET
    zone: str | UnsetType | None = UNSET
    inventory: dict[ClassName, _InventoryPatch | None] | UnsetType | None = UNSET
    usage: dict[ClassName, Amount | None] | UnsetType | None = UNSET
    traits: list[Word] | UnsetType | None = UNSET
    aggregates: list[Word] | UnsetType | None = UNSET
    taints: list[Word] | UnsetType | None = UNSET
    allocations: dict[Word, dict[str, Any] | None] | UnsetType | None = UNSET
    metrics: dict[Word, Measure | None] | UnsetType | None = UNSET
    namespaces: dict[str, Any] | UnsetType | None = UNSET


build_type_info(_AnyPatch)
decode_frequent_patch = msgspec.msgpack.Decoder(FrequentPatch).decode
_decode_value = msgspec.msgpack.Decoder().decode
_encode = msgspec.msgpack.Encoder().encode


def normalize_patch(patch: msgspec.Raw) -> dict[str, Any]:
    """Decode a patch in the normal form, and reject one that cannot be right for any state.

    Whether a patch is accepted does not depend on the depth of the caller's stack: our own limit of nesting is reached
    long before the decoder's.

    Raises:
        BadEventError: with the reason ``wrong-type``, ``undecodable`` or ``too-deep``.
    """
    fields = decoded_map(patch, "patch")
    decoded = normalize(fields, _AnyPatch, "patch", patch=True)
    if decoded.namespaces:
        require_json_value(decoded.namespaces, "namespaces")
    if decoded.allocations:
        require_json_value(decoded.allocations, "allocations", -2)  # hints begin two levels down
    return fields


def merge_patch(target: Any, patch: Any) -> Any:
    """Merge a patch by RFC 7396: null removes a key, maps are merged, any other value replaces.

    Returns the merged value. Changes ``target`` in place if it is a map.
    """
    if not isinstance(patch, dict):
        return patch
    merged = target if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            merged[key] = merge_patch(merged.get(key), value)
        else:
            merged[key] = value
    return merged


def merge_encoded(fields: dict[str, msgspec.Raw], patch: dict[str, Any]) -> dict[str, msgspec.Raw]:
    """Merge a patch into a map whose values are encoded. Values that the patch does not touch stay encoded.

    Returns ``fields``, which is changed in place.
    """
    for name, change in patch.items():
        if change is None:
            fields.pop(name, None)
        else:
            merged = merge_patch(_decode_value(fields[name]) if name in fields else None, change)
            fields[name] = msgspec.Raw(_encode(merged))
    return fields

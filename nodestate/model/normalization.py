"""Validation of states, and the normal form in which nodestate keeps them.

Nearly all states and patches are normal already, and msgspec checks that in one pass. For the others::

    a field that this version does not know   kept, if JSON can carry its value
    a null in place of a value                absent, as if the field were missing; in a patch, it removes the value
    a whole float in place of an integer      the integer: 4.0 becomes 4
    anything else that breaks the format      refused; the error names the value and the allowed values
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, NamedTuple, TypeVar

import msgspec
from msgspec import Meta

from nodestate.errors import BadEventError
from nodestate.model.fields import CLASS_PATTERN, STATUSES, ClassName, Word
from nodestate.model.json_values import require_json_value
from nodestate.model.limits import (
    MAX_ALLOCATIONS_COUNT,
    MAX_AMOUNT,
    MAX_CLASSES_COUNT,
    MAX_RATIO,
    MAX_STATE_BYTES,
    MAX_WORD_CHARS,
)
from nodestate.model.state import Allocation, Inventory, State

T = TypeVar("T")
_CLASSES: Final = Meta(max_length=MAX_CLASSES_COUNT)
_ALLOCATIONS: Final = Meta(max_length=MAX_ALLOCATIONS_COUNT)


class _ExactInventory(Inventory, forbid_unknown_fields=True, gc=False):
    """An inventory without fields of later versions."""


class _ExactAllocation(Allocation, forbid_unknown_fields=True):
    """An allocation without fields of later versions."""


class _ExactState(State, forbid_unknown_fields=True, kw_only=True):
    """A state in the normal form, without fields of later versions."""

    inventory: Annotated[Mapping[ClassName, _ExactInventory], _CLASSES] = msgspec.field(default_factory=dict)
    allocations: Annotated[Mapping[Word, _ExactAllocation], _ALLOCATIONS] = msgspec.field(default_factory=dict)


_decode_exact = msgspec.msgpack.Decoder(_ExactState).decode
_decode_map = msgspec.msgpack.Decoder(dict[str, Any]).decode
_encode = msgspec.msgpack.Encoder().encode

_FIELDS: Final = frozenset(State.__struct_fields__)
_INVENTORY_FIELDS: Final = frozenset(Inventory.__struct_fields__)
_ALLOCATION_FIELDS: Final = frozenset(Allocation.__struct_fields__)
_MAPS: Final = ("inventory", "usage", "allocations", "metrics")
"""Fields of a state in which a null stands in place of a value."""
_CLASS: Final = re.compile(CLASS_PATTERN)


class NormalState(NamedTuple):
    """A valid state, and its encoded form."""

    state: State
    """The fields that this version knows."""
    body: bytes | msgspec.Raw
    """The whole state as a msgpack map, in the normal form."""


def parse_state(body: bytes | msgspec.Raw) -> State:
    """Decode and validate a whole state. Raises ``BadEventError`` as ``normalize_state`` does."""
    return normalize_state(body).state


def normalize_state(body: bytes | msgspec.Raw) -> NormalState:
    """Decode and validate a whole state, and bring it into the normal form.

    Raises:
        BadEventError: with the reason ``wrong-type``, ``undecodable``, ``too-deep`` or ``too-large``.
    """
    size = len(memoryview(body))
    if size > MAX_STATE_BYTES:
        raise BadEventError("too-large", f"a state of {size:,} bytes; at most {MAX_STATE_BYTES:,} are allowed")
    state: State
    try:
        state = _decode_exact(body)
    except msgspec.ValidationError:
        fields = decoded_map(body, "state")
        state, body = normalize(fields, State, "state"), _encode(fields)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadEventError("undecodable", f"state: {error}") from None
    if state.namespaces:
        require_json_value(state.namespaces, "namespaces")
    for allocation in state.allocations.values():
        if allocation.hints:
            require_json_value(allocation.hints, "hints")
    return NormalState(state, body)


def decoded_map(body: bytes | msgspec.Raw, name: str) -> dict[str, Any]:
    """Decode a msgpack map. ``name`` is for the error. Raises ``BadEventError`` if it is no map of texts to values."""
    try:
        return _decode_map(body)
    except msgspec.ValidationError as error:
        raise BadEventError("wrong-type", f"{name}: {error}") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadEventError("undecodable", f"{name}: {error}") from None


def normalize(fields: dict[str, Any], kind: type[T], name: str, *, patch: bool = False) -> T:
    """Bring the decoded fields of a state, or of a patch of one, into the normal form. Changes ``fields`` in place.

    Args:
        fields: the decoded map.
        kind: the type that has the known fields.
        name: "state" or "patch", for the error.
        patch: keep the nulls, because a null in a patch removes a value.

    Returns:
        The known fields as an object of type ``kind``.

    Raises:
        BadEventError: with the reason ``wrong-type`` or ``too-deep``.
    """
    for field in _MAPS:
        if isinstance(fields.get(field), dict) and not patch:
            _drop_nulls(fields[field])
    if not patch:
        _drop_nulls(fields)
    _make_whole(fields.get("usage"))
    for entry in _maps_in(fields.get("inventory")):
        if not patch:
            _drop_nulls(entry)
        _make_whole(entry, except_for="allocation_ratio")
        _require_json_values(entry, _INVENTORY_FIELDS)
    for entry in _maps_in(fields.get("allocations")):
        if not patch:
            _drop_nulls(entry)
        if isinstance(entry.get("resources"), dict) and not patch:
            _drop_nulls(entry["resources"])
        _make_whole(entry.get("resources"))
        _require_json_values(entry, _ALLOCATION_FIELDS)
    _require_json_values(fields, _FIELDS)
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        wrong = next(_wrong_values(fields, patch=patch), None) or str(error)
        raise BadEventError("wrong-type", f"{name}: {wrong}") from None


def _maps_in(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the values of a map that are maps; nothing if ``value`` is no map."""
    if isinstance(value, dict):
        yield from (inner for inner in value.values() if isinstance(inner, dict))


def _drop_nulls(fields: dict[str, Any]) -> None:
    for name in [name for name, value in fields.items() if value is None]:
        del fields[name]


def _make_whole(amounts: Any, except_for: str = "") -> None:
    """Replace each whole float in a map by its integer; ``except_for`` names a field that is a float.

    Larger floats than any amount stay: msgpack cannot encode their integers.
    """
    if isinstance(amounts, dict):
        for name, amount in amounts.items():
            if type(amount) is float and amount.is_integer() and abs(amount) <= MAX_AMOUNT and name != except_for:
                amounts[name] = int(amount)


def _require_json_values(fields: Mapping[str, Any], known: frozenset[str]) -> None:
    """Reject fields of later versions whose values JSON can't carry."""
    for name, value in fields.items():
        if name not in known:
            require_json_value(value, f"field {name!r:.40}")


# -- errors ---------------------------------------------------------------------------------------


def _wrong_values(fields: Mapping[str, Any], *, patch: bool) -> Iterator[str]:
    """Yield an explanation for each wrong status, class and number: where it is, and the allowed values.

    msgspec's own message names neither the class nor all allowed values.
    """
    status = fields.get("status")
    if status is not None and status not in STATUSES:
        yield f"status is {status!r:.40}; want {', '.join(STATUSES[:-1])} or {STATUSES[-1]}"
    yield from _wrong_amounts(fields.get("usage"), "usage of", patch=patch)
    inventory = fields.get("inventory")
    if isinstance(inventory, dict):
        for name, entry in inventory.items():
            yield from _wrong_class(name, "inventory")
            if not isinstance(entry, dict):
                continue
            if "total" not in entry and not patch:
                yield f"inventory of {name} has no total"
            for field, value in entry.items():
                if field in _INVENTORY_FIELDS and not (value is None and patch):
                    yield from _wrong_number(value, f"{field} of {name}", field)
    allocations = fields.get("allocations")
    if isinstance(allocations, dict):
        for instance, entry in allocations.items():
            if isinstance(entry, dict):
                if "resources" not in entry and not patch:
                    yield f"allocation {instance!r:.80} has no resources"
                yield from _wrong_amounts(
                    entry.get("resources"), f"allocation {instance!r:.80}: amount of", patch=patch
                )


def _wrong_amounts(amounts: Any, place: str, *, patch: bool) -> Iterator[str]:
    if isinstance(amounts, dict):
        for name, amount in amounts.items():
            yield from _wrong_class(name, place.removesuffix(" of"))
            if not (amount is None and patch):
                yield from _wrong_number(amount, f"{place} {name}", "amount")


def _wrong_class(name: Any, place: str) -> Iterator[str]:
    if type(name) is not str or not _CLASS.fullmatch(name):
        yield f"{place}: {name!r:.80} is no resource class: use A to Z, 0 to 9 and _, at most {MAX_WORD_CHARS} of them"


def _wrong_number(value: Any, place: str, field: str) -> Iterator[str]:
    if field == "allocation_ratio":
        is_right, want = (
            type(value) in {int, float} and 0 < value <= MAX_RATIO,
            f"a number above 0, at most {MAX_RATIO:g}",
        )
    else:
        least = 1 if field in {"min_unit", "max_unit", "step_size"} else 0
        is_right = type(value) is int and least <= value <= MAX_AMOUNT
        want = f"an integer from {least} to {MAX_AMOUNT}"
    if not is_right:
        unlimited = ", but there is no unlimited amount: leave it out, or give a number" if value == -1 else ""
        yield f"{place} is {value!r:.40}{unlimited}; want {want}"

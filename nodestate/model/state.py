"""The typed state of a node, and the validation of a whole state."""

from __future__ import annotations

import math
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from nodestate.errors import BadEventError
from nodestate.model.fields import Amount, ClassName, Measure, NodeStatus, Ratio, Word
from nodestate.model.limits import (
    MAX_AGGREGATES_COUNT,
    MAX_ALLOCATIONS_COUNT,
    MAX_CLASSES_COUNT,
    MAX_FREE_DEPTH,
    MAX_METRICS_COUNT,
    MAX_STATE_BYTES,
    MAX_TRAITS_COUNT,
    MAX_WORD_CHARS,
)


class Inventory(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One resource class of a node; capacity = (total - reserved) x allocation_ratio."""

    total: Amount
    reserved: Amount = 0
    allocation_ratio: Ratio = 1.0

    @property
    def capacity(self) -> int:
        """Amount that can be allocated, rounded down, never negative."""
        return max(0, int((self.total - self.reserved) * self.allocation_ratio))


class Allocation(msgspec.Struct, forbid_unknown_fields=True):
    """The resources that one consumer (VM, job) holds on a node, with the group and hints of its request."""

    resources: Annotated[dict[ClassName, Amount], Meta(max_length=MAX_CLASSES_COUNT)]
    group: str | None = None
    hints: dict[str, Any] = {}


class State(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A node's state, typed: the content of a report."""

    status: NodeStatus = "up"
    zone: Annotated[str, Meta(max_length=MAX_WORD_CHARS)] = ""
    inventory: Annotated[dict[ClassName, Inventory], Meta(max_length=MAX_CLASSES_COUNT)] = {}
    usage: Annotated[dict[ClassName, Amount], Meta(max_length=MAX_CLASSES_COUNT)] = {}
    traits: Annotated[list[Word], Meta(max_length=MAX_TRAITS_COUNT)] = []
    aggregates: Annotated[list[Word], Meta(max_length=MAX_AGGREGATES_COUNT)] = []
    allocations: Annotated[dict[Word, Allocation], Meta(max_length=MAX_ALLOCATIONS_COUNT)] = {}
    metrics: Annotated[dict[Word, Measure], Meta(max_length=MAX_METRICS_COUNT)] = {}
    namespaces: dict[str, Any] = {}


_decode_state = msgspec.msgpack.Decoder(State).decode
_PLAIN_TYPES: Final = frozenset({str, int, float, bool, type(None)})


def parse_state(body: bytes | msgspec.Raw) -> State:
    """Decode and validate a whole state.

    Raises:
        BadEventError: with the reason ``wrong-type``, ``undecodable``, ``too-deep`` or ``too-large``.
    """
    size = len(memoryview(body))
    if size > MAX_STATE_BYTES:
        raise BadEventError("too-large", f"a state of {size:,} bytes; at most {MAX_STATE_BYTES:,} are allowed")
    try:
        state = _decode_state(body)
    except msgspec.ValidationError as error:
        raise BadEventError("wrong-type", f"state: {error}") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadEventError("undecodable", f"state: {error}") from None
    if state.namespaces:
        require_json_value(state.namespaces, "namespaces")
    for allocation in state.allocations.values():
        if allocation.hints:
            require_json_value(allocation.hints, "hints")
    return state


def require_json_value(value: Any, field: str, depth: int = 0) -> None:
    """Reject a value that JSON cannot carry or that nests too deep.

    Used for the parts of a state that nodestate carries and never interprets: ``namespaces`` and ``hints``.

    Args:
        value: the decoded value.
        field: name of the field, for the error message.
        depth: nesting depth of ``value``; its children are one level deeper.

    Raises:
        BadEventError: with the reason ``too-deep`` or ``wrong-type``.
    """
    if depth > MAX_FREE_DEPTH:
        raise BadEventError("too-deep", f"{field} nests deeper than {MAX_FREE_DEPTH} levels")
    if type(value) is dict:
        for key in value:
            if type(key) is not str:
                raise BadEventError("wrong-type", f"{field} has a key that is not text: {key!r:.40}")
        children = list(value.values())
    elif type(value) is list:
        children = value
    else:
        children = [value]
    for child in children:
        if type(child) is float and not math.isfinite(child):
            raise BadEventError("wrong-type", f"{field} holds {child}, which JSON cannot carry")
        if type(child) in _PLAIN_TYPES:
            continue
        if type(child) is not dict and type(child) is not list:
            raise BadEventError("wrong-type", f"{field} holds a {type(child).__name__}, which JSON cannot carry")
        require_json_value(child, field, depth + 1)

r"""The pure fold of events into node records: no clock, no I/O, no randomness.

A node's life as the fold sees it (version = (incarnation, generation), ordered)::

    (unknown) --report--> live --change (exactly the next)--> live
        |                  |  \--change or heartbeat of a later version (gap)--> incomplete
        |                  |                                   incomplete --report--> live
        |                  \--leave--> gone --report of a newer version--> live
        |                  \--leave (exactly the next) of a node with allocations--> live, down
        |                         --change after which it has none--> gone
        \--change, heartbeat (gap)--> incomplete, without a state

Assumptions: only the agent raises versions; a version names one state for ever; events may be repeated, reordered
and lost on their way. An event that is not newer than the record is a duplicate.
"""

from __future__ import annotations

import enum
from itertools import repeat
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import UNSET

from nodestate.errors import BadEventError, CorruptItemError
from nodestate.model.event import Change, Event, Heartbeat, Leave, Report
from nodestate.model.fields import NodeStatus
from nodestate.model.limits import MAX_CLASSES_COUNT, MAX_METRICS_COUNT, MAX_STATE_BYTES
from nodestate.model.normalization import normalize_state, parse_state
from nodestate.model.patch import decode_frequent_patch, merge_encoded, normalize_patch
from nodestate.model.record import BODY_KEYS_BYTES, NodeRecord, columns_of, layout_of
from nodestate.model.version import NEVER

_decode_map = msgspec.msgpack.Decoder(dict[str, Any]).decode
_decode_shallow = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.msgpack.Encoder().encode
_EMPTY_MAP: Final = b"\x80"
LEFT_AT: Final = "left_at"
"""Field of ``namespaces.nodestate``: when a node left that still has allocations, by its agent's clock."""
_COLUMN_FIELDS: Final = frozenset({"status", "inventory", "usage"})
"""The fields of a state from which a record's status, classes and columns are computed."""


class FoldOutcome(enum.Enum):
    """The effect of an event on a record."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"
    GAP = "gap"
    ALIVE = "alive"


class Folded(NamedTuple):
    """A record after an event. The record is the same object as before if the event changed nothing."""

    record: NodeRecord | None
    outcome: FoldOutcome


def fold(record: NodeRecord | None, event: Event) -> Folded:
    """Apply one event to a node's record (None: the node is unknown). Consumer, journal reader and checker all use it.

    Raises:
        BadEventError: if the event's state, or the state that its patch produces, breaks the format or a limit. The
            record stays as it was.
        CorruptItemError: if the record's encoded state is damaged, so that the event cannot be applied to it.
    """
    try:
        if (  # The most frequent case first. It compares the fields because building a Version tuple costs time.
            type(event) is Change
            and record is not None
            and event.generation == record.generation + 1
            and event.incarnation == record.incarnation
            and not record.gone
            and record.rest  # as ``record.live``
        ):
            return _changed(record, event)
        have = record.version if record is not None else NEVER
        version = event.version
        if version == have and type(event) is Heartbeat and record is not None and not record.gone:
            return Folded(record, FoldOutcome.ALIVE)
        if version <= have:
            return Folded(record, FoldOutcome.DUPLICATE)
        if type(event) is Report:
            state, body = normalize_state(event.state)
            classes, columns = columns_of(state.inventory, state.usage)
            rest = _decode_shallow(body)
            usage, metrics = bytes(rest.pop("usage", b"")), bytes(rest.pop("metrics", b""))
            return _applied(record, event, state.status, classes, columns, usage, metrics, _encode(rest))
        if type(event) is Leave:
            return _left(record, event)
        if type(event) is Change:
            normalize_patch(event.patch)
        return _gap(record, event)
    except BadEventError as error:
        raise error.naming(event.node) from None
    except (msgspec.DecodeError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        if record is None or not record.live:  # there is no state, so this is an error of the event
            raise BadEventError("undecodable", f"{event.node}: {str(error)!a}") from None
        # All parts of an event are checked, so this is an error of the record.
        raise CorruptItemError(f"the stored state of node {event.node} is damaged: {str(error)!a}") from None


def _changed(record: NodeRecord, event: Change) -> Folded:
    """Apply a change to its predecessor; the fast path for a ``FrequentPatch``, ``_merged`` for all others."""
    try:
        patch = decode_frequent_patch(event.patch)
    except msgspec.ValidationError:
        return _merged(record, event, normalize_patch(event.patch))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadEventError("undecodable", f"patch: {error}") from None
    # The values of the patch are valid, so only the fields that it touches are decoded, and few checks are repeated.
    columns, usage, metrics = record.columns, record.usage, record.metrics
    if patch.usage is not UNSET:
        names, known, pack_half = layout_of(record.classes)
        amounts = patch.usage
        if len(amounts) != len(names):  # otherwise the patch has every class, and replaces the old usage
            amounts = _decode_map(usage or _EMPTY_MAP) | amounts
        if len(amounts) > MAX_CLASSES_COUNT:
            raise BadEventError("too-large", f"usage of more than {MAX_CLASSES_COUNT} resource classes")
        if not known.issuperset(amounts):
            return _merged(record, event, normalize_patch(event.patch))
        columns = columns[: len(columns) // 2] + pack_half(*map(amounts.get, names, repeat(0)))
        usage = _encode(amounts)
    if patch.metrics is not UNSET:
        measures = _decode_map(metrics or _EMPTY_MAP) | patch.metrics
        if len(measures) > MAX_METRICS_COUNT:
            raise BadEventError("too-large", f"more than {MAX_METRICS_COUNT} metrics")
        metrics = _encode(measures)
    rest = record.rest
    if patch.allocations is not UNSET:
        fields = merge_encoded(_decode_shallow(rest), {"allocations": normalize_patch(event.patch)["allocations"]})
        parse_state(_encode({"allocations": fields.get("allocations", {})}))
        if _left_and_is_empty(record, fields):
            return _tombstone(record, event)
        rest = _encode(fields)
    return _applied(record, event, record.status, record.classes, columns, usage, metrics, rest)


def _merged(record: NodeRecord, event: Event, patch: dict[str, Any]) -> Folded:
    """Apply any patch. Fields that it touches are validated; the bytes of all others are copied."""
    fields = merge_encoded(_decode_shallow(record.body), patch)
    touches_columns = not _COLUMN_FIELDS.isdisjoint(patch)
    validated = {name for name in fields if name in patch or (touches_columns and name in _COLUMN_FIELDS)}
    state = parse_state(_encode({name: fields[name] for name in validated}))
    if _left_and_is_empty(record, fields):
        return _tombstone(record, event)
    status, classes, columns = record.status, record.classes, record.columns
    if touches_columns:
        status, (classes, columns) = state.status, columns_of(state.inventory, state.usage)
    usage, metrics = bytes(fields.pop("usage", b"")), bytes(fields.pop("metrics", b""))
    return _applied(record, event, status, classes, columns, usage, metrics, _encode(fields))


def _left(record: NodeRecord | None, event: Leave) -> Folded:
    """Apply a leave. A node with allocations stays, ``down``, until they are gone: they may still run.

    Its state depends on the state before, so in that case a leave applies only to exactly its predecessor, like a
    change.
    """
    fields = _decode_shallow(record.rest) if record is not None and record.live else {}
    if record is None or not _holds_allocations(fields):
        return _tombstone(record, event)
    if event.version != (record.incarnation, record.generation + 1):
        return _gap(record, event)
    patch: dict[str, Any] = {"status": "down"}
    if not _has_left(fields):
        patch["namespaces"] = {"nodestate": {LEFT_AT: event.reported_at}}
    return _merged(record, event, patch)


def _tombstone(record: NodeRecord | None, event: Event) -> Folded:
    """The record of a node that is gone."""
    return _applied(record, event, "down", "", b"", b"", b"", b"")


def _left_and_is_empty(record: NodeRecord, fields: dict[str, msgspec.Raw]) -> bool:
    """True if a node has left before, and has no allocation in ``fields``, its new state."""
    return record.status == "down" and not _holds_allocations(fields) and _has_left(fields)


def _has_left(fields: dict[str, msgspec.Raw]) -> bool:
    """True if a state, whose fields are encoded, says that its node has left."""
    ours = _decode_map(fields.get("namespaces", _EMPTY_MAP)).get("nodestate")
    return isinstance(ours, dict) and LEFT_AT in ours


def has_left(record: NodeRecord) -> bool:
    """True if a node has left, but is still known because it has allocations. No agent carries out orders there."""
    try:
        return record.live and record.status == "down" and _has_left(_decode_shallow(record.rest))
    except (msgspec.DecodeError, RecursionError, ValueError):  # the stored state is damaged
        return False


def _holds_allocations(fields: dict[str, msgspec.Raw]) -> bool:
    """True if a state, whose fields are encoded, has an allocation."""
    return bytes(fields.get("allocations", _EMPTY_MAP)) != _EMPTY_MAP


def _applied(
    record: NodeRecord | None,
    event: Event,
    status: NodeStatus,
    classes: str,
    columns: bytes,
    usage: bytes,
    metrics: bytes,
    rest: bytes,
) -> Folded:
    """The record at the event's version, with these contents. Raises ``BadEventError`` if the state is too large."""
    size = len(rest) + len(usage) + len(metrics)
    if size + BODY_KEYS_BYTES > MAX_STATE_BYTES:
        raise BadEventError("too-large", f"a state of {size:,} bytes; at most {MAX_STATE_BYTES:,} are allowed")
    incarnation, generation = event.incarnation, event.generation
    wanted_incarnation, wanted_generation = incarnation, generation
    if record is not None:
        wanted, in_incarnation = record.wanted_generation, record.wanted_incarnation
        if in_incarnation > incarnation or (in_incarnation == incarnation and wanted > generation):
            wanted_incarnation, wanted_generation = in_incarnation, wanted
    return Folded(
        NodeRecord(
            record.name if record is not None else event.node,  # all records of a node share one string
            incarnation,
            generation,
            wanted_incarnation,
            wanted_generation,
            event.reported_at,
            not rest,  # an encoded state has at least one byte
            status,
            classes,
            columns,
            usage,
            metrics,
            rest,
        ),
        FoldOutcome.APPLIED,
    )


def _gap(record: NodeRecord | None, event: Event) -> Folded:
    """Note that a newer version exists whose state is unknown: the record becomes incomplete."""
    version = event.version
    if record is None:
        record = NodeRecord(event.node, 0, 0, 0, 0, event.reported_at, False, "down", "", b"", b"", b"", b"")
    if version <= record.wanted:
        return Folded(record, FoldOutcome.GAP)
    return Folded(
        msgspec.structs.replace(record, wanted_incarnation=version.incarnation, wanted_generation=version.generation),
        FoldOutcome.GAP,
    )

r"""Events, node records and the pure fold: what nodestate is about, without clock, I/O or randomness.

A node's life as the fold sees it (version = (incarnation, generation), ordered)::

    (unknown) --report--> live --change (exactly the next)--> live
        |                  |  \--change or heartbeat of a later version (gap)--> incomplete
        |                  |                                   incomplete --report--> live
        |                  \--leave--> gone --report of a newer version--> live
        \--change, heartbeat (gap)--> incomplete, without a state

Assumptions: only the agent raises versions; a version names one state for ever; events may be
repeated, reordered and lost on their way. Anything not newer than what is known is a duplicate.
"""

from __future__ import annotations

import enum
import math
import struct
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Meta, UnsetType

from nodestate.errors import BadEventError

# -- limits: each named, the unit last ------------------------------------------------------------

FORMAT_VERSION: Final = 1
MAX_NODE_NAME_CHARS: Final = 200
MAX_WORD_CHARS: Final = 255  # resource classes and traits, as in OpenStack
MAX_TRAITS_COUNT: Final = 1_000
MAX_AGGREGATES_COUNT: Final = 1_000
MAX_CLASSES_COUNT: Final = 100
MAX_ALLOCATIONS_COUNT: Final = 10_000
MAX_METRICS_COUNT: Final = 1_000
MAX_FREE_DEPTH: Final = 16  # nesting inside namespaces and hints
MAX_AMOUNT: Final = 2**48
MAX_RATIO: Final = 10_000.0
MAX_COUNTER: Final = 2**53  # exact in a double, so JSON readers of other languages keep it
MAX_EVENT_BYTES: Final = 256 * 1024
MAX_STATE_BYTES: Final = 384 * 1024
assert MAX_AMOUNT * MAX_RATIO < 2**63, "a capacity fits the int64 of the columns"
assert MAX_EVENT_BYTES < MAX_STATE_BYTES, "whatever fits an event fits a state"


class Version(NamedTuple):
    """The ordered pair that names one state of one node."""

    incarnation: int
    generation: int


NEVER: Final = Version(0, 0)


class Receipt(NamedTuple):
    """What publishing returns: ``reader.read(at_least=receipt)`` waits for it."""

    node: str
    version: Version


# -- events ---------------------------------------------------------------------------------------

NodeName = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9._:-]{1,200}\Z")]
ClassName = Annotated[str, Meta(pattern=r"\A[A-Z0-9_]{1,255}\Z")]
Word = Annotated[str, Meta(min_length=1, max_length=MAX_WORD_CHARS)]
Amount = Annotated[int, Meta(ge=0, le=MAX_AMOUNT)]
Measure = (  # no NaN, no infinity: JSON has none; integers stay integers, and exact in a double
    Annotated[int, Meta(ge=-MAX_COUNTER, le=MAX_COUNTER)]
    | Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
)
Ratio = Annotated[float, Meta(gt=0, le=MAX_RATIO)]
Counter = Annotated[int, Meta(ge=1, le=MAX_COUNTER)]
Seconds = Annotated[float, Meta(ge=0, le=1e11)]
Status = Literal["up", "draining", "maintenance", "down"]
STATUSES: Final = ("up", "draining", "maintenance", "down")


class _Event(msgspec.Struct, frozen=True, tag_field="kind", forbid_unknown_fields=True, kw_only=True):
    v: Literal[1] = 1
    node: NodeName
    incarnation: Counter
    generation: Counter
    reported_at: Seconds

    @property
    def version(self) -> Version:
        """(incarnation, generation) that the agent gave this event."""
        return Version(self.incarnation, self.generation)


class Report(_Event, frozen=True, tag="report"):
    """The whole state; wins over any older version."""

    state: msgspec.Raw


class Change(_Event, frozen=True, tag="change"):
    """An RFC 7396 merge patch against exactly the generation before."""

    patch: msgspec.Raw


class Heartbeat(_Event, frozen=True, tag="heartbeat"):
    """Repeats the current generation: proves life, and shows a lost change."""


class Leave(_Event, frozen=True, tag="leave"):
    """The node goes for good: leaves a tombstone."""


Event = Report | Change | Heartbeat | Leave


class Inventory(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One resource class of a node; capacity = (total - reserved) x allocation_ratio."""

    total: Amount
    reserved: Amount = 0
    allocation_ratio: Ratio = 1.0

    @property
    def capacity(self) -> int:
        """Amount that can be given out, rounded down, never negative."""
        return max(0, int((self.total - self.reserved) * self.allocation_ratio))


class Allocation(msgspec.Struct, forbid_unknown_fields=True):
    """What one consumer (VM, job) holds of a node, with the group and hints it was asked with."""

    resources: Annotated[dict[ClassName, Amount], Meta(max_length=MAX_CLASSES_COUNT)]
    group: str | None = None
    hints: dict[str, Any] = {}


class State(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A node's state, typed: what a report must hold."""

    status: Status = "up"
    zone: Annotated[str, Meta(max_length=MAX_WORD_CHARS)] = ""
    inventory: Annotated[dict[ClassName, Inventory], Meta(max_length=MAX_CLASSES_COUNT)] = {}
    usage: Annotated[dict[ClassName, Amount], Meta(max_length=MAX_CLASSES_COUNT)] = {}
    traits: Annotated[list[Word], Meta(max_length=MAX_TRAITS_COUNT)] = []
    aggregates: Annotated[list[Word], Meta(max_length=MAX_AGGREGATES_COUNT)] = []
    allocations: Annotated[dict[Word, Allocation], Meta(max_length=MAX_ALLOCATIONS_COUNT)] = {}
    metrics: Annotated[dict[Word, Measure], Meta(max_length=MAX_METRICS_COUNT)] = {}
    namespaces: dict[str, Any] = {}


class _QuickPatch(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The patches that come all day: amounts, measures, and what started or ended. What else there is to check, the
    fold sees.
    """

    usage: dict[str, Amount] | UnsetType = UNSET
    metrics: dict[Word, Measure] | UnsetType = UNSET
    allocations: msgspec.Raw | UnsetType = UNSET


class _InventoryPatch(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    total: Amount | UnsetType = UNSET
    reserved: Amount | UnsetType | None = UNSET
    allocation_ratio: Ratio | UnsetType | None = UNSET


class _Patch(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What any patch must look like, whatever it will be merged into: null removes what may be absent."""

    status: Status | UnsetType | None = UNSET
    zone: str | UnsetType | None = UNSET
    inventory: dict[ClassName, _InventoryPatch | None] | UnsetType | None = UNSET
    usage: dict[ClassName, Amount | None] | UnsetType | None = UNSET
    traits: list[Word] | UnsetType | None = UNSET
    aggregates: list[Word] | UnsetType | None = UNSET
    allocations: dict[Word, dict[str, Any] | None] | UnsetType | None = UNSET
    metrics: dict[Word, Measure | None] | UnsetType | None = UNSET
    namespaces: dict[str, Any] | UnsetType | None = UNSET


_decode_event = msgspec.msgpack.Decoder(Event).decode
_decode_state = msgspec.msgpack.Decoder(State).decode
_decode_quick_patch = msgspec.msgpack.Decoder(_QuickPatch).decode
_decode_patch = msgspec.msgpack.Decoder(_Patch).decode
_decode_map = msgspec.msgpack.Decoder(dict[str, Any]).decode
_decode_shallow = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode
_decode_any = msgspec.msgpack.Decoder().decode
_NO_MAP: Final = b"\x80"
_USAGE_KEY: Final = b"\xa5usage"
_METRICS_KEY: Final = b"\xa7metrics"
_KEYS_BYTES: Final = len(_USAGE_KEY) + len(_METRICS_KEY)
_encode = msgspec.msgpack.Encoder().encode


_PLAIN: Final = frozenset({str, int, float, bool, type(None)})


def _check_free(value: Any, where: str, depth: int = 0) -> None:
    """Refuse what JSON can't carry and what nests too deep: the parts of a state that nodestate never interprets."""
    if depth > MAX_FREE_DEPTH:
        raise BadEventError("too-deep", f"{where} nests deeper than {MAX_FREE_DEPTH}")
    if type(value) is dict:
        for key in value:
            if type(key) is not str:
                raise BadEventError("wrong-type", f"{where} has a key that is not text: {key!r:.40}")
        inside = list(value.values())
    elif type(value) is list:
        inside = value
    else:
        inside = [value]
    for inner in inside:
        if type(inner) is float and not math.isfinite(inner):
            raise BadEventError("wrong-type", f"{where} holds {inner}, which JSON can't carry")
        if type(inner) in _PLAIN:
            continue
        if type(inner) is not dict and type(inner) is not list:
            raise BadEventError("wrong-type", f"{where} holds a {type(inner).__name__}, which JSON can't carry")
        _check_free(inner, where, depth + 1)


def parse_state(body: bytes | msgspec.Raw) -> State:
    """Decode and validate a whole state.

    Raises ``BadEventError``: ``wrong-type``, ``too-deep`` or ``too-large``.
    """
    if len(memoryview(body)) > MAX_STATE_BYTES:
        raise BadEventError("too-large", f"a state of {len(memoryview(body)):,} bytes, over {MAX_STATE_BYTES:,}")
    try:
        state = _decode_state(body)
    except msgspec.ValidationError as error:
        raise BadEventError("wrong-type", f"state: {error}") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadEventError("undecodable", f"state: {error}") from None
    if state.namespaces:
        _check_free(state.namespaces, "namespaces")
    for allocation in state.allocations.values():
        if allocation.hints:
            _check_free(allocation.hints, "hints")
    return state


def parse_event(raw: bytes) -> Event:
    """Decode and validate one event's bytes, its state or patch included as far as it can be told alone.

    Raises ``BadEventError`` with reason ``too-large``, ``undecodable``, ``unknown-version``, ``bad-name``,
    ``wrong-type`` or ``too-deep``.
    """
    if len(raw) > MAX_EVENT_BYTES:
        raise BadEventError("too-large", f"an event of {len(raw):,} bytes, over {MAX_EVENT_BYTES:,}")
    try:
        event: Event = _decode_event(raw)
    except msgspec.ValidationError as error:
        raise _named_reason(error) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadEventError("undecodable", str(error)) from None
    return event


def _named_reason(error: msgspec.ValidationError) -> BadEventError:
    text = str(error)
    if "`$.v`" in text:
        return BadEventError("unknown-version", f"this reads format version {FORMAT_VERSION}: {text}")
    if "`$.node`" in text:
        return BadEventError("bad-name", text)
    return BadEventError("wrong-type", text)


def event_from_json(line: bytes | str) -> bytes:
    """One event as JSON (a line of ``nodestate publish FILE``) to the bytes that go on the wire; validated."""
    try:
        raw = _encode(msgspec.json.decode(line))
    except (msgspec.DecodeError, RecursionError, UnicodeError, OverflowError) as error:
        raise BadEventError("undecodable", str(error)) from None
    fold(None, parse_event(raw))  # a report's state is validated by folding it
    return raw


# -- records --------------------------------------------------------------------------------------


class Heading(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a ``NodeRecord`` begins with: enough to tell which node and version it is, at a third of the price."""

    name: str
    incarnation: int
    generation: int
    wanted_incarnation: int
    wanted_generation: int

    @property
    def version(self) -> Version:
        """Which state of the node this is."""
        return Version(self.incarnation, self.generation)

    @property
    def wanted(self) -> Version:
        """The newest version heard of."""
        return Version(self.wanted_incarnation, self.wanted_generation)

    @property
    def incomplete(self) -> bool:
        """True while a newer version is known to exist than the one held."""
        if self.wanted_incarnation != self.incarnation:
            return self.wanted_incarnation > self.incarnation
        return self.wanted_generation > self.generation


class NodeRecord(Heading, frozen=True, array_like=True, gc=False):
    """One node as it is stored and held: a small header with the scheduler's columns, and an opaque body.

    Encoded as a msgpack array in this order (docs/reference/wire.md). ``wanted_*`` is the newest version
    heard of; above the record's own it means that events are missing. ``classes`` are the resource classes,
    sorted, joined by spaces; ``columns`` their capacities, then their usages, as little-endian int64.
    ``usage`` and ``metrics``, which change all day, are these fields of the state as msgpack maps, empty where it
    has none; ``rest`` is the map of all others, empty where no state is known or the node is gone.
    """

    reported_at: float
    gone: bool
    status: Status
    classes: str
    columns: bytes
    usage: bytes
    metrics: bytes
    rest: bytes

    @property
    def live(self) -> bool:
        """True where there is a state to schedule on: known, and not gone."""
        return not self.gone and len(self.rest) > 0

    @property
    def body(self) -> bytes:
        """The whole state as a msgpack map; empty where there is none."""
        parts = [self.rest]
        if self.usage:
            parts += (_USAGE_KEY, self.usage)
        if self.metrics:
            parts += (_METRICS_KEY, self.metrics)
        if len(parts) > 1:  # a map's first byte counts its fields, as a state has fewer than 16
            parts[0] = bytes([self.rest[0] + len(parts) // 2]) + self.rest[1:]
        return b"".join(parts)

    def state(self) -> dict[str, Any]:
        """The state, decoded anew at each call."""
        return _decode_map(self.body) if self.rest else {}


class Outcome(enum.Enum):
    """What an event did to a record."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"
    GAP = "gap"
    ALIVE = "alive"


class Folded(NamedTuple):
    """A record after an event; it is the same object where the event changed nothing."""

    record: NodeRecord | None
    outcome: Outcome


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7396: null removes, maps merge, anything else replaces. ``target`` is changed in place where it is a map."""
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


def _patched(fields: dict[str, msgspec.Raw], patch: dict[str, Any]) -> dict[str, msgspec.Raw]:
    """A merge patch on a map whose values are encoded; those that it does not touch stay so."""
    for name, change in patch.items():
        if change is None:
            fields.pop(name, None)
        else:
            merged = merge_patch(_decode_any(fields[name]) if name in fields else None, change)
            fields[name] = msgspec.Raw(_encode(merged))
    return fields


def columns_of(inventory: dict[str, Inventory], usage: dict[str, int]) -> tuple[str, bytes]:
    """The resource classes of a state and their capacities and usages, in the form of ``NodeRecord``."""
    names = sorted(inventory.keys() | usage.keys())
    amounts = [inventory[name].capacity if name in inventory else 0 for name in names]
    amounts += [usage.get(name, 0) for name in names]
    classes = " ".join(names)
    return _classes_of(classes), struct.pack(f"<{len(amounts)}q", *amounts)


def fold(record: NodeRecord | None, event: Event) -> Folded:
    """The one fold: consumer, journal reader and checker all call this.

    Pure. Raises ``BadEventError`` where the event's state, or the state its patch leads to, breaks the
    format or a limit; the record then stays as it was.
    """
    if (  # first, as it comes all day: by fields, since a version is a tuple to be made
        type(event) is Change
        and record is not None
        and event.generation == record.generation + 1
        and event.incarnation == record.incarnation
        and record.live
    ):
        return _changed(record, event)
    have = record.version if record is not None else NEVER
    version = event.version
    if version == have and type(event) is Heartbeat and record is not None and not record.gone:
        return Folded(record, Outcome.ALIVE)
    if version <= have:
        return Folded(record, Outcome.DUPLICATE)
    if type(event) is Report:
        state = parse_state(event.state)
        classes, columns = columns_of(state.inventory, state.usage)
        rest = _decode_shallow(event.state)
        usage, metrics = bytes(rest.pop("usage", b"")), bytes(rest.pop("metrics", b""))
        return _applied(record, event, state.status, classes, columns, usage, metrics, _encode(rest))
    if type(event) is Leave:
        return _applied(record, event, "down", "", b"", b"", b"", b"")
    if type(event) is Change:
        _check_patch(event.patch)
    return _gap(record, event)


def _check_patch(patch: msgspec.Raw) -> None:
    """Refuse a patch that could not be right on any state. What is accepted does not depend on how deep the caller's stack
    is: the limit of nesting is reached long before the decoder's own.
    """
    try:
        decoded = _decode_patch(patch)
    except msgspec.ValidationError as error:
        raise BadEventError("wrong-type", f"patch: {error}") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadEventError("undecodable", f"patch: {error}") from None
    if decoded.namespaces:
        _check_free(decoded.namespaces, "namespaces")
    if decoded.allocations:
        _check_free(decoded.allocations, "allocations", -2)  # hints begin two levels down


def _changed(record: NodeRecord, event: Change) -> Folded:
    try:
        patch = _decode_quick_patch(event.patch)
    except msgspec.ValidationError:
        return _merged(record, event)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadEventError("undecodable", f"patch: {error}") from None
    # Valid by itself as far as it goes, so only what it touches is decoded, and little of that is checked again.
    columns, usage, metrics = record.columns, record.usage, record.metrics
    if patch.usage is not UNSET:
        names, known, pack_half = _layout(record.classes)
        amounts = patch.usage
        if len(amounts) != len(names):  # or else they are all there are, and replace what was
            amounts = _decode_map(usage or _NO_MAP) | amounts
        if len(amounts) > MAX_CLASSES_COUNT:
            raise BadEventError("too-large", f"usage of more than {MAX_CLASSES_COUNT} resource classes")
        if not known.issuperset(amounts):
            return _merged(record, event)
        columns = columns[: len(columns) // 2] + pack_half(*[amounts.get(name, 0) for name in names])
        usage = _encode(amounts)
    if patch.metrics is not UNSET:
        measures = _decode_map(metrics or _NO_MAP) | patch.metrics
        if len(measures) > MAX_METRICS_COUNT:
            raise BadEventError("too-large", f"more than {MAX_METRICS_COUNT} metrics")
        metrics = _encode(measures)
    rest = record.rest
    if patch.allocations is not UNSET:
        _check_patch(event.patch)
        fields = _patched(_decode_shallow(rest), {"allocations": _decode_any(patch.allocations)})
        parse_state(_encode({"allocations": fields.get("allocations", {})}))
        rest = _encode(fields)
    return _applied(record, event, record.status, record.classes, columns, usage, metrics, rest)


def _merged(record: NodeRecord, event: Change) -> Folded:
    """Any patch: fields that it does not touch go through as the bytes they are; those that it does are validated."""
    _check_patch(event.patch)
    patch = _decode_map(event.patch)
    fields = _patched(_decode_shallow(record.body), patch)
    counted = not _COUNTED.isdisjoint(patch)
    looked_at = {name for name in fields if name in patch or (counted and name in _COUNTED)}
    state = parse_state(_encode({name: fields[name] for name in looked_at}))
    status, classes, columns = record.status, record.classes, record.columns
    if counted:
        status, (classes, columns) = state.status, columns_of(state.inventory, state.usage)
    usage, metrics = bytes(fields.pop("usage", b"")), bytes(fields.pop("metrics", b""))
    return _applied(record, event, status, classes, columns, usage, metrics, _encode(fields))


_COUNTED: Final = frozenset({"status", "inventory", "usage"})
"""The fields of a state that a record's status, classes and columns come from."""


class _Layout(NamedTuple):
    """How the columns of some resource classes lie; the same for most nodes of a fleet."""

    names: tuple[str, ...]
    known: frozenset[str]
    pack_half: Callable[..., bytes]


@lru_cache(maxsize=1_024)
def _layout(classes: str) -> _Layout:
    names = tuple(classes.split(" ")) if classes else ()
    return _Layout(names, frozenset(names), struct.Struct(f"<{len(names)}q").pack)


@lru_cache(maxsize=1_024)
def _classes_of(classes: str) -> str:
    """The same text as one object for all nodes that have it."""
    return classes


def _applied(
    record: NodeRecord | None,
    event: Event,
    status: Status,
    classes: str,
    columns: bytes,
    usage: bytes,
    metrics: bytes,
    rest: bytes,
) -> Folded:
    size = len(rest) + len(usage) + len(metrics)
    if size + _KEYS_BYTES > MAX_STATE_BYTES:
        raise BadEventError("too-large", f"a state of {size:,} bytes, over {MAX_STATE_BYTES:,}")
    incarnation, generation = event.incarnation, event.generation
    wanted_incarnation, wanted_generation = incarnation, generation
    if record is not None and record.incomplete and record.wanted > event.version:
        wanted_incarnation, wanted_generation = record.wanted
    return Folded(
        NodeRecord(
            record.name if record is not None else event.node,  # one text for all of a node's records
            incarnation,
            generation,
            wanted_incarnation,
            wanted_generation,
            event.reported_at,
            type(event) is Leave,
            status,
            classes,
            columns,
            usage,
            metrics,
            rest,
        ),
        Outcome.APPLIED,
    )


def _gap(record: NodeRecord | None, event: Event) -> Folded:
    version = event.version
    if record is None:
        record = NodeRecord(event.node, 0, 0, 0, 0, event.reported_at, False, "down", "", b"", b"", b"", b"")
    if version <= record.wanted:
        return Folded(record, Outcome.GAP)
    return Folded(
        msgspec.structs.replace(record, wanted_incarnation=version.incarnation, wanted_generation=version.generation),
        Outcome.GAP,
    )

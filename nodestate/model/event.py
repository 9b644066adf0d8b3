"""Events: immutable facts about one node, as agents publish them."""

from __future__ import annotations

from contextlib import suppress
from typing import Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from nodestate.errors import BadEventError
from nodestate.model.fields import Counter, NodeName, Seconds
from nodestate.model.json_values import require_json_value
from nodestate.model.limits import (
    FORMAT_VERSION,
    MAX_CLOCK_AHEAD_S,
    MAX_COUNTER,
    MAX_EVENT_BYTES,
    MAX_NODE_NAME_CHARS,
    MIN_CLOCK_S,
)
from nodestate.model.version import Version


class _EventFields(msgspec.Struct, frozen=True, tag_field="kind", forbid_unknown_fields=True, kw_only=True):
    """The fields that all kinds of events have."""

    v: Literal[1] = 1
    node: NodeName
    incarnation: Counter
    generation: Counter
    reported_at: Seconds
    signature: str | UnsetType = UNSET
    """The signature of the event, which is its last field; absent if the event is not signed."""

    @property
    def version(self) -> Version:
        """(incarnation, generation) that the agent gave this event."""
        return Version(self.incarnation, self.generation)


class Report(_EventFields, frozen=True, tag="report"):
    """The whole state of a node; replaces any older version."""

    state: msgspec.Raw


class Change(_EventFields, frozen=True, tag="change"):
    """An RFC 7396 merge patch that applies to exactly the generation before its own."""

    patch: msgspec.Raw


class Heartbeat(_EventFields, frozen=True, tag="heartbeat"):
    """Repeats the current generation: proves that the node lives, and reveals a change that was lost."""

    unsigned_orders: Counter | UnsetType = UNSET
    """In an answer to a census: orders and presences that the agent took for the node without a signature, since the
    agent started; absent if there are none.
    """
    refused_orders: Counter | UnsetType = UNSET
    """In an answer to a census: orders and presences for the node that the agent refused because of their signatures;
    absent if there are none.
    """


class Leave(_EventFields, frozen=True, tag="leave"):
    """The node leaves for good; its record becomes a tombstone."""


Event = Report | Change | Heartbeat | Leave


class _OpenReport(Report, frozen=True, tag="report", forbid_unknown_fields=False):
    """A report that may have fields of a later version."""


class _OpenChange(Change, frozen=True, tag="change", forbid_unknown_fields=False):
    """A change that may have fields of a later version."""


class _OpenHeartbeat(Heartbeat, frozen=True, tag="heartbeat", forbid_unknown_fields=False):
    """A heartbeat that may have fields of a later version."""


class _OpenLeave(Leave, frozen=True, tag="leave", forbid_unknown_fields=False):
    """A leave that may have fields of a later version."""


class _NamedNode(msgspec.Struct):
    """The node of an event, read without validating the rest."""

    node: str


_decode_event = msgspec.msgpack.Decoder(Event).decode
_decode_open_event = msgspec.msgpack.Decoder(_OpenReport | _OpenChange | _OpenHeartbeat | _OpenLeave).decode
_decode_named_node = msgspec.msgpack.Decoder(_NamedNode).decode
_decode_fields = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode
_decode_value = msgspec.msgpack.Decoder().decode
_encode = msgspec.msgpack.Encoder().encode
_COUNTERS: Final = frozenset({"v", "incarnation", "generation"})
_CLOSED: Final[dict[type[Event], type[Event]]] = {
    _OpenReport: Report,
    _OpenChange: Change,
    _OpenHeartbeat: Heartbeat,
    _OpenLeave: Leave,
}


def parse_event(raw: bytes) -> Event:
    """Decode and validate the envelope of one event; ``fold`` validates the state or the patch inside.

    Fields of a later version are allowed if JSON can carry their values. ``raw``, which the journal keeps, has them.

    Raises:
        BadEventError: with the reason ``too-large``, ``undecodable``, ``unknown-version``, ``bad-name``, ``wrong-type``
            or ``too-deep``.
    """
    if len(raw) > MAX_EVENT_BYTES:
        raise BadEventError("too-large", f"an event of {len(raw):,} bytes; at most {MAX_EVENT_BYTES:,} are allowed")
    try:
        event: Event = _decode_event(raw)
    except msgspec.ValidationError:
        return _parse_open_event(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadEventError("undecodable", str(error)) from None
    return event


def check_clock(event: Event, wall: float) -> None:
    """Raise ``BadEventError`` if the event's time or incarnation is too far from ``wall`` (seconds since 1970)."""
    for what, seconds in (("reported_at", event.reported_at), ("incarnation", event.incarnation)):
        if not MIN_CLOCK_S <= seconds <= wall + MAX_CLOCK_AHEAD_S:
            remedy = "set the node's clock"
            if seconds > wall and what == "incarnation":
                remedy += (
                    ", stop its agent, delete the agent's .incarnation file in its state_dir, and start it again: the "
                    "file keeps the number from when the clock was ahead"
                )
            detail = f"{event.node}: {what} {seconds} is too far from the consumer's clock ({wall:.0f}); {remedy}"
            raise BadEventError("clock", detail)


def _parse_open_event(raw: bytes) -> Event:
    """Decode an event that has fields of a later version, or whole floats as counters.

    Raises ``BadEventError`` as ``parse_event`` does.
    """
    try:
        fields = _decode_fields(raw)
        for name in _COUNTERS & fields.keys():
            value = _decode_value(fields[name])
            if type(value) is float and value.is_integer() and abs(value) <= MAX_COUNTER:
                fields[name] = msgspec.Raw(_encode(int(value)))
        event = _decode_open_event(_encode(fields))
        known = {"kind", *event.__struct_fields__}
        more = {name: _decode_value(value) for name, value in fields.items() if name not in known}
    except msgspec.ValidationError as error:
        raise _rejection_of(raw, error) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadEventError("undecodable", str(error)) from None
    for name, value in more.items():
        require_json_value(value, f"{event.node}: field {name!r:.40}")
    return _CLOSED[type(event)](**msgspec.structs.asdict(event))


def _rejection_of(raw: bytes, error: msgspec.ValidationError) -> BadEventError:
    """Translate a validation error into the frozen reason that counters and headers use."""
    text = str(error)
    with suppress(msgspec.DecodeError, RecursionError, UnicodeDecodeError):  # raised if the event names no node
        text = f"{_decode_named_node(raw).node!r:.{MAX_NODE_NAME_CHARS}}: {text}"
    if "`$.v`" in text:
        return BadEventError("unknown-version", f"this version of nodestate reads format {FORMAT_VERSION} only: {text}")
    if "`$.node`" in text:
        return BadEventError("bad-name", text)
    return BadEventError("wrong-type", text)

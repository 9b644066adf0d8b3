"""Events: immutable facts about one node, as agents publish them."""

from __future__ import annotations

from typing import Literal

import msgspec

from nodestate.errors import BadEventError
from nodestate.model.fields import Counter, NodeName, Seconds
from nodestate.model.limits import FORMAT_VERSION, MAX_EVENT_BYTES
from nodestate.model.version import Version


class _EventFields(msgspec.Struct, frozen=True, tag_field="kind", forbid_unknown_fields=True, kw_only=True):
    """The fields that all kinds of events have."""

    v: Literal[1] = 1
    node: NodeName
    incarnation: Counter
    generation: Counter
    reported_at: Seconds

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


class Leave(_EventFields, frozen=True, tag="leave"):
    """The node leaves for good; its record becomes a tombstone."""


Event = Report | Change | Heartbeat | Leave

_decode_event = msgspec.msgpack.Decoder(Event).decode


def parse_event(raw: bytes) -> Event:
    """Decode and validate the envelope of one event; ``fold`` validates the state or the patch inside.

    Raises:
        BadEventError: with the reason ``too-large``, ``undecodable``, ``unknown-version``, ``bad-name`` or
            ``wrong-type``.
    """
    if len(raw) > MAX_EVENT_BYTES:
        raise BadEventError("too-large", f"an event of {len(raw):,} bytes; at most {MAX_EVENT_BYTES:,} are allowed")
    try:
        event: Event = _decode_event(raw)
    except msgspec.ValidationError as error:
        raise _rejection_of(error) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadEventError("undecodable", str(error)) from None
    return event


def _rejection_of(error: msgspec.ValidationError) -> BadEventError:
    """Translate a validation error into the frozen reason that counters and headers use."""
    text = str(error)
    if "`$.v`" in text:
        return BadEventError("unknown-version", f"this version of nodestate reads format {FORMAT_VERSION} only: {text}")
    if "`$.node`" in text:
        return BadEventError("bad-name", text)
    return BadEventError("wrong-type", text)

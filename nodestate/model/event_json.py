"""Events as JSON lines, the input of ``nodestate publish FILE``."""

from __future__ import annotations

import msgspec

from nodestate.errors import BadEventError
from nodestate.model.event import check_clock, parse_event
from nodestate.model.event_fold import fold

_encode = msgspec.msgpack.Encoder().encode


def event_from_json(line: bytes | str, wall: float | None = None) -> bytes:
    """Validate one event in JSON, and encode it for the wire.

    Args:
        line: the event.
        wall: seconds since 1970. The event is also refused if consumers would refuse it because of its time. None: any
            time is accepted.

    Raises:
        BadEventError: if the event breaks the format, or its state or patch does.
    """
    try:
        raw = _encode(msgspec.json.decode(line))
    except (msgspec.DecodeError, RecursionError, UnicodeError, OverflowError) as error:
        raise BadEventError("undecodable", str(error)) from None
    check_event(raw, wall)
    return raw


def check_event(raw: bytes, wall: float | None = None) -> None:
    """Validate an encoded event as consumers will. ``wall`` as for ``event_from_json``. Raises ``BadEventError``."""
    event = parse_event(raw)
    if wall is not None:
        check_clock(event, wall)
    fold(None, event)  # folding validates the state of a report and the patch of a change

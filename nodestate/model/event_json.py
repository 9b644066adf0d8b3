"""Events as JSON lines, the input of ``nodestate publish FILE``."""

from __future__ import annotations

import msgspec

from nodestate.errors import BadEventError
from nodestate.model.event import parse_event
from nodestate.model.event_fold import fold

_encode = msgspec.msgpack.Encoder().encode


def event_from_json(line: bytes | str) -> bytes:
    """Validate one event in JSON, and encode it for the wire.

    Raises:
        BadEventError: if the event breaks the format, or its state or patch does.
    """
    try:
        raw = _encode(msgspec.json.decode(line))
    except (msgspec.DecodeError, RecursionError, UnicodeError, OverflowError) as error:
        raise BadEventError("undecodable", str(error)) from None
    fold(None, parse_event(raw))  # folding validates the state of a report and the patch of a change
    return raw

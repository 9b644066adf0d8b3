"""Encoding of documents in the two media types of the HTTP API, and the choice between them."""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

JSON: Final = "application/json"
MSGPACK: Final = "application/x-msgpack"

_json: Final = msgspec.json.Encoder(enc_hook=str)
_msgpack: Final = msgspec.msgpack.Encoder(enc_hook=str)


def encode(document: Any, media_type: str) -> bytes:
    """Encode a document in a media type, ``JSON`` or ``MSGPACK``."""
    return _msgpack.encode(document) if media_type == MSGPACK else _json.encode(document)


def preferred_media_type(accept: str) -> str:
    """Return ``MSGPACK`` if the header ``Accept`` prefers it to JSON, otherwise ``JSON``."""
    quality = {JSON: -1.0, MSGPACK: -1.0}
    wildcard = -1.0
    for part in accept.split(","):
        name, *options = (word.strip().lower() for word in part.split(";"))
        q = next((_number(option[2:]) for option in options if option.startswith("q=")), 1.0)
        if name in ("application/msgpack", "application/vnd.msgpack"):
            name = MSGPACK
        if name in quality:
            quality[name] = q
        elif name in ("*/*", "application/*"):
            wildcard = q
    json_quality = quality[JSON] if quality[JSON] >= 0 else wildcard
    return MSGPACK if quality[MSGPACK] > max(json_quality, 0.0) else JSON


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        return 0.0
    return number if math.isfinite(number) else 0.0

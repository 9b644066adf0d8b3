"""Encoding of documents in the two media types of the HTTP API, and the choice between them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from nodestate.serve.limits import LARGE_BYTES

JSON: Final = "application/json"
MSGPACK: Final = "application/x-msgpack"

_json: Final = msgspec.json.Encoder(enc_hook=str)
_msgpack: Final = msgspec.msgpack.Encoder(enc_hook=str)


class EncodedBody(NamedTuple):
    """The body of a response, in pieces that responses may share."""

    pieces: Sequence[bytes]
    size: int
    """Bytes of all pieces."""
    content_encoding: str = ""
    """``gzip`` if the pieces are compressed, otherwise empty."""

    def portions(self) -> Iterator[bytes]:
        """Return the body in portions of at most ``LARGE_BYTES``."""
        waiting, size = list[bytes](), 0
        for piece in self.pieces:
            waiting.append(piece)
            size += len(piece)
            if size >= LARGE_BYTES:
                joined = b"".join(waiting)
                whole = size - size % LARGE_BYTES
                yield from (joined[begin : begin + LARGE_BYTES] for begin in range(0, whole, LARGE_BYTES))
                waiting, size = [joined[whole:]], size - whole
        if size:
            yield b"".join(waiting)


def encode(document: Any, media_type: str) -> bytes:
    """Encode a document in a media type, ``JSON`` or ``MSGPACK``."""
    return _msgpack.encode(document) if media_type == MSGPACK else _json.encode(document)


def preferred_media_type(accept: str) -> str:
    """Return ``MSGPACK`` if the header ``Accept`` prefers it to JSON, otherwise ``JSON``."""
    quality = {JSON: -1.0, MSGPACK: -1.0}
    wildcard = -1.0
    for name, q in _qualities(accept):
        if name in ("application/msgpack", "application/vnd.msgpack"):
            name = MSGPACK
        if name in quality:
            quality[name] = q
        elif name in ("*/*", "application/*"):
            wildcard = q
    json_quality = quality[JSON] if quality[JSON] >= 0 else wildcard
    return MSGPACK if quality[MSGPACK] > max(json_quality, 0.0) else JSON


def accepts_gzip(accept_encoding: str) -> bool:
    """True if the header ``Accept-Encoding`` names gzip or ``*`` with a quality above 0."""
    quality = dict(_qualities(accept_encoding))
    return quality.get("gzip", quality.get("*", 0.0)) > 0


def _qualities(header: str) -> Iterator[tuple[str, float]]:
    """Return the names in a header, each with its quality."""
    for part in header.split(","):
        name, *options = (word.strip().lower() for word in part.split(";"))
        yield name, next((_number(option[2:]) for option in options if option.startswith("q=")), 1.0)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        return 0.0
    return number if math.isfinite(number) else 0.0

"""Streams of events in msgpack, one after the other as on the wire: the input and output of ``--format msgpack``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Final

import msgpack
import msgspec

from nodestate.errors import BadEventError
from nodestate.model import MAX_EVENT_BYTES, Report
from nodestate.text import kind_text
from nodestate.view.view import View

READ_BYTES: Final = 64 * 1024
"""Bytes that are read from a stream at a time."""
BUFFER_BYTES: Final = MAX_EVENT_BYTES + READ_BYTES
"""Largest buffer of a stream: the beginning of the largest event, and the bytes that are read next."""

_encode = msgspec.msgpack.Encoder().encode


def read_events(file: BinaryIO) -> Iterator[bytes]:
    """Yield the encoded events of a stream, in order.

    The stream ends at the first value that is no map: a file of another format would otherwise be one bad event for
    each of its bytes.

    Raises:
        BadEventError: with the reason ``too-large`` or ``undecodable``. The stream can't be read further, because the
            end of the bad event is not known.
    """
    unpacker = msgpack.Unpacker(max_buffer_size=BUFFER_BYTES, strict_map_key=False)
    fed = done = 0  # bytes of the stream: given to the unpacker, and up to the end of the last event
    while chunk := file.read(READ_BYTES):
        try:
            unpacker.feed(chunk)
        except msgpack.BufferFull:
            raise BadEventError("too-large", f"an event of more than {MAX_EVENT_BYTES:,} bytes") from None
        fed += len(chunk)
        try:
            for event in unpacker:
                if not isinstance(event, dict):
                    raise _not_an_event(done, kind_text(event))
                done = unpacker.tell()
                yield msgpack.packb(event)
        except (msgpack.UnpackException, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise _not_an_event(done, _cause(error)) from None
    if done != fed:
        raise BadEventError("undecodable", f"the stream ends within an event, which begins at byte {done:,}")


def _not_an_event(position: int, found: str) -> BadEventError:
    """The error for a stream that has something else than an event at a position, in bytes."""
    return BadEventError(
        "undecodable",
        f"no event at byte {position:,} of the stream, but {found}; the rest is not read. --format msgpack reads maps "
        "in msgpack, one after the other: give --format json if FILE has JSON lines, and decompress a compressed FILE",
    )


def _cause(error: Exception) -> str:
    """Say in words what msgpack could not decode."""
    if isinstance(error, msgpack.StackError | RecursionError):
        return "values that are nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "a text that is not UTF-8"
    if isinstance(error, msgpack.FormatError):
        return "bytes that are not msgpack"
    return "a value that no event can have"  # longer than the buffer, or a map with a list as key


def reports_of(view: View, only: str | None = None) -> Iterator[bytes]:
    """Yield a report of each node of a view, encoded as on the wire. ``only`` names a node; None: all nodes."""
    for name in sorted(view.nodes) if only is None else (only,):
        record = view.nodes.record(name)
        assert record is not None, f"{name} is in the view"
        yield _encode(
            Report(
                node=name,
                incarnation=record.incarnation,
                generation=record.generation,
                reported_at=record.reported_at,
                state=msgspec.Raw(record.body),
            )
        )

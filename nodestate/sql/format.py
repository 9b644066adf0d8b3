"""The database design's section of the head."""

from __future__ import annotations

from typing import Final

import msgspec


class SqlSection(msgspec.Struct, frozen=True, array_like=True):
    """The database's part of a head."""

    size: int
    """Number of rows, by which a reader notices missing rows."""
    term: int = 1
    """The ownership that wrote it."""
    began: int = 1
    """The first commit of that ownership.

    A reader that saw later commits of another ownership notices that they are lost.
    """


SQL_SECTION: Final = msgspec.msgpack.Decoder(SqlSection)

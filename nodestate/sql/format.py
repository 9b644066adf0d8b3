"""What the database design keeps beside its rows: the section of its head."""

from __future__ import annotations

from typing import Final

import msgspec


class SqlSection(msgspec.Struct, frozen=True, array_like=True):
    """The database's part of a head. ``size``: how many rows there are, so that a reader sees if some are missing. ``term``
    wrote it, and ``began`` with this commit: a reader that saw later commits under another ownership sees that they are gone.
    """

    size: int
    term: int = 1
    began: int = 1


SQL_SECTION: Final = msgspec.msgpack.Decoder(SqlSection)

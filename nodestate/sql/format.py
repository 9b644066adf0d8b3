"""What the database design keeps beside its rows: the section of its head."""

from __future__ import annotations

from typing import Final

import msgspec


class Section(msgspec.Struct, frozen=True, array_like=True):
    """The database's part of a head. ``size``: how many rows there are, so that a reader sees if some are missing."""

    size: int


SECTION: Final = msgspec.msgpack.Decoder(Section)

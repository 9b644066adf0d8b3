"""The database design's section of the head."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from nodestate.store.head import Head, Offset, SectionCodec, Term

MAX_ROWS_COUNT: Final = 2**24
"""A section that claims more rows of one partition is damaged."""


class SqlSection(msgspec.Struct, frozen=True, array_like=True):
    """The database's part of a head."""

    size: Annotated[int, Meta(ge=0, le=MAX_ROWS_COUNT)]
    """Number of rows, by which a reader notices missing rows."""
    term: Term = 1
    """The ownership that wrote it."""
    began: Offset = 1
    """The first commit of that ownership.

    A reader that saw later commits of another ownership notices that they are lost.
    """


def _is_consistent(section: SqlSection, head: Head) -> bool:
    """True if the ownership that wrote the section is not later than that of the head."""
    return section.term <= head.term and section.began <= head.next


SQL_SECTION: Final = SectionCodec(SqlSection, _is_consistent)

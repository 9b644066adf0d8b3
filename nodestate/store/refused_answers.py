"""Answers that schedulers refused: one record of the cell in memcached, which ``nodestate doctor`` reads.

A refused answer counts as no answer, so the agents and the consumers do not notice it. It is also in the counters and
in the log of its scheduler. But ``doctor`` reaches no scheduler, and an operator would have to read the logs of all.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from nodestate.ports import Put, Write, WriteStatus
from nodestate.store import keys
from nodestate.store.round_trips import Step, Steps
from nodestate.store.wire import Codec

MAX_COUNT: Final = 2**53
MAX_TEXT_CHARS: Final = 500
KEPT_S: Final = 3_600
"""Seconds after the last refused answer for which the record is kept."""
TRIES_COUNT: Final = 3
"""Most tries of one change, as other schedulers may change the record at the same time."""


class RefusedAnswers(msgspec.Struct, frozen=True, array_like=True):
    """The answers that all schedulers of a cell refused since the record was created."""

    count: Annotated[int, Meta(ge=1, le=MAX_COUNT)]
    scheduler: Annotated[str, Meta(max_length=MAX_TEXT_CHARS)]
    """The name of the scheduler that refused the last one."""
    reason: Annotated[str, Meta(max_length=MAX_TEXT_CHARS)]
    """Why it was refused, for people."""


REFUSED_ANSWERS: Final = Codec(RefusedAnswers)


def add_refused_answers(cell: str, count: int, scheduler: str, reason: str) -> Steps[bool]:
    """Add answers to the record of a cell.

    Returns False if the store is full, or if other schedulers changed the record at each try.

    Args:
        cell: the name of the cell.
        count: the number of answers.
        scheduler: the name of the scheduler that refused them.
        reason: why the last one was refused.
    """
    key = keys.refused_answers(cell)
    for _ in range(TRIES_COUNT):
        item = (yield Step(fetch=[key])).items.get(key)
        before = REFUSED_ANSWERS.find(key, item)
        total = min(count + (before.count if before is not None else 0), MAX_COUNT)
        value = REFUSED_ANSWERS.pack(RefusedAnswers(total, scheduler[:MAX_TEXT_CHARS], reason[:MAX_TEXT_CHARS]))
        put, cas = (Put.CAS, item.cas) if item is not None else (Put.ADD, 0)
        [written] = (yield Step(write=[Write(put, key, value, cas, KEPT_S)])).written
        if written.status in (WriteStatus.STORED, WriteStatus.FULL):
            return written.status is WriteStatus.STORED
    return False

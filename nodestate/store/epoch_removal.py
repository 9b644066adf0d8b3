"""Removal of an epoch: of the stored state of one partition in a design that is no longer written."""

from __future__ import annotations

from nodestate.errors import FencedError
from nodestate.ports import Put, RowQuery, Write
from nodestate.store import keys
from nodestate.store.head import EPOCH, NEVER_HEARD, find_sound_head
from nodestate.store.liveness import age_ms_of
from nodestate.store.ownership import PartitionTarget
from nodestate.store.round_trips import Step, Steps


def remove_epoch(target: PartitionTarget, *, rows: bool, fresh_s: float | None = None) -> Steps[None]:
    """Delete the epoch key of a design that is no longer written.

    Readers of the design then see a loss, and not an old state that looks fresh. An owner that writes the design again
    begins another epoch.

    Args:
        target: the design and partition.
        rows: True for a database: delete the rows of the epoch, too. In memcached the items stay and are evicted.
        fresh_s: keep the epoch if another owner wrote its head at most this many seconds ago, or if the age of a head
            in memcached is unknown, which expires by itself; None: delete it anyway.

    Raises:
        FencedError: if the epoch was kept.
    """
    prefix, key = target.prefix, keys.epoch(target.prefix)
    if fresh_s is not None:
        found = yield from find_sound_head(prefix)
        if found is not None and found[0].owner != target.owner:
            age_ms = age_ms_of(*found, target.store, target.now())
            if age_ms <= fresh_s * 1000 or (age_ms == NEVER_HEARD and not rows):
                raise FencedError(target.partition, found[0].term, f"{found[0].owner} writes epoch {found[0].epoch:x}")
    pointer = (yield Step(fetch=[key])).items.get(key) if rows else None
    epoch = EPOCH.find(key, pointer)
    writes = [Write(Put.DELETE, key)]
    if epoch is not None:
        writes.append(Write(Put.DELETE_ROWS, query=RowQuery.of_epoch(prefix, epoch)))
    yield Step(write=writes)

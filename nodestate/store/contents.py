"""Contents that an owner adds under new keys: segments, checkpoints and indexes.

Each key contains the epoch, the term and the offset, so all honest writes of one key have the same value.
"""

from __future__ import annotations

from collections.abc import Sequence

from nodestate.errors import FencedError
from nodestate.ports import Put, Write, WriteStatus
from nodestate.store.ownership import MAX_TRIES_COUNT, Ownership, PartitionTarget, require_stored
from nodestate.store.round_trips import Step, Steps


def add_contents(target: PartitionTarget, contents: Sequence[Write], ownership: Ownership | None) -> Steps[None]:
    """Add items that no head names yet, each under a key of its own.

    A key may exist already. If it has the same value, an earlier try stored it, and the reply was lost. If it has
    another value, that value is damaged, or a program that is no owner wrote it: the keys of the next commits can be
    foretold. It is replaced while the stored head is the one of this owner: no other owner names a key of this term
    from this offset on.

    Args:
        target: the design and partition.
        contents: the items, as writes with ``Put.ADD``.
        ownership: the present ownership; None for the contents of a new epoch, whose number no program can foretell.

    Raises:
        FencedError: if another owner has the partition, or if the values do not stay.
    """
    writes = list(contents)
    for _ in range(MAX_TRIES_COUNT):
        reply = yield Step(write=writes)
        require_stored(target, writes, list(reply.written))
        pairs = zip(writes, reply.written, strict=True)
        there = [write for write, done in pairs if done.status is not WriteStatus.STORED]
        if not there:
            return
        items = (yield Step(fetch=[write.key for write in there])).items
        writes = []
        for write in there:
            item = items.get(write.key)
            if item is None:
                writes.append(write._replace(put=Put.ADD, cas=0))
            elif item.value != write.value:
                writes.append(write._replace(put=Put.CAS, cas=item.cas))
        if not writes:
            return
        if ownership is None:
            break
        yield from ownership.require_still_owned()
    term = ownership.head.term if ownership is not None else 1
    raise FencedError(target.partition, term, f"another process wrote {writes[0].key}")

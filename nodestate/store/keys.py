"""Every key in memcached, as a function. The map of the key space::

    ns:{cell}:control                                                          designs written and read; on each server
    ns:{cell}:{partitions}.{partition}:{design}:epoch                          the current epoch of the partition
    ns:{cell}:{partitions}.{partition}:{design}:head:{epoch}                   the head, advanced by CAS, last
    ns:{cell}:{partitions}.{partition}:{design}:life:{epoch}                   signs of life, by slot
    ns:{cell}:{partitions}.{partition}:{design}:repair                         a reader found an item missing
    ns:{cell}:{partitions}.{partition}:j:log:{epoch}:{term}:{offset}           journal: the events of one commit
    ns:{cell}:{partitions}.{partition}:j:ckpt:{epoch}:{term}:{offset}:{part}   journal: all nodes folded up to offset
    ns:{cell}:{partitions}.{partition}:s:node:{name}                           snapshot: full state of one node
    ns:{cell}:{partitions}.{partition}:s:index:{epoch}:{term}:{offset}:{part}  snapshot: which commit wrote each node
    ns:{cell}:claim:{name}                                                     claims on a node
    ns:{cell}:claim-copy:{name}                                                second copy of the claims on a node
    ns:{cell}:anchor:{hash}                                                    first node of an empty affinity group
    ns:{cell}:refused-answers                                                  answers that schedulers refused
    ns:{cell}:probe                                                            a test write of the doctor

``partitions`` is the layout: the number of partitions. Layouts of a cell exist side by side. The only keys they share
are those without a partition. ``design`` is j or s; jr or sr for a replica; jb or sb on the servers of ``store_b``; or
d in the database, whose keys are rows of one table and whose nodes are rows of another (``ports.RowQuery``). Epochs are
written in hexadecimal. All keys of a partition in one design are on one server; the claims on a node are on server
``bucket_of(name) % servers``.

Why the epoch is part of the head's key: memcached's CAS ids start again at 1 after a restart. If the key stayed the
same, an owner from before the restart could meet its old CAS id by chance, and its CAS would succeed. The key of
another epoch does not exist for that owner, so its CAS fails.
"""

from __future__ import annotations

from typing import Final

import xxhash

from nodestate.model import MAX_NODE_NAME_CHARS
from nodestate.model.partitioning import BUCKETS_COUNT

MAX_KEY_BYTES: Final = 250
"""Memcached's own limit."""
MAX_CELL_CHARS: Final = 24
JOURNAL: Final = "j"
SNAPSHOT: Final = "s"
DATABASE: Final = "d"
REPLICA: Final = "r"
"""Follows the letter of a design that is a replica of another one."""
B: Final = "b"
"""Follows the letter of a design that is stored on the servers of ``store_b``, as a server may be in both settings."""
assert (
    len("ns:" + "c" * MAX_CELL_CHARS + f":{BUCKETS_COUNT}.{BUCKETS_COUNT - 1}:sb:node:") + MAX_NODE_NAME_CHARS
    <= MAX_KEY_BYTES
)


def control(cell: str) -> str:
    """The control record: which designs are written, and which one is read."""
    return f"ns:{cell}:control"


def claim(cell: str, name: str) -> str:
    """The claims on a node. They belong to no partition and no design, so a change of these leaves them in place."""
    return f"ns:{cell}:claim:{name}"


def claim_copy(cell: str, name: str) -> str:
    """The second copy of the claims on a node, on the next server.

    It has a key of its own. Otherwise a change of the list of servers could turn an old second copy into a first one.
    """
    return f"ns:{cell}:claim-copy:{name}"


def anchor(cell: str, group: str) -> str:
    """The first node of an affinity group. The name of a group may be any text, so the key has its hash."""
    return f"ns:{cell}:anchor:{xxhash.xxh3_128_hexdigest(group.encode())}"


def refused_answers(cell: str) -> str:
    """The number of answers to orders that schedulers refused. It is on the first server of ``store``."""
    return f"ns:{cell}:refused-answers"


def probe(cell: str) -> str:
    """The item that ``nodestate doctor`` writes and deletes, to see whether a store can be written."""
    return f"ns:{cell}:probe"


def prefix(cell: str, partitions: int, partition: int, design: str) -> str:
    """The first part of all keys of one design of one partition, in a layout of ``partitions`` partitions."""
    return f"ns:{cell}:{partitions}.{partition}:{design}"


def epoch(prefix: str) -> str:
    """The number of the current epoch."""
    return f"{prefix}:epoch"


def head(prefix: str, epoch: int) -> str:
    """The head of an epoch."""
    return f"{prefix}:head:{epoch:x}"


def life(prefix: str, epoch: int) -> str:
    """Signs of life by slot, rewritten at each renewal and at some commits."""
    return f"{prefix}:life:{epoch:x}"


def repair(prefix: str) -> str:
    """A request to the owner, written by a reader that missed an item."""
    return f"{prefix}:repair"


def segment(prefix: str, epoch: int, term: int, offset: int) -> str:
    """The events of one commit."""
    return f"{prefix}:log:{epoch:x}:{term}:{offset}"


def checkpoint(prefix: str, epoch: int, term: int, offset: int, part: int) -> str:
    """A part of a checkpoint: all nodes as of ``offset``."""
    return f"{prefix}:ckpt:{epoch:x}:{term}:{offset}:{part}"


def node(prefix: str, name: str) -> str:
    """One node's state."""
    return f"{prefix}:node:{name}"


def index(prefix: str, epoch: int, term: int, offset: int, part: int) -> str:
    """A part of an index: name and last commit of every node, by slot, as of ``offset``."""
    return f"{prefix}:index:{epoch:x}:{term}:{offset}:{part}"

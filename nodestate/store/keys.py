"""Every key in memcached, as a function. The map of the key space::

    ns:{cell}:control                                                            which designs are written and read, on every server
    ns:{cell}:{partitions}.{partition}:{design}:epoch                            which life of the partition counts
    ns:{cell}:{partitions}.{partition}:{design}:head:{epoch}                     the head, advanced by CAS, last
    ns:{cell}:{partitions}.{partition}:{design}:life:{epoch}                     signs of life, by slot
    ns:{cell}:{partitions}.{partition}:{design}:repair                           a reader found something missing
    ns:{cell}:{partitions}.{partition}:j:log:{epoch}:{term}:{offset}             journal: the events of one commit
    ns:{cell}:{partitions}.{partition}:j:ckpt:{epoch}:{term}:{offset}:{part}     journal: all nodes folded up to offset
    ns:{cell}:{partitions}.{partition}:s:node:{name}                             snapshot: full state of one node
    ns:{cell}:{partitions}.{partition}:s:index:{epoch}:{term}:{offset}:{part}    snapshot: which commit wrote each node
    ns:{cell}:claim:{name}                                                       who claims what of a node, on server bucket_of(name) % servers
    ns:{cell}:anchor:{hash}                                                      where an affinity group without members begins

``partitions`` is the layout: how many partitions there are of this kind. Layouts of a cell live side by side, and share no key
but the control record and what is of no partition. ``design`` is j, s, or jb and sb on the servers of ``store_b``, or d, whose keys are rows of a table; the nodes of d are rows of another table, which ``ports.RowQuery`` asks for. Epochs are in hexadecimal. All keys of a partition live on one server. Why the epoch is
part of the head's key: memcached's CAS ids start again at 1 after a restart, so an owner from before it
could hit the right id by accident; it can't hit a key of another epoch.
"""

from __future__ import annotations

from typing import Final

import xxhash

from nodestate.model import MAX_NODE_NAME_CHARS
from nodestate.model.partitioning import BUCKETS_COUNT

MAX_KEY_BYTES: Final = 250  # memcached's own
MAX_CELL_CHARS: Final = 24
JOURNAL: Final = "j"
SNAPSHOT: Final = "s"
DATABASE: Final = "d"
B: Final = "b"
"""Behind the letter of a design that lives on the servers of ``store_b``: a server may be of both."""
assert (
    len("ns:" + "c" * MAX_CELL_CHARS + f":{BUCKETS_COUNT}.{BUCKETS_COUNT - 1}:sb:node:") + MAX_NODE_NAME_CHARS
    <= MAX_KEY_BYTES
)


def control(cell: str) -> str:
    """The control record: which designs are written, and which is read."""
    return f"ns:{cell}:control"


def claim(cell: str, name: str) -> str:
    """The claims on a node: of no partition and no design, as they outlive any change of these."""
    return f"ns:{cell}:claim:{name}"


def anchor(cell: str, group: str) -> str:
    """Where an affinity group begins; a group's name may be any text, so its hash stands for it."""
    return f"ns:{cell}:anchor:{xxhash.xxh3_128_hexdigest(group.encode())}"


def prefix(cell: str, partitions: int, partition: int, design: str) -> str:
    """What all keys of one design of one partition begin with, in a layout of so many ``partitions``."""
    return f"ns:{cell}:{partitions}.{partition}:{design}"


def epoch(prefix: str) -> str:
    """Names the epoch that counts."""
    return f"{prefix}:epoch"


def head(prefix: str, epoch: int) -> str:
    """The head of an epoch."""
    return f"{prefix}:head:{epoch:x}"


def life(prefix: str, epoch: int) -> str:
    """Signs of life by slot, rewritten at each renewal."""
    return f"{prefix}:life:{epoch:x}"


def repair(prefix: str) -> str:
    """Left by a reader that missed something, for the owner to look after."""
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

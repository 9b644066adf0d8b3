"""The designs by name. No other module knows all designs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from nodestate.journal.reader import JournalReader
from nodestate.journal.writer import JournalWriter
from nodestate.ports import StoreRole
from nodestate.snapshot.reader import SnapshotReader
from nodestate.snapshot.writer import SnapshotWriter
from nodestate.sql.reader import SqlReader
from nodestate.sql.writer import SqlWriter
from nodestate.store import keys
from nodestate.store.ownership import PartitionTarget
from nodestate.store.partition_writer import PartitionWriter
from nodestate.view.follower import DesignReader


class Design(NamedTuple):
    """A way to store node state."""

    letter: str
    """The part of a key that stands for the design."""
    writer: Callable[[PartitionTarget], PartitionWriter]
    """Makes the writer of one partition."""
    reader: Callable[[str], DesignReader]
    """Makes the reader of one partition from the first part of the partition's keys."""
    store_role: StoreRole = StoreRole.STORE
    """The servers on which the design is stored."""
    partner: str = ""
    """The design that has the same content on other servers of ``store``; empty if there is none.

    If both are written, a reader of either one continues with the other one while a server does not answer.
    """


DESIGNS: Final[dict[str, Design]] = {
    "journal": Design(keys.JOURNAL, JournalWriter, JournalReader, partner="journal_replica"),
    "snapshot": Design(keys.SNAPSHOT, SnapshotWriter, SnapshotReader, partner="snapshot_replica"),
    "sql": Design(keys.DATABASE, SqlWriter, SqlReader, StoreRole.SQL),
    "journal_replica": Design(
        keys.JOURNAL + keys.REPLICA, JournalWriter, JournalReader, StoreRole.REPLICA, partner="journal"
    ),
    "snapshot_replica": Design(
        keys.SNAPSHOT + keys.REPLICA, SnapshotWriter, SnapshotReader, StoreRole.REPLICA, partner="snapshot"
    ),
    "journal_b": Design(keys.JOURNAL + keys.B, JournalWriter, JournalReader, StoreRole.STORE_B),
    "snapshot_b": Design(keys.SNAPSHOT + keys.B, SnapshotWriter, SnapshotReader, StoreRole.STORE_B),
}

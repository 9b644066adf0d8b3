"""The tables, and the revision of them that this version reads and writes.

A database may hold several cells: ``place`` and ``key`` begin with what keys of memcached begin with (``nodestate.store.keys``).
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from nodestate.model import MAX_NODE_NAME_CHARS
from nodestate.store.keys import MAX_KEY_BYTES

REVISION: Final = "0001"
"""The newest one in ``migrations/versions``."""
REVISION_TABLE: Final = "nodestate_revision"
MAX_VALUE_BYTES: Final = 4 * 1024 * 1024
"""Of one head or record. What MariaDB takes in one packet by default is four times as much."""
MAX_PLACE_CHARS: Final = 64


def _name(chars: int) -> sa.types.TypeEngine[str]:
    """Text that is compared byte for byte: MariaDB's default would find ``Node-A`` where ``node-a`` is asked for."""
    exact = mysql.VARCHAR(chars, charset="ascii", collation="ascii_bin")
    return sa.String(chars).with_variant(exact, "mysql", "mariadb")


_seconds: sa.Double[float] = sa.Double()
_bytes = sa.LargeBinary(MAX_VALUE_BYTES).with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")  # up to 16 MiB
TABLES: Final = sa.MetaData()

HEADS: Final = sa.Table(
    "nodestate_heads",
    TABLES,
    sa.Column("key", _name(MAX_KEY_BYTES), primary_key=True),
    sa.Column("value", _bytes, nullable=False),
    sa.Column("cas", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, index=True),  # the database's clock, whole seconds
)
"""What one partition's owner and readers agree on, by key: the same records as in memcached, moved by compare-and-swap."""

NODES: Final = sa.Table(
    "nodestate_nodes",
    TABLES,
    sa.Column("place", _name(MAX_PLACE_CHARS), primary_key=True),
    sa.Column("epoch", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("slot", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", _name(MAX_NODE_NAME_CHARS), nullable=False, index=True),
    sa.Column("incarnation", sa.BigInteger, nullable=False),
    sa.Column("generation", sa.BigInteger, nullable=False),
    sa.Column("reported_at", _seconds, nullable=False),
    sa.Column("status", sa.String(16), nullable=False, index=True),
    sa.Column("gone", sa.Boolean, nullable=False),
    sa.Column("commit_offset", sa.BigInteger, nullable=False),
    sa.Column("record", _bytes, nullable=False),
    sa.Index("nodestate_nodes_commit", "place", "epoch", "commit_offset"),
)
"""A row for each node. ``commit_offset``: the commit that wrote it, by which a reader finds what changed. ``record``: all
of it, as an element of a checkpoint is encoded; the columns before are for the database's own users.
"""

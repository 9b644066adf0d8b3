"""The tables of the database design, in the revision that this version reads and writes.

A database may hold several cells: the columns ``place`` and ``key`` begin with the same prefix as memcached's keys
(``nodestate.store.keys``).
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from nodestate.model import MAX_NODE_NAME_CHARS
from nodestate.store.keys import MAX_KEY_BYTES

REVISION: Final = "0001"
"""The newest revision in ``migrations/versions``."""
REVISION_TABLE: Final = "nodestate_revision"
MAX_VALUE_BYTES: Final = 4 * 1024 * 1024
"""Largest head or record. MariaDB accepts four times as much in one packet by default."""
MAX_PLACE_CHARS: Final = 64


def _name(chars: int) -> sa.types.TypeEngine[str]:
    """Text that is compared byte by byte. MariaDB's default would also find ``Node-A`` for ``node-a``."""
    exact = mysql.VARCHAR(chars, charset="ascii", collation="ascii_bin")
    return sa.String(chars).with_variant(exact, "mysql", "mariadb")


_seconds: sa.Double[float] = sa.Double()
_bytes = sa.LargeBinary(MAX_VALUE_BYTES).with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")  # up to 16 MiB
MYSQL_DIALECTS: Final = frozenset({"mysql", "mariadb"})
TABLES: Final = sa.MetaData()

HEADS: Final = sa.Table(
    "nodestate_heads",
    TABLES,
    sa.Column("key", _name(MAX_KEY_BYTES), primary_key=True),
    sa.Column("value", _bytes, nullable=False),
    sa.Column("cas", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, index=True),  # the database's clock, whole seconds
)
"""The heads and other shared items by key: the same values as in memcached, also changed by compare-and-swap."""

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
"""One row per node.

``place`` is the prefix of the partition and design. ``commit_offset`` is the commit that wrote the row, by which
readers find changed rows. ``record`` is the whole node record, encoded like an element of a checkpoint. The columns
between the two are for people and programs that query the database.
"""


def tables_without_transactions(connection: sa.Connection) -> list[str]:
    """The tables that MariaDB or MySQL keeps in another engine than InnoDB, because that was the default.

    With MyISAM a commit that is fenced half-way would leave its rows.
    """
    if connection.dialect.name not in MYSQL_DIALECTS:
        return []
    found = connection.execute(
        sa.text(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE() "
            "AND table_name LIKE 'nodestate\\_%' AND engine <> 'InnoDB' ORDER BY table_name"
        )
    )
    return [str(name) for (name,) in found]

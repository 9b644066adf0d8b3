"""A SQL database, with a row for each node that has the number of the commit that wrote it, with an index.

Rows are read by a plain SELECT through SQLAlchemy Core. The connection of the reader is in autocommit mode, so that a
read is one round trip.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import sqlalchemy as sa

from bench.peers.interfaces import Row

__all__ = ["OTHERS", "TABLE", "SqlReader", "SqlWriter"]

BODY_BYTES: Final = 16_000_000
"""Length from which MariaDB chooses the column's type; PostgreSQL has one type."""
TABLE: Final = sa.Table(
    "nodes",
    sa.MetaData(),
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("incarnation", sa.BigInteger, nullable=False),
    sa.Column("generation", sa.BigInteger, nullable=False),
    sa.Column("body", sa.LargeBinary(BODY_BYTES), nullable=False),
    sa.Column("commit_number", sa.BigInteger, nullable=False, index=True),
)
OTHERS: Final = tuple(column.name for column in TABLE.c if not column.primary_key)


class SqlReader:
    """A reader that holds all rows and the highest commit number among them."""

    def __init__(self, url: str) -> None:
        self._engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
        self._connection = self._engine.connect()
        self._rows: dict[str, Row] = {}
        self._seen = 0

    def cold(self) -> None:
        """Read all rows."""
        self._take(sa.select(TABLE))

    def refresh(self) -> None:
        """Read the rows of later commits."""
        self._take(sa.select(TABLE).where(TABLE.c.commit_number > self._seen))

    def _take(self, select: sa.Select[Any]) -> None:
        rows, seen = self._rows, self._seen
        for name, incarnation, generation, body, number in self._connection.execute(select):
            rows[name] = Row(name, incarnation, generation, body)
            seen = max(seen, number)
        self._seen = seen

    def names(self) -> Iterable[str]:
        """Return the names of all nodes read."""
        return self._rows

    def node(self, name: str) -> Row:
        """Return a node as it was read last. Raises KeyError if there is no such node."""
        return self._rows[name]

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
        self._engine.dispose()


class SqlWriter:
    """The only writer of the table, so that commits become visible in the order of their numbers."""

    def __init__(self, url: str, upsert: sa.Insert) -> None:
        self._engine = sa.create_engine(url)
        self._upsert = upsert
        self._number = 0
        TABLE.metadata.create_all(self._engine)

    def write(self, rows: Sequence[Row]) -> None:
        """Write the nodes in one transaction with one commit number."""
        self._number += 1
        with self._engine.begin() as connection:
            connection.execute(self._upsert, [row._asdict() | {"commit_number": self._number} for row in rows])

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

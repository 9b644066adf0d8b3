"""Baseline for readers: the least that reading the same rows through the driver of a database can cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import sqlalchemy as sa

from bench.baseline import Question
from nodestate.sql.schema import HEADS

__all__ = ["BaselineDatabase"]

BODY_BYTES: Final = 16_000_000
"""Length from which MariaDB chooses the column's type; PostgreSQL has one type."""
COPIES: Final = sa.Table(
    "bench_copies",
    sa.MetaData(),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("body", sa.LargeBinary(BODY_BYTES), nullable=False),
)
"""A table with the bodies of all states, in rows that are narrower than nodestate's."""
ROWS_COUNT: Final = 10_000
"""Largest number of rows that one statement reads or writes."""


class BaselineDatabase:
    """A connection in autocommit mode, so that a read is one round trip.

    SQLAlchemy only composes the statements, before the clock starts; the driver executes them.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
        self._connection = self._engine.connect()
        driver: Any = self._connection.connection.driver_connection
        self._cursor = driver.cursor()

    def copy(self, bodies: Iterable[bytes]) -> None:
        """See ``BaselineClient``."""
        rows = [{"number": number, "body": body} for number, body in enumerate(bodies)]
        with sa.create_engine(self._url, poolclass=sa.NullPool).begin() as connection:  # one commit for all rows
            COPIES.metadata.create_all(connection)
            connection.execute(sa.delete(COPIES))
            for at in range(0, len(rows), ROWS_COUNT):
                connection.execute(sa.insert(COPIES), rows[at : at + ROWS_COUNT])

    def copy_pieces(self, bodies: Iterable[bytes]) -> int:  # noqa: ARG002 - the rows are stored already
        """See ``BaselineClient``. The table is one piece."""
        return 1

    def states(self, numbers: Sequence[int]) -> Question:
        """Return statements that read rows by their primary key."""
        return tuple(
            f"SELECT body FROM {COPIES.name} WHERE number IN ({','.join(map(str, numbers[at : at + ROWS_COUNT]))}) "  # noqa: S608 - numbers
            "ORDER BY number".encode()
            for at in range(0, len(numbers), ROWS_COUNT)
        )

    def pieces(self, count: int) -> Question:  # noqa: ARG002 - the table is the only piece
        """Return the statement that reads all rows."""
        return (f"SELECT body FROM {COPIES.name} ORDER BY number".encode(),)  # noqa: S608 - our own name

    def heads(self, keys: Sequence[str]) -> Question:
        """Return the statement that reads heads by their primary key."""
        select = sa.select(HEADS.c.value).where(HEADS.c.key.in_(keys))
        return (str(select.compile(self._engine, compile_kwargs={"literal_binds": True})).encode(),)

    def read(self, question: Question) -> list[bytes]:
        """See ``BaselineClient``."""
        values: list[bytes] = []
        for statement in question:
            self._cursor.execute(statement.decode())
            values += [value for (value,) in self._cursor.fetchall()]
        return values

    def close(self) -> None:
        """Close the connection."""
        self._cursor.close()
        self._connection.close()
        self._engine.dispose()

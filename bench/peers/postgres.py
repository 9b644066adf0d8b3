"""PostgreSQL through psycopg."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib.metadata import version

import psycopg  # noqa: F401 - SQLAlchemy imports it while it connects, which is timed
from sqlalchemy.dialects.postgresql import insert

from bench.peers.interfaces import Opener, Server
from bench.peers.sql import OTHERS, TABLE, SqlReader, SqlWriter

__all__ = ["Postgres"]


class Postgres(SqlWriter):
    """The PostgreSQL peer: a table with a row for each node."""

    def __init__(self, server: Server) -> None:
        into = insert(TABLE)
        replaced = {name: into.excluded[name] for name in OTHERS}
        super().__init__(server.url, into.on_conflict_do_update(index_elements=["name"], set_=replaced))
        self.clients: Mapping[str, str] = {name: version(name) for name in ("sqlalchemy", "psycopg")}
        self.openers: Mapping[str, Opener] = {"postgres select": partial(SqlReader, server.url)}

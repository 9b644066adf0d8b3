"""MariaDB through PyMySQL."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib.metadata import version

import pymysql  # noqa: F401 - SQLAlchemy imports it while it connects, which is timed
from sqlalchemy.dialects.mysql import insert

from bench.peers.interfaces import Opener, Server
from bench.peers.sql import OTHERS, TABLE, SqlReader, SqlWriter

__all__ = ["Mariadb"]


class Mariadb(SqlWriter):
    """The MariaDB peer: a table with a row for each node."""

    def __init__(self, server: Server) -> None:
        into = insert(TABLE)
        super().__init__(server.url, into.on_duplicate_key_update({name: into.inserted[name] for name in OTHERS}))
        self.clients: Mapping[str, str] = {name: version(name) for name in ("sqlalchemy", "pymysql")}
        self.openers: Mapping[str, Opener] = {"mariadb select": partial(SqlReader, server.url)}

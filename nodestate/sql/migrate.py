"""Creation and migration of the tables, by Alembic without a settings file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import exc

from nodestate.errors import ConfigError, SchemaError
from nodestate.sql.dialects import dialect_of, engine_of, meaning_of, shown_url
from nodestate.sql.schema import MYSQL_DIALECTS, REVISION, REVISION_TABLE, TABLES, tables_without_transactions

__all__ = ["REVISION", "downgrade", "is_known", "revision_of", "safe", "upgrade"]

T = TypeVar("T")
MIGRATIONS: Final = Path(__file__).with_name("migrations")


def upgrade(url: str, timeout_s: float = 30.0) -> None:
    """Create the tables, or migrate them to this version's revision. Rows are kept. Raises ``StoreError``."""

    def act(connection: sa.Connection) -> None:
        found = _revision(connection)
        if found is not None and not is_known(found):
            raise SchemaError(
                safe(url),
                f"its tables have revision {found}, which is newer than this version",
                "use the version of nodestate that created them",
            )
        if found is None and (left := [name for name in TABLES.tables if sa.inspect(connection).has_table(name)]):
            raise SchemaError(
                safe(url),
                f"it has {' and '.join(left)} and no revision, as after an upgrade that was interrupted",
                "remove these tables by 'nodestate sql downgrade base --yes', then upgrade again",
            )
        if connection.dialect.name in MYSQL_DIALECTS:
            _require_row_log(connection, safe(url))
            connection.execute(sa.text("SET SESSION default_storage_engine = InnoDB"))  # for the table of revisions
        command.upgrade(_settings(connection), "head")
        for table in tables_without_transactions(connection):
            connection.execute(sa.text(f"ALTER TABLE {table} ENGINE = InnoDB"))

    _within(url, timeout_s, act)


def downgrade(url: str, revision: str, timeout_s: float = 30.0) -> None:
    """Migrate the tables back to an older revision; ``base`` removes them, also after an interrupted migration.

    Raises ``StoreError``, and ``ConfigError`` if there is no such revision.
    """

    def act(connection: sa.Connection) -> None:
        try:
            command.downgrade(_settings(connection), revision)
        except CommandError as error:
            raise ConfigError(f"cannot downgrade to revision {revision}: {error}") from None
        if revision == "base":
            TABLES.drop_all(connection)
            connection.execute(sa.text(f"DROP TABLE IF EXISTS {REVISION_TABLE}"))

    _within(url, timeout_s, act)


def revision_of(url: str, timeout_s: float = 30.0) -> str | None:
    """The revision of the database's tables; None if it has no tables. Raises ``StoreError``."""
    return _within(url, timeout_s, _revision)


def is_known(revision: str) -> bool:
    """True if this version knows the revision."""
    return revision in {script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions()}


def safe(url: str) -> str:
    """The URL without its password, for messages."""
    return shown_url(dialect_of(url)[0])


def _revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table(REVISION_TABLE):
        return None
    found = connection.execute(sa.select(sa.column("version_num")).select_from(sa.table(REVISION_TABLE))).scalar()
    return str(found) if found is not None else None


def _require_row_log(connection: sa.Connection, server: str) -> None:
    """Raise ``SchemaError`` if the binary log has the format with which InnoDB refuses nodestate's transactions."""
    found = connection.execute(sa.text("SHOW GLOBAL VARIABLES WHERE Variable_name IN ('log_bin', 'binlog_format')"))
    if {str(name): str(value) for name, value in found} == {"log_bin": "ON", "binlog_format": "STATEMENT"}:
        raise SchemaError(
            server,
            "its binary log has binlog_format STATEMENT, with which InnoDB refuses every write at READ COMMITTED",
            "set binlog_format = ROW (or MIXED) in its configuration and restart it, then upgrade again",
        )


def _settings(connection: sa.Connection) -> AlembicConfig:
    settings = AlembicConfig()
    settings.set_main_option("script_location", str(MIGRATIONS))
    settings.attributes["connection"] = connection
    settings.attributes["version_table"] = REVISION_TABLE
    return settings


def _within(url: str, timeout_s: float, act: Callable[[sa.Connection], T]) -> T:
    """Run ``act`` in one transaction. In MariaDB, changes of tables are not part of a transaction."""
    parsed, dialect = dialect_of(url)
    engine = engine_of(url, timeout_s)
    try:
        with engine.begin() as connection:
            return act(connection)
    except exc.SQLAlchemyError as error:
        raise meaning_of(error, dialect, parsed) from error
    finally:
        engine.dispose()

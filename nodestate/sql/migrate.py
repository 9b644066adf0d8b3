"""Making the tables, and bringing those of an older version up to date: Alembic, without a file of settings."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config as AlembicConfig
from sqlalchemy import exc

from nodestate.sql.dialects import dialect_of, meaning_of
from nodestate.sql.schema import REVISION_TABLE

MIGRATIONS: Final = Path(__file__).with_name("migrations")


def upgrade(url: str, timeout_s: float = 30.0) -> None:
    """Bring the database's tables to this version's revision. What is there is kept. Raises ``StoreError``."""
    _run(url, timeout_s, lambda settings: command.upgrade(settings, "head"))


def downgrade(url: str, revision: str, timeout_s: float = 30.0) -> None:
    """Back to an older revision; ``base`` removes the tables. Raises ``StoreError``."""
    _run(url, timeout_s, lambda settings: command.downgrade(settings, revision))


def _run(url: str, timeout_s: float, act: object) -> None:
    parsed, dialect = dialect_of(url)
    engine = sa.create_engine(parsed, connect_args=dialect.connect_args(timeout_s))
    settings = AlembicConfig()
    settings.set_main_option("script_location", str(MIGRATIONS))
    try:
        with engine.begin() as connection:
            settings.attributes["connection"] = connection
            settings.attributes["version_table"] = REVISION_TABLE
            assert callable(act)
            act(settings)
    except exc.SQLAlchemyError as error:
        raise meaning_of(error, dialect, parsed.render_as_string(hide_password=True)) from error
    finally:
        engine.dispose()

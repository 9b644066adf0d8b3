"""The database's migrations, run by Alembic (``nodestate.sql.migrate``)."""

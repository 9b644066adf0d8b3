"""Run by Alembic, on the connection that ``nodestate.sql.migrate`` opened."""

from alembic import context

from nodestate.sql.schema import TABLES

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=TABLES,
    version_table=context.config.attributes["version_table"],
)
with context.begin_transaction():
    context.run_migrations()

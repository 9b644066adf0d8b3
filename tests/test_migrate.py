"""The database's tables: created as ``schema`` says, kept when a command is repeated, and removed without a trace."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from click.testing import CliRunner, Result

from harness.databases import connected, create_database, run_sql
from nodestate.cli import main
from nodestate.errors import ConfigError, SchemaError, StoreUnavailableError
from nodestate.ports import Put, Write
from nodestate.sql.migrate import MIGRATIONS, downgrade, revision_of, upgrade
from nodestate.sql.schema import REVISION, REVISION_TABLE, TABLES
from nodestate.sql.store import SqlStore
from tests.contract.store import ALL, asked, node_row, records, with_rows

SERVERS = ["sqlite", *(pytest.param(name, marks=pytest.mark.service) for name in ("mariadb", "postgres"))]


@pytest.fixture(params=SERVERS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/state.db"
    else:
        yield create_database(request.getfixturevalue(request.param))


def tables_in(url: str) -> set[str]:
    with connected(url) as connection:
        return set(sa.inspect(connection).get_table_names())


def set_revision(url: str, revision: str) -> None:
    run_sql(url, f"UPDATE {REVISION_TABLE} SET version_num = '{revision}'")  # noqa: S608  our own words


# -- migrations -----------------------------------------------------------------------------------


def test_revision_of_the_schema_is_the_newest_migration() -> None:
    """The store refuses every other revision, so a migration that was added without it would make the store refuse its
    own tables.
    """
    assert ScriptDirectory(str(MIGRATIONS)).get_current_head() == REVISION


def test_migrations_create_exactly_the_tables_of_the_schema(url: str) -> None:
    """Columns, types, keys and indexes are written twice, because a migration must not change with the schema."""
    upgrade(url)
    with connected(url) as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": REVISION_TABLE, "compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, TABLES) == []
    assert tables_in(url) == {*TABLES.tables, REVISION_TABLE}
    assert revision_of(url) == REVISION


def test_repeated_upgrade_keeps_everything(url: str) -> None:
    """An operator who is not sure runs it again, also while the cell runs."""
    upgrade(url)
    store = SqlStore(url, timeout_s=5.0)
    rows = (node_row(0, zone="kept"), node_row(1))
    [written] = store.write([with_rows(*rows)])
    upgrade(url)
    upgrade(url)
    assert asked(store, ALL) == (0, records(*rows))
    [again] = store.write([Write(Put.CAS, "head", b"2", written.cas)])
    assert again.cas != written.cas
    store.close()


def test_downgrade_to_base_removes_all_tables(url: str) -> None:
    """An upgrade afterwards works."""
    upgrade(url)
    run_sql(url, "CREATE TABLE somebody_else (id INTEGER)")
    downgrade(url, "base")
    assert tables_in(url) == {"somebody_else"}
    assert revision_of(url) is None
    downgrade(url, "base")
    upgrade(url)
    assert revision_of(url) == REVISION


def test_store_continues_after_its_tables_were_created_again(url: str) -> None:
    """Its connections are from before."""
    upgrade(url)
    store = SqlStore(url, timeout_s=5.0)
    store.write([Write(Put.ADD, "a", b"1")])
    downgrade(url, "base")
    for _ in range(2):
        with pytest.raises((SchemaError, StoreUnavailableError)):
            store.fetch(["a"])
    with pytest.raises(SchemaError, match="nodestate sql upgrade"):
        store.write([Write(Put.ADD, "a", b"1")])
    upgrade(url)
    assert store.fetch(["a"]) == {}
    store.close()


def test_interrupted_upgrade_says_how_to_continue(url: str) -> None:
    """MariaDB has no transactions for tables: a killed upgrade leaves some of them, and no revision."""
    upgrade(url)
    run_sql(url, f"DROP TABLE {REVISION_TABLE}", "DROP TABLE nodestate_nodes")
    with pytest.raises(SchemaError, match=r"nodestate_heads and no revision.*downgrade base"):
        upgrade(url)
    downgrade(url, "base")
    upgrade(url)
    assert tables_in(url) == {*TABLES.tables, REVISION_TABLE}


def test_tables_of_a_newer_version_are_not_touched(url: str) -> None:
    """Neither by the store nor by an older version's upgrade."""
    upgrade(url)
    set_revision(url, "9999")
    with pytest.raises(SchemaError, match="9999, which is newer"):
        upgrade(url)
    store = SqlStore(url, timeout_s=5.0)
    for _ in range(2):  # regression: the second call did not check the revision
        with pytest.raises(SchemaError, match="revision 9999"):
            store.fetch(["a"])
    with pytest.raises(SchemaError, match="revision 9999"):
        store.write([Write(Put.ADD, "a", b"1")])
    set_revision(url, REVISION)
    assert store.fetch(["a"]) == {}
    store.close()


def test_error_for_a_database_without_tables_names_the_command(url: str) -> None:
    store = SqlStore(url, timeout_s=5.0)
    for _ in range(2):
        with pytest.raises(SchemaError, match="no tables of nodestate; run 'nodestate sql upgrade'"):
            store.fetch(["a"])
    with pytest.raises(ConfigError, match="cannot downgrade to revision 0815"):
        downgrade(url, "0815")


def test_in_memory_sqlite_is_refused() -> None:
    """SQLite's ``:memory:`` is a different database in each connection, and ends with it."""
    for url in ("sqlite://", "sqlite:///:memory:"):
        with pytest.raises(ConfigError, match=r"sqlite:////path/to/file\.db"):
            upgrade(url)
        with pytest.raises(ConfigError, match=r"sqlite:////path/to/file\.db"):
            SqlStore(url, timeout_s=1.0).fetch(["a"])


# -- commands -------------------------------------------------------------------------------------


def run(*words: str, sql: str = "") -> Result:
    return CliRunner().invoke(main, ["sql", *words], env={"NODESTATE_SQL": sql})


def said(result: Result) -> Any:
    return json.loads(result.stdout)


def test_sql_commands_upgrade_and_downgrade(url: str) -> None:
    """With exit codes for scripts: 0 only if the tables have this version's revision."""
    status = run("status", "--json", sql=url)
    assert (status.exit_code, said(status)["revision"], said(status)["wanted"]) == (1, None, REVISION)
    done = run("upgrade", "--json", sql=url)
    assert (done.exit_code, said(done)["before"], said(done)["revision"]) == (0, None, REVISION)
    again = run("upgrade", sql=url)
    assert (again.exit_code, "nothing was changed" in again.stdout) == (0, True)
    assert run("status", "--sql", url).exit_code == 0
    refused = run("downgrade", "base", sql=url)
    assert (refused.exit_code, "give --yes" in refused.stderr) == (2, True)
    assert run("status", sql=url).exit_code == 0
    assert run("downgrade", "base", "--yes", sql=url).exit_code == 0
    assert tables_in(url) == set()
    left = run("status", sql=url)
    assert (left.exit_code, "nodestate sql upgrade" in left.stdout) == (1, True)


def test_sql_command_without_a_database_is_bad_usage(tmp_path: Path) -> None:
    for words in (["upgrade"], ["downgrade", "base", "--yes"], ["status"]):
        result = run(*words)
        assert (result.exit_code, "NODESTATE_SQL" in result.stderr) == (2, True)
    for wrong in ("nonsense", "oracle://host/db", "sqlite://"):
        result = run("status", sql=wrong)
        assert (result.exit_code, "nodestate: sql" in result.stderr) == (2, True), wrong
    unknown = run("downgrade", "0815", "--yes", sql=f"sqlite:///{tmp_path}/state.db")
    assert (unknown.exit_code, "0815" in unknown.stderr) == (2, True)


def test_database_that_does_not_answer_is_a_failure_without_its_password() -> None:
    for url in ("mariadb://me:secret@127.0.0.1:1/db", "postgresql://me:secret@127.0.0.1:1/db"):
        for result in (run("status", "--json", sql=url), run("upgrade", sql=url)):
            assert result.exit_code == 1
            assert "does not answer" in result.stderr
            assert "secret" not in result.output

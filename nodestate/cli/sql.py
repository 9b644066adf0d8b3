"""``nodestate sql``: make the database's tables, bring them up to date, remove them, and say what they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from nodestate.cli.command import Run, cell_command
from nodestate.errors import ConfigError


@click.group("sql", short_help="Make the database's tables, and bring them up to date.")
def command() -> None:
    """Make the tables of the database design, and bring those of an older version up to date.

    The database is the one that NODESTATE_SQL names, or --sql. Give its user the right to CREATE, ALTER, DROP and INDEX
    for this; all other commands need SELECT, INSERT, UPDATE and DELETE.
    """


def _url(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--sql", metavar="URL", help="Database: mariadb://…, postgresql://…, sqlite:////path.")(
        function
    )


def _database(run: Run, sql: str | None) -> str:
    """The database's URL. Raises ``ConfigError`` where there is none, or nothing that could speak to it."""
    url = run.settings(sql=sql).sql
    if not url:
        raise ConfigError(
            "the settings name no database: give --sql (or NODESTATE_SQL) mariadb://user:password@host/nodestate, "
            "postgresql://user:password@host/nodestate or sqlite:////path/to/file.db"
        )
    try:
        import nodestate.sql.migrate  # noqa: F401, PLC0415  SQLAlchemy and Alembic: an extra, and half a second
    except ModuleNotFoundError as error:
        raise ConfigError(f"databases need SQLAlchemy and Alembic ({error}): pip install 'nodestate[sql]'") from None
    return url


@cell_command("upgrade", summary="Make the tables, or bring them up to date.", example="nodestate sql upgrade")
@_url
def upgrade(run: Run, sql: str | None) -> None:
    """Make the tables, or bring those of an older version up to date. What they hold is kept; a second time does
    nothing.
    """
    url = _database(run, sql)
    from nodestate.sql import migrate  # noqa: PLC0415  see above

    before = migrate.revision_of(url)
    migrate.upgrade(url)
    _print_result(run, url, before)


@cell_command(
    "downgrade", summary="Bring the tables back to an older revision.", example="nodestate sql downgrade base --yes"
)
@click.argument("revision")
@click.option("--yes", is_flag=True, help="Also where rows are lost.")
@_url
def downgrade(run: Run, revision: str, yes: bool, sql: str | None) -> None:
    """Bring the tables back to an older REVISION, for the version that wants it; 'base' removes them with all they
    hold.
    """
    url = _database(run, sql)
    if not yes:
        raise click.UsageError(f"a downgrade to {revision} may lose rows, which agents report again: give --yes")
    from nodestate.sql import migrate  # noqa: PLC0415  see above

    before = migrate.revision_of(url)
    migrate.downgrade(url, revision)
    _print_result(run, url, before)


@cell_command("status", summary="Say which revision the tables are of.", example="nodestate sql status --json")
@_url
def status(run: Run, sql: str | None) -> int:
    """Say which revision the tables are of, and which this version wants. Exit code 0: the same."""
    url = _database(run, sql)
    from nodestate.sql import migrate  # noqa: PLC0415  see above

    found = migrate.revision_of(url)
    if run.as_json:
        run.print_json({"database": migrate.safe(url), "revision": found, "wanted": migrate.REVISION})
    elif found == migrate.REVISION:
        run.out.print(f"{migrate.safe(url)}: revision {found}, as this version wants", markup=False, soft_wrap=True)
    else:
        has = f"revision {found}" if found else "no tables of nodestate"
        remedy = (
            "'nodestate sql upgrade'" if found is None or migrate.is_known(found) else "a newer version of nodestate"
        )
        run.out.print(
            f"{migrate.safe(url)}: {has}, and this version wants {migrate.REVISION}: {remedy}",
            markup=False,
            soft_wrap=True,
        )
    return 0 if found == migrate.REVISION else 1


def _print_result(run: Run, url: str, before: str | None) -> None:
    from nodestate.sql import migrate  # noqa: PLC0415  see above

    after = migrate.revision_of(url)
    if run.as_json:
        run.print_json({"database": migrate.safe(url), "before": before, "revision": after})
    elif after == before:
        run.out.print(
            f"{migrate.safe(url)}: revision {after or 'base'} already, nothing was done", markup=False, soft_wrap=True
        )
    else:
        run.out.print(
            f"{migrate.safe(url)}: from revision {before or 'base'} to {after or 'base'}", markup=False, soft_wrap=True
        )


for _step in (upgrade, downgrade, status):
    command.add_command(_step)

"""The commands ``sql …``: create the tables of the database design, bring them up to date, remove them, show them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from nodestate.cli.command import Run, cell_command
from nodestate.errors import ConfigError


@click.group("sql", epilog="\b\nExample:\n  nodestate sql upgrade --sql mariadb://user:password@host/nodestate")
def command() -> None:
    """Create the tables of the database design, or bring the tables of an older version up to date.

    --sql, or else NODESTATE_SQL, names the database. For these commands its user needs the rights CREATE, ALTER, DROP
    and INDEX; all other commands of nodestate need SELECT, INSERT, UPDATE and DELETE.
    """


def _url(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--sql",
        metavar="URL",
        help="URL of the database, as mariadb://user:password@host/nodestate, postgresql://… or sqlite:////path.",
        show_default="NODESTATE_SQL",
    )(function)


def _database(run: Run, sql: str | None) -> str:
    """Return the URL of the database. Raises ``ConfigError`` if none is set, or if SQLAlchemy is not installed."""
    url = run.settings(sql=sql).sql
    if not url:
        raise ConfigError(
            "the settings name no database: give --sql (or NODESTATE_SQL) mariadb://user:password@host/nodestate, "
            "postgresql://user:password@host/nodestate or sqlite:////path/to/file.db"
        )
    try:
        import nodestate.sql.migrate  # noqa: F401, PLC0415  an optional extra, and half a second to import
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the database design needs SQLAlchemy and Alembic ({error}): run pip install 'nodestate[sql]'"
        ) from None
    return url


@cell_command("upgrade", summary="Create the tables, or bring them up to date.", example="nodestate sql upgrade")
@_url
def upgrade(run: Run, sql: str | None) -> None:
    """Create the tables, or bring the tables of an older version up to date. Rows are kept.

    If the tables are up to date, nothing is done.
    """
    url = _database(run, sql)
    from nodestate.sql import migrate  # noqa: PLC0415  see above

    before = migrate.revision_of(url)
    migrate.upgrade(url)
    _print_result(run, url, before)


@cell_command(
    "downgrade", summary="Change the tables back to an older revision.", example="nodestate sql downgrade base --yes"
)
@click.argument("revision")
@click.option("--yes", is_flag=True, help="Confirm that rows may be lost.")
@_url
def downgrade(run: Run, revision: str, yes: bool, sql: str | None) -> None:
    """Change the tables back to REVISION, which an older version of nodestate needs.

    REVISION 'base' removes all tables and rows.
    """
    url = _database(run, sql)
    if not yes:
        raise click.UsageError(
            f"a downgrade to {revision} may lose rows (agents report them again): give --yes to accept that"
        )
    from nodestate.sql import migrate  # noqa: PLC0415  see above

    before = migrate.revision_of(url)
    migrate.downgrade(url, revision)
    _print_result(run, url, before)


@cell_command("status", summary="Show the revision of the tables.", example="nodestate sql status --json")
@_url
def status(run: Run, sql: str | None) -> int:
    """Show the revision of the tables and the one that this version of nodestate needs.

    Exit code 0 if both are the same, else 1.
    """
    url = _database(run, sql)
    from nodestate.sql import migrate  # noqa: PLC0415  see above

    found = migrate.revision_of(url)
    if run.as_json:
        run.print_json({"database": migrate.safe(url), "revision": found, "wanted": migrate.REVISION})
    elif found == migrate.REVISION:
        run.out.print(f"{migrate.safe(url)}: revision {found}, which this version needs", markup=False, soft_wrap=True)
    else:
        has = f"revision {found}" if found else "no tables of nodestate"
        remedy = (
            "run 'nodestate sql upgrade'"
            if found is None or migrate.is_known(found)
            else "install a newer version of nodestate"
        )
        run.out.print(
            f"{migrate.safe(url)}: {has}, but this version needs {migrate.REVISION}: {remedy}",
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
            f"{migrate.safe(url)}: revision {after or 'base'} already; nothing was changed",
            markup=False,
            soft_wrap=True,
        )
    else:
        run.out.print(
            f"{migrate.safe(url)}: from revision {before or 'base'} to {after or 'base'}", markup=False, soft_wrap=True
        )


for _step in (upgrade, downgrade, status):
    command.add_command(_step)

"""A MariaDB for one test run or benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from harness.servers.programs import free_ports, make_folder, prepare, require_program, run_as, version_of
from harness.servers.server import DATABASE, USER, ProbedServer

MARIADB_POOL_MB: Final = 512


class MariadbServer(ProbedServer):
    """A MariaDB with a database, those named in ``others``, and a user without a password who has all rights in them.

    ``extra`` is appended to the command line. Raises ServerMissingError.
    """

    scheme = "mysql+pymysql"

    def __init__(self, others: Sequence[str] = (), *, extra: Sequence[str] = ()) -> None:
        package = "mariadb-server"
        program = require_program("mariadbd", package)
        install = require_program("mariadb-install-db", package)
        [port] = free_ports(1)
        folder = make_folder("mariadb")
        user = run_as("mysql", package, folder)
        first = folder / "first.sql"
        first.write_text(
            f"CREATE USER IF NOT EXISTS '{USER}'@'127.0.0.1';\n"
            + "".join(
                f"CREATE DATABASE IF NOT EXISTS {name};\nGRANT ALL ON {name}.* TO '{USER}'@'127.0.0.1';\n"
                for name in (DATABASE, *others)
            ),
            encoding="utf-8",
        )
        first.chmod(0o644)
        # A MariaDB deletes all temporary tables in its temporary folder when it starts, so it must not share the
        # folder.
        data = ["--no-defaults", f"--datadir={folder / 'data'}", f"--tmpdir={folder}"]
        prepare([*user, install, *data, "--skip-test-db", "--auth-root-authentication-method=normal"], folder)
        command = [
            *[*user, program, *data],
            *[f"--port={port}", "--bind-address=127.0.0.1", "--skip-name-resolve", f"--init-file={first}"],
            *[f"--socket={folder / 'socket'}", f"--pid-file={folder / 'pid'}"],
            *[f"--innodb-buffer-pool-size={MARIADB_POOL_MB}M", *extra],
        ]
        super().__init__(port, command, folder, version_of(program, "--version"))

    @property
    def url(self) -> str:
        """The URL of its database, as SQLAlchemy takes it."""
        return f"{self.scheme}://{USER}@{self.address}/{DATABASE}"

    @property
    def admin_url(self) -> str:
        """The URL for a user with all rights."""
        return f"{self.scheme}://root@localhost/?unix_socket={self.folder / 'socket'}"

    def _answers(self) -> bool:
        return self.probe(b"")[4:5] == b"\x0a"  # the protocol version of its greeting

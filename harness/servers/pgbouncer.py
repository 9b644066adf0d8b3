"""A PgBouncer before a PostgreSQL, for one test run."""

from __future__ import annotations

from harness.servers.postgres import PostgresServer
from harness.servers.programs import free_ports, make_folder, require_program, run_as, version_of
from harness.servers.server import USER, ProbedServer


class PgbouncerServer(ProbedServer):
    """A PgBouncer that gives each transaction another session of the server. Raises ServerMissingError."""

    scheme = "postgresql+psycopg"

    def __init__(self, server: PostgresServer, *, pool_mode: str = "transaction") -> None:
        program = require_program("pgbouncer", "pgbouncer", "/usr/sbin/pgbouncer")
        [port] = free_ports(1)
        folder = make_folder("pgbouncer")
        user = run_as("postgres", "postgresql", folder)
        settings = folder / "pgbouncer.ini"
        settings.write_text(
            f"[databases]\n* = host=127.0.0.1 port={server.port} user={USER}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
            f"pool_mode = {pool_mode}\n",
            encoding="utf-8",
        )
        settings.chmod(0o644)
        super().__init__(port, [*user, program, str(settings)], folder, version_of(program, "--version"))

    @property
    def url(self) -> str:
        """The URL of the server's database by way of this pooler, as SQLAlchemy takes it."""
        return f"{self.scheme}://{USER}@{self.address}/postgres"

    def _answers(self) -> bool:
        return self.probe(PostgresServer.login())[:1] == b"R"

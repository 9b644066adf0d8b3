"""TLS with RabbitMQ, MariaDB and PostgreSQL: the right certificate is accepted, and each wrong one is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import sqlalchemy as sa

from harness.certificates import Certificate, CertificateAuthority
from harness.servers import MariadbServer, PostgresServer, RabbitServer, ServerMissingError, free_ports, make_folder
from harness.servers.server import USER
from harness.waiting import PATIENCE_S
from nodestate.broker.connector import one_off_session
from nodestate.config import load
from nodestate.errors import BrokerUnavailableError, ConfigError, StoreError
from nodestate.sql import migrate
from nodestate.sql.dialects import dialect_of
from tests.conftest import skip_or_fail
from tests.tls_listener import TlsListener


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mariadb://h/d?ssl_verify_identity=true&ssl_ca=/x", r"\(ssl_verify_identity\).*known are ssl_ca, ssl_cert"),
        ("mariadb://h/d?ssl_cert=/x", "has no ssl_ca, without which the driver does not verify"),
        ("postgresql://h/d?ssl_ca=/x", r"\(ssl_ca\).*known are sslrootcert"),
        ("sqlite:////x?foo=bar", r"\(foo\).*known are uri"),
    ],
)
def test_parameters_of_a_database_url_that_are_not_known_or_verify_nothing_are_refused(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        dialect_of(url)


def test_an_authority_for_postgresql_means_that_the_host_name_is_verified() -> None:
    assert dialect_of("postgresql://h/d?sslrootcert=/x")[0].query["sslmode"] == "verify-full"
    assert dialect_of("postgresql://h/d?sslrootcert=/x&sslmode=verify-ca")[0].query["sslmode"] == "verify-ca"


@pytest.mark.service
def test_a_database_with_a_certificate_for_another_name_gets_no_password(authority: CertificateAuthority) -> None:
    listener = TlsListener(authority.issue("localhost"), before=(8, b"S"))  # PostgreSQL's question for TLS
    url = f"postgresql://u:s3cret@127.0.0.1:{listener.port}/d?sslrootcert={authority.file}"
    with pytest.raises(StoreError, match=r"(?s)does not match host name.*the parameters sslrootcert") as caught:
        migrate.revision_of(url, PATIENCE_S)
    listener.close()
    assert listener.received == b""
    assert "s3cret" not in str(caught.value)


class Files(NamedTuple):
    """The files of a server, in a folder of its own, whose certificate can be replaced."""

    authority: CertificateAuthority
    folder: Path
    user: str

    @property
    def cert(self) -> Path:
        return self.folder / "server.pem"

    @property
    def key(self) -> Path:
        return self.folder / "server.key"

    def put(self, certificate: Certificate) -> None:
        for path, source in ((self.cert, certificate.cert), (self.key, certificate.key)):
            shutil.copy(source, path)
            path.chmod(0o600)
            shutil.chown(path, *([self.user, self.user] if self.user else [path.parent.owner()]))


def files_for(authority: CertificateAuthority, name: str, user: str) -> Files:
    files = Files(authority, make_folder(f"tls-{name}"), user)
    files.folder.chmod(0o755)
    files.put(authority.issue("localhost"))
    return files


@pytest.fixture(scope="module")
def client(authority: CertificateAuthority) -> Certificate:
    made = authority.issue("client")
    made.key.chmod(0o600)
    return made


# -- RabbitMQ -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rabbit_files(authority: CertificateAuthority) -> Iterator[Files]:
    files = files_for(authority, "rabbitmq", "")
    yield files
    shutil.rmtree(files.folder)


@pytest.fixture(scope="module")
def tls_rabbit(rabbit_files: Files) -> Iterator[tuple[RabbitServer, int]]:
    [port] = free_ports(1)
    try:
        server = RabbitServer(
            f"listeners.ssl.1 = 127.0.0.1:{port}\n"
            f"ssl_options.cacertfile = {rabbit_files.authority.file}\n"
            f"ssl_options.certfile = {rabbit_files.cert}\n"
            f"ssl_options.keyfile = {rabbit_files.key}\n"
            "ssl_options.verify = verify_peer\n"
            "ssl_options.fail_if_no_peer_cert = true\n"
        )
    except ServerMissingError as error:
        skip_or_fail(error)
    with server:
        yield server, port


def receive_over_tls(port: int, cell: str, host: str, ca: Path, cert: Certificate | None) -> int:
    """Send 500 messages to a queue of one's own; returns the number of messages that came back."""
    files = {"broker_cert": str(cert.cert), "broker_key": str(cert.key)} if cert else {}
    broker = f"amqps://guest:guest@{host}:{port}//"
    config = load({"broker": broker, "cell": cell, "broker_timeout_s": PATIENCE_S, "broker_ca": str(ca), **files})
    bodies: list[bytes] = []
    with one_off_session(config, "test") as session:
        queue = session.answer_queue(lambda body, _node: bodies.append(body))
        for number in range(500):
            session.send("", queue.name, b"%d" % number * 50)
        while len(bodies) < 500 and session.pump(PATIENCE_S):
            pass
    return len(bodies)


@pytest.mark.service
@pytest.mark.thorough
def test_rabbitmq_over_tls_is_used_only_if_name_authority_and_dates_are_right(
    tls_rabbit: tuple[RabbitServer, int], rabbit_files: Files, client: Certificate, cell: str
) -> None:
    server, port = tls_rabbit
    ca = rabbit_files.authority.file
    assert receive_over_tls(port, cell, "localhost", ca, client) == 500
    refused: list[tuple[str, Path, Certificate | None, str]] = [
        ("127.0.0.1", ca, client, "certificate of 127.0.0.1:.* is for another name"),
        ("localhost", rabbit_files.cert, client, "is not signed by those in broker_ca"),
        ("localhost", ca, None, "broker_cert and broker_key"),
    ]
    for host, trusted, cert, said in refused:
        with pytest.raises(BrokerUnavailableError, match=said):
            receive_over_tls(port, cell, host, trusted, cert)
    rabbit_files.put(rabbit_files.authority.issue("localhost", expired=True))
    server.restart()
    with pytest.raises(BrokerUnavailableError, match="has expired"):
        receive_over_tls(port, cell, "localhost", ca, client)


# -- databases ------------------------------------------------------------------------------------


def check_database(
    url_with: Callable[[str, str, dict[str, Path]], str],
    names: tuple[str, str, str],
    files: Files,
    client: Certificate,
    reload: Callable[[], None],
) -> None:
    """Connect with each right and wrong certificate. ``names``: the parameters for authority, certificate and key."""
    ca, cert, key = names
    trusted = {ca: files.authority.file}
    presented = {cert: client.cert, key: client.key}
    assert migrate.revision_of(url_with(USER, "localhost", trusted)) is None
    assert migrate.revision_of(url_with("strict", "localhost", trusted | presented)) is None
    for user, host, parameters in (
        (USER, "127.0.0.1", trusted),  # another name
        (USER, "localhost", {ca: client.cert}),  # another authority
        ("strict", "localhost", trusted),  # no client certificate
    ):
        with pytest.raises(StoreError, match=f"(?s)the parameters {ca}, {cert} and {key}|refuses"):
            migrate.revision_of(url_with(user, host, parameters))
    files.put(files.authority.issue("localhost", expired=True))
    reload()
    with pytest.raises(StoreError, match=f"(?s)certificate.*the parameters {ca}, {cert} and {key}"):
        migrate.revision_of(url_with(USER, "localhost", trusted))


def query(parameters: dict[str, Path]) -> str:
    return "&".join(f"{name}={path}" for name, path in parameters.items())


@pytest.mark.service
@pytest.mark.thorough
def test_mariadb_over_tls_is_used_only_if_name_authority_and_dates_are_right(
    authority: CertificateAuthority, client: Certificate
) -> None:
    try:
        files = files_for(authority, "mariadb", "mysql")
        server = MariadbServer(
            extra=[f"--ssl-ca={authority.file}", f"--ssl-cert={files.cert}", f"--ssl-key={files.key}"]
        )
    except (ServerMissingError, LookupError) as error:
        skip_or_fail(ServerMissingError(str(error)))
    with server:
        admin = sa.create_engine(server.admin_url)

        def run(*statements: str) -> None:
            with admin.begin() as connection:
                for statement in statements:
                    connection.exec_driver_sql(statement)
            admin.dispose()

        run("CREATE USER 'strict'@'127.0.0.1' REQUIRE X509", "GRANT ALL ON bench.* TO 'strict'@'127.0.0.1'")

        def url_with(user: str, host: str, parameters: dict[str, Path]) -> str:
            return f"mariadb://{user}@{host}:{server.port}/bench?{query(parameters)}"

        check_database(url_with, ("ssl_ca", "ssl_cert", "ssl_key"), files, client, lambda: run("FLUSH SSL"))
    shutil.rmtree(files.folder)


@pytest.mark.service
@pytest.mark.thorough
def test_postgresql_over_tls_is_used_only_if_name_authority_and_dates_are_right(
    authority: CertificateAuthority, client: Certificate
) -> None:
    try:
        files = files_for(authority, "postgres", "postgres")
        rules = files.folder / "hba"
        rules.write_text(
            "hostssl all strict 127.0.0.1/32 trust clientcert=verify-ca\nhost all all 127.0.0.1/32 trust\n",
            encoding="utf-8",
        )
        rules.chmod(0o644)
        settings = {
            "ssl": "on",
            "ssl_ca_file": authority.file,
            "ssl_cert_file": files.cert,
            "ssl_key_file": files.key,
            "hba_file": rules,
        }
        server = PostgresServer(extra=[part for name, value in settings.items() for part in ("-c", f"{name}={value}")])
    except (ServerMissingError, LookupError) as error:
        skip_or_fail(ServerMissingError(str(error)))
    with server:
        admin = sa.create_engine(server.admin_url)

        def run(statement: str) -> None:
            with admin.begin() as connection:
                connection.exec_driver_sql(statement)
            admin.dispose()

        run("CREATE ROLE strict LOGIN")

        def url_with(user: str, host: str, parameters: dict[str, Path]) -> str:
            return f"postgresql://{user}@{host}:{server.port}/postgres?{query(parameters)}"

        names = ("sslrootcert", "sslcert", "sslkey")
        check_database(url_with, names, files, client, lambda: run("SELECT pg_reload_conf()"))
    shutil.rmtree(files.folder)

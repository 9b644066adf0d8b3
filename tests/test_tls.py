"""TLS and login of the broker and of memcached: no wrong server gets the password, and errors name the setting."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.certificates import Certificate, CertificateAuthority
from harness.servers import MemcachedServer
from harness.waiting import PATIENCE_S
from nodestate.broker.connector import one_off_session
from nodestate.config import Config, load
from nodestate.errors import BrokerUnavailableError, ConfigError, StoreUnavailableError
from nodestate.ports import Put, Write, WriteStatus
from nodestate.store.memcached import MemcachedStore, open_server, open_stores
from tests.tls_listener import TlsListener

MemcachedFactory = Callable[..., MemcachedServer]


@pytest.fixture(scope="module")
def localhost(authority: CertificateAuthority) -> Certificate:
    return authority.issue("localhost")


@pytest.mark.service
@pytest.mark.parametrize("scheme", ["amqps", "rediss"])
def test_a_broker_with_a_certificate_for_another_name_gets_no_password(
    authority: CertificateAuthority, localhost: Certificate, scheme: str
) -> None:
    """Regression: the name was not compared, so every server with a certificate of the authority got the password."""
    listener = TlsListener(localhost)
    config = load({"broker": f"{scheme}://u:s3cret@127.0.0.1:{listener.port}/", "broker_ca": str(authority.file)})
    with pytest.raises(BrokerUnavailableError) as caught, one_off_session(config, "test"):
        pass
    listener.close()
    assert listener.received == b""
    assert "s3cret" not in str(caught.value)
    if scheme == "amqps":
        assert "is for another name: name the server in the setting broker" in str(caught.value)


@pytest.mark.parametrize("scheme", ["amqp", "amqps", "redis", "memory"])
def test_unknown_parameters_of_a_broker_url_are_refused(scheme: str) -> None:
    """Regression: ``?ssl_ca_certs=…`` ended in a TypeError, and others were ignored."""
    config = Config(broker=f"{scheme}://host/?ssl_ca_certs=/x&ssl_cert_reqs=none")
    with (
        pytest.raises(ConfigError, match=r"\(ssl_ca_certs, ssl_cert_reqs\).*broker_ca"),
        one_off_session(config, "test"),
    ):
        pass


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"broker": "amqp://h", "broker_ca": "/ca.pem"}, "--broker-ca: setting broker_ca is for TLS.*give amqps://"),
        ({"broker": "amqps://a;amqp://b", "broker_cert": "/c"}, "broker_cert is for TLS, and broker 'amqp://b'"),
        ({"store": "memcached://h", "store_ca": "/ca.pem"}, "--store-ca: setting store_ca is for TLS.*memcacheds"),
        ({"store": "memcacheds://h", "store_key": "/k"}, "store_key is given without store_cert"),
        ({"store": "memcacheds://h", "store_ca": "/nowhere.pem"}, "store_ca, '/nowhere.pem', is no file.*no such file"),
        (
            {"broker": "amqps://h", "broker_cert": __file__},
            "broker_cert, .*test_tls.py', with its key.*is no certificate in PEM",
        ),
        ({"store_user": "u"}, "store_user and store_password must both be given"),
        ({"store_user": "u", "store_password": "a b"}, "without spaces"),
        ({"store": "memcached://u:s3cret@h"}, "no user and no parameters.*store_user"),
        ({"store": "memcached+unix://relative/path"}, "is no URL of a store"),
        ({"store": "memory://?x=1"}, "is no URL of a store"),
    ],
)
def test_settings_of_tls_and_login_that_would_have_no_effect_are_refused(flags: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        load(flags, environ={})
    assert "s3cret" not in str(caught.value)


def test_the_password_of_memcached_is_masked_and_may_be_in_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("s3cret\n", encoding="utf-8")
    secret.chmod(0o600)
    config = load({"store_user": "u", "store_password_file": str(secret)}, environ={})
    assert config.store_password == secret.read_text(encoding="utf-8").strip()
    assert "s3cret" not in repr(config)


def test_store_urls_name_tls_servers_and_unix_sockets() -> None:
    assert load({"store": "memcacheds://a,b:5"}, environ={}).store_servers == ("a:11211", "b:5")
    assert load({"store": "memcached+unix:///run/a,/run/b"}, environ={}).store_servers == ("/run/a", "/run/b")


# -- memcached ------------------------------------------------------------------------------------


def tls_server(make: MemcachedFactory, certificate: Certificate, *more: str) -> MemcachedServer:
    options = ",".join((f"ssl_chain_cert={certificate.cert}", f"ssl_key={certificate.key}", *more))
    return make(extra=("-Z", "-o", options))


@contextlib.contextmanager
def store_of(server: MemcachedServer, host: str = "localhost", **files: Path) -> Iterator[MemcachedStore]:
    settings = {name: str(path) for name, path in files.items()}
    config = load(
        {"store": f"memcacheds://{host}:{server.port}", "store_timeout_s": PATIENCE_S, **settings}, environ={}
    )
    [store] = open_stores(config)
    assert isinstance(store, MemcachedStore)
    with contextlib.closing(store):
        yield store


@pytest.mark.service
def test_memcached_over_tls_stores_and_returns_more_than_any_buffer_holds(
    memcached_factory: MemcachedFactory, authority: CertificateAuthority, localhost: Certificate
) -> None:
    """Requests and replies of megabytes cross each other, so a side that only sends would wait for ever."""
    server = tls_server(memcached_factory, localhost)
    values = {f"k{number}": bytes([number]) * 400_000 for number in range(20)}
    with store_of(server, store_ca=authority.file) as store:
        assert store.fetch([f"missing-{number}-{'x' * 150}" for number in range(2_000)]) == {}
        for _ in range(2):
            written = store.write([Write(Put.ADD, key, value, ttl_s=100) for key, value in values.items()])
            assert {result.status for result in written} <= {WriteStatus.STORED, WriteStatus.CONFLICT}
            found = store.fetch([*values, "missing"])
            assert {key: item.value for key, item in found.items()} == values
        assert store.stats().items == len(values)
    server.close()


@pytest.mark.service
@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("wrong name", "certificate of 127.0.0.1:.* is for another name: name the server in the setting store"),
        ("no client certificate", "store_cert and store_key"),
        pytest.param("wrong authority", "not signed by those in store_ca.*as store_ca", marks=pytest.mark.thorough),
        pytest.param("system authorities", "not signed by the system's.*as store_ca", marks=pytest.mark.thorough),
        pytest.param("expired", "has expired: give the server a new one", marks=pytest.mark.thorough),
        pytest.param("plain server", "does not answer in TLS", marks=pytest.mark.thorough),
    ],
)
def test_memcached_with_a_certificate_that_does_not_fit_is_refused(
    memcached_factory: MemcachedFactory, authority: CertificateAuthority, localhost: Certificate, case: str, said: str
) -> None:
    certificate = authority.issue("localhost", expired=True) if case == "expired" else localhost
    demands = (f"ssl_ca_cert={authority.file}", "ssl_verify_mode=2") if case == "no client certificate" else ()
    server = memcached_factory() if case == "plain server" else tls_server(memcached_factory, certificate, *demands)
    files = {"store_ca": localhost.cert if case == "wrong authority" else authority.file}
    host = "127.0.0.1" if case == "wrong name" else "localhost"
    with (
        store_of(server, host, **({} if case == "system authorities" else files)) as store,
        pytest.raises(StoreUnavailableError, match=said),
    ):
        store.fetch(["k"])
    if case == "no client certificate":
        ours = authority.issue("client")
        ours.key.chmod(0o600)
        with store_of(server, **files, store_cert=ours.cert, store_key=ours.key) as store:
            assert store.fetch(["k"]) == {}
    server.close()


@pytest.mark.service
def test_memcached_that_expects_tls_is_named_as_such(
    memcached_factory: MemcachedFactory, localhost: Certificate
) -> None:
    server = tls_server(memcached_factory, localhost)
    with (
        contextlib.closing(MemcachedStore(server.address, timeout_s=PATIENCE_S)) as store,
        pytest.raises(StoreUnavailableError, match="expects TLS"),
    ):
        store.fetch(["k"])
    server.close()


@pytest.mark.service
def test_memcached_with_an_authentication_file_takes_the_right_login_only(
    memcached_factory: MemcachedFactory, authority: CertificateAuthority
) -> None:
    """Also after a restart, since each connection logs in for itself."""
    logins = authority.file.with_name("logins")
    logins.write_text("nodestate:s3cret\n", encoding="utf-8")
    server = memcached_factory(extra=("-Y", str(logins)))

    def store_with(user: str, password: str) -> MemcachedStore:
        config = Config(store=server.url, store_user=user, store_password=password, store_timeout_s=PATIENCE_S)
        return open_server(config, config.store, server.address)

    with contextlib.closing(store_with("nodestate", "s3cret")) as store:
        for _ in range(2):
            assert store.write([Write(Put.ADD, "k", b"v", ttl_s=100)])[0].status is WriteStatus.STORED
            assert store.fetch(["k"])["k"].value == b"v"
            server.restart()
    with contextlib.closing(store_with("nodestate", "wr0ng")) as store:
        with pytest.raises(StoreUnavailableError, match=r"refuses the login: compare.*store_user") as caught:
            store.fetch(["k"])
        assert "wr0ng" not in str(caught.value)
    with (
        contextlib.closing(store_with("", "")) as store,
        pytest.raises(StoreUnavailableError, match="asks for a login: give store_user and store_password"),
    ):
        store.fetch(["k"])
    server.close()


@pytest.mark.service
def test_memcached_that_asks_for_no_login_does_not_get_the_password(memcached: MemcachedServer) -> None:
    """It would keep the login as an item, which every client can read."""
    with contextlib.closing(
        MemcachedStore(memcached.address, timeout_s=PATIENCE_S, login=("nodestate", "s3cret"))
    ) as store:
        assert store.fetch(["k"]) == {}
        assert store.stats().items == 0


@pytest.mark.service
def test_memcached_can_be_reached_by_a_unix_socket(memcached_factory: MemcachedFactory) -> None:
    server = memcached_factory(unix=True)
    config = load({"store": f"memcached+unix://{server.socket_path}", "store_timeout_s": PATIENCE_S}, environ={})
    [store] = open_stores(config)
    assert store.write([Write(Put.ADD, "k", b"v", ttl_s=100)])[0].status is WriteStatus.STORED
    assert store.fetch(["k"])["k"].value == b"v"
    store.close()
    server.close()

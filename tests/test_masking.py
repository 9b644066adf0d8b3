"""No password appears in any text that leaves the process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Final

import pytest
import sqlalchemy as sa
import structlog
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import exc

from nodestate.broker.sessions import unavailable
from nodestate.cli.logs import mask_secrets_of, set_up_logs
from nodestate.config import PASSWORD_SETTINGS, SECRET_SETTINGS, Config, load, servers_of
from nodestate.errors import ConfigError
from nodestate.masking import safe_text, safe_url
from nodestate.sql.dialects import dialect_of, meaning_of

SHAPES: Final = (
    "amqp://user:{}@host:5672//",
    "amqps://user:{}@[::1]/vhost?heartbeat=4",
    "amqp://a:b@h1;amqp://user:{}@h2",
    "amqp://user:{}@h1;amqp://c:d@h2;amqp://c:d@h3",
    "amqp://user:{}@h1,amqp://c:d@h2",
    "amqp://h1;amqp://user:{}@h2",
    "amqp://user:{}@h1;h2",
    "redis://:{}@host:6379/0",
    "memcached://user:{}@h1:11211,h2",
    "memcached://h1:11211,user:{}@h2",
    "memcacheds://user:{}@h1,user:{}@h2",
    "postgresql://user:{}@host/db",
    "postgresql://host/db?user=u&password={}",
    "postgresql://host/db?pass%77ord={}&sslmode=require",
    "mariadb+pymysql://user:{}@host:3306/db?charset=utf8&ssl_key_password={}",
    "user:{}@host",
    " amqp://user:{}@host",
)
PARTS: Final = st.text(st.sampled_from("aZ09@/:;,#?&=%+ '\"[]{}\\é\n") | st.characters(), max_size=6)
PASSWORDS: Final = st.builds(lambda before, after: f"{before}Zq9~{after}", PARTS, PARTS)
"""Passwords of at least ``MIN_SECRET_CHARS`` characters, in no message by chance."""


def of_any_url(test: Callable[[str, str], None]) -> Callable[[], None]:
    """Run a test with passwords in URLs of all shapes."""

    @given(PASSWORDS, st.sampled_from(SHAPES))
    @example("pa/ss", SHAPES[0])
    @example("pa#ss", SHAPES[2])
    @example("a@b:c;d", SHAPES[3])
    @example("x?token=y@z", SHAPES[0])
    @settings(max_examples=60)
    def run(password: str, shape: str) -> None:
        assume(password not in shape.replace("{}", "***"))
        test(shape.replace("{}", password), password)

    return run


@of_any_url
def test_a_masked_url_never_contains_its_password(url: str, password: str) -> None:
    assert password not in safe_url(url)


@of_any_url
def test_no_error_of_a_setting_contains_the_password_of_its_url(url: str, password: str) -> None:
    errors = []
    for use in (servers_of, lambda url: dialect_of(url)[0].get_dialect(), lambda url: load({"store": url}, environ={})):
        try:
            use(url)
        except (ConfigError, exc.NoSuchModuleError) as error:
            errors.append(error)
    assert all(password not in str(error) for error in errors)
    assert password not in repr(Config(broker=url, store=url, store_b=url, sql=url))


@of_any_url
def test_a_librarys_error_that_quotes_the_url_or_a_part_is_masked(url: str, password: str) -> None:
    assume("&" not in password or "=" not in password)  # in a query, it is then the end of the password
    shown = safe_url(url)
    cause = safe_text(f"no host {password!s} of {url}", url)
    assert password in shown or password not in cause


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://user:s3cret", "amqp://user:***"),
        ("amqp://user:s3/cret#x", "amqp://user:***"),
        ("amqp://a:b@h1,amqp://c:d@h2", "amqp://a:***@h1,amqp://c:***@h2"),
        ("amqp://u:s3cret;amqp://x@h", "amqp://u:***@h"),
        ("memcached://h:11211,[::1]:11212", "memcached://h:11211,[::1]:11212"),
        ("memcached://[::1", "memcached://[::1"),
        ("sqlite:////srv/db.sqlite", "sqlite:////srv/db.sqlite"),
        ("redis://h/0?ssl_keyfile=/k&password=a;b#c", "redis://h/0?ssl_keyfile=/k&password=***"),
    ],
)
def test_everything_but_passwords_is_shown(url: str, shown: str) -> None:
    assert safe_url(url) == shown


def test_an_error_of_the_broker_or_the_database_has_no_part_of_the_password() -> None:
    """A driver takes the part of a password after ``@`` for the name of the host, and quotes it."""
    config = Config(broker="amqp://user:first@second@host")
    error = unavailable(config, OSError("[Errno -2] can't resolve second@host; retry as user:first"))
    assert "first" not in str(error)
    assert "second" not in str(error)
    url, dialect = dialect_of("postgresql://user:first@second@host/db")
    cause = exc.OperationalError("SELECT 1", {}, Exception("could not translate host name 'second@host'"))
    assert "second" not in str(meaning_of(cause, dialect, url))
    assert isinstance(url, sa.URL)


def test_a_password_that_is_also_the_user_stays_in_texts() -> None:
    """To mask the user in a text would hide nothing: the URL shows it."""
    assert safe_text("user 'guest' is refused", "amqp://guest:guest@host") == "user 'guest' is refused"


@pytest.mark.parametrize("form", ["console", "json"])
def test_logs_and_tracebacks_have_no_passwords(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs("info", form)
    mask_secrets_of(Config(broker="amqp://user:s3cret/x@host"))
    log = structlog.get_logger("x")
    log.warning("connecting", url="amqp://user:s3cret@host", urls=["mariadb://u:s3cret@h/db?x=1"])
    cause = "Port could not be cast to integer value as 's3cret'"
    try:
        raise ValueError(cause)  # noqa: TRY301 - it is printed
    except ValueError:
        log.exception("failed")
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]  # there is an exception
    mask_secrets_of(Config())
    logged = capsys.readouterr().err
    assert logged.count("Port could not be cast") == 2
    assert "s3cret" not in logged


@pytest.mark.parametrize("form", ["console", "json"])
def test_every_setting_that_is_a_secret_is_masked(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    secrets = {name: f"s3cret of {name}" for name in SECRET_SETTINGS}
    values = {name: text if name in PASSWORD_SETTINGS else f"amqp://user:{text}@host" for name, text in secrets.items()}
    config = Config(**values)
    assert not any(secret in repr(config) for secret in secrets.values())
    set_up_logs("info", form)
    mask_secrets_of(config)
    try:
        raise ValueError([f"cannot parse {secret}" for secret in secrets.values()])  # noqa: TRY301 - it is printed
    except ValueError:
        structlog.get_logger("x").exception("failed")
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]  # there is an exception
    mask_secrets_of(Config())
    logged = capsys.readouterr().err
    assert logged.count("cannot parse ***") == 2 * len(secrets)
    assert [name for name, secret in secrets.items() if secret in logged] == []


def test_an_error_of_usage_does_not_repeat_a_password() -> None:
    words = [sys.executable, "-m", "nodestate.cli", "view", "amqp://user:s3cret@host"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    assert done.returncode == 2
    assert "amqp://user:***@host" in done.stderr
    assert "s3cret" not in done.stderr

"""Settings: flags override the environment, which overrides the file; errors name the setting and its source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nodestate.config import Config, load
from nodestate.errors import ConfigError
from nodestate.masking import safe_url


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "nodestate.toml"
    path.write_text('cell = "from-file"\npartitions = 4\nrenew_s = 0.5\n', encoding="utf-8")
    return path


def test_flag_overrides_environment_and_environment_overrides_file(file: Path) -> None:
    """The source closest to the operator wins; a setting without a source has its default."""
    environ = {"NODESTATE_CELL": "from-env", "NODESTATE_PARTITIONS": "8", "PATH": "/bin"}
    config = load({"cell": "from-flag"}, environ=environ, file=file)
    assert (config.cell, config.partitions, config.renew_s, config.flush_s) == ("from-flag", 8, 0.5, Config().flush_s)


def test_absent_flag_sets_nothing(file: Path) -> None:
    """Command lines pass None for flags that the user did not give."""
    assert load({"cell": None}, environ={}, file=file).cell == "from-file"


def test_environment_may_name_the_settings_file(file: Path) -> None:
    """Services often have no command line."""
    assert load(environ={"NODESTATE_CONFIG": str(file)}).cell == "from-file"


@pytest.mark.parametrize(
    ("flags", "environ", "source"),
    [
        ({"partitions": 0}, {}, "--partitions"),
        ({"standby_s": -1}, {}, "--standby-s"),
        ({}, {"NODESTATE_PARTITIONS": "many"}, "NODESTATE_PARTITIONS"),
        ({}, {"NODESTATE_CELL": "a b"}, "NODESTATE_CELL"),
        ({}, {"NODESTATE_CELL": "c" * 25}, "NODESTATE_CELL"),
        ({}, {"NODESTATE_QUEUE_TYPE": "stream"}, "NODESTATE_QUEUE_TYPE"),
        ({}, {"NODESTATE_PARTITION": "4"}, "NODESTATE_PARTITION"),
        ({"designs": "journal,tape"}, {}, "--designs"),
        ({"designs": ""}, {}, "--designs"),
        ({"read_design": "tape"}, {}, "tape"),
        ({"store": "http://x"}, {}, "http://x"),
        ({"store": "memcached://"}, {}, "memcached://"),
    ],
)
def test_bad_setting_is_refused_by_name(flags: dict[str, Any], environ: dict[str, str], source: str) -> None:
    """An operator must see at once which of three sources to check; a misspelt name is never ignored."""
    with pytest.raises(ConfigError, match=source):
        load(flags, environ=environ)


@pytest.mark.parametrize("content", ["partitions = 4000", "cell =", 'surprise = "x"', "[cell]\nname = 1"])
def test_bad_settings_file_is_refused_by_its_path(tmp_path: Path, content: str) -> None:
    """For any kind of fault in it."""
    path = tmp_path / "bad.toml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"bad\.toml"):
        load(environ={}, file=path)


def test_missing_settings_file_is_refused(tmp_path: Path) -> None:
    """With defaults, the process would write into another cell."""
    with pytest.raises(ConfigError, match=r"missing\.toml"):
        load(environ={}, file=tmp_path / "missing.toml")


def test_designs_are_separated_by_commas() -> None:
    """``--design journal,snapshot``, as acceptance checks call it."""
    assert load({"designs": "journal, snapshot"}, environ={}).designs == ("journal", "snapshot")
    assert load({"designs": ["journal"]}, environ={}).designs == ("journal",)


def test_store_servers_keep_their_order_and_get_the_default_port() -> None:
    """The order in this list maps partitions to servers: sorting it would lose every key."""
    config = load({"store": "memcached://b,a:11212"}, environ={})
    assert config.store_servers == ("b:11211", "a:11212")
    assert Config().store_servers == ()


def test_password_of_the_broker_is_never_shown() -> None:
    """Messages and logs name the broker without its password."""
    config = Config(broker="amqp://user:s3cret@host:5672//")
    assert config.broker_safe == "amqp://user:***@host:5672//"
    assert "s3cret" not in config.broker_safe


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://user:s3cret@host:5672//", "amqp://user:***@host:5672//"),
        ("amqp://user:s3/cr@e;t@host//", "amqp://user:***@host//"),
        ("amqp://u:s3cret@a;amqp://u:s3cret@b", "amqp://u:***@a;amqp://u:***@b"),
        ("redis://:s3cret@[::1:6379", "redis://:***@[::1:6379"),
        ("user:s3cret@host", "user:***@host"),
        ("postgresql://host/db?user=u&password=s3cret&x=1", "postgresql://host/db?user=u&password=***&x=1"),
        ("memcached://a:11211,b", "memcached://a:11211,b"),
    ],
)
def test_no_password_is_shown_of_any_url_valid_or_not(url: str, shown: str) -> None:
    """Error messages go to logs, which more people read than the settings."""
    assert safe_url(url) == shown


@pytest.mark.parametrize("url", ["http://u:s3cret@host", "memcached://u:s3cret@host:11211", "u:s3cret@host"])
def test_an_error_of_a_store_url_has_no_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({"store": url}, environ={})
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "memcached://[::1",
        "memcached://[::1:11211",
        "memcached://h:1?x=1",
        "memcached://a,,b",
        "memcached://h:port",
        "memcached://h:65536",
    ],
)
def test_a_store_url_that_cannot_be_parsed_is_a_config_error(url: str) -> None:
    """Regression: some of them ended a command with a traceback, or were understood as another server."""
    with pytest.raises(ConfigError, match="is no URL of a store"):
        load({"store": url}, environ={})


def test_store_servers_may_have_ipv6_addresses() -> None:
    assert load({"store": "memcached://[::1],[fe80::1]:5/"}, environ={}).store_servers == ("[::1]:11211", "[fe80::1]:5")


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("partitions", 0, "a whole number from 1 to 240"),
        ("lease_s", 1, "a finite number from 10 to 2,592,000"),
        ("renew_s", "inf", "a finite number above 0"),
        ("resync_jitter_s", "-2", "a finite number of at least 0"),
        ("queue_type", "stream", "classic or quorum"),
        ("designs", "", "one or more names"),
    ],
)
def test_an_error_of_a_range_names_setting_value_and_range(name: str, value: object, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({name: value}, environ={})
    assert f"setting {name} can't be " in str(caught.value)
    assert allowed in str(caught.value)
    assert "Expected" not in str(caught.value)


SERVICE_LINKS = {
    "NODESTATE_SERVICE_HOST": "10.0.0.1",
    "NODESTATE_SERVICE_PORT": "8790",
    "NODESTATE_SERVICE_PORT_HTTP": "8790",
    "NODESTATE_PORT": "tcp://10.0.0.1:8790",
    "NODESTATE_PORT_8790_TCP": "tcp://10.0.0.1:8790",
    "NODESTATE_PORT_8790_TCP_PROTO": "tcp",
    "NODESTATE_PORT_8790_TCP_PORT": "8790",
    "NODESTATE_PORT_8790_TCP_ADDR": "10.0.0.1",
    "NODESTATE_BROKER_SERVICE_HOST": "10.0.0.2",
    "NODESTATE_BROKER_PORT": "tcp://10.0.0.2:5672",
}


def test_variables_of_kubernetes_for_a_service_called_nodestate_are_ignored() -> None:
    """Regression: every command in such a pod ended with exit code 2."""
    assert load(environ=SERVICE_LINKS) == Config()
    with pytest.raises(ConfigError, match="NODESTATE_PORT"):
        load(environ={"NODESTATE_PORT": "8790"})


def test_empty_variables_count_as_unset(file: Path) -> None:
    """Compose files and service managers pass empty values for variables that are not set."""
    environ = {"NODESTATE_CELL": "", "NODESTATE_PARTITIONS": "", "NODESTATE_STORE": "", "NODESTATE_CONFIG": ""}
    assert load(environ=environ, file=file) == load(environ={}, file=file)


def test_a_settings_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "bom.toml"
    path.write_bytes(b"\xef\xbb\xbfpartitions = 4\n")
    assert load(environ={}, file=path).partitions == 4


def test_a_settings_file_in_another_encoding_is_refused_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "latin-1.toml"
    path.write_bytes(b'state_dir = "/srv/caf\xe9"\n')
    with pytest.raises(ConfigError, match=r"latin-1\.toml is not UTF-8"):
        load(environ={}, file=path)


def test_a_mistyped_setting_is_named_with_the_one_that_is_most_similar() -> None:
    with pytest.raises(ConfigError, match=r"'auth_event' \(did you mean auth_events\?\)"):
        load(environ={"NODESTATE_AUTH_EVENT": "require"})

"""Settings: flags override the environment, which overrides the file; errors name the setting and its source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nodestate.config import Config, load
from nodestate.errors import ConfigError


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

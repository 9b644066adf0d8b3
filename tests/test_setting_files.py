"""Files with settings and secrets: their content is taken only if no other user can have read or written it."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nodestate.config import Config, load
from nodestate.errors import ConfigError
from nodestate.setting_files import require_secret, require_trusted

URL = "amqp://user:s3cret%2F@host"


def written(path: Path, content: str = URL + "\n", mode: int = 0o600) -> Path:
    path.write_text(content, encoding="utf-8")
    path.chmod(mode)
    return path


def status(mode: int, uid: int) -> Any:
    return SimpleNamespace(st_mode=0o100000 | mode, st_uid=uid)


@pytest.mark.parametrize("name", ["broker", "store", "store_b", "sql"])
def test_a_file_has_the_value_of_each_setting_that_may_hold_a_password(name: str, tmp_path: Path) -> None:
    value = {"store": "memcached://h:1", "store_b": "memcached://h:2"}.get(name, URL)
    file = written(tmp_path / "secret", f"{value}\r\n")
    toml = written(tmp_path / "cell.toml", f'{name}_file = "{file}"')
    assert getattr(load(environ={f"NODESTATE_{name.upper()}_FILE": str(file)}), name) == value
    assert getattr(load({f"{name}_file": str(file)}, environ={}), name) == value
    assert getattr(load(environ={}, file=toml), name) == value


def test_the_closest_source_wins_whether_it_gives_a_file_or_the_value(tmp_path: Path) -> None:
    """A file that another source overrides is not read."""
    toml = written(tmp_path / "cell.toml", 'broker_file = "/nowhere"')
    secret = written(tmp_path / "secret")
    assert load(environ={"NODESTATE_BROKER": "amqp://h"}, file=toml).broker == "amqp://h"
    environ = {"NODESTATE_BROKER_FILE": str(secret)}
    assert load(environ=environ, file=written(tmp_path / "b.toml", 'broker = "amqp://h"')).broker == URL
    assert load({"broker": "amqp://flag"}, environ=environ).broker == "amqp://flag"


def test_a_source_that_gives_a_secret_and_its_file_is_refused(tmp_path: Path) -> None:
    environ = {"NODESTATE_BROKER": "amqp://h", "NODESTATE_BROKER_FILE": str(written(tmp_path / "secret"))}
    with pytest.raises(ConfigError, match="NODESTATE_BROKER and NODESTATE_BROKER_FILE both give the setting broker"):
        load(environ=environ)


@pytest.mark.parametrize(
    ("content", "mode", "told"),
    [
        (URL, 0o604, r"other users can read or write it \(mode 0604\): run 'chmod 600 /.*/secret'"),
        (URL, 0o602, "mode 0602"),
        ("", 0o600, "must have one line"),
        (f"{URL}\n{URL}\n", 0o600, "must have one line"),
        (f"{URL}\0", 0o600, "must have one line"),
        (URL * 10_000, 0o600, "must have one line"),
    ],
)
def test_an_unfit_secret_file_is_refused_by_its_path(content: str, mode: int, told: str, tmp_path: Path) -> None:
    secret = written(tmp_path / "secret", content, mode)
    with pytest.raises(ConfigError, match=told) as caught:
        load(environ={"NODESTATE_BROKER_FILE": str(secret)})
    assert f"NODESTATE_BROKER_FILE: the file {secret} " in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_missing_or_undecodable_secret_file_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"NODESTATE_SQL_FILE: the file /.*/none can't be read: No such file"):
        load(environ={"NODESTATE_SQL_FILE": str(tmp_path / "none")})
    secret = written(tmp_path / "secret")
    secret.write_bytes(b"amqp://u:\xff@h")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load(environ={"NODESTATE_BROKER_FILE": str(secret)})


@pytest.mark.parametrize(
    ("mode", "uid", "fits"),
    [
        (0o600, 1000, True),
        (0o400, 1000, True),
        (0o640, 1000, False),
        (0o604, 1000, False),
        (0o400, 0, True),  # a credential of systemd
        (0o440, 0, True),  # the same, as systemd shows its access list
        (0o640, 0, True),
        (0o660, 0, False),
        (0o644, 0, False),
    ],
)
def test_a_secret_may_be_read_by_its_owner_and_by_a_group_that_root_chose(mode: int, uid: int, fits: bool) -> None:
    if fits:
        require_secret(status(mode, uid), "/f", "setting")
        return
    with pytest.raises(ConfigError, match=f"mode {mode:04o}.*chmod 600 /f"):
        require_secret(status(mode, uid), "/f", "setting")


def test_a_settings_file_with_a_password_is_a_secret(tmp_path: Path) -> None:
    exposed = written(tmp_path / "cell.toml", f'broker = "{URL}"', 0o644)
    with pytest.raises(ConfigError, match=r"setting broker: the file /.*cell\.toml holds a secret"):
        load(environ={}, file=exposed)
    exposed.chmod(0o600)
    assert load(environ={}, file=exposed).broker == URL
    assert load(environ={}, file=written(exposed, 'broker = "amqp://host"', 0o644)).broker == "amqp://host"


@pytest.mark.parametrize(
    ("mode", "uid", "told"),
    [
        (0o644, 4711, r"nodestate\.toml in the current directory belongs to user 4711.*: remove it, or give --config"),
        (0o666, None, r"mode 0666.*run 'chmod go-w nodestate\.toml', or give --config"),
        (0o664, None, "mode 0664"),
    ],
)
def test_settings_of_the_current_directory_are_refused_if_another_user_can_have_written_them(
    mode: int, uid: int | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a file in /tmp would send the commands of all users who work there to the servers of its author."""
    monkeypatch.chdir(tmp_path)
    file = written(tmp_path / "nodestate.toml", 'cell = "theirs"', mode)
    if uid is not None:
        monkeypatch.setattr(Path, "lstat", lambda _: status(mode, uid))
    with pytest.raises(ConfigError, match=told):
        load(environ={})
    assert load(environ={}, file=file).cell == "theirs"


def test_own_settings_of_the_current_directory_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(environ={}) == Config()
    written(tmp_path / "nodestate.toml", 'cell = "mine"', 0o644)
    assert load(environ={}).cell == "mine"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(Path, "lstat", lambda _: status(0o777, 1000))
    monkeypatch.setattr(Path, "stat", lambda _: status(0o644, 0))
    require_trusted("nodestate.toml")

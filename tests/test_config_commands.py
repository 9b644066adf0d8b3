"""``nodestate config``: where each setting came from, whether the settings are valid, and a file of all settings."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from nodestate.cli import main
from nodestate.config import SECRET_SETTINGS, Config, load


@pytest.fixture(autouse=True)
def _in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def run(*words: str, env: Mapping[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, ["config", *words], env=env)


def shown(*words: str, env: Mapping[str, str] | None = None) -> Any:
    answer = run("show", "--json", *words, env=env)
    assert answer.exit_code == 0, answer.output
    return json.loads(answer.stdout)


def sample_with_all_settings() -> str:
    lines = run("sample").stdout.splitlines()
    return "\n".join(line.removeprefix("#") for line in lines if not line.startswith("# ") and '"/path/of/' not in line)


# -- sample


def test_sample_is_a_settings_file_that_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "sample.toml"
    file.write_text(run("sample").stdout)
    assert load({}, environ={}, file=file) == Config()


def test_sample_has_every_setting_with_its_default_and_the_files_of_secrets(tmp_path: Path) -> None:
    file = tmp_path / "all.toml"
    file.write_text(sample_with_all_settings())
    assert list(tomllib.loads(file.read_text())) == list(Config.__struct_fields__)
    assert load({}, environ={}, file=file) == Config()
    for name in SECRET_SETTINGS:
        assert f"\n#{name}_file = " in run("sample").stdout


def test_sample_fits_on_a_terminal_and_says_what_each_setting_means() -> None:
    lines = run("sample").stdout.splitlines()
    assert max(map(len, lines)) <= 100
    for name in Config.__struct_fields__:
        [at] = [at for at, line in enumerate(lines) if line.startswith(f"#{name} = ")]
        assert lines[at - 1].startswith("# "), name


# -- show


def test_show_says_where_each_setting_came_from(tmp_path: Path) -> None:
    file = tmp_path / "cell.toml"
    file.write_text('cell = "of-the-file"\npartitions = 16\nrenew_s = 2\n')
    env = {"NODESTATE_PARTITIONS": "4", "NODESTATE_FLUSH_S": "0.1", "NODESTATE_DESIGNS": "snapshot"}
    found = shown("--config", str(file), "--partitions", "2", env=env)

    assert found["file"] == str(file)
    assert found["settings"]["cell"] == {"value": "of-the-file", "source": str(file)}
    assert found["settings"]["partitions"] == {"value": 2, "source": "--partitions"}
    assert found["settings"]["flush_s"] == {"value": 0.1, "source": "NODESTATE_FLUSH_S"}
    assert found["settings"]["designs"] == {"value": ["snapshot"], "source": "NODESTATE_DESIGNS"}
    assert found["settings"]["heartbeat_s"] == {"value": 10.0, "source": "default"}
    assert list(found["settings"]) == list(Config.__struct_fields__)


def test_show_masks_passwords_from_every_source(tmp_path: Path) -> None:
    secret = tmp_path / "broker"
    secret.write_text("amqp://consumer:in-a-file@rabbit//")
    secret.chmod(0o600)
    env = {
        "NODESTATE_BROKER_FILE": str(secret),
        "NODESTATE_SQL": "mariadb://user:in-the-environment@db/nodestate",
        "NODESTATE_STORE": "memcached://mc1",
        "NODESTATE_STORE_USER": "reader",
        "NODESTATE_STORE_PASSWORD": "in-a-setting",
    }
    for words in (["show"], ["show", "--json"]):
        answer = run(*words, env=env)
        assert answer.exit_code == 0
        assert "consumer:***" in answer.output
        for password in ("in-a-file", "in-the-environment", "in-a-setting"):
            assert password not in answer.output
    assert shown(env=env)["settings"]["broker"]["source"] == "NODESTATE_BROKER_FILE"


def test_show_prints_values_as_they_are(tmp_path: Path) -> None:
    """A value that looks like markup, or contains control characters, changes neither colours nor lines."""
    file = tmp_path / "cell.toml"
    file.write_text('state_dir = "/[red]\\u001b[2J\\nx"\n')
    answer = run("show", "--config", str(file), env={"COLUMNS": "300"})
    assert "/[red]" in answer.output
    assert "\x1b" not in answer.output


# -- check


def test_check_of_valid_settings_counts_them_and_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "cell.toml"
    file.write_text('broker = "amqp://rabbit//"\nstore = "memcached://mc1"\n')
    answer = run("check", "--config", str(file))
    assert answer.exit_code == 0
    assert answer.stdout == f"valid: 2 settings given; settings file: {file}\n"


def test_check_notes_that_a_server_of_one_process_is_rarely_meant() -> None:
    answer = run("check", "--json")
    assert answer.exit_code == 0
    notes = json.loads(answer.stdout)["notes"]
    assert ["broker is memory://" in notes[0], "store is memory://" in notes[1]] == [True, True]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("partitions = 0", "setting partitions can't be 0; give a whole number from 1 to 240"),
        ("partition = 8", "there is no setting 'partition' (did you mean partitions?)"),
        ("partitions = ", "settings file"),
        ('auth_events = "require"', "auth_events is require, so this process needs keys"),
        ('auth_store = "warn"\nkeys_file = "/nowhere.keys"', "/nowhere.keys"),
        ('auth_control = "require"', "auth_control is require"),
        ('broker_ca = "/nowhere.pem"\nbroker = "amqps://rabbit//"', "/nowhere.pem"),
    ],
)
def test_check_fails_with_the_remedy_if_a_setting_or_a_file_is_wrong(tmp_path: Path, content: str, told: str) -> None:
    file = tmp_path / "cell.toml"
    file.write_text(content)
    answer = run("check", "--config", str(file))
    assert answer.exit_code == 2, answer.output
    assert told in answer.stderr
    assert run("check", "--json", "--config", str(file)).exit_code == 2

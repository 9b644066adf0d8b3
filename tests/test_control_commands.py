"""The commands that make, sign and show the control record, and those for the operators' keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from harness.servers import MemcachedServer
from nodestate.cli import design_switch, main
from nodestate.config import Config, load
from nodestate.designs.connections import configured, open_stores
from nodestate.designs.control import CONTROL, Control
from nodestate.designs.inspection import read_copies
from nodestate.designs.stored_design import StoredDesign
from nodestate.findings.design_checks import examine_copies, examine_record
from nodestate.findings.finding import FAIL, OK
from nodestate.ports import Put, Store, SystemClock, Write
from nodestate.store import keys
from tests.operator_keys import new_pairs
from tests.test_control_auth import signed_by


class OperatorsMachine:
    """The settings of an operator's process in the current directory, and its commands."""

    def __init__(self, **settings: str) -> None:
        self.settings = {
            "auth_control": "require",
            "operator_key_file": "operator.key",
            "control_keys_file": "control.keys",
            "designs": "sql" if "sql" in settings else "journal",
            "read_design": "sql" if "sql" in settings else "journal",
            **settings,
        }

    @property
    def config(self) -> Config:
        return load(self.settings, environ={})

    def run(self, *words: str, code: int = 0) -> Result:
        env = {f"NODESTATE_{name.upper()}": value for name, value in self.settings.items()}
        answer = CliRunner().invoke(main, words, env=env)
        assert answer.exit_code == code, answer.output
        return answer

    def ask(self, *words: str) -> Any:
        return json.loads(self.run(*words, "--json").stdout)

    def stores(self) -> list[Store]:
        return list(open_stores(self.config, SystemClock(), configured(self.config), make_tables=True).everywhere)

    def plant(self, value: bytes) -> None:
        """Store a control record as any program can."""
        key = keys.control(self.config.cell)
        for store in self.stores():
            if item := store.fetch([key]).get(key):
                store.write([Write(Put.CAS, key, value, item.cas)])
            else:
                store.write([Write(Put.ADD, key, value)])
            store.close()

    def findings(self) -> list[tuple[str, str, str]]:
        copies = read_copies(self.config)
        found = [*examine_record(self.config, copies), *examine_copies(self.config.cell, copies)]
        return [(one.level, one.says, one.advice) for one in found]


@pytest.fixture(autouse=True)
def _a_directory_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(design_switch, "LOST_WAIT_S", 0.0)
    for name in ("CELL", "CONFIG", "KEYS_FILE", "STORE", "SQL", "BROKER"):
        monkeypatch.delenv(f"NODESTATE_{name}", raising=False)


@pytest.fixture
def operator(tmp_path: Path) -> OperatorsMachine:
    machine = OperatorsMachine(sql=f"sqlite:///{tmp_path}/cell.db")
    for store in machine.stores():
        store.fetch(["any"])  # makes the tables
        store.close()
    return machine


def test_operators_keys_are_created_replaced_and_revoked(operator: OperatorsMachine) -> None:
    old = operator.ask("key", "init", "--operator")["id"]
    assert (Path("operator.key").stat().st_mode & 0o777, Path("control.keys").stat().st_mode & 0o777) == (0o600, 0o644)
    assert "would be lost" in operator.run("key", "init", "--operator", code=2).stderr
    assert "rotate --operator" in operator.run("key", "revoke", "--operator", old, code=1).stderr
    new = operator.ask("key", "rotate", "--operator")["new"]
    assert f"revoke --operator {old}" in operator.run("key", "rotate", "--operator", code=1).stderr
    assert "give one of" in operator.run("key", "revoke", "--operator", "0a1b2c3d", code=2).stderr
    operator.run("key", "revoke", "--operator", old)
    status = operator.ask("key", "status")
    assert ([one["id"] for one in status["control_keys"]], status["operator_keys"]) == ([new], [new])
    assert [one["id"] for one in status["revoked_control_keys"]] == [old]
    private = json.loads(Path("operator.key").read_text())["keys"][0]["private_key"]
    assert new in (shown := operator.run("key", "status").stdout)
    assert private not in shown
    assert private not in Path("control.keys").read_text()
    operator.settings["operator_key_file"] = ""
    assert "OPERATOR_KEY_FILE" in operator.run("key", "rotate", "--operator", code=2).stderr


@pytest.mark.parametrize("interrupted", ["rotate", "revoke"])
def test_an_interrupted_change_of_the_operators_keys_can_be_completed(
    operator: OperatorsMachine, interrupted: str
) -> None:
    """The public keys are written first. Each command named another one that refused, too."""
    old = operator.ask("key", "init", "--operator")["id"]
    private = Path("operator.key").read_bytes()
    new = operator.ask("key", "rotate", "--operator")["new"]
    if interrupted == "revoke":
        private = Path("operator.key").read_bytes()
        operator.run("key", "revoke", "--operator", old)
    Path("operator.key").write_bytes(private)
    extra = new if interrupted == "rotate" else old
    assert f"revoke --operator {extra}" in operator.run("key", "rotate", "--operator", code=1).stderr
    operator.run("key", "revoke", "--operator", extra)
    status = operator.ask("key", "status")
    assert [one["id"] for one in status["control_keys"]] == status["operator_keys"]
    assert [one["id"] for one in status["revoked_control_keys"]] == [extra]
    operator.run("key", "rotate", "--operator")


def sign_show_and_replace(operator: OperatorsMachine, folder: Path) -> None:
    """The operator makes the first record, sees and overrules a forged one, and changes to another key."""
    operator.run("key", "init", "--operator")
    assert operator.findings()[0][0] == FAIL
    assert "a new cell needs 'nodestate design sign'" in operator.run("design", "status", code=1).stderr
    made = operator.ask("design", "sign")
    status = operator.ask("design", "status")
    old = operator.ask("key", "status")["control_keys"][0]["id"]
    assert (status["version"], status["command"], status["key"]) == (made["version"], "sign", old)
    assert status["changed_at"] >= made["version"]
    assert f"signed with key {old}" in operator.run("design", "status").stdout
    [(level, says, _)] = operator.findings()
    assert (level, "'nodestate design sign'" in says) == (OK, True)

    design = StoredDesign(operator.settings["read_design"], 3)
    key = keys.control(operator.config.cell)
    forged = Control(status["version"] + 7, (design,), design, None, "intruder")
    for value in (CONTROL.pack(forged), signed_by(folder, forged, new_pairs(operator.config.cell), key)):
        operator.plant(value)
        assert "counts as missing" in operator.run("design", "status", code=1).stderr
        assert "counts as missing" in operator.run("design", "sign", code=1).stderr
        level, says, advice = operator.findings()[-1]
        assert (level, "refused" in says, "design sign" in advice) == (FAIL, True, True)
    operator.run("design", "sign", "--force")
    status = operator.ask("design", "status")
    assert (status["version"] > forged.version, status["partitions"]) == (True, 3)

    new = operator.ask("key", "rotate", "--operator")["new"]
    operator.run("design", "sign")
    operator.run("key", "revoke", "--operator", old)
    assert operator.ask("design", "status")["key"] == new


def test_an_operator_makes_signs_and_shows_the_record(operator: OperatorsMachine, tmp_path: Path) -> None:
    sign_show_and_replace(operator, tmp_path)


@pytest.mark.service
@pytest.mark.thorough
def test_an_operator_makes_signs_and_shows_the_record_in_memcached(memcached: MemcachedServer, tmp_path: Path) -> None:
    sign_show_and_replace(OperatorsMachine(store=memcached.url, cell="signed"), tmp_path)


def test_a_command_that_changes_the_record_names_what_it_lacks(operator: OperatorsMachine) -> None:
    operator.run("key", "init", "--operator")
    operator.run("design", "sign")
    for setting, named in (("operator_key_file", "operator_key_file"), ("control_keys_file", "control_keys_file")):
        kept, operator.settings[setting] = operator.settings[setting], ""
        for words in (("rollback",), ("sign",), ("cutover", "sql"), ("retire", "sql"), ("prepare", "sql")):
            assert named in operator.run("design", *words, code=2).stderr
        operator.settings[setting] = kept
    operator.settings["operator_key_file"] = ""
    operator.run("design", "status")
    operator.settings["auth_control"] = "off"
    assert "auth_control is off" in operator.run("design", "sign", code=2).stderr

"""The units of systemd run without privileges."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import click
import pytest

from nodestate.cli import main

ROOT: Final = Path(__file__).parent.parent
UNITS: Final = sorted((ROOT / "deploy/systemd").glob("*.service"))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_runs_a_command_without_privileges(unit: Path) -> None:
    values: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            values.setdefault(name, []).append(value)
    assert values["DynamicUser"] == values["NoNewPrivileges"] == values["ProtectHome"] == ["yes"]
    assert values["ProtectSystem"] == ["strict"]
    assert values["CapabilityBoundingSet"] == [""]
    program, command, *words = values["ExecStart"][0].split()
    assert program.endswith("/bin/nodestate")
    words = [word.replace("%I", "1/2") for word in words]
    loaded = main.get_command(click.Context(main), command)
    assert loaded is not None
    assert loaded.make_context(command, words).params
    credentials = {credential.partition(":")[0] for credential in values["LoadCredential"]}
    assert credentials == set(re.findall(r"%d/(\w+)", values["Environment"][0] + values["ExecStart"][0]))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_accepts_a_unit_and_finds_little_exposed(unit: Path, tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    copy = tmp_path / unit.name.replace("@", "@1-2")
    copy.write_text(unit.read_text().replace("/opt/nodestate/bin/nodestate", "/bin/true"))
    for words in (["verify", "--man=no"], ["security", "--offline=true", "--threshold=20"]):
        done = subprocess.run([program, *words, str(copy)], capture_output=True, text=True, check=False)  # noqa: S603 - systemd's
        assert done.returncode == 0, done.stdout + done.stderr


def test_there_is_a_unit_for_each_process_of_a_cell() -> None:
    assert [unit.name for unit in UNITS] == [
        "nodestate-agent.service",
        "nodestate-consumer@.service",
        "nodestate-serve.service",
    ]

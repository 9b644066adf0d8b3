"""Services of our compose file and the units of systemd run without privileges."""

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
COMPOSE: Final = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
UNITS: Final = sorted((ROOT / "deploy/systemd").glob("*.service"))


def test_compose_services_have_no_privileges() -> None:
    """By the text, as the environment of the tests has no parser for YAML."""
    confined, nodestate = (block(f"x-{name}: &{name}", "") for name in ("confined", "nodestate"))
    for line in ("cap_drop: [ALL]", 'security_opt: ["no-new-privileges:true"]', "read_only: true"):
        assert f"  {line}\n" in confined
    assert "  <<: *confined\n" in nodestate
    services = re.findall(r"^  ([a-z-]+):$", block("services:", ""), re.MULTILINE)
    assert len(services) == 6
    for name in services:
        own = block(f"{name}:", "  ")
        assert "    <<: *confined\n" in own or "    <<: *nodestate\n" in own, name
        weaker = re.findall(r"^    (cap_add|cap_drop|security_opt|read_only|privileged|user):", own, re.MULTILINE)
        assert weaker == (["cap_add", "read_only"] if name == "rabbitmq" else []), name


def block(key: str, indent: str) -> str:
    """Return the lines below a key of the compose file."""
    found = re.search(rf"^{indent}{re.escape(key)}\n((?:{indent}  .*\n|\n)+)", COMPOSE, re.MULTILINE)
    assert found is not None, key
    return found[1]


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

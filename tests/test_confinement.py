"""Services of our compose file and of the units on the page run without privileges."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import click
import pytest

from nodestate.cli import main

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = (ROOT / "docs" / "how-to" / "secure.md").read_text(encoding="utf-8")
COMPOSE: Final = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
UNITS: Final = re.findall(r"^```ini\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


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


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_of_the_page_runs_a_command_without_privileges(unit: str) -> None:
    values: dict[str, list[str]] = {}
    for line in unit.splitlines():
        if "=" in line:
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
    assert credentials == set(re.findall(r"%d/(\w+)", values["Environment"][0]))


def test_the_page_has_a_unit_for_consumers_and_one_for_agents() -> None:
    assert len(UNITS) == 2

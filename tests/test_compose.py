"""docker-compose.yml: Docker accepts it, its services run without privileges, and its commands and files exist."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import click
import pytest
import yaml

from nodestate.cli import main

ROOT: Final = Path(__file__).parent.parent
FILE: Final = ROOT / "docker-compose.yml"
SERVICES: Final[dict[str, dict[str, Any]]] = yaml.safe_load(FILE.read_text(encoding="utf-8"))["services"]
OURS: Final = [name for name, service in SERVICES.items() if service["image"] == "nodestate:local"]
MONITORING: Final = ["prometheus", "grafana"]


def compose(*words: str) -> str:
    """Return the output of ``docker compose``, as a plug-in of Docker or as a program of its own."""
    program = shutil.which("docker-compose")
    command = [program] if program else ["docker", "compose"]
    if program is None and (shutil.which("docker") is None or run(*command, "version").returncode != 0):
        reason = "docker compose is missing: apt-get install docker-compose (tests/services/ensure.sh does)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    done = run(*command, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603 - Docker's


@pytest.mark.parametrize("profile", [[], ["--profile", "monitoring"]], ids=["cell", "monitoring"])
def test_docker_accepts_the_file(profile: list[str]) -> None:
    found: dict[str, Any] = yaml.safe_load(compose(*profile, "config"))["services"]
    assert set(found) - set(MONITORING) == set(SERVICES) - set(MONITORING)
    assert set(found) == set(SERVICES) or not profile


def test_services_have_no_privileges() -> None:
    assert sorted(SERVICES) == sorted(["memcached", "rabbitmq", *OURS, *MONITORING])
    assert OURS == ["consumer", "agent-host", "agent-simulated", "serve"]
    for name, service in SERVICES.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        is_rabbit = name == "rabbitmq"
        assert service["read_only"] is not is_rabbit, name
        assert ("cap_add" in service) == is_rabbit, name
        assert not {"privileged", "user"} & set(service), name


def test_no_port_is_published_to_the_network() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert all("profiles" in service for service in SERVICES.values() if "ports" in service)


@pytest.mark.parametrize("name", OURS)
def test_the_command_of_a_service_exists_and_answers_its_health_check(name: str) -> None:
    """The health check of the Dockerfile asks HEALTH_URL, so the process must listen there."""
    command, *words = SERVICES[name]["command"]
    loaded = main.get_command(click.Context(main), command)
    assert loaded is not None
    given = loaded.make_context(command, words).params
    listens = given["listen"] if command == "serve" else given["metrics_listen"]
    default = re.search(r"^ENV HEALTH_URL=(\S+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert default is not None
    url = SERVICES[name]["environment"].get("HEALTH_URL", default[1])
    assert url == f"http://127.0.0.1:{listens.rpartition(':')[2]}/readyz"


@pytest.mark.parametrize("name", MONITORING)
def test_the_files_of_a_service_exist(name: str) -> None:
    files = [volume.split(":")[0] for volume in SERVICES[name]["volumes"] if volume.startswith("./")]
    assert len(files) >= 2
    assert all((ROOT / file).is_file() for file in files), files


def test_prometheus_scrapes_every_service_of_the_cell() -> None:
    jobs = yaml.safe_load((ROOT / "deploy/prometheus/compose.yml").read_text(encoding="utf-8"))["scrape_configs"]
    scraped = {target for job in jobs for config in job["static_configs"] for target in config["targets"]}
    assert scraped == {f"{name}:{8790 if name == 'serve' else 9464}" for name in OURS}

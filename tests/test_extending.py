"""Filters and weighers of installed packages are found by entry point, as the how-to page says."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nodestate.errors import BadRequestError, ConfigError
from nodestate.scheduling import FILTERS, WEIGHERS, installed, parse
from nodestate.scheduling.selection.ranking import active_weighers

PAGE = (Path(__file__).parent.parent / "docs" / "how-to" / "extend-the-scheduler.md").read_text(encoding="utf-8")
Install = Callable[[str, dict[str, Any]], None]


def block(language: str, number: int = 0) -> str:
    """Return a code block of the page in a language; the first one by default."""
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return found[number]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return a function that installs a module with the entry points of its ``pyproject.toml``."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "night_shift", raising=False)

    def put(module: str, project: dict[str, Any]) -> None:
        (tmp_path / "night_shift.py").write_text(module, encoding="utf-8")
        folder = tmp_path / "night_shift-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1.0\n")
        lines = []
        for group, points in project["entry-points"].items():
            lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
        (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")

    return put


def test_installed_filters_and_weighers_come_after_the_built_in_ones(install: Install) -> None:
    install(block("python"), tomllib.loads(block("toml"))["project"])
    policies = installed()
    assert list(policies.filters) == [*FILTERS, "awake", "cool"]
    assert list(policies.weighers) == [*WEIGHERS, "reliable", "roomy"]
    assert policies.weighers["roomy"].multiplier == 0.5
    request = parse({"resources": {"VCPU": 1}, "weights": {"roomy": 2.0}})
    assert ("roomy", policies.weighers["roomy"], 2.0) in active_weighers(request, policies.weighers)
    with pytest.raises(BadRequestError, match=r"^weights\.roomy: "):
        active_weighers(request, WEIGHERS)


def test_the_page_names_its_one_module_for_setuptools() -> None:
    """Regression: setuptools refuses to guess between several files, and ``pip install .`` failed."""
    assert tomllib.loads(block("toml"))["tool"]["setuptools"] == {"py-modules": ["night_shift"]}


def test_the_example_of_the_page_runs_without_being_installed(install: Install) -> None:
    """Regression: the block alone ended with ``NameError: awake``."""
    install(block("python"), {"name": "night-shift", "entry-points": {}})
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(block("python", 1), namespace)  # noqa: S102 - our own page
    assert namespace["choice"].node == "large"


@pytest.mark.parametrize(
    ("group", "name", "value", "told"),
    [
        ("nodestate.filters", "awake", "night_shift:nothing", r"'awake' of nodestate\.filters .* can't be loaded"),
        ("nodestate.filters", "status", "night_shift:awake", r"'status' of nodestate\.filters: the name is taken"),
        ("nodestate.weighers", "cpu", "night_shift:ROOMY", r"'cpu' of nodestate\.weighers: the name is taken"),
        ("nodestate.filters", "doc", "night_shift:__doc__", r"'doc' of nodestate\.filters .* is a str"),
    ],
)
def test_an_error_names_the_bad_entry_point(install: Install, group: str, name: str, value: str, told: str) -> None:
    """A scheduler that ignored a filter would place instances on nodes that its operator excluded."""
    install(block("python"), {"name": "night-shift", "entry-points": {group: {name: value}}})
    with pytest.raises(ConfigError, match=told):
        installed()

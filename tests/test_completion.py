"""A shell completes commands, options and names of nodes, and is never kept waiting or disturbed by an error."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner

from nodestate.cli import main
from nodestate.cli.completion import SHELLS, VARIABLE
from nodestate.store.memory import process_server
from nodestate.testing import ManualClock
from tests.partition_owner import Owner, report

NODES = ["compute-1", "compute-2", "compute-33", "gpu-1"]


@pytest.fixture
def _nodes_in_the_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The store of this process has nodes, in a cell of one partition."""
    monkeypatch.setenv("NODESTATE_PARTITIONS", "1")
    process_server.cache_clear()
    owner = Owner("snapshot", process_server(), ManualClock())
    owner.begin()
    owner.commit(*[report(name, 1, status="up") for name in NODES])
    yield
    process_server.cache_clear()


def completed(*words: str, env: Mapping[str, str] | None = None) -> list[str]:
    """The completions of the last word, as bash asks for them."""
    asked = {VARIABLE: "bash_complete", "COMP_WORDS": " ".join(["nodestate", *words]), "COMP_CWORD": str(len(words))}
    answer = CliRunner().invoke(main, [], env={**asked, **(env or {})}, prog_name="nodestate")
    assert answer.exit_code == 0, answer.output
    assert answer.stderr == ""
    return [line.split(",", 1)[1] for line in answer.stdout.split()]


@pytest.mark.usefixtures("_nodes_in_the_store")
@pytest.mark.parametrize(
    "words",
    [
        ("evacuate", "comp"),
        ("view", "--node", "comp"),
        ("migrate", "web-1", "--to", "comp"),
        ("resync", "--node", "gpu-1", "--node", "comp"),
        ("retag", "compute-1", "comp"),
        ("key", "node", "comp"),
    ],
    ids=" ".join,
)
def test_names_of_nodes_are_completed(words: tuple[str, ...]) -> None:
    assert completed(*words) == ["compute-1", "compute-2", "compute-33"]


@pytest.mark.usefixtures("_nodes_in_the_store")
def test_options_before_the_name_choose_the_cell() -> None:
    assert completed("evacuate", "--cell", "another", "comp") == []


@pytest.mark.parametrize(
    "options",
    [
        ("--store", "memcached://127.0.0.1:1"),
        ("--store", "no-url"),
        ("--config", "nowhere.toml"),
        ("--partitions", "0"),
    ],
    ids=" ".join,
)
def test_a_store_that_cannot_be_read_completes_nothing_and_prints_no_error(options: tuple[str, ...]) -> None:
    assert completed("evacuate", *options, "comp") == []


def test_commands_and_options_are_completed() -> None:
    assert completed("eva") == ["evacuate"]
    assert "--max-age" in completed("view", "--max")


@pytest.mark.parametrize("shell", SHELLS)
def test_script_for_each_shell_is_accepted_by_the_shell(shell: str, tmp_path: Path) -> None:
    answer = CliRunner().invoke(main, ["completion", shell])
    assert answer.exit_code == 0
    assert VARIABLE in answer.stdout
    script = tmp_path / "script"
    script.write_text(answer.stdout)
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    checked = subprocess.run([program, "-n", str(script)], capture_output=True, check=False)  # noqa: S603 - a shell
    assert checked.returncode == 0, checked.stderr

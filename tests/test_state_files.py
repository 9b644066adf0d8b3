"""An agent's state files are private to its user, and no symbolic link leads an agent to another file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nodestate.agent.allocation_file import AllocationChange, AllocationFile
from nodestate.agent.incarnation import IncarnationLock, files_ahead, next_incarnation, state_directory
from nodestate.config import Config
from nodestate.errors import ConfigError

NOW = 1_763_787_600.5


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def start_agent(directory: Path) -> None:
    with IncarnationLock(directory, "n1", NOW):
        allocations = AllocationFile(directory, "fleet")
        allocations.open()
        allocations.save([AllocationChange("n1", "vm-1", {"resources": {"VCPU": 1}})])
        allocations.close()


def test_state_files_and_new_directories_are_private_whatever_the_umask(tmp_path: Path) -> None:
    directory = state_directory(Config(state_dir=str(tmp_path / "a" / "b")))
    before = os.umask(0)
    try:
        start_agent(directory)
    finally:
        os.umask(before)
    assert {path.name: mode_of(path) for path in directory.iterdir()} == {
        "n1.incarnation": 0o600,
        "n1.lock": 0o600,
        "fleet.allocations": 0o600,
    }
    assert [mode_of(path) for path in (directory, directory.parent, directory.parent.parent)] == [0o700] * 3


def test_files_of_an_earlier_version_become_private_at_the_next_start(tmp_path: Path) -> None:
    start_agent(tmp_path)
    for path in tmp_path.iterdir():
        path.chmod(0o644)
    (tmp_path / "fleet.allocations.new").write_text("left by a crash")
    start_agent(tmp_path)
    assert {mode_of(path) for path in tmp_path.iterdir()} == {0o600}
    assert next_incarnation(tmp_path, "n1", NOW) == int(NOW) + 2


@pytest.mark.parametrize(
    "name", ["n1.incarnation", "n1.lock", "n1.incarnation.new", "fleet.allocations", "fleet.allocations.new"]
)
@pytest.mark.parametrize("plant", [Path.symlink_to, lambda path, _target: path.symlink_to("nowhere")])
def test_a_symbolic_link_is_refused_by_name_and_its_target_stays(
    name: str, plant: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    """Regression: an agent of root wrote into whatever file a link in its directory named."""
    target = tmp_path / "target"
    target.write_text("precious")
    directory = tmp_path / "cell1"
    directory.mkdir()
    plant(directory / name, target)
    with pytest.raises(ConfigError, match=f"a symbolic link is not followed, .*{name}'"):
        start_agent(directory)
    assert target.read_text() == "precious"
    assert (directory / name).is_symlink()
    assert not (tmp_path / "nowhere").exists()
    assert files_ahead(directory, 0.0) == ([] if name == "n1.incarnation" else files_ahead(directory, 0.0))


def test_a_directory_into_which_every_user_may_write_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "cell1"
    directory.mkdir()
    directory.chmod(0o777)
    with pytest.raises(ConfigError, match=r"every user may write into the directory, run chmod o-w: '.*/cell1'"):
        start_agent(directory)

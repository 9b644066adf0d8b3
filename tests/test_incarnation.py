"""Incarnations are larger at each start, on disk before they are used, and held by one agent per name."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from nodestate.agent.incarnation import IncarnationLock, next_incarnation, state_directory
from nodestate.config import Config
from nodestate.errors import BadEventError, ConfigError
from nodestate.findings.agent_checks import examine_incarnations
from nodestate.model import Heartbeat, check_clock

NOW = 1_763_787_600.5
RUNNING_AGENT = """
import sys, time
from nodestate.agent.incarnation import IncarnationLock
lock = IncarnationLock(*sys.argv[1:], 5.0)
print(lock.incarnation, flush=True)
time.sleep(60)
"""


def test_the_first_incarnation_is_the_clocks_seconds(tmp_path: Path) -> None:
    assert next_incarnation(tmp_path, "compute-1", NOW) == 1_763_787_600


def test_incarnations_within_one_second_differ(tmp_path: Path) -> None:
    incarnations = [next_incarnation(tmp_path, "compute-1", NOW) for _ in range(3)]
    assert incarnations == [1_763_787_600, 1_763_787_601, 1_763_787_602]


def test_a_clock_that_was_set_back_still_gives_a_larger_incarnation(tmp_path: Path) -> None:
    """Otherwise consumers would drop all reports of the agent as older ones until its clock has caught up."""
    last = next_incarnation(tmp_path, "compute-1", NOW)
    assert next_incarnation(tmp_path, "compute-1", NOW - 86_400) == last + 1


def test_an_agent_names_the_file_at_its_start_if_it_once_began_with_its_clock_ahead(tmp_path: Path) -> None:
    """V5: a smaller number could be ignored for ever, by consumers whose clocks were ahead, too."""
    next_incarnation(tmp_path, "compute-1", NOW + 3 * 86_400)
    with capture_logs() as logs:
        next_incarnation(tmp_path, "compute-1", NOW)
        next_incarnation(tmp_path, "compute-2", NOW)
    [error] = logs
    assert (error["log_level"], error["file"]) == ("error", str(tmp_path / "compute-1.incarnation"))
    assert "delete the file" in error["event"]


def test_doctor_names_the_file_of_an_agent_that_once_began_with_its_clock_ahead(tmp_path: Path) -> None:
    """V5: each later incarnation is one more than that one, so consumers refuse all of them."""
    config = Config(cell="cell1", state_dir=str(tmp_path))
    next_incarnation(state_directory(config), "compute-2", NOW)
    next_incarnation(state_directory(config), "compute-1", NOW + 3 * 86_400)
    ahead = next_incarnation(state_directory(config), "compute-1", NOW)
    with pytest.raises(BadEventError) as caught:
        check_clock(Heartbeat(node="compute-1", incarnation=ahead, generation=1, reported_at=NOW), NOW)
    assert "delete the agent's .incarnation file" in caught.value.detail
    [finding] = examine_incarnations(config, NOW)
    path = state_directory(config) / "compute-1.incarnation"
    assert f"{path} says {ahead}, 3 d ahead" in finding.says
    assert f"delete {path}" in finding.advice
    path.unlink()
    remedied = next_incarnation(state_directory(config), "compute-1", NOW)
    check_clock(Heartbeat(node="compute-1", incarnation=remedied, generation=1, reported_at=NOW), NOW)
    assert list(examine_incarnations(config, NOW)) == []


def test_a_user_without_a_home_directory_has_no_state_directory_and_no_finding() -> None:
    """Regression: /health of a service with DynamicUser=yes answered 500, because Path.home() raised RuntimeError."""
    code = (
        "import os\n"
        "from nodestate.agent.incarnation import state_directory\n"
        "from nodestate.config import Config\n"
        "from nodestate.findings.agent_checks import examine_incarnations\n"
        "os.setuid(61999)\n"
        "del os.environ['HOME']\n"
        "print(list(examine_incarnations(Config(), 5.0)))\n"
        "state_directory(Config())\n"
    )
    if os.geteuid() != 0:
        pytest.skip("only root can become a user that does not exist")
    done = subprocess.run(  # noqa: S603 - the constant above
        [sys.executable, "-c", code], env={**os.environ, "HOME": "/"}, capture_output=True, text=True, check=False
    )
    assert done.stdout == "[]\n", done.stderr
    assert done.stderr.endswith("this user has no home directory: set state_dir to a directory of its own\n")


def test_the_first_incarnation_of_a_machine_without_a_clock_is_one(tmp_path: Path) -> None:
    assert next_incarnation(tmp_path, "compute-1", 0.0) == 1


def test_an_incarnation_is_on_disk_before_it_is_used(tmp_path: Path) -> None:
    with IncarnationLock(tmp_path, "compute-1", NOW) as lock:
        kept = json.loads((tmp_path / "compute-1.incarnation").read_text())
        assert kept == {"node": "compute-1", "incarnation": lock.incarnation}


def test_an_agent_that_dies_while_it_writes_leaves_the_last_incarnation_in_the_file(tmp_path: Path) -> None:
    last = next_incarnation(tmp_path, "compute-1", NOW)
    (tmp_path / "compute-1.incarnation.new").write_text('{"node": "comp')  # the part that it had written
    assert next_incarnation(tmp_path, "compute-1", NOW - 5) == last + 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 40,
        b"1763787600",
        b'{"node": "compute-1"}',
        b'{"node": "compute-1", "incarnation": "1763787600"}',
        b'{"node": "compute-1", "incarnation": 0}',
        b'{"node": "compute-1", "incarnation": true}',
        b'{"node": "compute-1", "incarnation": 9007199254740993}',
        b'{"node": "compute-2", "incarnation": 1763787600}',
    ],
)
def test_a_damaged_incarnation_file_is_refused_with_its_remedy(tmp_path: Path, content: bytes) -> None:
    """A guessed number could be smaller than the last one."""
    (tmp_path / "compute-1.incarnation").write_bytes(content)
    with pytest.raises(ConfigError, match=r'"node": "compute-1", "incarnation": N'):
        next_incarnation(tmp_path, "compute-1", NOW)
    assert (tmp_path / "compute-1.incarnation").read_bytes() == content


def test_a_second_agent_of_the_same_name_is_refused_and_the_error_names_the_first(tmp_path: Path) -> None:
    with IncarnationLock(tmp_path, "compute-1", NOW):
        with pytest.raises(ConfigError, match=r"another agent \(process \d+\) reports compute-1 already"):
            IncarnationLock(tmp_path, "compute-1", NOW)
        IncarnationLock(tmp_path, "compute-2", NOW).close()
    IncarnationLock(tmp_path, "compute-1", NOW).close()


def test_a_refused_second_agent_uses_up_no_incarnation(tmp_path: Path) -> None:
    with IncarnationLock(tmp_path, "compute-1", NOW) as lock:
        with pytest.raises(ConfigError):
            IncarnationLock(tmp_path, "compute-1", NOW)
        first = lock.incarnation
    assert next_incarnation(tmp_path, "compute-1", NOW) == first + 1


def test_the_name_of_a_killed_agent_is_free(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUNNING_AGENT, str(tmp_path), "compute-1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as agent:  # noqa: S603 - our own script
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"5\n"
        with pytest.raises(ConfigError, match=f"process {agent.pid}"):
            next_incarnation(tmp_path, "compute-1", 5.0)
        agent.kill()
        agent.wait()
    assert next_incarnation(tmp_path, "compute-1", 5.0) == 6


def _start_agents(directory: str, incarnations: int) -> list[int]:
    numbers = []
    while len(numbers) < incarnations:
        try:
            numbers.append(next_incarnation(directory, "compute-1", 5.0))
        except ConfigError:  # another process holds the name now
            continue
    return numbers


def test_agents_that_start_at_the_same_time_never_share_an_incarnation(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        incarnations = pool.starmap(_start_agents, [(str(tmp_path), 10)] * 3)
    assert sorted(number for numbers in incarnations for number in numbers) == list(range(5, 35))


@pytest.mark.parametrize("name", ["", "a/b", "../up", "ä", "x" * 201])
def test_an_invalid_agent_name_makes_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="can't be an agent's name"):
        next_incarnation(tmp_path, name, NOW)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_directory_is_refused_and_the_error_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ConfigError, match="state_dir"):
        next_incarnation(tmp_path / "taken", "compute-1", NOW)


def test_cells_keep_separate_incarnations(tmp_path: Path) -> None:
    """A machine may belong to two cells; it then runs one agent for each."""
    one = state_directory(Config(cell="one", state_dir=str(tmp_path)))
    two = state_directory(Config(cell="two", state_dir=str(tmp_path)))
    with IncarnationLock(one, "compute-1", NOW), IncarnationLock(two, "compute-1", NOW):
        assert one != two

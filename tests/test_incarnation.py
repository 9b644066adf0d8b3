"""Which life of an agent this is: larger each time, on disk first, and one agent per name."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest

from nodestate.agent.incarnation import IncarnationLock, next_incarnation, state_directory
from nodestate.config import Config
from nodestate.errors import ConfigError

NOW = 1_763_787_600.5
LIVING_AGENT = """
import sys, time
from nodestate.agent.incarnation import IncarnationLock
life = IncarnationLock(*sys.argv[1:], 5.0)
print(life.incarnation, flush=True)
time.sleep(60)
"""


def test_the_first_life_is_the_clocks_seconds(tmp_path: Path) -> None:
    assert next_incarnation(tmp_path, "compute-1", NOW) == 1_763_787_600


def test_lives_within_one_second_still_differ(tmp_path: Path) -> None:
    lives = [next_incarnation(tmp_path, "compute-1", NOW) for _ in range(3)]
    assert lives == [1_763_787_600, 1_763_787_601, 1_763_787_602]


def test_a_clock_that_was_set_back_still_gives_a_later_life(tmp_path: Path) -> None:
    """Else all that the agent reports is taken for older than what is known, until the clock has caught up."""
    last = next_incarnation(tmp_path, "compute-1", NOW)
    assert next_incarnation(tmp_path, "compute-1", NOW - 86_400) == last + 1


def test_a_machine_without_a_clock_begins_at_one(tmp_path: Path) -> None:
    assert next_incarnation(tmp_path, "compute-1", 0.0) == 1


def test_the_number_is_on_disk_before_it_is_used(tmp_path: Path) -> None:
    with IncarnationLock(tmp_path, "compute-1", NOW) as life:
        kept = json.loads((tmp_path / "compute-1.incarnation").read_text())
        assert kept == {"node": "compute-1", "incarnation": life.incarnation}


def test_an_agent_that_dies_while_it_writes_leaves_the_last_life_as_it_was(tmp_path: Path) -> None:
    last = next_incarnation(tmp_path, "compute-1", NOW)
    (tmp_path / "compute-1.incarnation.new").write_text('{"node": "comp')  # what it had written so far
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
def test_a_damaged_file_is_refused_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    """A guess could make the new life look older than the last."""
    (tmp_path / "compute-1.incarnation").write_bytes(content)
    with pytest.raises(ConfigError, match=r'"node": "compute-1", "incarnation": N'):
        next_incarnation(tmp_path, "compute-1", NOW)
    assert (tmp_path / "compute-1.incarnation").read_bytes() == content


def test_a_second_agent_of_the_same_name_is_told_who_the_first_is(tmp_path: Path) -> None:
    with IncarnationLock(tmp_path, "compute-1", NOW):
        with pytest.raises(ConfigError, match=r"another agent \(process \d+\) reports compute-1 already"):
            IncarnationLock(tmp_path, "compute-1", NOW)
        IncarnationLock(tmp_path, "compute-2", NOW).close()
    IncarnationLock(tmp_path, "compute-1", NOW).close()


def test_the_second_agent_did_not_use_up_a_life(tmp_path: Path) -> None:
    with IncarnationLock(tmp_path, "compute-1", NOW) as life:
        with pytest.raises(ConfigError):
            IncarnationLock(tmp_path, "compute-1", NOW)
        first = life.incarnation
    assert next_incarnation(tmp_path, "compute-1", NOW) == first + 1


def test_the_name_of_an_agent_that_was_killed_is_free(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIVING_AGENT, str(tmp_path), "compute-1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as agent:  # noqa: S603 - our own script
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"5\n"
        with pytest.raises(ConfigError, match=f"process {agent.pid}"):
            next_incarnation(tmp_path, "compute-1", 5.0)
        agent.kill()
        agent.wait()
    assert next_incarnation(tmp_path, "compute-1", 5.0) == 6


def _live(directory: str, lives: int) -> list[int]:
    numbers = []
    while len(numbers) < lives:
        try:
            numbers.append(next_incarnation(directory, "compute-1", 5.0))
        except ConfigError:  # the others have it just now
            continue
    return numbers


def test_agents_that_start_at_the_same_time_never_share_a_life(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        lives = pool.starmap(_live, [(str(tmp_path), 10)] * 3)
    assert sorted(number for numbers in lives for number in numbers) == list(range(5, 35))


@pytest.mark.parametrize("name", ["", "a/b", "../up", "ä", "x" * 201])
def test_a_name_that_no_node_can_have_makes_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="is no name of a node"):
        next_incarnation(tmp_path, name, NOW)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_is_refused_naming_the_setting(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ConfigError, match="state_dir"):
        next_incarnation(tmp_path / "taken", "compute-1", NOW)


def test_cells_keep_their_lives_apart(tmp_path: Path) -> None:
    """One machine may stand in two cells; its agents are two."""
    one = state_directory(Config(cell="one", state_dir=str(tmp_path)))
    two = state_directory(Config(cell="two", state_dir=str(tmp_path)))
    with IncarnationLock(one, "compute-1", NOW), IncarnationLock(two, "compute-1", NOW):
        assert one != two
